"""A data set of a few dozen random images, and everything that a tiny training needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.base.progress import Progress, Silent
from tser_cli.data.base import Dataset, DataSpec, TensorSource
from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.ablation.folder import AblationFolder
from tser_cli.engine.ablation.grid import Request, make_request
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.runs.runtime import Runtime, make_runtime
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training.state import TrainingJob
from tser_cli.engine.training.task import Task, classification, distillation
from tser_cli.models.base import Classifier
from tser_cli.settings.config import Config, TrainingConfig
from tser_cli.settings.recipe import Layer, resolve

SPEC = DataSpec("digits", 1, 8, 8, ("a", "b", "c"), mean=(0.5,), std=(0.3,))
SETTINGS = {
    "augment.crop_padding": 1,
    "augment.flip": True,
    "model.teacher": "resnet20",
    "model.student": "resnet20",
    "training.epochs": 2,
    "training.batch_size": 8,
    "training.device": "cpu",
    "training.checkpoint_every": "1step",
    "training.tensorboard": False,
}
MakeConfig = Callable[..., Config]


def source(images: int, seed: int) -> TensorSource:
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (images, 1, 8, 8), dtype=torch.uint8, generator=draw)
    return TensorSource(pixels, torch.arange(images) % SPEC.num_classes)


class Told(Silent):
    """Keeps the messages and the warnings."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.warnings: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def warn(self, text: str) -> None:
        self.warnings.append(text)


@pytest.fixture
def told() -> Told:
    """A Progress whose `said` and `warnings` can be read."""
    return Told()


# 24 training and 11 test images: three steps of eight an epoch.
DATASET = Dataset(SPEC, source(24, 1), source(11, 2))


def make_config(changes: dict[str, Any] | None = None) -> Config:
    """`make_config({"training.epochs": 3})`: the tiny settings with some changed."""
    return resolve([Layer("tests", {**SETTINGS, **(changes or {})})])


def make_context(config: Config, progress: Progress | None = None) -> Context:
    """`make_context(config, progress)`: a Context on the tiny data set, silent if not told else."""
    return Context(config, DATASET, make_runtime(config.training), progress or Silent())


def make_task(kind: str, config: Config) -> Task:
    """`make_task("student", config)`: a seeded network and its objective; a teacher likewise."""
    torch.manual_seed(3)
    teacher = networks.build("resnet20", SPEC, config, spiking=False)
    if kind == "teacher":
        return classification(teacher, config)
    student = networks.build("resnet20", SPEC, config, spiking=True)
    return distillation(student, teacher, config, SPEC.image_shape)


# The same as fixtures.
@pytest.fixture(scope="session", name="spec")
def _spec() -> DataSpec:
    return SPEC


@pytest.fixture(scope="session", name="make_config")
def _make_config() -> MakeConfig:
    return make_config


@pytest.fixture(scope="session", name="make_context")
def _make_context() -> Callable[..., Context]:
    return make_context


@pytest.fixture(scope="session", name="make_task")
def _make_task() -> Callable[..., Task]:
    return make_task


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    """One process on the CPU in single precision."""
    return make_runtime(TrainingConfig(device="cpu"))


def make_fit(
    kind: str, config: Config, runs: Path, progress: Progress | None = None, **parts: Any
) -> TrainingJob:
    """All that fit() works with, of a run under `runs`: a second call takes the run up again.

    More keywords replace parts.
    """
    runtime = make_runtime(config.training)
    found = sorted(runs.glob("*/*/*/status.json"))
    run = Run(found[0].parent) if found else folder.create(runs, kind, config)
    stop = getattr(progress, "stop", None) or StopRequest(lambda text: None)
    task = parts.pop("task", None) or make_task(kind, config)
    loader = build_train_loader(DATASET, config)
    return TrainingJob(task, loader, config, run, runtime, progress or Silent(), stop, **parts)


def write_network(
    path: Path, config: Config, spiking: bool = False, spec: DataSpec = SPEC, name: str = "resnet20"
) -> str:
    """Write the file of an untrained network, as a run does; return its SHA-256."""
    model = networks.build(name, spec, config, spiking)
    return networks.write(path, model, name, spec, config)


@pytest.fixture
def teacher_file(tmp_path: Path) -> Path:
    """A model file of an untrained teacher."""
    write_network(tmp_path / "teacher.safetensors", make_config())
    return tmp_path / "teacher.safetensors"


@pytest.fixture
def ask(teacher_file: Path) -> Callable[..., Request]:
    """`ask(["method=ce,kd"], 2, {"training.epochs": 2})`: an ablation on the tiny settings."""

    def request(
        vary: list[str], seeds: int = 1, changes: dict[str, Any] | None = None, **section: Any
    ) -> Request:
        flat = make_config({"model.timesteps": 1, "training.epochs": 1}).flat()
        stated = {k: v for k, v in flat.items() if not k.startswith("method.")}
        layer = Layer("tests", {**stated, "model.teacher": str(teacher_file), **(changes or {})})
        return make_request([layer], {"vary": vary, "seeds": seeds, **section})

    return request


@pytest.fixture
def place(tmp_path: Path) -> AblationFolder:
    """The folder of an ablation, and a runs folder beside it."""
    return AblationFolder(tmp_path / "ablation", tmp_path / "runs")


@pytest.fixture
def wake() -> Callable[[Classifier], Classifier]:
    """Gives every norm random constants, so that an SNN in eval mode spikes down to its depth."""

    def make(model: Classifier) -> Classifier:
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.momentum = None
                torch.nn.init.uniform_(module.weight, 0.8, 1.2)
                torch.nn.init.uniform_(module.bias, 0.3, 0.7)
        model.train()
        with torch.no_grad():
            model(torch.randn(8, *SPEC.image_shape), timesteps=3)
        return model.eval()

    return make


@pytest.fixture
def deterministic_flags() -> Iterator[None]:
    """Puts torch's global switches back after a test that turns them."""
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.benchmark = benchmark
