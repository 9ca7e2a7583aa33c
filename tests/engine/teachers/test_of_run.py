"""The teacher that a run learned from: recorded once, read by one reader."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tser_cli.base.errors import CheckpointError, RunError
from tser_cli.base.progress import Silent
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.runs.teachers import (
    RecordedTeacher,
    keep_teacher,
    read_run_teacher,
    recorded_teacher,
    teacher_name,
    teacher_to_count,
)
from tser_cli.settings.config import Config


class Heard(Silent):
    """Keeps messages and warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warned: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warned.append(text)


@pytest.fixture
def heard() -> Heard:
    """What the context's progress heard."""
    return Heard()


@pytest.fixture
def context(
    make_context: Callable[..., Context], make_config: Callable[..., Config], heard: Heard
) -> Context:
    """The tiny data set, with messages kept."""
    return make_context(make_config(), heard)


@pytest.fixture
def run(tmp_path: Path, context: Context) -> Run:
    """A student's run that has just begun."""
    return folder.create(tmp_path, "student", context.config)


@pytest.fixture
def write_teacher(tmp_path: Path, spec: DataSpec, context: Context) -> Callable[..., Loaded]:
    """`write_teacher("a", seed)`: a teacher's file, as it is read from it."""

    def write(name: str, seed: int = 0) -> Loaded:
        torch.manual_seed(seed)
        path = tmp_path / f"{name}.safetensors"
        model = networks.build("resnet20", spec, context.config, spiking=False)
        metadata = networks.describe("resnet20", spec, context.config, spiking=False)
        networks.write(path, model, metadata)
        return networks.read(path, spec)

    return write


@pytest.mark.parametrize("entry", ["resnet20", ["resnet20"]])
def test_a_damaged_record_is_named(run: Run, entry: object) -> None:
    run.update_environment(teacher=entry)
    with pytest.raises(RunError, match=f"{run.folder} is damaged"):
        recorded_teacher(run)


def test_a_run_without_a_teacher(run: Run, context: Context, spec: DataSpec) -> None:
    assert recorded_teacher(run) is None
    assert teacher_name(run) is None
    assert read_run_teacher(run, spec) is None
    assert teacher_to_count(run, context) is None


def test_the_first_teacher_is_recorded_frozen_and_read_again(
    run: Run, context: Context, heard: Heard, write_teacher: Callable[..., Loaded]
) -> None:
    found = write_teacher("a")
    assert keep_teacher(run, context, found) is found
    assert not found.model.training
    assert not any(p.requires_grad for p in found.model.parameters())
    assert recorded_teacher(run) == RecordedTeacher(found.source, "resnet20", found.sha256)
    assert teacher_name(run) == "resnet20"
    again = read_run_teacher(run, context.dataset.spec)
    assert again is not None
    assert (again.source, again.sha256) == (found.source, found.sha256)
    assert heard.said == []


def test_a_run_keeps_the_teacher_that_it_began_with(
    run: Run, context: Context, heard: Heard, write_teacher: Callable[..., Loaded]
) -> None:
    first, newer = write_teacher("a"), write_teacher("b", seed=1)
    keep_teacher(run, context, first)
    kept = keep_teacher(run, context, newer)
    assert kept.sha256 == first.sha256
    assert not kept.model.training
    assert heard.said == [f"teacher: {first.source} instead, which the run began with"]
    assert recorded_teacher(run) == RecordedTeacher(first.source, "resnet20", first.sha256)


def test_the_same_teacher_may_have_moved(
    run: Run, context: Context, heard: Heard, write_teacher: Callable[..., Loaded]
) -> None:
    first, copy = write_teacher("a"), write_teacher("copy")
    assert first.sha256 == copy.sha256
    keep_teacher(run, context, first)
    Path(first.source).unlink()
    assert keep_teacher(run, context, copy) is copy
    assert recorded_teacher(run) == RecordedTeacher(copy.source, "resnet20", copy.sha256)
    assert heard.said == []


@pytest.mark.parametrize(
    ("change", "said"), [("gone", "can't be read"), ("other", "has changed since that run began")]
)
def test_a_teacher_that_is_gone_or_has_changed(
    run: Run,
    context: Context,
    heard: Heard,
    write_teacher: Callable[..., Loaded],
    change: str,
    said: str,
) -> None:
    first = write_teacher("a")
    keep_teacher(run, context, first)
    if change == "gone":
        Path(first.source).unlink()
    else:
        write_teacher("a", seed=1)
    with pytest.raises(CheckpointError, match=said):
        read_run_teacher(run, context.dataset.spec)
    with pytest.raises(CheckpointError, match=said):
        keep_teacher(run, context, write_teacher("b", seed=2))
    # counting needs no weights: a network of the same shape serves, and that is told
    counted = teacher_to_count(run, context)
    assert counted is not None
    assert (counted.name, counted.source) == ("resnet20", "untrained")
    assert not counted.model.training
    (warning,) = heard.warned
    assert said in warning
    assert warning.endswith("the operations of an untrained resnet20 serve")


def test_a_teacher_of_no_known_architecture_is_left_out_of_the_counting(
    run: Run, context: Context, heard: Heard
) -> None:
    run.update_environment(teacher={"source": "gone.pt", "model": "resnet21", "sha256": "0"})
    assert teacher_to_count(run, context) is None
    assert len(heard.warned) == 2
    assert heard.warned[1].startswith("the teacher's energy is left out: ")


def test_a_sound_teacher_is_the_one_that_is_counted(
    run: Run, context: Context, heard: Heard, write_teacher: Callable[..., Loaded]
) -> None:
    first = write_teacher("a")
    keep_teacher(run, context, first)
    counted = teacher_to_count(run, context)
    assert counted is not None
    assert counted.source == first.source
    assert heard.warned == []


def test_a_runs_folder_that_was_moved_finds_its_teacher_by_hash(
    tmp_path: Path, spec: DataSpec, context: Context, write_teacher: Callable[..., Loaded]
) -> None:
    def teacher_run(file: str, seed: int) -> Run:
        made = folder.create(tmp_path / "old", "teacher", context.config)
        loaded = write_teacher(file, seed)
        Path(loaded.source).rename(made.model_file)
        made.update_status(state="finished", sha256=loaded.sha256)
        return made

    teacher, _another = teacher_run("a", 1), teacher_run("b", 2)
    run = folder.create(tmp_path / "old", "student", context.config)
    digest = teacher.status()["sha256"]
    entry = {"source": str(teacher.model_file), "model": "resnet20", "sha256": digest}
    run.update_environment(teacher=entry)
    (tmp_path / "old").rename(tmp_path / "new")
    moved = Run(tmp_path / "new" / run.folder.relative_to(tmp_path / "old"))
    found = read_run_teacher(moved, spec)
    assert found is not None
    assert found.sha256 == digest
    assert found.source.startswith(str(tmp_path / "new"))
    moved.update_environment(teacher={**entry, "sha256": "0"})
    with pytest.raises(CheckpointError, match="can't be read"):
        read_run_teacher(moved, spec)
