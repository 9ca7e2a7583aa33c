"""How far a training has come: its sums, when it is saved, and its end after a stop or a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from tests.engine.conftest import make_config, make_fit
from tests.engine.training.conftest import (
    Job,
    StopsAt,
    assert_same,
    timeless,
    weights,
)
from tser_cli.base.errors import DamagedError, Interrupted
from tser_cli.base.progress import Silent
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runs.runtime import Runtime, seed_everything
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.state import CheckpointClock, EpochSums, Position, TrainingJob
from tser_cli.losses.base import Outputs, Terms, TrainingProgress
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import MethodSettings


def test_positions_do_not_share_their_sums() -> None:
    first, second = Position(), Position()
    first.sums.add(1, {"loss": torch.tensor(1.0)})
    first.rows.append({"epoch": 1})
    assert second.sums.images == 0
    assert second.rows == []


@pytest.mark.parametrize(
    ("every", "due"),
    [
        ("4steps", [4, 8, 12]),
        ("1epoch", [5, 10]),
        ("2epochs", [10]),
    ],
)
def test_a_clock_of_steps_and_epochs(every: str, due: list[int]) -> None:
    clock = CheckpointClock(every, steps_per_epoch=5)
    assert [step for step in range(1, 13) if clock.now(step)] == due


def test_a_clock_of_minutes_starts_again_when_it_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    times = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: times[-1])
    clock = CheckpointClock("2min", steps_per_epoch=5)
    due = []
    for now in (1000.0, 1119.9, 1120.0, 1121.0, 1239.9, 1500.0, 1619.0):
        times.append(now)
        due += [now] * clock.now(5)
    assert due == [1120.0, 1500.0]


# images, mean loss and right answers of batches of unequal size
BATCHES = [(29, 0.25, 7), (5, 0.84, 0), (31, 0.42, 31), (7, 0.76, 3), (12, 0.5, 1)]


def filled(parts: list[tuple[int, float, int]], sums: EpochSums) -> EpochSums:
    for images, loss, right in parts:
        sums.add(images, {"loss": torch.tensor(loss), "correct": torch.tensor(right)})
    return sums


def test_means_are_over_images_not_over_batches(runtime: Runtime) -> None:
    means = filled(BATCHES, EpochSums()).means(runtime)
    assert list(means) == ["loss", "correct"]
    loss = sum(n * float(torch.tensor(loss)) for n, loss, _ in BATCHES) / 84
    assert means["loss"] == pytest.approx(loss, rel=1e-14)
    assert means["correct"] == 42 / 84


def test_sums_restored_in_the_middle_end_the_same(runtime: Runtime) -> None:
    whole = filled(BATCHES, EpochSums())
    kept = filled(BATCHES[:2], EpochSums()).state()
    assert {type(value) for value in (kept["images"], *kept["sums"].values())} == {int, float}
    resumed = filled(BATCHES[2:], EpochSums.share_out([kept], runtime))
    assert resumed.state() == whole.state()
    assert resumed.means(runtime) == whole.means(runtime)


def test_sums_keep_no_graph() -> None:
    loss = torch.tensor(1.0, requires_grad=True)
    sums = EpochSums()
    sums.add(3, {"loss": loss * 2})
    assert not sums.sums["loss"].requires_grad


def seat(rank: int, world: int) -> Runtime:
    """One of `world` processes, as far as sharing out sums needs it."""
    place = SimpleNamespace(device=torch.device("cpu"), process_index=rank, num_processes=world)
    return Runtime(place)


def sums_of(images: int, loss: float) -> dict[str, Any]:
    return {"images": images, "sums": {"loss": loss, "correct": float(images)}}


def test_as_many_processes_take_up_their_own_sums() -> None:
    states = [sums_of(4, 1.5), sums_of(4, 2.5)]
    taken = [EpochSums.share_out(states, seat(rank, 2)).state() for rank in range(2)]
    assert taken == states


@pytest.mark.parametrize("world", [1, 2, 4])
def test_another_number_of_processes_keeps_the_total(world: int) -> None:
    states = [sums_of(4, 1.5), sums_of(4, 2.5), sums_of(3, 0.25)]
    taken = [EpochSums.share_out(states, seat(rank, world)).state() for rank in range(world)]
    assert taken[0] == {"images": 11, "sums": {"loss": 4.25, "correct": 11.0}}
    nothing = {"images": 0, "sums": {"loss": 0.0, "correct": 0.0}}
    assert taken[1:] == [nothing] * (world - 1)


Resumed = Callable[..., "Outcome"]
STEPS = 6  # two epochs of three


class Killed(BaseException):
    """Stands for kill -9: nothing is saved on the way out."""


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


class Outcome(NamedTuple):
    """All that a training leaves behind, without what the clock wrote."""

    weights: dict[str, torch.Tensor]
    state: dict[str, Any]
    rows: list[dict[str, Any]]
    table: list[dict[str, str]]


def run_fit(work: TrainingJob) -> Outcome:
    rows = fit(work)
    state = load_latest(work.run.checkpoints, pytest.fail)
    state["rows"] = timeless(state["rows"])
    table = read_csv(work.run.folder / "metrics.csv")
    return Outcome(weights(work), state, timeless(rows), timeless(table))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Outcome]:
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
def resumed(job: Job) -> Resumed:
    """Train until `progress` ends it, then resume as a fresh process with other weights would."""

    def outcome(kind: str, progress: Silent, changes: dict[str, Any] | None = None) -> Outcome:
        seed_everything(0, False)
        with pytest.raises((Interrupted, Killed)):
            fit(job(kind, changes, progress, "parts"))
        seed_everything(77, False)
        work = job(kind, changes, folder="parts")
        for _, parameter in work.task.named_parameters():
            torch.nn.init.normal_(parameter)
        return run_fit(work)

    return outcome


@pytest.mark.parametrize(
    ("kind", "step"),
    [("teacher", 1), ("teacher", 3), ("teacher", STEPS), ("student", 2)],
)
def test_a_stopped_run_ends_as_an_undisturbed_one(
    undisturbed: Callable[[str], Outcome], resumed: Resumed, kind: str, step: int
) -> None:
    assert_same(resumed(kind, StopsAt(step)), undisturbed(kind))


@pytest.mark.parametrize(
    "change",
    [
        {"model": {}},
        {"random": None},
        {"step": -1},
        {"rows": [{"epoch": 1, "x": []}, {"y": 2}]},
        {"meter": []},
        {"best_state": {"x": torch.zeros(1)}},
        {"best_accuracy": "much"},
        {"average": None},
    ],
)
def test_a_valid_hash_over_another_content_is_damage(job: Job, change: dict[str, Any]) -> None:
    averaged = {"training.ema_decay": 0.9}
    with pytest.raises(Interrupted):
        fit(job("teacher", averaged, StopsAt(2)))
    work = job("teacher", averaged)
    folder = work.run.checkpoints
    sound = load_latest(folder, pytest.fail)
    for path in folder.iterdir():
        path.unlink()
    save_checkpoint(folder, 2, {**sound, **change})
    with pytest.raises(DamagedError, match="holds no state of this run"):
        fit(work)


@pytest.mark.parametrize(
    ("kind", "killed"),
    [
        ("student", {"step": 4}),
        ("teacher", {"row": 1}),  # a row written before the kill is not written twice
        ("teacher", {"row": 2}),
    ],
)
def test_a_killed_run_ends_as_an_undisturbed_one(
    undisturbed: Callable[[str], Outcome], resumed: Resumed, kind: str, killed: dict[str, int]
) -> None:
    every = {"training.checkpoint_every": "2steps"} if "step" in killed else {}
    assert_same(resumed(kind, KilledAt(**killed), every), undisturbed(kind))


def test_killed_before_the_first_checkpoint_begins_afresh(
    undisturbed: Callable[[str], Outcome], job: Job
) -> None:
    with pytest.raises(Killed):
        fit(job("teacher", {}, KilledAt(step=1)))
    seed_everything(0, False)
    assert_same(run_fit(job("teacher")), undisturbed("teacher"))


class Opening(Silent):
    """Keeps what metrics.csv held when the training began."""

    def __init__(self, table: Path) -> None:
        self.path = table

    def begin(self, epochs: int, steps: int, done_epochs: int) -> None:
        self.rows = read_csv(self.path)


def test_a_checkpoint_in_mid_epoch_rewinds_the_table(job: Job) -> None:
    every_two = {"training.checkpoint_every": "2steps"}
    killed = job("teacher", every_two, KilledAt(row=1))
    with pytest.raises(Killed):
        fit(killed)
    metrics = killed.run.folder / "metrics.csv"
    assert len(read_csv(metrics)) == 1  # of an epoch that the checkpoint saw two steps of
    opening = Opening(metrics)
    fit(job("teacher", every_two, opening))
    assert opening.rows == []
    assert len(read_csv(metrics)) == 2


@pytest.mark.parametrize("stopped", [2, 5])  # in the first epoch, of three steps, and the second
def test_a_checkpoint_from_before_the_teacher_was_counted(job: Job, stopped: int) -> None:
    with pytest.raises(Interrupted):
        fit(job("student", {}, StopsAt(stopped)))
    work, column = job("student"), "teacher_train_accuracy"
    state = load_latest(work.run.checkpoints, pytest.fail)
    del state["meter"]["sums"]["teacher_correct"]
    for row in state["rows"]:
        del row[column]
    save_checkpoint(work.run.checkpoints, stopped + 1, state)
    rows = fit(work)
    assert [row["epoch"] for row in rows] == [1, 2]
    # a part of the epoch is no share of it, and a table has the same columns in each row
    assert not [row for row in (*rows, *read_csv(work.run.folder / "metrics.csv")) if column in row]


def test_a_stop_leaves_a_checkpoint_at_the_very_step(job: Job) -> None:
    work = job("teacher", {"training.checkpoint_every": "99min"}, StopsAt(5))
    with pytest.raises(Interrupted) as stop:
        fit(work)
    assert stop.value.exit_code == 143
    state = load_latest(work.run.checkpoints, pytest.fail)
    assert (state["epoch"], state["step"]) == (1, 2)
    assert state["meter"]["images"] == 16


def test_a_finished_fit_is_not_trained_again_but_by_more_epochs(job: Job) -> None:
    one = {"training.epochs": 1}
    first = run_fit(job("teacher", one))
    assert_same(run_fit(job("teacher", one, KilledAt(step=1))), first)
    longer = run_fit(job("teacher"))
    assert longer.table[:1] == first.table
    assert [row["epoch"] for row in longer.rows] == [1, 2]


def test_a_stop_during_validation_ends_as_an_undisturbed_one(job: Job) -> None:
    def stopped() -> float:
        raise Interrupted(15)

    def scored(folder: str, seed: int) -> Outcome:
        scores = iter([0.5, 0.25])
        seed_everything(seed, False)
        return run_fit(job("teacher", folder=folder, validate=lambda: next(scores)))

    whole = scored("whole", 0)
    seed_everything(0, False)
    with pytest.raises(Interrupted):
        fit(job("teacher", folder="parts", validate=stopped))
    assert_same(scored("parts", 5), whole)


def test_methods_are_told_the_same_progress_after_a_resume(job: Job) -> None:
    told: list[TrainingProgress] = []

    def train(folder: str, progress: Silent | None = None) -> list[TrainingProgress]:
        work = job("teacher", {}, progress, folder)
        method = work.task.method

        def listening(outputs: Outputs, settings: MethodSettings) -> Terms:
            told.append(outputs.progress)
            return method(outputs, settings)

        work.task.method = listening
        told.clear()
        fit(work)
        return told.copy()

    whole = train("whole")
    assert whole == [TrainingProgress(step // 3, step / STEPS) for step in range(STEPS)]
    with pytest.raises(Interrupted):
        train("parts", StopsAt(4))
    before = told.copy()
    assert len(before) == 4
    assert before + train("parts") == whole


ADAMW = {"optimizer.name": "adamw", "optimizer.lr": 0.01, "schedule.name": "step"}


@pytest.mark.parametrize(
    ("kind", "step", "changes"),
    [
        ("teacher", 4, {**ADAMW, "schedule.milestones": [1.0], "schedule.warmup_epochs": 0.5}),
        ("student", 4, {"method.name": "dkd", "method.kd_warmup_epochs": 3.0}),
        ("student", 4, {"method.name": "bkd", "model.timesteps": 1}),
        ("student", 4, {"training.ema_decay": 0.5, "augment.cutmix": 1.0, "augment.mixup": 0.5}),
    ],
)
def test_the_same_end_with_other_settings(
    job: Job, resumed: Resumed, kind: str, step: int, changes: dict[str, Any]
) -> None:
    seed_everything(0, False)
    whole = run_fit(job(kind, changes, folder="whole"))
    assert_same(resumed(kind, StopsAt(step), changes), whole)
    assert bool(whole.state["adapters"]) == (changes.get("method.name") == "bkd")
