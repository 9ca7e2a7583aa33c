"""Help is quick: no --help imports torch or anything else that is heavy."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import typer
from typer.core import TyperGroup

from tser_cli.cli import distill
from tser_cli.cli.app import COMMANDS, app

PROBE = """
import json, sys
sys.argv = ["tser", *json.loads(sys.argv[1])]
from tser_cli.cli.app import main
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "torchvision", "spikingjelly", "pandas", "matplotlib", "sklearn", "accelerate"}
heavy |= {"numpy", "tensorboard", "safetensors"}
print("\\n" + json.dumps([code, sorted(heavy & set(sys.modules))]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["methods"],
        ["ablate", "--help"],
        ["--version"],
        ["train-teacher", "--help"],
        ["distill", "--help"],
        ["evaluate", "--help"],
        ["energy", "--help"],
        ["doctor", "--help"],
        ["runs"],
        ["list", "models"],
        ["list", "recipes", "--json"],
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert done.stdout.strip()


def test_methods_tell_their_weights_and_where_they_differ() -> None:
    command = [sys.executable, "-m", "tser_cli", "methods"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (tsd,) = [line for line in done.stdout.splitlines() if line.startswith("  tsd ")]
    assert "alpha 0.2, beta 0.5" in tsd and "ce_weight" not in tsd
    assert (
        "most methods also read entropy_weight 0.0, rate_weight 0.0, ce_weight 1.0" in done.stdout
    )
    assert "\n  bkd: the features' weight multiplies a mean, theirs a sum" in done.stdout


def help_of(*words: str, **environment: str) -> str:
    command = [sys.executable, "-m", "tser_cli", *words, "--help"]
    surroundings = {**os.environ, "COLUMNS": "120", **environment}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=surroundings)
    return done.stdout


def test_the_help_has_its_commands_in_panels() -> None:
    text = help_of()
    places = [text.index(f" {title} ──") for title in ("Train", "Measure", "Use", "About")]
    assert places == sorted(places)
    assert text.index("│ distill ") < places[1] < text.index("│ evaluate ") < places[2]
    assert all(f"│ {name} " in text for name, *_ in COMMANDS)


def test_a_help_has_its_options_in_panels_and_ends_with_examples() -> None:
    text = help_of("distill")
    titles = ("Networks and method", "Data", "Training", "Machine", "Settings", "Places", "Output")
    places = [text.index(f" {title} ──") for title in titles]
    assert places == sorted(places)
    assert text.rstrip().endswith(f"   {distill.EXAMPLES[-1]}")
    assert text.index("Examples") > places[-1]


def test_no_color_in_the_help() -> None:
    assert "\x1b[" in help_of("list", FORCE_COLOR="1")
    assert "\x1b[3" not in help_of("list", FORCE_COLOR="1", NO_COLOR="1")  # bold may stay


@pytest.mark.parametrize("entry", COMMANDS, ids=lambda entry: entry[0])
def test_every_example_parses(entry: tuple[str, Any, str, Sequence[str]]) -> None:
    name, _, _, examples = entry
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert examples
    for line in examples:
        program, command, *words = shlex.split(line)
        assert (program, command) == ("tser", name)
        for parameter in group.commands[name].params:
            if parameter.name == "plugin":
                parameter.callback = None  # it would import the plug-in
        group.commands[name].make_context(name, words)
