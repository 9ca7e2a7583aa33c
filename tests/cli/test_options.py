"""Options of a request: spread out for typer, gathered for the command, completed in the shell."""

import inspect
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tests.command import Invoke
from tser_cli.base.errors import ConfigError
from tser_cli.cli import terminal
from tser_cli.cli.options import offered, spread
from tser_cli.cli.verbs import VERBS, Verb
from tser_cli.settings import options
from tser_cli.settings.options import DistillRequest, EnergyRequest, EvaluateRequest, option
from tser_cli.settings.wing_options import AblateRequest, AuditRequest


@dataclass(frozen=True)
class Group:
    """Do it."""

    name: str = option(help="what", default=options.REQUIRED)
    epochs: int = option("--epochs", "how long", options.TRAINING, default=3)
    folder: Path | None = option("--folder", "where", options.DATA)
    again: int = option("--again", "how often", least=1, default=0)
    words: tuple[str, ...] = option("--word", "which", default=())
    python: int = 7


def called(*words: str) -> tuple[int, list[Any]]:
    asked: list[Any] = []
    app = typer.Typer()
    app.command()(spread(Group, lambda request, as_json: asked.append((request, as_json)), True))
    return CliRunner().invoke(app, list(words)).exit_code, asked


def test_a_request_becomes_its_options_in_the_order_of_panels() -> None:
    function = spread(Group, lambda request, as_json: None, json=True)
    parameters = inspect.signature(function).parameters
    shown = ["name", "again", "words", "folder", "epochs", "as_json", "quiet", "verbose"]
    assert list(parameters) == shown
    assert parameters["epochs"].default == 3
    assert parameters["name"].default is inspect.Parameter.empty
    assert function.__doc__ == "Do it."


def test_the_command_is_given_the_request(tmp_path: Path) -> None:
    code, asked = called("x", "--folder", str(tmp_path), "--word", "a", "--word", "b", "--json")
    assert (code, asked) == (0, [(Group("x", 3, tmp_path, 0, ("a", "b")), True)])
    assert called("x") == (0, [(Group("x"), False)])
    assert called("--folder", str(tmp_path))[0] == 2
    assert called("x", "--again", "0")[0] == 2


def test_how_much_is_shown_is_chosen_for_each_call() -> None:
    try:
        called("x", "--quiet")
        assert (terminal.is_quiet(), terminal.is_verbose()) == (True, False)
        assert terminal.LOG.getEffectiveLevel() > terminal.logging.INFO
        called("x", "--verbose")
        assert (terminal.is_quiet(), terminal.is_verbose()) == (False, True)
        assert terminal.LOG.getEffectiveLevel() == terminal.logging.INFO
    finally:
        terminal.choose(quiet=False, verbose=False)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb.name)
def test_every_option_of_a_command_is_there_once(verb: Verb) -> None:
    found = [one.option for one in offered(verb.request, json=True)]
    flags = [flag for one in found for flag in one.flags.split()]
    assert len(flags) == len(set(flags))
    assert {one.panel for one in found if one.panel} <= set(options.PANELS)


def test_every_training_takes_the_same_options() -> None:
    def flags(kind: type[Any]) -> set[str]:
        return {one.option.flags for one in offered(kind, json=True)}

    assert flags(options.TrainingRequest) <= flags(DistillRequest) <= flags(AblateRequest)


def test_a_flag_that_was_not_given_sets_nothing() -> None:
    assert DistillRequest().changes == {}
    request = DistillRequest(timesteps=0, data_dir="", settings={"optimizer.momentum": 0.5})
    assert request.changes == {"data.dir": "", "model.timesteps": 0, "optimizer.momentum": 0.5}
    assert request.flags_by_setting == {"data.dir": "--data-dir", "model.timesteps": "-T"}
    assert EvaluateRequest(batch_size=5).changes == {"training.eval_batch_size": 5}


@pytest.mark.parametrize(
    ("kind", "given", "said"),
    [
        (DistillRequest, {"resume": "maybe"}, '--resume "maybe": use one of auto, must, never'),
        (AblateRequest, {"seed": 1, "seeds": 2}, "--seed and --seeds"),
        (AblateRequest, {"ablation": "x", "recipe": "y"}, "and --recipe: give one of them"),
        (EnergyRequest, {"output": "r.csv", "long": True, "wide": True}, "--long and --wide"),
        (EnergyRequest, {"output": "r.csv", "layout": "folded"}, "--layout: only with --network"),
        (AuditRequest, {"network": "a:b", "input_shape": "3", "run": "x"}, "--run: not with"),
        (AuditRequest, {"network": "a:b"}, "say what feeds it"),
    ],
)
def test_options_that_do_not_fit_together(
    kind: type[Any], given: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        kind(**given)


PLUGIN = """
from tser_cli import add_dataset, add_model

@add_model("mynet")
def build(build): return build

@add_dataset("mydata")
def load(config): return config
"""


@pytest.mark.usefixtures("nothing_added")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tser distill --plugin names_to_complete --student my", "mynet"),
        ("tser distill --plugin names_to_complete --dataset my", "mydata"),
        ("tser train-teacher --plugin names_to_complete my", "mynet"),
        ("tser distill --plugin no_such_plug_in --method ts", "tsd"),
    ],
)
def test_names_are_completed(
    tser: Invoke, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str, found: str
) -> None:
    (tmp_path / "names_to_complete.py").write_text(PLUGIN)
    monkeypatch.setenv("_TSER_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split()) - 1))
    assert found in tser()[1].split()
