"""The table of verbs: help that is light and complete, lists, requests, exit codes, wings."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

import tser_cli
from tests.command import call
from tser_cli.cli.app import app
from tser_cli.cli.options import is_there
from tser_cli.cli.verbs import VERBS, Verb, load
from tser_cli.energy.prices import PROFILES
from tser_cli.engine.commands import doctor
from tser_cli.engine.commands.doctor import NOTE, OK, WRONG, Checkup
from tser_cli.engine.page import gather
from tser_cli.report import lists
from tser_cli.settings import recipe, registry
from tser_cli.settings.wing_options import ReportRequest

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
        *("--help", "list methods", "ablate --help", "--version", "train-teacher --help"),
        *("distill --help", "evaluate --help", "energy --help", "doctor --help", "runs"),
        *("list models", "list recipes --json"),
    ],
)
def test_help_is_light(arguments: str) -> None:
    command = [sys.executable, "-c", PROBE, json.dumps(arguments.split())]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert done.stdout.strip()


def tser(*words: str, folder: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tser_cli", *words]
    environment = {**os.environ, "COLUMNS": "200", **more}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


def test_methods_tell_their_weights_and_where_they_differ() -> None:
    done = tser("methods")  # as `tser list methods` was spelled before
    assert done.stdout == tser("list", "methods").stdout
    (tsd,) = [line for line in done.stdout.splitlines() if line.startswith("  tsd ")]
    assert "alpha 0.2, beta 0.5" in tsd and "ce_weight" not in tsd
    assert (
        "most methods also read entropy_weight 0.0, rate_weight 0.0, ce_weight 1.0" in done.stdout
    )
    assert "\n  bkd: the features' weight multiplies a mean, theirs a sum" in done.stdout


def help_of(*words: str, folder: Path | None = None, **environment: str) -> str:
    done = tser(*words, "--help", folder=folder, **{"COLUMNS": "120", **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_help_has_its_commands_in_panels() -> None:
    text = help_of()
    places = [text.index(f" {title} ──") for title in ("Train", "Measure", "Use", "About")]
    assert places == sorted(places)
    assert text.index("│ distill ") < places[1] < text.index("│ evaluate ") < places[2]
    assert all((f"│ {verb.name} " in text) is not verb.hidden for verb in VERBS)


def test_a_help_has_its_options_in_panels_and_ends_with_examples() -> None:
    text = help_of("distill")
    titles = ("Networks and method", "Data", "Training", "Machine", "Settings", "Places", "Output")
    places = [text.index(f" {title} ──") for title in titles]
    assert places == sorted(places)
    assert text.rstrip().endswith(f"   {VERBS[0].examples[-1]}")
    assert text.index("Examples") > places[-1]


def test_no_color_in_the_help() -> None:
    assert "\x1b[" in help_of("list", FORCE_COLOR="1")
    assert "\x1b[3" not in help_of("list", FORCE_COLOR="1", NO_COLOR="1")  # bold may stay


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_example_parses(verb: Verb) -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    assert verb.examples
    for line in verb.examples:
        program, name, *words = shlex.split(line)
        assert program == "tser" and (name == verb.name or verb.hidden)
        for parameter in group.commands[name].params:
            if parameter.name == "plugin":
                parameter.callback = None  # it would import the plug-in
        group.commands[name].make_context(name, words)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_what_a_verb_names_is_there(verb: Verb) -> None:
    assert callable(load(verb.run)) and callable(load(verb.show))
    assert is_there(*verb.needs)
    wings = ("ablate", "audit", "compare", "report", "predict", "quantize", "export", "runs")
    assert bool(verb.needs) is (verb.name in (*wings, "doctor"))


def test_a_verb_whose_wing_is_off_is_not_offered(tmp_path: Path) -> None:
    shutil.copytree(Path(tser_cli.__file__).parent, tmp_path / "tser_cli")
    for verb in VERBS:
        for path in verb.needs:
            gone = tmp_path / "tser_cli" / path
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    (tmp_path / "tser_cli" / "engine" / "commands" / "dry_run.py").unlink()

    def said(*words: str) -> str:
        return help_of(*words, folder=tmp_path, PYTHONPATH=str(tmp_path))

    text = said()
    for verb in VERBS:
        assert (f"│ {verb.name} " in text) is not (verb.hidden or bool(verb.needs))
    assert "--dry-run" not in said("distill")
    energy = said("energy")
    assert "--profile" in energy and "--network" not in energy and "--match" not in energy


def test_what_needs_another_wing_is_not_offered_without_it(tmp_path: Path) -> None:
    shutil.copytree(Path(tser_cli.__file__).parent, tmp_path / "tser_cli")
    shutil.rmtree(tmp_path / "tser_cli" / "energy" / "conventions")
    text = help_of(folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert "│ audit " not in text and "│ report " not in text and "│ compare " in text
    energy = help_of("energy", folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert "--profile" in energy and "--network" not in energy


PLUGIN = """
from tser_cli import add_dataset, add_model

@add_model("mynet", spiking_only=True)
def build(how):
    raise RuntimeError("a list builds nothing")

@add_dataset("mydata", own_images=True)
def load(config):
    raise RuntimeError("a list loads nothing")
"""


def test_what_a_list_says() -> None:
    known = {"methods": registry.METHODS, "models": registry.MODELS}
    known |= {"datasets": registry.DATASETS, "recipes": dict.fromkeys(recipe.available())}
    for what, names in known.items():
        assert [row["name"] for row in lists.ROWS[what]()] == list(names)
    every = [*(make() for make in lists.ROWS.values()), lists.profiles(PROFILES.values())]
    rows = {row["name"]: row for rows in every for row in rows}
    assert rows["sew_resnet18"]["as"] == "SNN"
    assert rows["vgg11"]["as"] == "ANN, SNN"
    assert rows["npz"]["images"] == "your own, in --data-dir"
    assert rows["cifar10"]["student recipe"] == "cifar10/resnet18_tser"
    assert (rows["loihi"]["MAC pJ"], rows["loihi"]["AC pJ"]) == (23.6, 23.6)
    assert rows["dkd"]["weights"]["entropy_weight"] == 0.0
    assert rows["fashion-mnist/resnet20_teacher"]["about"].startswith("A small teacher for a CPU.")
    assert not any("command:" in row["about"] for row in lists.recipes())


def test_names_of_plug_ins_are_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    models = tser("list", "models", "--plugin", "mine.py", folder=tmp_path)
    assert [line.split() for line in models.stdout.splitlines()][-2] == ["mynet", "SNN", "mine"]
    datasets = tser("list", "datasets", "--plugin", "mine.py", "--json", folder=tmp_path)
    found = {row["name"]: row for row in json.loads(datasets.stdout)}
    assert found["mydata"]["images"] == "your own, in --data-dir"
    assert found["mydata"]["from"] == "mine"
    assert "mynet" not in tser("list", "models", folder=tmp_path).stdout


def test_a_list_that_is_none() -> None:
    rows = json.loads(tser("list", "profiles", "--json").stdout)
    assert [row["name"] for row in rows] == list(PROFILES)
    done = tser("list", "modls")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'unknown list "modls" (did you mean "models"?). Known: datasets, methods' in done.stderr


def test_flags_become_a_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[ReportRequest] = []
    monkeypatch.setattr(gather, "make_report", lambda request: asked.append(request))
    given = ("a", "b", "--output", "page.html", "--no-measure", "--images", "7")
    assert call("report", *given, "--device", "cpu", "--runs-dir", str(tmp_path)) == 0
    (request,) = asked
    assert request.subjects == (Path("a"), Path("b")) and request.output == Path("page.html")
    assert not request.measure and request.images == 7 and request.runs_dir == tmp_path
    assert request.changes["training.device"] == "cpu"


@pytest.mark.parametrize(("state", "code"), [(OK, 0), (NOTE, 0), (WRONG, 4)])
def test_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], state: str, code: int
) -> None:
    checks = (Checkup("one", OK, "fine"), Checkup("two", state, "[x]\x1b", "mend it"))
    monkeypatch.setattr(doctor, "examine", lambda request: checks)
    assert call("doctor") == code
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[0] == ["ok", "one", "fine"]
    assert lines[1] == [state, "two", "[x]\\x1b"]
    assert lines[2] == ["to", "do:", "mend", "it"]
    assert call("doctor", "--json") == code
    assert [check["state"] for check in json.loads(capsys.readouterr().out)] == [OK, state]
