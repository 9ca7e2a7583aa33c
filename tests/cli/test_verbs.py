"""The table of verbs: help that is light and complete, lists, requests, exit codes, wings."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup

import tser_cli
from tests.command import Invoke, call
from tests.test_house import HEAVY
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

# One process for many lines, as a start takes a second: of each its exit code, what it has loaded
# that is heavy, and what it wrote.
PROGRAM = f"""
import contextlib, io, json, sys
from tser_cli.cli.app import main
told = []
for line in sys.argv[1:]:
    sys.argv = ["tser", *line.split()]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        main()
    told.append([sorted({HEAVY!r} & sys.modules.keys()), out.getvalue()])
print(json.dumps(told))
"""


def started(*lines: str, folder: Path, **environment: str) -> list[tuple[list[str], str]]:
    """Call `tser` in a process of its own: (heavy modules, standard output) of each line."""
    command = [sys.executable, "-c", PROGRAM, *lines]
    shell = {**os.environ, "COLUMNS": "120", **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=shell)
    assert (done.returncode, done.stderr) == (0, "")
    return [(heavy, out) for heavy, out in json.loads(done.stdout)]


def test_help_and_lists_are_light(tmp_path: Path) -> None:
    helps = [f"{verb.name} --help" for verb in VERBS]
    lists = ("list methods", "methods", "list models", "list datasets", "list recipes --json")
    lines = ("--help", "--version", *helps, *lists, "runs")
    found = started(*lines, folder=tmp_path)
    assert all(out.strip() and heavy == [] for heavy, out in found)
    said = {line: out for line, (_, out) in zip(lines, found, strict=True)}
    assert said["methods"] == said["list methods"]  # as it was spelled before


@pytest.fixture
def help_of(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The help of a command, 120 columns wide."""
    monkeypatch.setenv("COLUMNS", "120")
    return lambda *words: tser(*words, "--help")[1]


def test_methods_tell_their_weights_and_where_they_differ(
    tser: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    said = tser("list", "methods")[1]
    (tsd,) = [line for line in said.splitlines() if line.startswith("  tsd ")]
    assert "alpha 0.2, beta 0.5" in tsd and "ce_weight" not in tsd
    assert "most methods also read entropy_weight 0.0, rate_weight 0.0, ce_weight 1.0" in said
    assert "\n  bkd: the features' weight multiplies a mean, theirs a sum" in said


def test_the_help_has_its_commands_in_panels(help_of: Callable[..., str]) -> None:
    text = help_of()
    places = [text.index(f" {title} ──") for title in ("Train", "Measure", "Use", "About")]
    assert places == sorted(places)
    assert text.index("│ distill ") < places[1] < text.index("│ evaluate ") < places[2]
    assert all((f"│ {verb.name} " in text) is not verb.hidden for verb in VERBS)


def test_a_help_has_its_options_in_panels_and_ends_with_examples(
    help_of: Callable[..., str],
) -> None:
    text = help_of("distill")
    titles = ("Networks and method", "Data", "Training", "Machine", "Settings", "Places", "Output")
    places = [text.index(f" {title} ──") for title in titles]
    assert places == sorted(places)
    assert text.rstrip().endswith(f"   {VERBS[0].examples[-1]}")
    assert text.index("Examples") > places[-1]


@pytest.mark.parametrize("no_color", ["", "1"])
def test_no_color_in_the_help(tmp_path: Path, no_color: str) -> None:
    ((_, said),) = started("list --help", folder=tmp_path, FORCE_COLOR="1", NO_COLOR=no_color)
    assert ("\x1b[3" in said) is (no_color == "")  # bold may stay


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
    # what needs another wing is not offered without it
    shutil.rmtree(tmp_path / "tser_cli" / "energy" / "conventions")
    both = ("--help", "energy --help")
    (_, text), (_, energy) = started(*both, folder=tmp_path, PYTHONPATH=str(tmp_path))
    assert "│ audit " not in text and "│ report " not in text and "│ compare " in text
    assert "--profile" in energy and "--network" not in energy and "--match" not in energy
    for path in ["engine/commands/dry_run.py", *(path for verb in VERBS for path in verb.needs)]:
        gone = tmp_path / "tser_cli" / path
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink(missing_ok=True)
    lines = (*both, "distill --help")
    found = started(*lines, folder=tmp_path, PYTHONPATH=str(tmp_path))
    text, energy, distill = (out for _, out in found)
    for verb in VERBS:
        assert (f"│ {verb.name} " in text) is not (verb.hidden or bool(verb.needs))
    assert "--dry-run" not in distill
    assert "--profile" in energy and "--network" not in energy and "--match" not in energy


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
    assert rows["horowitz-45nm-int8"]["measured"] is False
    assert rows["horowitz-45nm-int8"]["16-bit AC pJ"] == 0.05
    assert rows["dkd"]["weights"]["entropy_weight"] == 0.0
    assert rows["fashion-mnist/resnet20_teacher"]["about"].startswith("A small teacher for a CPU.")
    assert not any("command:" in row["about"] for row in lists.recipes())


@pytest.mark.usefixtures("nothing_added")
def test_names_of_plug_ins_are_listed(tser: Invoke, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    assert "mynet" not in tser("list", "models")[1]
    models = tser("list", "models", "--plugin", "mine.py")[1]
    assert [line.split() for line in models.splitlines()][-2] == ["mynet", "SNN", "mine"]
    datasets = tser("list", "datasets", "--plugin", "mine.py", "--json")[1]
    found = {row["name"]: row for row in json.loads(datasets)}
    assert found["mydata"]["images"] == "your own, in --data-dir"
    assert found["mydata"]["from"] == "mine"


def test_a_list_that_is_none(tser: Invoke) -> None:
    rows = json.loads(tser("list", "profiles", "--json")[1])
    assert [row["name"] for row in rows] == list(PROFILES)
    shown = tser("list", "profiles")[1]
    assert "measured" in shown and "loihi: Intel 14 nm FinFET; Davies et al., Loihi" in shown
    code, out, err = tser("list", "modls")
    assert (code, out) == (2, "")
    assert 'unknown list "modls" (did you mean "models"?). Known: datasets, methods' in err


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
