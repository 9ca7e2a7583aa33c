"""What is shown of the results of the trunk's commands, as text and as JSON."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from tser_cli.cli import show, terminal
from tser_cli.cli.app import app
from tser_cli.engine.commands.dry_run import TrainingPlan
from tser_cli.engine.commands.energy import EnergyResult
from tser_cli.engine.commands.evaluate import EvaluateResult
from tser_cli.engine.runs.record import RunResult
from tser_cli.report.words import duration
from tser_cli.settings import plugins
from tser_cli.settings.config import Config
from tser_cli.settings.options import EnergyRequest, EvaluateRequest

Shown = Callable[[], list[str]]


def rows(teacher: float | None = 0.9) -> list[dict[str, Any]]:
    return [
        {
            "timesteps": 2,
            "t": t,
            "accuracy_at_t": 0.1 * t,
            "accuracy_cumulative": 0.2 * t,
            "correct_cumulative": 2 * t,
            "images": 11,
            "loss_at_t": 0.5,
            "entropy_at_t": 0.25,
            "confidence_at_t": 0.75,
            "teacher_accuracy": teacher,
        }
        for t in (1, 2)
    ]


RUN = RunResult(
    folder=Path("runs/student/digits/resnet20_[T2]_with_a_name_wider_than_eighty_columns_in_all"),
    kind="student",
    model="resnet20",
    dataset="digits",
    method="tser",
    timesteps=2,
    images=11,
    accuracy=0.4,
    teacher="resnet34",
    teacher_accuracy=0.9,
    best_validation_accuracy=None,
    energy_pj=1.0,
    ann_energy_pj=2.0,
    seconds=3.0,
    per_timestep=tuple(rows()),
)
AGAINST = {
    "assumptions": {"same": {"snn_pj": 9.2e6, "ann_pj": 4.6e7}},
    "steps_pj": [5e6, 9.2e6],
    "accuracy": [0.897, 0.9],
}
TRAINING = TrainingPlan(
    config=Config(),
    network="resnet20",
    parameters=1234567,
    teacher=None,
    train_images=1080,
    test_images=360,
    steps_per_epoch=9,
    steps=1260,
    step_seconds=0.25,
    device="cpu",
)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "0 s"), (119.4, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2.0 h")],
)
def test_a_duration_in_words(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_training_s_result(shown: Shown) -> None:
    show.show_run(RUN, ["tser evaluate --per-timestep", "tser energy report.csv"])
    lines = shown()
    table = [line.split() for line in lines if line.strip()[:1] in ("1", "2")]
    assert [cells[:5] for cells in table] == [
        ["1", "10.00", "%", "20.00", "%"],
        ["2", "20.00", "%", "40.00", "%"],
    ]
    assert any(line.split()[:3] == ["teacher", "90.00", "%"] for line in lines)
    assert lines[0] == (
        "36.36 % (4 of 11 test images right), 53.64 points below its teacher's 90.00 %"
    )
    assert lines[-4:] == [
        f"run folder: {RUN.folder}",
        "next:",
        "  tser evaluate --per-timestep",
        "  tser energy report.csv",
    ]


def test_whether_an_energy_budget_was_kept(shown: Shown) -> None:
    for energy_pj, verdict in ((3e6, "3 µJ of 3 µJ: kept"), (3.21e6, "3.21 µJ of 3 µJ: 7 % over")):
        show.show_run(replace(RUN, energy_pj=energy_pj, energy_budget_pj=3e6), [])
        assert f"energy budget: {verdict}" in shown()


def test_a_student_s_energy_in_the_result(shown: Shown) -> None:
    show.show_run(replace(RUN, against_ann=AGAINST), [])
    lines = shown()
    assert lines[0].endswith(
        "90.00 %; 9.2 µJ an image: cheaper than the same ANN in the same arithmetic"
    )
    assert "t = 1 alone has 89.70 % for 5 µJ; all steps 90.00 %." in lines
    assert not any("5.0 times less" in line for line in lines)
    terminal.choose(quiet=False, verbose=True)
    try:
        show.show_run(replace(RUN, against_ann=AGAINST), [])
    finally:
        terminal.choose(quiet=False, verbose=False)
    (row,) = [line.split() for line in shown() if "5.0 times less" in line]
    assert row[-7:] == ["9.2", "µJ", "46", "µJ", "5.0", "times", "less"]


def test_a_student_that_guesses_has_no_ratio(shown: Shown) -> None:
    guessed = [{**row, "chance": 4 / 11, "p_chance": 0.6, "p_teacher": 0.0} for row in rows()]
    show.show_run(replace(RUN, against_ann=AGAINST, per_timestep=tuple(guessed)), [])
    lines = shown()
    assert lines[0] == (
        "36.36 % (4 of 11 test images right), not better than guessing (the largest class is "
        "36.36 % of them); 9.2 µJ an image"
    )
    assert not any("than the" in line or "alone has" in line for line in lines)


def test_in_quiet_there_are_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.choose(quiet=True, verbose=False)
    try:
        show.show_run(RUN, ["tser evaluate --per-timestep"])
        progress = terminal.progress()
        progress.begin(epochs=1, steps=1, done_epochs=0)
        progress.say("a message")
        progress.epoch({})
        progress.warn("it is late")
        progress.end()
    finally:
        terminal.choose(quiet=False, verbose=False)
    out, err = capsys.readouterr()
    assert out.startswith("36.36 % (4 of 11 test images right)")
    assert out.splitlines()[-1] == f"run folder: {RUN.folder}"
    assert err == "warning: it is late\n"


def test_what_to_type_next() -> None:
    folder = Path("runs/teacher/digits/resnet34_s0")
    lines = show.next_after_teacher(folder, "imagenet", "/my data")
    assert [line.startswith("# ") for line in lines] == [True, False] * 3
    assert lines[1] == (
        f"tser distill --teacher {folder} --dataset imagenet --data-dir '/my data' -T 2"
    )
    assert lines[3].startswith(f"tser evaluate --run {folder} ")
    assert "--data-dir" not in show.next_after_teacher(folder, "digits", "")[1]
    here = show.next_after_student(Path("runs"))[1::2]
    assert [line.split()[1] for line in here] == ["report", "energy", "evaluate"]
    elsewhere = show.next_after_student(Path("my runs"))[1::2]
    assert all(line.endswith("--runs-dir 'my runs'") for line in elsewhere)


def test_what_to_type_next_names_the_plug_ins_and_can_be_typed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugins, "stated", lambda: ["/my code/net.py", "theirs"])
    monkeypatch.setattr(plugins, "load", lambda names: None)
    group: Any = typer.main.get_command(app)
    lines = show.next_after_teacher(Path("x"), "digits", "data")
    for line in [*lines, *show.next_after_student(Path("elsewhere"))][1::2]:
        assert " --plugin '/my code/net.py' --plugin theirs" in line
        program, name, *words = shlex.split(line, comments=True)
        assert program == "tser"
        group.commands[name].make_context(name, words)


def test_a_training_s_plan(shown: Shown) -> None:
    source = "resnet20 from a/[path]/longer/than/eighty/columns/of/a/terminal/model.safetensors"
    show.show_training_plan(replace(TRAINING, teacher=source))
    recipe, lines = "\n".join(shown()).split("network: ")
    assert Config.model_validate(tomllib.loads(recipe)) == TRAINING.config
    assert lines.splitlines() == [
        "resnet20, 1,234,567 parameters",
        f"teacher: {source}",
        "images: 1,080 to train on, 360 to test on",
        "steps: 9 an epoch, 1,260 in all",
        "time: about 5 min of training on cpu (250 ms a step, measured)",
    ]


EVALUATED = EvaluateResult("a_run", "validation", rows(None), Path("elsewhere.csv"), None, [], None)
EXIT = {
    "criterion": "entropy",
    "threshold": 0.5,
    "timesteps": 2,
    "accuracy": 0.8,
    "mean_steps": 1.25,
    "energy_pj": 500.0,
    "energy_full_pj": 1000.0,
    "share_exit_1": 0.75,
    "share_exit_2": 0.25,
    "chosen_on": "",
}


def test_an_evaluation_is_one_line_and_the_file(shown: Shown) -> None:
    show.show_evaluation(EVALUATED, EvaluateRequest())
    assert shown() == [
        "36.36 % (4 of 11 validation images right)",
        "table: elsewhere.csv",
    ]


def test_an_evaluation_with_all_that_can_be_asked_for(shown: Shown) -> None:
    files = {"figure": Path("figures/a.png"), "early_exit_table": Path("early_exit.csv")}
    result = replace(EVALUATED, early_exit_rows=[EXIT], **files)
    show.show_evaluation(result, EvaluateRequest(per_timestep=True))
    lines = shown()
    assert lines[0].startswith("36.36 %") and "a_run: accuracy" in lines[1]
    assert any("confidence" in line for line in lines)
    assert "figure: figures/a.png" in lines
    assert any(line.strip() == "early exit" for line in lines)
    (told,) = [line.split() for line in lines if "entropy <= 0.5" in line]
    assert told[3:] == [*("80.00", "%", "1.25", "0.5", "nJ", "50", "%", "75", "%,", "25", "%")]
    assert lines[-3:] == [
        *("table: elsewhere.csv", "figure: figures/a.png", "table: early_exit.csv")
    ]


@pytest.mark.parametrize(
    ("energy_pj", "kept", "said"),
    [(480.0, 1, "480 pJ of 500 pJ, kept;"), (510.0, 0, "510 pJ of 500 pJ, 2 % over;")],
)
def test_an_energy_budget(shown: Shown, energy_pj: float, kept: int, said: str) -> None:
    chosen = {"criterion": "confidence", "threshold": float("inf"), "energy_pj": energy_pj}
    chosen |= {"accuracy_full": 0.8125, "chosen_on": "validation", "budget_pj": 500.0, "kept": kept}
    result = replace(EVALUATED, early_exit_rows=[{**EXIT, **chosen}])
    assert result.kept is bool(kept)
    show.show_evaluation(result, EvaluateRequest())
    lines = shown()
    assert any(line.strip().startswith("never ") for line in lines)
    assert lines[-2] == (
        f"energy budget: {said} -1.25 points of accuracy against all steps; threshold chosen on "
        "validation images"
    )


def test_the_energy_of_a_run(shown: Shown) -> None:
    row = {"op": "MAC", "sop_value": 0, "macs": 2e6, "energy_pj": 9.2e6, "ann_energy_pj": 9.2e6}
    total = {**row, "op": "", "layer": "TOTAL", "t": "all", "ann_energy_pj": 4.6e7}
    document = {
        "images": 11,
        "profile": {"name": "chip", "source": "a lab", "measured": True, "step_seconds": 0.001},
        "teacher": None,
        "memory": None,
        "stem": {
            "layers": ["conv1"],
            "policy": "once_an_image",
            "total_energy_once_pj": 9.2e6,
            "total_energy_per_step_pj": 1.84e7,
        },
        "totals": {
            "energy_pj": 9.2e6,
            "ann_energy_pj": 4.6e7,
            "sop_value": 0,
            "macs": 2e6,
            "energy_formula_pj": 1e6,
            "neuron_updates": 10,
            "neuron_update_energy_pj": None,
        },
        "against_ann": AGAINST,
    }
    rows = [{**row, "layer": "conv1", "t": 1}, {**row, "layer": "conv1", "t": "all"}, total]
    files = (Path("report.csv"), Path("report.json"))
    last = {"correct_cumulative": 9, "images": 11, "chance": 0.2, "p_chance": 1e-4}
    result = EnergyResult("a_run", rows, document, files, last=last)
    show.show_energy(result, EnergyRequest(output=Path("report.csv")))
    lines = shown()
    assert lines[0] == (
        "81.82 % (9 of 11 test images right); 9.2 µJ an image: cheaper than the same ANN in the "
        "same arithmetic"
    )
    assert lines[1].startswith("a_run: means per image")
    (layer,) = [line.split() for line in lines if line.strip().startswith("conv1")]
    assert layer[:7] == ["conv1", "MAC", "2M", "9.2", "µJ", "9.2", "µJ"]
    measured = "Constants: a lab; measured on a chip that ran networks; a step takes 0.001 s"
    assert measured in lines
    assert lines[-2:] == ["written: report.csv", "written: report.json"]


@pytest.mark.parametrize(("rank", "out"), [("0", "result\n[]\n"), ("1", ""), ("3", "")])
def test_of_several_processes_only_rank_0_shows_results(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], rank: str, out: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    terminal.output().print("result")
    show.show_json([])
    assert capsys.readouterr().out == out


@dataclass(frozen=True)
class Result:
    """A result with everything that results have."""

    folder: Path
    rows: tuple[Any, ...]
    config: Config


def test_a_result_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    rows = ({"t": np.int64(1), "loss": np.float64("nan")}, [float("inf"), None, True, "\x1b[2J"])
    show.show_json(Result(Path("a/b"), rows, Config()))
    out = capsys.readouterr().out
    assert "\x1b" not in out
    found = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert found["folder"] == "a/b"
    assert found["rows"] == [{"t": 1, "loss": None}, [None, None, True, "\x1b[2J"]]
    assert found["config"]["data"]["name"] == "digits"
    show.show_json(["x" * 100_000])
    assert json.loads(capsys.readouterr().out) == ["x" * 100_000]
