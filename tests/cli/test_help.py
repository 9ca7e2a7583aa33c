"""Help is quick: no --help imports torch or anything else that is heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

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
    assert "tser" in done.stdout


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
