"""A run that was stopped or killed anywhere ends as an undisturbed one does, to the bit."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.base.errors import DamagedError, Interrupted
from tser_cli.base.progress import Silent
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runs.runtime import seed_everything
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.state import TrainingJob
from tser_cli.losses.base import Outputs, Terms, TrainingProgress
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import Config, MethodSettings

MakeFit = Callable[..., TrainingJob]
MakeConfig = Callable[..., Config]
Resumed = Callable[..., "Outcome"]
CLOCK = ("images_per_second", "seconds")
STEPS = 6  # two epochs of three


class Killed(BaseException):
    """Stands for kill -9: nothing is saved on the way out."""


class StopsAt(Silent):
    """Asks for a stop at a step, counted from 1 over the whole run."""

    def __init__(self, step: int) -> None:
        self.stop = StopRequest(lambda text: None)
        self.left = step

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            self.stop.signal = 15


class KilledAt(Silent):
    """Dies at a step, or, where `row` is given, once that epoch's row is in metrics.csv."""

    def __init__(self, step: int = 0, row: int = 0) -> None:
        self.left, self.row = step, row

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            raise Killed

    def epoch(self, row: dict[str, Any]) -> None:
        if row["epoch"] == self.row:
            raise Killed


@dataclass(frozen=True)
class Outcome:
    """All that a training leaves behind, without what the clock wrote."""

    weights: dict[str, torch.Tensor]
    state: dict[str, Any]
    rows: list[dict[str, Any]]
    table: list[dict[str, str]]


def timeless(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def no_warning(text: str) -> None:
    raise AssertionError(text)


def run_fit(work: TrainingJob) -> Outcome:
    rows = fit(work)
    state = load_latest(work.run.checkpoints, no_warning)
    assert state is not None
    state["rows"] = timeless(state["rows"])
    weights = copy.deepcopy(work.task.model.state_dict())
    table = read_csv(work.run.folder / "metrics.csv")
    return Outcome(weights, state, timeless(rows), timeless(table))


def assert_same(a: Any, b: Any, path: str = "") -> None:
    """Equal to the last bit, through dicts, lists and tuples."""
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), path
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            assert_same(left, right, f"{path}[{index}]")
    else:
        assert a == b, path


def assert_same_outcome(a: Outcome, b: Outcome) -> None:
    assert_same(a.weights, b.weights, "weights")
    assert_same(a.state, b.state, "state")
    assert_same(a.rows, b.rows, "rows")
    assert a.table == b.table


@pytest.fixture(scope="module")
def undisturbed(
    make_fit: MakeFit,
    make_config: MakeConfig,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str], Outcome]:
    """The outcome of a run of each kind that nothing disturbed."""
    known: dict[str, Outcome] = {}

    def outcome(kind: str) -> Outcome:
        if kind not in known:
            seed_everything(0, False)
            work = make_fit(kind, make_config(), tmp_path_factory.mktemp(kind))
            known[kind] = run_fit(work)
        return known[kind]

    return outcome


@pytest.fixture
def resumed(make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path) -> Resumed:
    """Train until `progress` ends it, then go on as a fresh process with other weights would."""

    def outcome(kind: str, progress: Silent, changes: dict[str, Any] | None = None) -> Outcome:
        config = make_config(changes)
        seed_everything(0, False)
        with pytest.raises((Interrupted, Killed)):
            fit(make_fit(kind, config, tmp_path, progress))
        seed_everything(77, False)
        work = make_fit(kind, config, tmp_path)
        for parameter in work.task.model.parameters():
            torch.nn.init.normal_(parameter)
        return run_fit(work)

    return outcome


@pytest.mark.parametrize(
    ("kind", "step"),
    [*(("teacher", step) for step in range(1, STEPS + 1)), ("student", 2), ("student", 3)],
)
def test_a_stopped_run_goes_on_to_the_same_end(
    undisturbed: Callable[[str], Outcome], resumed: Resumed, kind: str, step: int
) -> None:
    assert_same_outcome(resumed(kind, StopsAt(step)), undisturbed(kind))


@pytest.mark.parametrize(
    "change",
    [
        {"model": {}},
        {"model": 3},
        {"optimizer": {}},
        {"random": None},
        {"epoch": "one"},
        {"step": -1},
        {"rows": 7},
        {"rows": [{"epoch": 1, "x": []}, {"y": 2}]},
        {"meter": []},
        {"seconds": None},
    ],
)
def test_a_valid_hash_over_another_content_is_damage(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = make_config()
    with pytest.raises(Interrupted):
        fit(make_fit("teacher", config, tmp_path, StopsAt(2)))
    work = make_fit("teacher", config, tmp_path)
    folder = work.run.checkpoints
    sound = load_latest(folder, no_warning)
    assert sound is not None
    for path in folder.iterdir():
        path.unlink()
    save_checkpoint(folder, 2, {**sound, **change})
    with pytest.raises(DamagedError, match="holds no state of this run"):
        fit(work)


@pytest.mark.parametrize("step", [4, 6])
def test_a_killed_run_goes_on_to_the_same_end(
    undisturbed: Callable[[str], Outcome], resumed: Resumed, step: int
) -> None:
    every_two = {"training.checkpoint_every": "2steps"}
    assert_same_outcome(resumed("student", KilledAt(step), every_two), undisturbed("student"))


@pytest.mark.parametrize("row", [1, 2])
def test_a_row_written_before_the_kill_is_not_written_twice(
    undisturbed: Callable[[str], Outcome], resumed: Resumed, row: int
) -> None:
    outcome = resumed("teacher", KilledAt(row=row))
    assert [line["epoch"] for line in outcome.table] == ["1", "2"]
    assert_same_outcome(outcome, undisturbed("teacher"))


class Opening(Silent):
    """Keeps what metrics.csv held when the training began."""

    def __init__(self, table: Path) -> None:
        self.path = table
        self.rows: list[dict[str, str]] | None = None

    def begin(self, epochs: int, steps: int, done_epochs: int) -> None:
        self.rows = read_csv(self.path)


def test_a_checkpoint_in_mid_epoch_rewinds_the_table(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.checkpoint_every": "2steps"})
    killed = make_fit("teacher", config, tmp_path, KilledAt(row=1))
    with pytest.raises(Killed):
        fit(killed)
    metrics = killed.run.folder / "metrics.csv"
    assert len(read_csv(metrics)) == 1  # of an epoch that the checkpoint saw two steps of
    opening = Opening(metrics)
    fit(make_fit("teacher", config, tmp_path, opening))
    assert opening.rows == []
    assert len(read_csv(metrics)) == 2


def test_killed_before_the_first_checkpoint_begins_afresh(
    undisturbed: Callable[[str], Outcome],
    make_fit: MakeFit,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    with pytest.raises(Killed):
        fit(make_fit("teacher", make_config(), tmp_path, KilledAt(step=1)))
    seed_everything(0, False)
    outcome = run_fit(make_fit("teacher", make_config(), tmp_path))
    assert_same_outcome(outcome, undisturbed("teacher"))


def test_the_same_end_with_adamw_and_a_schedule_of_steps(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    changes = {"optimizer.name": "adamw", "optimizer.lr": 0.01, "schedule.name": "step"}
    config = make_config({**changes, "schedule.milestones": [1.0], "schedule.warmup_epochs": 0.5})
    seed_everything(0, False)
    whole = run_fit(make_fit("teacher", config, tmp_path / "whole"))
    seed_everything(0, False)
    with pytest.raises(Interrupted):
        fit(make_fit("teacher", config, tmp_path / "parts", StopsAt(4)))
    assert_same_outcome(run_fit(make_fit("teacher", config, tmp_path / "parts")), whole)


def test_a_stop_leaves_a_checkpoint_at_the_very_step(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    work = make_fit(
        "teacher", make_config({"training.checkpoint_every": "99min"}), tmp_path, StopsAt(5)
    )
    with pytest.raises(Interrupted) as stop:
        fit(work)
    assert stop.value.exit_code == 143
    state = load_latest(work.run.checkpoints, no_warning)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 2)
    assert state["meter"]["images"] == 16


def test_a_finished_fit_is_not_trained_again(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"training.epochs": 1})
    first = run_fit(make_fit("teacher", config, tmp_path))
    again = make_fit("teacher", config, tmp_path, KilledAt(step=1))
    assert_same_outcome(run_fit(again), first)


def test_more_epochs_go_on_from_the_last(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    first = run_fit(make_fit("teacher", make_config({"training.epochs": 1}), tmp_path))
    longer = run_fit(make_fit("teacher", make_config({"training.epochs": 2}), tmp_path))
    assert longer.table[:1] == first.table
    assert [row["epoch"] for row in longer.rows] == [1, 2]


def test_a_stop_during_validation_goes_on_to_the_same_end(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    scores = iter([0.5, 0.25])

    def stopped() -> float:
        raise Interrupted(15)

    seed_everything(0, False)
    parts = {"validate": lambda: next(scores)}
    whole = run_fit(make_fit("teacher", make_config(), tmp_path / "whole", **parts))
    seed_everything(0, False)
    with pytest.raises(Interrupted):
        fit(make_fit("teacher", make_config(), tmp_path / "parts", validate=stopped))
    scores = iter([0.5, 0.25])
    seed_everything(5, False)
    resumed = run_fit(make_fit("teacher", make_config(), tmp_path / "parts", **parts))
    assert_same_outcome(resumed, whole)


def test_adapters_of_features_are_resumed_too(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"method.name": "kd_feature", "training.epochs": 1})
    seed_everything(0, False)
    whole = run_fit(make_fit("student", config, tmp_path / "whole"))
    seed_everything(0, False)
    with pytest.raises(Interrupted):
        fit(make_fit("student", config, tmp_path / "parts", StopsAt(2)))
    work = make_fit("student", config, tmp_path / "parts")
    for module in work.task.trainable():
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter)
    assert_same_outcome(run_fit(work), whole)
    assert whole.state["adapters"]


def test_methods_are_told_the_same_progress_after_a_resume(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    told: list[TrainingProgress] = []

    def work(folder: str, progress: Silent | None = None) -> TrainingJob:
        made = make_fit("student", make_config(), tmp_path / folder, progress)
        method = made.task.method

        def listening(outputs: Outputs, settings: MethodSettings) -> Terms:
            told.append(outputs.progress)
            return method(outputs, settings)

        made.task.method = listening
        return made

    fit(work("whole"))
    whole = told.copy()
    assert whole == [TrainingProgress(step // 3, step / STEPS) for step in range(STEPS)]
    told.clear()
    with pytest.raises(Interrupted):
        fit(work("parts", StopsAt(4)))
    assert len(told) == 4
    fit(work("parts"))
    assert told == whole


def test_a_method_that_warms_up_ends_as_an_undisturbed_one_does(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config({"method.name": "dkd", "method.kd_warmup_epochs": 3.0})
    seed_everything(0, False)
    whole = run_fit(make_fit("student", config, tmp_path / "whole"))
    seed_everything(0, False)
    with pytest.raises(Interrupted):
        fit(make_fit("student", config, tmp_path / "parts", StopsAt(4)))
    assert_same_outcome(run_fit(make_fit("student", config, tmp_path / "parts")), whole)
