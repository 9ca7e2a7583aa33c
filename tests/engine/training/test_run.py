"""One training as a run: what is said before it, and what is computed once."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.conftest import make_config, make_context
from tests.engine.training.conftest import Prepared
from tser_cli.base.errors import DataError, Interrupted
from tser_cli.base.progress import Silent
from tser_cli.data.loaders import build_eval_loader, build_train_loader
from tser_cli.engine.evaluation.evaluate import evaluate
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.training.loop import train_step
from tser_cli.engine.training.optimizer import make_optimizer
from tser_cli.engine.training.run import (
    announcement,
    compute_teacher_logits,
    keeps_logits,
    other_schedule,
    take_run,
)
from tser_cli.engine.training.state import Position, TrainingJob
from tser_cli.engine.training.task import Task
from tser_cli.models.base import Classifier

LOADER: Any = SimpleNamespace(images=1437, steps_per_epoch=23)


def test_a_student_and_a_teacher() -> None:
    config = make_config({"training.epochs": 12, "method.entropy_weight": 0.0})
    assert announcement(config, True, LOADER).startswith(
        "training resnet20, spiking, with 2 time steps, by tser: 12 epochs of 23 steps on 1,437 "
        "images of digits, then a test"
    )
    one = make_config({"model.timesteps": 1, "method.name": "kd"})
    assert "with 1 time step, by kd: 2 epochs" in announcement(one, True, LOADER)
    assert announcement(config, False, LOADER).startswith("training resnet20, an ANN to teach from")


def test_kept_logits_are_the_teacher_s(prepared: Prepared, teacher: Classifier) -> None:
    task, context = prepared()
    assert task.teacher_logits_MK.shape == (24, 3)
    batch = next(iter(build_eval_loader(context.dataset, "train", context.config)))
    torch.testing.assert_close(
        task.teacher_logits_MK[batch.indices_N], teacher(batch.images_NCHW), rtol=1e-4, atol=1e-5
    )

    def stop() -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):  # a request to stop is heard while the teacher teaches
        compute_teacher_logits(task, context, stop)


def test_logits_are_kept_only_where_they_stay_the_same_and_it_pays(prepared: Prepared) -> None:
    task, context = prepared()
    config = context.config
    assert keeps_logits(task, config, True, 1)
    assert not keeps_logits(task, config, False, 1)
    assert not keeps_logits(task, config, True, config.training.epochs)
    for changes in ({"method.name": "ce"}, {"method.name": "feature"}):
        other, other_context = prepared(changes)
        assert not keeps_logits(other, other_context.config, True, 1)


SWITCHES: dict[str, Any] = {
    "performance.channels_last": False,
    "performance.stem_once": False,
    "performance.fold_teacher": False,
    "performance.keep_teacher_logits": False,
    "performance.data_on_device": False,
    "performance.fused_optimizer": False,
    "performance.save_memory": True,
    "performance.spikes_in_bytes": False,
    "performance.pixel_products": False,
    "neuron.backend": "spikingjelly",
}
STEPS = 8


def some_steps(task: Task, context: Context) -> tuple[list[float], list[tuple[int, int, int]]]:
    """The losses of some steps; of each time step: right at t, right on the mean, test images."""
    config = context.config
    loader = build_train_loader(context.dataset, config)
    fused = config.performance.fused_optimizer
    optimizer = make_optimizer(task.trainable(), config.optimizer, fused)
    work = TrainingJob(task, loader, config, None, context.runtime, Silent(), None)
    losses: list[float] = []
    task.network.train()
    batches = (batch for epoch in range(STEPS) for batch in loader.epoch(epoch))
    for batch in islice(batches, STEPS):
        losses.append(float(train_step(work, optimizer, batch, Position())["loss"]))
    test = build_eval_loader(context.dataset, "test", config)
    rows = evaluate(task.model, test, context.runtime, 3).rows()
    return losses, [(r["correct_at_t"], r["correct_cumulative"], r["images"]) for r in rows]


OPTIMISED: list[tuple[list[float], list[tuple[int, int, int]]]] = []  # computed once for all


@pytest.mark.parametrize("switch", ["all", *SWITCHES])
def test_optimised_and_plain_give_the_same_losses_and_table(
    prepared: Prepared, switch: str
) -> None:
    if not OPTIMISED:
        OPTIMISED.append(some_steps(*prepared()))
    ((losses, table),) = OPTIMISED
    changes = SWITCHES if switch == "all" else {switch: SWITCHES[switch]}
    plain_losses, plain_table = some_steps(*prepared(changes))
    assert len(losses) == STEPS and len(set(losses)) == STEPS
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    assert table == plain_table


def test_each_switch_reaches_what_it_names(prepared: Prepared) -> None:
    fast, fast_context = prepared()
    plain, plain_context = prepared(SWITCHES)
    assert fast.teacher_logits_MK is not None and plain.teacher_logits_MK is None
    assert fast.model.stem_once and not plain.model.stem_once
    assert plain.model.save_memory and not fast.model.save_memory
    assert "bn1.weight" not in fast.teacher.state_dict()
    assert "bn1.weight" in plain.teacher.state_dict()
    for task, context, last in ((fast, fast_context, True), (plain, plain_context, False)):
        weight = task.model.get_parameter("layer1.0.conv1.weight")
        images = context.runtime.images(torch.zeros(2, 3, 4, 4))
        assert weight.is_contiguous(memory_format=torch.channels_last) == last
        assert images.is_contiguous(memory_format=torch.channels_last) == last
    modules = fast.trainable()
    assert make_optimizer(modules, fast_context.config.optimizer, True).defaults["fused"]
    assert not make_optimizer(modules, fast_context.config.optimizer, False).defaults["fused"]


@pytest.fixture
def context() -> Context:
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


def test_a_run_is_not_resumed_on_other_images(tmp_path: Path, context: Context) -> None:
    data = replace(context.dataset, spec=replace(context.dataset.spec, name="npz"))
    own = replace(context, config=make_config({"data.name": "npz"}), dataset=data)
    flipped = replace(data.train, labels=data.train.labels.flip(0))
    other = replace(own, dataset=replace(data, train=flipped, facts={"convention": "another"}))
    options = Options(runs_dir=tmp_path)
    with ExitStack() as held:
        run, _ = take_run("student", own, options, held)
    run.update_status(state="stopped")
    with ExitStack() as held, pytest.raises(DataError, match=f"{run.name} began with other images"):
        take_run("student", other, options, held)
    assert "data" not in run.status()
    with ExitStack() as held:
        assert take_run("student", own, options, held) == (run, True)


def test_other_epochs_are_reported(tmp_path: Path) -> None:
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


def test_must_resumes_and_warns(tmp_path: Path, context: Context, told: object) -> None:
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
