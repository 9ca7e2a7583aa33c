"""What every command works with, and finished runs that are opened."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.conftest import DATASET, SPEC, make_config, write_network
from tser_cli.base.errors import CheckpointError, ConfigError, Interrupted, RunError
from tser_cli.base.progress import Silent
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import folder, opened
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import (
    Context,
    keep_images,
    make_check_stop,
    measuring_config,
    open_finished,
    prepare,
    select_run,
)
from tser_cli.engine.runs.runtime import Runtime
from tser_cli.engine.runs.stop import StopRequest

MakeFinished = Callable[..., Run]


@pytest.fixture
def make_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeFinished:
    """`make_finished("student", spec)`: a finished run, its network made for images of `spec`."""
    monkeypatch.setattr(opened, "load_dataset", lambda config: DATASET)

    def make(kind: str, spec: DataSpec = DATASET.spec) -> Run:
        run = folder.create(tmp_path, kind, make_config())
        write_network(run.model_file, make_config(), kind == "student", spec)
        run.update_status(state="finished", finished="2025-01-01T10:00:00+00:00")
        return run

    return make


def test_a_run_keeps_where_samples_of_events_come_from(tmp_path: Path) -> None:
    run = folder.create(tmp_path, "teacher", make_config())
    facts = {"files": "ab12", "convention": "numbers 0 to 99 are for testing"}
    dataset = replace(DATASET, facts=facts)
    config, runtime = make_config(), Runtime(torch.device("cpu"))
    keep_images(run, Context(config, dataset, runtime, Silent()))
    assert run.status()["data"] == facts


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_its_network_is_frozen_and_its_data_are_there(
    make_finished: MakeFinished, kind: str
) -> None:
    run = make_finished(kind)
    opened = open_finished(run, {}, Silent())
    assert opened.run == run
    assert opened.config == run.config()
    assert opened.context.dataset is DATASET
    assert opened.loaded.model.spiking is (kind == "student")
    assert not opened.loaded.model.training
    assert not any(p.requires_grad for p in opened.loaded.model.parameters())


def test_a_run_whose_plug_in_is_not_there_is_no_default(
    make_finished: MakeFinished, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runs = [make_finished("student") for _ in range(3)]
    for number, run in enumerate(runs):
        run.update_status(finished=f"2025-01-0{number + 1}T10:00:00+00:00")
    record = {"name": "/there/mine.py", "module": "mine", "copy": "code/mine.py"}
    for run in runs[1:]:
        config = (run.folder / "config.toml").read_text()
        (run.folder / "config.toml").write_text(re.sub('name = "tser"', 'name = "mine"', config))
        run.update_environment(plugins=[{**record, "adds": ["method mine"]}])
    assert select_run(None, tmp_path) == runs[0]
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said.startswith(
        f"{runs[0].folder} is used, and a newer run is not: {runs[2].folder} nee"
    )
    assert said.endswith("code/mine.py (kept in the run, as it was when the run began)")
    (runs[0].folder / "status.json").unlink()
    with pytest.raises(
        RunError, match=f"{runs[2].folder} needs a plug-in for the method mine: --p"
    ):
        select_run(None, tmp_path)


def test_other_images_than_the_runs_are_told(make_finished: MakeFinished, told: Any) -> None:
    run = make_finished("student")
    run.update_status(images_sha256="of others")
    open_finished(run, {}, told)
    assert told.warnings == [f"these are other images than {run.folder} was trained and tested on"]


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_run_that_does_not_fit_the_data_is_named_by_its_kind(
    make_finished: MakeFinished, kind: str
) -> None:
    run = make_finished(kind, replace(SPEC, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3))
    with pytest.raises(CheckpointError, match=f"^the {kind} .* takes 3 input channels") as error:
        open_finished(run, {}, Silent())
    assert str(run.model_file) in str(error.value)


def test_the_newest_student_where_none_is_named(
    make_finished: MakeFinished, tmp_path: Path
) -> None:
    teacher = make_finished("teacher")
    with pytest.raises(RunError, match="there is no finished student under"):
        select_run(None, tmp_path)
    student = make_finished("student")
    assert select_run(None, tmp_path) == student
    assert select_run(teacher.folder, tmp_path) == teacher


def test_variables_change_how_a_run_is_measured_but_not_what_it_was(
    make_finished: MakeFinished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_finished("student")
    monkeypatch.setenv("TSER_TRAINING_EVAL_BATCH_SIZE", "7")
    monkeypatch.setenv("TSER_DATA_WORKERS", "1")
    monkeypatch.setenv("TSER_TRAINING_EPOCHS", "77")
    changed = {"training.eval_batch_size": 7, "data.workers": 1}
    assert measuring_config(run, {}) == run.config().updated(changed)
    flags = {"training.eval_batch_size": 9, "training.precision": None}
    changed["training.eval_batch_size"] = 9
    assert measuring_config(run, flags) == run.config().updated(changed)
    with pytest.raises(ConfigError, match="banana"):
        measuring_config(run, {"training.device": "banana"})


def test_measured_with_the_precision_that_it_was_trained_with(
    make_finished: MakeFinished, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_finished("student")
    monkeypatch.setenv("TSER_TRAINING_PRECISION", "auto")
    for flags in ({}, {"training.precision": "auto"}):
        assert measuring_config(run, flags) == run.config()
    assert measuring_config(run, {"training.precision": "bf16"}).training.precision == "bf16"


class Others:
    """An accelerator of two processes, of which this is the second; the other was asked to stop."""

    num_processes, process_index = 2, 1


def test_the_data_the_device_and_where_messages_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "load_dataset", lambda config: DATASET)
    config, progress = make_config(), Silent()
    made = prepare(config, progress)
    assert (made.config, made.dataset, made.progress) == (config, DATASET, progress)
    assert made.runtime.device.type == "cpu"


def test_a_request_to_stop_is_raised_from_the_next_check_on(runtime: Runtime) -> None:
    stop = StopRequest(lambda text: None)
    check_stop = make_check_stop(stop, runtime)
    check_stop()
    stop.signal = signal.SIGTERM
    for _ in range(2):
        with pytest.raises(Interrupted) as error:
            check_stop()
        assert error.value.exit_code == 143


def test_a_request_that_another_process_has_heard_counts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard = []

    def largest(self: Runtime, value: int) -> int:
        heard.append(value)
        return max(value, signal.SIGINT)

    monkeypatch.setattr(Runtime, "largest", largest)
    with pytest.raises(Interrupted) as error:
        make_check_stop(StopRequest(lambda text: None), Runtime(Others()))()
    assert error.value.exit_code == 130
    assert heard == [0]
