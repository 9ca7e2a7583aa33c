"""A run taken up again: what it records, and what it says of other epochs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tser_cli.base.errors import DataError
from tser_cli.data.base import Dataset, TensorSource
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.training.checkpointing import other_schedule, take_run
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]


@pytest.fixture
def context(make_context: Callable[..., Context], make_config: MakeConfig) -> Context:
    return make_context(make_config())


def test_every_command_of_a_run_is_kept(
    tmp_path: Path, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    for seed in ("1", "2"):
        monkeypatch.setattr("sys.argv", ["tser", "distill", "--seed", seed])
        with ExitStack() as held:
            run, resumed = take_run("student", context, Options(runs_dir=tmp_path), held)
        run.update_status(state="stopped")
    assert resumed
    environment = run.environment()
    commands = environment["commands"]
    assert [c["command"][-1] for c in commands] == ["1", "2"]
    assert [c["threads"] for c in commands] == [threads, threads]
    assert environment["command"] == commands[-1]["command"]
    assert environment["threads"] == threads


def test_a_run_is_not_gone_on_with_on_other_images(
    tmp_path: Path, context: Context, dataset: Dataset, make_config: MakeConfig
) -> None:
    assert isinstance(dataset.train, TensorSource)
    spec, labels = replace(dataset.spec, name="npz"), dataset.train.labels
    config = make_config({"data.name": "npz"})
    own = replace(context, config=config, dataset=replace(dataset, spec=spec))
    other_source = replace(dataset.train, labels=labels.flip(0))
    other = replace(own, dataset=replace(own.dataset, train=other_source))
    options = Options(runs_dir=tmp_path)
    with ExitStack() as held:
        run, _ = take_run("student", own, options, held)
    run.update_status(state="stopped")
    with ExitStack() as held, pytest.raises(DataError, match=f"{run.name} began with other images"):
        take_run("student", other, options, held)
    with ExitStack() as held:
        assert take_run("student", own, options, held) == (run, True)


def test_other_epochs_are_told(tmp_path: Path, make_config: MakeConfig) -> None:
    run = folder.create(tmp_path, "student", make_config({"training.epochs": 12}))
    run.update_status(epoch=6)
    told = other_schedule(run, make_config({"training.epochs": 8}))
    assert "12 epochs become 8" in told
    # 0.1 (1 + cos(pi 6/8)) / 2 and 0.1 (1 + cos(pi 6/12)) / 2
    assert "the cosine learning rate continues at 0.01464 instead of 0.05" in told
    assert other_schedule(run, make_config({"training.epochs": 12})) == ""


def test_without_an_end_more_epochs_change_nothing(tmp_path: Path, make_config: MakeConfig) -> None:
    constant = {"schedule.name": "constant"}
    run = folder.create(tmp_path, "student", make_config(constant))
    assert other_schedule(run, make_config({**constant, "training.epochs": 9})) == ""


def test_must_goes_on_and_warns(
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
