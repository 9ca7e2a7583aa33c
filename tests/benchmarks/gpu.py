"""What is to be measured on a GPU: `python -m tests.benchmarks --gpu`.

Without a GPU each row runs once in small on the CPU, to show that it can; its figures then mean
nothing.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch.profiler import ProfilerActivity, profile

from tests.benchmarks.measures import (
    Row,
    images_per_second,
    peak_over,
    pipeline_over_training,
    plain_over_step,
    step_over_floor,
)
from tests.benchmarks.subjects import Size, make_batch, training_step
from tests.benchmarks.timing import Ratio, alternate, ratio
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.training import loop
from tser_cli.models.neurons import SpikingNeuron

TRAINED_STEPS = 20
STOPPED_RUN = """
import os, signal, sys
import tser_cli.cli.app as app
import tser_cli.engine.training.loop as loop
step, left = loop.train_step, [int(sys.argv.pop(1))]
def counted(*arguments, **more):
    values = step(*arguments, **more)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGTERM)
    return values
loop.train_step = counted
app.main()
"""


def here(size: Size) -> Size:
    """`size` on a GPU; one that a CPU takes a second for elsewhere."""
    return size if torch.cuda.is_available() else replace(size, batch=2, precision="fp32")


def differing_spikes(size: Size, rounds: int) -> Ratio:
    """Per cent of a student's spikes that differ from the CPU's, in fp32, after some training."""
    device = make_runtime(size.config().training).device
    with _networks() as built:
        step = training_step(replace(size, precision="fp32"))
    for _ in range(TRAINED_STEPS if torch.cuda.is_available() else 1):
        step()
    student = built[-1].eval()
    images = make_batch(size.batch).images_NCHW
    found = []
    for place in (device, torch.device("cpu")):
        spikes = _spikes_of(student.to(place), images.to(place), size.timesteps)
        found.append([layer.cpu() for layer in spikes])
    differ = sum(int((a != b).sum()) for a, b in zip(*found, strict=True))
    return Ratio.of([100 * differ / sum(layer.numel() for layer in found[0])])


@contextmanager
def _networks() -> Iterator[list[Any]]:
    """Inside, note every network that is built."""
    built: list[Any] = []
    build = networks.build

    def noted(*arguments: Any, **more: Any) -> Any:
        built.append(build(*arguments, **more))
        return built[-1]

    with mock.patch.object(networks, "build", noted):
        yield built


@torch.inference_mode()
def _spikes_of(student: Any, images: torch.Tensor, timesteps: int) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: found.append(out.detach()))
        for layer in student.modules()
        if isinstance(layer, SpikingNeuron)
    ]
    student(images, timesteps)
    for hook in hooks:
        hook.remove()
    return found


def resumed_bits(rounds: int) -> Ratio:
    """Whether a run that was stopped and gone on with ends in the same bits: 1, else 0."""
    with tempfile.TemporaryDirectory() as folder:
        hashes = [_trained(Path(folder) / "whole", ()), _trained(Path(folder) / "parts", (7, 0))]
    return Ratio.of([float(hashes[0] == hashes[1])])


def _trained(runs: Path, stops: tuple[int, ...]) -> str:
    """SHA-256 of the weights of a run of `tser distill --deterministic`, stopped so often."""
    settings = ["--method", "ce", "--student", "resnet20", "--epochs", "1", "--deterministic"]
    words = ["distill", *settings, "--runs-dir", str(runs), "--set", "training.tensorboard=false"]
    environment = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    for stop in stops or (0,):
        subprocess.run(
            [sys.executable, "-c", STOPPED_RUN, str(stop), *words],
            env=environment,
            check=not stop,
            capture_output=True,
        )
    (weights,) = runs.glob("student/*/*/model.safetensors")
    return hashlib.sha256(weights.read_bytes()).hexdigest()


def share_of(words: tuple[str, ...], size: Size, rounds: int) -> Ratio:
    """Per cent of a step's time on the device in operations whose names hold one of `words`."""
    step = training_step(size)
    step()
    on_gpu = torch.cuda.is_available()
    with profile(activities=[*ProfilerActivity] if on_gpu else [ProfilerActivity.CPU]) as seen:
        for _ in range(rounds):
            step()
    name = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    spent = {entry.key: float(getattr(entry, name)) for entry in seen.key_averages()}
    chosen = sum(time for key, time in spent.items() if any(word in key for word in words))
    return Ratio.of([100 * chosen / sum(spent.values())])


def unread_over_step(size: Size, rounds: int) -> Ratio:
    """A step whose loss nobody reads against one that waits for it, as ours does."""
    step = training_step(size)

    def unread() -> None:
        with mock.patch.object(loop, "check_finite", lambda *arguments: None):
            step()

    spent = alternate({"unread": unread, "step": step}, rounds)
    return ratio(spent["unread"], spent["step"])


def changed_over_step(changes: dict[str, Any], size: Size, rounds: int) -> Ratio:
    """A step with other settings against ours."""
    works = {"changed": training_step(size, changes), "step": training_step(size)}
    spent = alternate(works, rounds, warm_up=3)
    return ratio(spent["changed"], spent["step"])


def gpu_rows() -> list[Row]:
    """The table, in its order: what must be right, then what must be fast, then what to look at."""
    bf16, full = here(Size(2, 128, precision="bf16")), here(Size(2, 128))
    large, six = here(Size(2, 512, precision="bf16")), here(Size(6, 128))
    steps = [here(Size(T, batch, precision="bf16")) for T in (2, 4, 6) for batch in (128, 512)]
    layouts = ("copy", "contiguous", "nchw", "nhwc")
    plain = "peak memory / plain spikingjelly fp32, T = 6, batch 128"
    floor = partial(partial, step_over_floor)
    compiled, nchw = {"performance.compile": "on"}, {"performance.channels_last": False}
    table: list[tuple[str, str, Callable[[int], Ratio]]] = [
        ("spikes that differ from the CPU's, %, fp32", "<= 0.01", partial(differing_spikes, full)),
        ("resumed under --deterministic: same bits", ">= 1", resumed_bits),
        *((f"step / floor, T = {s.timesteps}, batch {s.batch}", "<= 1.2", floor(s)) for s in steps),
        ("plain spikingjelly fp32 / step, batch 128", ">= 5", partial(plain_over_step, bf16)),
        ("thousand images/s, T = 2, batch 512", ">= 12", partial(images_per_second, large)),
        ("input pipeline / training rate", ">= 3", partial(pipeline_over_training, bf16)),
        (plain, "<= 0.4", partial(peak_over, "step", "plain", six)),
        (f"{plain}, save_memory", "<= 0.25", partial(peak_over, "saving", "plain", six)),
        ("copies and changes of layout, % of a step", "", partial(share_of, layouts, bf16)),
        ("neurons, % of a step", "", partial(share_of, ("Spike", "LIF", "lif"), bf16)),
        ("step without reading the loss / step", "", partial(unread_over_step, bf16)),
        ("step compiled / step", "", partial(changed_over_step, compiled, bf16)),
        ("step in NCHW / step in channels_last", "", partial(changed_over_step, nchw, bf16)),
    ]
    return [Row("gpu", f"GPU: {what}", aim, measure) for what, aim, measure in table]
