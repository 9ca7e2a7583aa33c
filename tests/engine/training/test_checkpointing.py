"""A training that is stopped and resumed ends in the same bits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.engine.training.conftest import (
    Job,
    MakeConfig,
    MakeContext,
    StopsAt,
    assert_same,
    timeless,
    weights,
)
from tser_cli.base.errors import DamagedError, DataError, Interrupted
from tser_cli.base.progress import Silent
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.runtime import seed_everything
from tser_cli.engine.training.checkpointing import other_schedule, take_run
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.state import TrainingJob
from tser_cli.losses.base import Outputs, Terms, TrainingProgress
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import MethodSettings

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
def undisturbed(
    make_fit: Job, make_config: MakeConfig, tmp_path_factory: pytest.TempPathFactory
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
    [*(("teacher", step) for step in range(1, STEPS + 1)), ("student", 2), ("student", 3)],
)
def test_a_stopped_run_ends_as_an_undisturbed_one(
    undisturbed: Callable[[str], Outcome], resumed: Resumed, kind: str, step: int
) -> None:
    assert_same(resumed(kind, StopsAt(step)), undisturbed(kind))


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
def test_a_valid_hash_over_another_content_is_damage(job: Job, change: dict[str, Any]) -> None:
    with pytest.raises(Interrupted):
        fit(job("teacher", {}, StopsAt(2)))
    work = job("teacher")
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
        ("student", {"step": 6}),
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
        work = job("student", {}, progress, folder)
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
        ("student", 2, {"method.name": "feature", "model.timesteps": 1}),
        ("student", 4, {"method.name": "bkd", "model.timesteps": 1}),
    ],
)
def test_the_same_end_with_other_settings(
    job: Job, resumed: Resumed, kind: str, step: int, changes: dict[str, Any]
) -> None:
    seed_everything(0, False)
    whole = run_fit(job(kind, changes, folder="whole"))
    assert_same(resumed(kind, StopsAt(step), changes), whole)
    assert bool(whole.state["adapters"]) == (changes.get("method.name") in ("feature", "bkd"))


@pytest.fixture
def context(make_context: MakeContext, make_config: MakeConfig) -> Context:
    return make_context(make_config())


def test_every_command_of_a_run_is_kept_and_writes_its_settings_once(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, written = torch.get_num_threads(), list[Path]()
    write = Run.write_settings
    monkeypatch.setattr(
        Run, "write_settings", lambda self, *args: written.append(self.folder) or write(self, *args)
    )
    for seed in ("1", "2"):
        monkeypatch.setattr("sys.argv", ["tser", "distill", "--seed", seed])
        with ExitStack() as held:
            run, resumed = take_run("student", context, Options(runs_dir=tmp_path), held)
        run.update_status(state="stopped")
        assert written == [run.folder] * int(seed)  # once by each command
    assert resumed
    environment = run.environment()
    commands = environment["commands"]
    assert [c["command"][-1] for c in commands] == ["1", "2"]
    assert [c["threads"] for c in commands] == [threads, threads]
    assert environment["command"] == commands[-1]["command"]
    assert environment["threads"] == threads


def test_a_run_is_not_resumed_on_other_images(
    tmp_path: Path, context: Context, make_config: MakeConfig
) -> None:
    data = replace(context.dataset, spec=replace(context.dataset.spec, name="npz"))
    own = replace(context, config=make_config({"data.name": "npz"}), dataset=data)
    flipped = replace(data.train, labels=data.train.labels.flip(0))
    other = replace(own, dataset=replace(data, train=flipped))
    options = Options(runs_dir=tmp_path)
    with ExitStack() as held:
        run, _ = take_run("student", own, options, held)
    run.update_status(state="stopped")
    with ExitStack() as held, pytest.raises(DataError, match=f"{run.name} began with other images"):
        take_run("student", other, options, held)
    with ExitStack() as held:
        assert take_run("student", own, options, held) == (run, True)


def test_other_epochs_are_reported(tmp_path: Path, make_config: MakeConfig) -> None:
    run = folder.create(tmp_path, "student", make_config({"training.epochs": 12}))
    run.update_status(epoch=6)
    told = other_schedule(run, make_config({"training.epochs": 8}))
    assert "12 epochs become 8" in told
    # 0.1 (1 + cos(pi 6/8)) / 2 and 0.1 (1 + cos(pi 6/12)) / 2
    assert "the cosine learning rate continues at 0.01464 instead of 0.05" in told
    assert other_schedule(run, make_config({"training.epochs": 12})) == ""
    endless = {"schedule.name": "constant"}
    run = folder.create(tmp_path, "student", make_config(endless))
    assert other_schedule(run, make_config({**endless, "training.epochs": 9})) == ""


def test_must_resumes_and_warns(
    tmp_path: Path, context: Context, make_config: MakeConfig, told: object
) -> None:
    begun = folder.create(tmp_path, "student", context.config)
    begun.update_status(state="stopped")
    longer = replace(context, config=context.config.updated({"training.epochs": 9}), progress=told)  # type: ignore[arg-type]
    with ExitStack() as held:
        run, resumed = take_run("student", longer, Options(tmp_path, "must"), held)
    assert (run, resumed) == (begun, True)
    assert "2 epochs become 9" in told.warnings[0]  # type: ignore[attr-defined]
    assert run.config().training.epochs == 9
    run.update_status(state="stopped")
    with ExitStack() as held:
        assert take_run("student", context, Options(tmp_path), held)[0] != begun
