"""Every optimisation against the plain path: same losses, same tables, each with its own switch."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

import pytest
import torch

from tser_cli.config import Config
from tser_cli.data.loaders import build_eval_loader, build_train_loader
from tser_cli.engine.commands.distill import student_task
from tser_cli.engine.evaluation.per_timestep import evaluate
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.runtime.processes import make_runtime
from tser_cli.engine.training import compiling
from tser_cli.engine.training.batch_size import (
    bytes_an_image,
    kept_bytes,
    largest_batch,
    power_of_two,
)
from tser_cli.engine.training.batch_size import fit as images_that_fit
from tser_cli.engine.training.compiling import compile_networks, keeps_logits, teach_all
from tser_cli.engine.training.loop import Fit, train_step
from tser_cli.engine.training.optimizer import make_optimizer
from tser_cli.engine.training.position import Position
from tser_cli.engine.training.task import Task
from tser_cli.errors import ConfigError, Interrupted
from tser_cli.models import Classifier, build_model
from tser_cli.report.progress import Silent

MakeConfig = Callable[..., Config]
MakeContext = Callable[..., Context]
Wake = Callable[[Classifier], Classifier]
STILL = {"augment.crop_padding": 0, "augment.flip": False, "model.timesteps": 3}
SWITCHES: dict[str, Any] = {
    "performance.channels_last": False,
    "performance.stem_once": False,
    "performance.fold_teacher": False,
    "performance.keep_teacher_logits": False,
    "performance.data_on_device": False,
    "performance.fused_optimizer": False,
    "performance.save_memory": True,
    "neuron.backend": "spikingjelly",
}
STEPS = 20


def nothing(images: int) -> None:
    """Hears no request to stop."""


@pytest.fixture
def teacher(wake: Wake) -> Classifier:
    """An ANN with running statistics that folding must take into account."""
    torch.manual_seed(7)
    return wake(build_model("resnet20", channels=1, height=8, width=8, num_classes=3))


@pytest.fixture
def prepared(
    make_config: MakeConfig, make_context: MakeContext, teacher: Classifier
) -> Callable[..., tuple[Task, Context]]:
    """`prepared(changes)`: a student's task as a run prepares it."""

    def make(changes: dict[str, Any] | None = None) -> tuple[Task, Context]:
        config = make_config({**STILL, "optimizer.lr": 0.01, **(changes or {})})
        plain = make_context(config)
        runtime = make_runtime(config.training, config.performance.channels_last)
        context = Context(config, plain.dataset, runtime, Silent())
        task = student_task(context, Loaded(teacher, "resnet20", "here", "0"))
        task.network = runtime.place(task.network)
        if keeps_logits(task, config, True, 1):
            task.taught_MK = teach_all(task, context, nothing)
        return task, context

    return make


def twenty_steps(task: Task, context: Context) -> tuple[list[float], list[dict[str, Any]]]:
    """The losses of 20 steps, and then the accuracy at each time step on the test images."""
    config = context.config
    loader = build_train_loader(context.dataset, config)
    fused = config.performance.fused_optimizer
    optimizer = make_optimizer(task.trainable(), config.optimizer, fused)
    work = Fit(task, loader, config, None, context.runtime, Silent(), None)  # type: ignore[arg-type]
    losses: list[float] = []
    task.network.train()
    batches = (batch for epoch in range(STEPS) for batch in loader.epoch(epoch))
    for batch in islice(batches, STEPS):
        losses.append(float(train_step(work, optimizer, batch, Position())["loss"]))
    test = build_eval_loader(context.dataset, "test", config)
    return losses, evaluate(task.model, test, context.runtime, 3).rows()


def counts(rows: list[dict[str, Any]]) -> list[tuple[int, int, int]]:
    """Of each time step: right at t, right on the cumulative mean, images."""
    return [(r["correct_at_t"], r["correct_cumulative"], r["images"]) for r in rows]


@pytest.mark.parametrize("switch", ["all", *SWITCHES])
def test_optimised_and_plain_give_the_same_losses_and_table(
    prepared: Callable[..., tuple[Task, Context]], switch: str
) -> None:
    changes = SWITCHES if switch == "all" else {switch: SWITCHES[switch]}
    losses, table = twenty_steps(*prepared())
    plain_losses, plain_table = twenty_steps(*prepared(changes))
    assert len(losses) == STEPS and len(set(losses)) == STEPS
    assert losses == pytest.approx(plain_losses, rel=1e-5)
    assert counts(table) == counts(plain_table)


def test_each_switch_reaches_what_it_names(
    prepared: Callable[..., tuple[Task, Context]],
) -> None:
    fast, fast_context = prepared()
    plain, plain_context = prepared(SWITCHES)
    assert fast.taught_MK is not None and plain.taught_MK is None
    assert fast.model.stem_once and not plain.model.stem_once
    assert plain.model.save_memory and not fast.model.save_memory
    assert fast.teacher and plain.teacher
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


def test_kept_logits_are_the_teacher_s(
    prepared: Callable[..., tuple[Task, Context]], teacher: Classifier
) -> None:
    task, context = prepared()
    assert task.taught_MK is not None and task.taught_MK.shape == (24, 3)
    batch = next(iter(build_eval_loader(context.dataset, "train", context.config)))
    torch.testing.assert_close(
        task.taught_MK[batch.indices_N], teacher(batch.images_NCHW), rtol=1e-4, atol=1e-5
    )


def test_logits_are_kept_only_where_they_stay_the_same_and_it_pays(
    prepared: Callable[..., tuple[Task, Context]], make_config: MakeConfig
) -> None:
    task, context = prepared()
    config = context.config
    assert keeps_logits(task, config, True, 1)
    assert not keeps_logits(task, config, False, 1)
    assert not keeps_logits(task, config, True, config.training.epochs)
    for changes in ({"method.name": "ce"}, {"method.name": "feature"}):
        other, other_context = prepared(changes)
        assert not keeps_logits(other, other_context.config, True, 1)


def test_a_request_to_stop_is_heard_while_the_teacher_teaches(
    prepared: Callable[..., tuple[Task, Context]],
) -> None:
    task, context = prepared()

    def stop(images: int) -> None:
        raise Interrupted(15)

    with pytest.raises(Interrupted):
        teach_all(task, context, stop)


class Compiled:
    """Stands for a network; notes whether it was told to compile."""

    def __init__(self) -> None:
        self.compiled = False

    def compile(self) -> None:
        """As torch's."""
        self.compiled = True


@pytest.mark.parametrize(
    ("mode", "device", "epochs", "teacher_compiles", "student_compiles"),
    [
        ("auto", "cpu", 1000, False, False),
        ("auto", "cuda", 1, False, False),
        ("auto", "cuda", 1000, True, False),
        ("on", "cpu", 1, True, True),
        ("on", "cuda", 1, True, True),
        ("off", "cuda", 1000, False, False),
    ],
)
def test_what_is_compiled(
    prepared: Callable[..., tuple[Task, Context]],
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    device: str,
    epochs: int,
    teacher_compiles: bool,
    student_compiles: bool,
) -> None:
    monkeypatch.setattr(compiling, "what_compiling_lacks", lambda device: "")
    task, context = prepared({"performance.compile": mode, "training.epochs": epochs})
    taught, network = Compiled(), Compiled()
    task.teacher, task.network = taught, network  # type: ignore[assignment]
    compile_networks(task, context.config, torch.device(device), images=1000)
    assert (taught.compiled, network.compiled) == (teacher_compiles, student_compiles)


def test_compiling_on_a_cpu_asks_for_a_compiler(
    prepared: Callable[..., tuple[Task, Context]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling.shutil, "which", lambda name: None)
    task, context = prepared({"performance.compile": "on"})
    with pytest.raises(ConfigError, match=r"needs a compiler \(CXX, g\+\+ or clang\+\+\)"):
        compile_networks(task, context.config, torch.device("cpu"), images=1)


def test_what_can_t_be_compiled_is_left_as_it_is_by_itself(
    prepared: Callable[..., tuple[Task, Context]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiling, "what_compiling_lacks", lambda device: "Triton")
    task, context = prepared({"training.epochs": 1000})
    taught = Compiled()
    task.teacher = taught  # type: ignore[assignment]
    compile_networks(task, context.config, torch.device("cuda"), images=1000)
    assert not taught.compiled


def test_compiling_does_not_go_with_saving_memory(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="does not go with"):
        make_config({"performance.compile": "on", "performance.save_memory": True})


@pytest.mark.parametrize(("count", "power"), [(0, 0), (1, 1), (2, 2), (3, 2), (1437, 1024)])
def test_power_of_two(count: int, power: int) -> None:
    assert power_of_two(count) == power


def test_how_many_images_fit() -> None:
    assert images_that_fit(free=1000.0, one=8.0) == 100
    assert images_that_fit(free=-5.0, one=8.0) == 0


def test_kept_bytes_grow_with_the_batch_and_change_nothing(
    prepared: Callable[..., tuple[Task, Context]],
) -> None:
    task, context = prepared()
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    two, four, eight = (kept_bytes(task, context, images) for images in (2, 4, 8))
    assert (eight - four) == pytest.approx(2 * (four - two), rel=0.01)
    for name, value in task.model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_the_largest_batch_follows_the_free_memory(
    prepared: Callable[..., tuple[Task, Context]], monkeypatch: pytest.MonkeyPatch
) -> None:
    task, context = prepared()
    assert largest_batch(task, context) == 16  # of 24 training images
    one = (kept_bytes(task, context, 8) - kept_bytes(task, context, 4)) / 4
    weights = sum(p.numel() * p.element_size() for p in task.network.parameters())
    enough = 2 * weights + one * 1.5 / 0.8 * 4.5
    monkeypatch.setattr("tser_cli.engine.training.batch_size.free_bytes", lambda device: enough)
    assert largest_batch(task, context) == 4
    monkeypatch.setattr(
        "tser_cli.engine.training.batch_size.free_bytes", lambda device: 2 * weights
    )
    with pytest.raises(ConfigError, match="not even one image fits"):
        largest_batch(task, context)


def test_saving_memory_lets_more_images_in_but_not_too_many(
    prepared: Callable[..., tuple[Task, Context]],
) -> None:
    plain, saving = (
        bytes_an_image(*prepared({"performance.save_memory": saves})) for saves in (False, True)
    )
    assert plain / 2 < saving < plain
    task, context = prepared({"performance.save_memory": True})
    bytes_an_image(task, context)
    assert task.model.save_memory


def test_every_part_of_a_batch_gets_as_many_images(
    prepared: Callable[..., tuple[Task, Context]],
) -> None:
    task, context = prepared({"training.accumulate": 3, "training.batch_size": 3})
    assert largest_batch(task, context) == 24  # 3 parts of 8; of 24 training images
