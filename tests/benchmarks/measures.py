"""The rows of the table: each function measures one of them, or says that it needs a GPU."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from rich.console import Console

from tests.benchmarks import library
from tests.benchmarks.evaluating import (
    counting_added,
    evaluation_over_forward,
    exits_over_share,
)
from tests.benchmarks.events import samples_a_second, step_on_frames
from tests.benchmarks.memory import peak_megabytes
from tests.benchmarks.side_by_side import rates
from tests.benchmarks.starting import EMPTY_APP, first_step_over_torch, help_over, main_job
from tests.benchmarks.subjects import CLASSES, PLAIN, SIDE, SPEC, Size, floor_step, training_step
from tests.benchmarks.timing import Ratio, alternate, ratio, seconds
from tser_cli.cli.app import wait_briefly
from tser_cli.cli.progress import make_progress
from tser_cli.data.base import TensorSource
from tser_cli.data.transforms import training_pipeline
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.training.state import EpochSums
from tser_cli.settings.config import AugmentConfig


@dataclass(frozen=True)
class Row:
    """What is measured, what we aim at (">= 2", or "" without an aim), and how to measure it."""

    group: str
    what: str
    aim: str
    measure: Callable[[int], Ratio]

    def reached(self, found: Ratio) -> bool | None:
        """Whether the median is where we aim; None without an aim."""
        if not self.aim:
            return None
        sign, number = self.aim.split()
        return found.median >= float(number) if sign == ">=" else found.median <= float(number)


def step_over_floor(size: Size, rounds: int) -> Ratio:
    """Our step against the arithmetic below it."""
    spent = alternate({"step": training_step(size), "floor": floor_step(size)}, rounds)
    return ratio(spent["step"], spent["floor"])


def plain_over_step(size: Size, rounds: int) -> Ratio:
    """The same network in plain spikingjelly, NCHW, its stem T times, against our step."""
    single = Size(size.timesteps, size.batch)
    works = {"plain": training_step(single, PLAIN), "step": training_step(size)}
    spent = alternate(works, max(1, rounds // 2))
    return ratio(spent["plain"], spent["step"])


def precisions_over(size: Size, rounds: int) -> Ratio:
    """Our step in the precision of `size` against our step in fp32."""
    works = {"step": training_step(size), "fp32": training_step(replace(size, precision="fp32"))}
    spent = alternate(works, rounds)
    return ratio(spent["step"], spent["fp32"])


def beside(mode: str, environment: dict[str, str], rounds: int) -> Ratio:
    """Steps a second beside other work against those alone with OpenMP's own waiting."""
    found, plain = _rates(tuple(environment.items()), rounds), _rates((), rounds)
    return ratio(found[mode], plain["alone"])


@cache
def _rates(environment: tuple[tuple[str, str], ...], rounds: int) -> dict[str, list[float]]:
    return rates(dict(environment), rounds)  # four rows show parts of two measurements


def peak_over(kind: str, below: str, size: Size, rounds: int) -> Ratio:
    """Peak memory of processes of their own."""
    times = max(1, rounds // 3)
    return Ratio.of(
        [peak_megabytes(kind, size) / peak_megabytes(below, size) for _ in range(times)]
    )


def telling_over(size: Size, rounds: int) -> Ratio:
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
    return ratio([1024 * s for s in spent["step"]], [size.batch * s for s in spent["load"]])


def images_per_second(size: Size, rounds: int) -> Ratio:
    """Of the training step alone, in thousands."""
    step = training_step(size)
    step()
    return Ratio.of([size.batch / seconds(step) / 1000 for _ in range(rounds)])


def rows() -> list[Row]:
    """The table, in its order."""
    small, four, six = Size(2, 32), Size(4, 32), Size(6, 32)
    bf16, six_bf16 = replace(small, precision="bf16"), replace(six, precision="bf16")
    forward = partial(evaluation_over_forward, four)
    briefly: dict[str, str] = {}
    wait_briefly(briefly)
    return [
        *(
            Row(
                "step",
                f"CPU: distillation step / floor, T = {size.timesteps}, batch 32",
                "<= 1.1",
                partial(step_over_floor, size),
            )
            for size in (small, four)
        ),
        Row("step", "CPU: plain spikingjelly / step, T = 2", "", partial(plain_over_step, small)),
        Row("bf16", "CPU: step / floor in bf16, T = 2", "<= 1.1", partial(step_over_floor, bf16)),
        Row("bf16", "CPU: step in bf16 / in fp32", "<= 0.7", partial(precisions_over, bf16)),
        *(
            Row("beside", f"CPU: {what} / one alone, {how}", aim, partial(beside, mode, waiting))
            for how, waiting, aim in (("OpenMP as it is", {}, ""), ("as tser", briefly, ">= 0.45"))
            for mode, what in (("two", "each of two at once"), ("beside", "one beside a busy core"))
        ),
        Row("step", "CPU: input pipeline / training", "", partial(pipeline_over_training, small)),
        *(
            Row("memory", f"CPU: peak memory / floor{what}", aim, partial(peak_over, *measured))
            for what, aim, measured in (
                (", T = 6, batch 32", "<= 1.1", ("step", "floor", six)),
                (" with performance.save_memory", "<= 1", ("saving", "floor", six)),
                (" in bf16", "", ("step", "floor", six_bf16)),
            )
        ),
        *(
            Row("evaluate", f"evaluate{how} / plain forward in fp32, images/s, T = 4", aim, measure)
            for how, aim, measure in (
                (" all steps", ">= 2", forward),
                (" in bf16", ">= 2", partial(evaluation_over_forward, replace(bf16, timesteps=4))),
                (" with 8-bit weights", ">= 3", partial(forward, bits=8)),
            )
        ),
        Row(
            "evaluate",
            "early exit, half at step 1 / its mean steps' share of a full pass, T = 4",
            "<= 1.1",
            partial(exits_over_share, Size(4, 64)),
        ),
        Row("counting", "counting, % of a plain forward pass, one thread", "<= 10", counting_added),
        *(
            Row("library", f"CPU: {name}: {what}, T = 4, batch 16", aim, partial(measure, size))
            for name, size in ((name, Size(4, 16, student=name)) for name in library.STUDENTS)
            for what, aim, measure in (
                ("distillation step / plain loop on the class", "<= 1", library.step_over_plain),
                ("counting, % of a forward pass, one thread", "<= 15", library.counting_added),
                ("peak memory / plain loop", "", partial(peak_over, "library", "plain loop")),
            )
        ),
        Row("job", "main job on digits, seconds", "<= 60", main_job),
        *(
            Row("start", f"tser --help / {what}", aim, partial(help_over, less))
            for what, aim, less in (
                ("import typer, rich", "<= 2", ("-c", "import typer, rich")),
                ("--help of an app of one empty command", "", ("-c", EMPTY_APP, "--help")),
            )
        ),
        Row(
            "start",
            "tser distill on digits, start to first step / import torch",
            "<= 1.6",
            first_step_over_torch,
        ),
        Row("telling", "progress and metrics, % of a step", "<= 1", partial(telling_over, small)),
        *(
            Row(
                "events",
                f"events of N-MNIST from {what} to batches, samples/s a core",
                aim,
                measure,
            )
            for what, aim, measure in (
                ("their files", ">= 200", partial(samples_a_second, cached=False)),
                ("the cache", ">= 5000", partial(samples_a_second, cached=True)),
            )
        ),
        Row(
            "events",
            "step on frames / on repeated images, the stem at every step, T = 6, batch 32",
            "<= 1.05",
            step_on_frames,
        ),
    ]
