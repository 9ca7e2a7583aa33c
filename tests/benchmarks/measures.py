"""The rows of the table: each function measures one of them, or says that it needs a GPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial

import torch
from rich.console import Console

from tests.benchmarks.evaluating import evaluation_over_forward, exits_over_share
from tests.benchmarks.memory import peak_megabytes
from tests.benchmarks.side_by_side import rates
from tests.benchmarks.starting import EMPTY_APP, first_step_over_torch, help_over, main_job
from tests.benchmarks.subjects import (
    CLASSES,
    PLAIN,
    SIDE,
    SPEC,
    Size,
    floor_step,
    training_step,
)
from tests.benchmarks.timing import Ratio, alternate, ratio, seconds
from tser_cli.cli.progress import make_progress
from tser_cli.cli.surroundings import wait_briefly
from tser_cli.data.base import TensorSource
from tser_cli.data.transforms import training_pipeline
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.training.state import EpochSums
from tser_cli.settings.config import AugmentConfig


@dataclass(frozen=True)
class Row:
    """What is measured, what we aim at, and how to measure it. `at_least` turns the aim round."""

    what: str
    aim: float | None
    measure: Callable[[int], Ratio]
    gpu: bool = False
    at_least: bool = False
    group: str = field(default="step")

    def reached(self, found: Ratio) -> bool | None:
        """Whether the median is where we aim; None without an aim."""
        if self.aim is None:
            return None
        return found.median >= self.aim if self.at_least else found.median <= self.aim

    def aimed(self) -> str:
        """The aim as a text."""
        return "" if self.aim is None else f"{'>=' if self.at_least else '<='} {self.aim:g}"


def step_over_floor(size: Size, rounds: int) -> Ratio:
    """Our step against the arithmetic below it."""
    spent = alternate({"step": training_step(size), "floor": floor_step(size)}, rounds)
    return ratio(spent["step"], spent["floor"])


def plain_over_step(size: Size, rounds: int) -> Ratio:
    """The same network in plain spikingjelly, NCHW, its stem T times, against our step."""
    single = Size(size.timesteps, size.batch)
    works = {"plain": training_step(single, PLAIN), "step": training_step(size)}
    spent = alternate(works, rounds)
    return ratio(spent["plain"], spent["step"])


def precisions_over(size: Size, rounds: int) -> Ratio:
    """Our step in the precision of `size` against our step in fp32."""
    works = {"step": training_step(size), "fp32": training_step(replace(size, precision="fp32"))}
    spent = alternate(works, rounds)
    return ratio(spent["step"], spent["fp32"])


def beside_rows() -> list[Row]:
    """Training beside other work against alone, as OpenMP waits by itself and as tser has it."""
    waiting: dict[str, str] = {}
    wait_briefly(waiting)
    return [
        Row(
            f"CPU: {what} / one alone, {how}",
            aim,
            partial(beside, mode, env),
            at_least=True,
            group="beside",
        )
        for how, env, aim in (("OpenMP as it is", {}, None), ("as tser", waiting, 0.45))
        for mode, what in (("two", "each of two at once"), ("beside", "one beside a busy core"))
    ]


def beside(mode: str, environment: dict[str, str], rounds: int) -> Ratio:
    """Steps a second beside other work against those alone with OpenMP's own waiting."""
    found, plain = _rates(tuple(environment.items()), rounds), _rates((), rounds)
    return ratio(found[mode], plain["alone"])


@cache
def _rates(environment: tuple[tuple[str, str], ...], rounds: int) -> dict[str, list[float]]:
    return rates(dict(environment), rounds)  # four rows show parts of two measurements


def memory_over_floor(kind: str, below: str, size: Size, rounds: int) -> Ratio:
    """Peak memory of processes of their own."""
    return Ratio.of(
        [
            peak_megabytes(kind, size) / peak_megabytes(below, size)
            for _ in range(max(1, rounds // 3))
        ]
    )


def telling_over_step(size: Size, rounds: int) -> Ratio:
    """Progress bar and metrics of a step, in per cent of the step."""
    step = training_step(size)
    values = step()
    assert isinstance(values, dict)
    progress = make_progress(Console(file=io.StringIO(), force_terminal=True, width=100))
    progress.begin(1, 10_000, 0)
    sums, calls = EpochSums(), 100

    def tell() -> None:
        for _ in range(calls):
            sums.add(size.batch, values)
            progress.step(size.batch, values)

    spent = alternate({"telling": tell, "step": step}, rounds)
    progress.end()
    shares = [100 * a / calls / b for a, b in zip(spent["telling"], spent["step"], strict=True)]
    return Ratio.of(shares)


def pipeline_over_training(size: Size, rounds: int) -> Ratio:
    """Images/s of the whole input pipeline against those of the training step."""
    draw = torch.Generator().manual_seed(0)
    shape = (8192, 3, SIDE, SIDE)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draw)
    device = make_runtime(size.config().training).device
    source = TensorSource(pixels.to(device), (torch.arange(8192) % CLASSES).to(device))
    augment = AugmentConfig(crop_padding=4, flip=True, autoaugment="cifar10", cutout=16)
    pipeline = training_pipeline(source, SPEC, augment, seed=0)
    batches = [list(range(start, start + 128)) for start in range(0, 1024, 128)]
    step = training_step(size)

    def load() -> None:
        for batch in batches:
            pipeline(0, batch)

    spent = alternate({"step": step, "load": load}, rounds)
    return Ratio.of(
        [
            (1024 / load_s) / (size.batch / step_s)
            for step_s, load_s in zip(spent["step"], spent["load"], strict=True)
        ]
    )


def images_per_second(size: Size, rounds: int) -> Ratio:
    """Of the training step alone, in thousands."""
    step = training_step(size)
    step()
    return Ratio.of([size.batch / seconds(step) / 1000 for _ in range(rounds)])


def rows() -> list[Row]:
    """The table, in its order."""
    table = [
        Row(
            f"CPU: distillation step / floor, T = {steps}, batch 32",
            1.10,
            partial(step_over_floor, Size(steps, 32)),
        )
        for steps in (2, 4)
    ]
    table.append(
        Row(
            "CPU: plain spikingjelly / step, T = 2, batch 32",
            None,
            lambda rounds: plain_over_step(Size(2, 32), max(1, rounds // 2)),
        )
    )
    bf16 = Size(2, 32, precision="bf16")
    table += [
        Row(
            "CPU: step / floor in bf16, T = 2, batch 32",
            1.10,
            partial(step_over_floor, bf16),
            group="bf16",
        ),
        Row(
            "CPU: step in bf16 / in fp32, T = 2, batch 32",
            0.7,
            partial(precisions_over, bf16),
            group="bf16",
        ),
        *beside_rows(),
        Row(
            "CPU: input pipeline / training rate, T = 2, batch 32",
            None,
            partial(pipeline_over_training, Size(2, 32)),
            at_least=True,
        ),
        Row(
            "CPU: peak memory / floor, T = 6, batch 32",
            1.1,
            partial(memory_over_floor, "step", "floor", Size(6, 32)),
            group="memory",
        ),
        Row(
            "CPU: the same with performance.save_memory",
            1.0,
            partial(memory_over_floor, "saving", "floor", Size(6, 32)),
            group="memory",
        ),
        Row(
            "CPU: peak memory / floor in bf16, T = 6, batch 32",
            None,
            partial(memory_over_floor, "step", "floor", replace(bf16, timesteps=6)),
            group="memory",
        ),
        Row(
            "evaluate, all steps / plain eager forward, images/s, T = 4",
            2,
            partial(evaluation_over_forward, Size(4, 32)),
            at_least=True,
            group="evaluate",
        ),
        Row(
            "evaluate in bf16, all steps / plain eager forward in fp32, images/s, T = 4",
            2,
            partial(evaluation_over_forward, Size(4, 32, precision="bf16")),
            at_least=True,
            group="evaluate",
        ),
        Row(
            "evaluate with 8-bit weights / plain eager forward in fp32, images/s, T = 4",
            3,
            partial(evaluation_over_forward, Size(4, 32), bits=8),
            at_least=True,
            group="evaluate",
        ),
        Row(
            "early exit, half at step 1 / its mean steps' share of a full pass, T = 4",
            1.1,
            partial(exits_over_share, Size(4, 64)),
            group="evaluate",
        ),
        Row("main job on digits, seconds", 60, main_job, group="job"),
        Row(
            "tser --help / import typer, rich",
            2,
            partial(help_over, ("-c", "import typer, rich")),
            group="start",
        ),
        Row(
            "tser --help / --help of an app of one empty command",
            None,
            partial(help_over, ("-c", EMPTY_APP, "--help")),
            group="start",
        ),
        Row(
            "tser distill on digits, start to first step / import torch",
            1.6,
            first_step_over_torch,
            group="start",
        ),
        Row(
            "progress and metrics, % of a step, T = 2, batch 32",
            1,
            partial(telling_over_step, Size(2, 32)),
            group="telling",
        ),
    ]
    return table
