"""Device, precision and processes, on Hugging Face accelerate.

One process is the ordinary case; under torchrun or accelerate launch the same code runs on
several, and only the `Runtime` knows.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tser_cli.config import TrainingConfig
from tser_cli.errors import ConfigError

PRECISIONS = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


@dataclass(frozen=True)
class Runtime:
    """Where a run happens: its device, its precision, its rank among the processes."""

    accelerator: Any

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """0 .. world - 1."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        """The number of processes."""
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def place(self, model: nn.Module) -> nn.Module:
        """`model` on the device, channels last, which convolutions prefer on CPU and GPU."""
        return model.to(device=self.device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]

    def images(self, images_NCHW: Tensor) -> Tensor:
        """A batch of images on the device, channels last."""
        return images_NCHW.to(self.device, non_blocking=True, memory_format=torch.channels_last)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """The precision of forward passes."""
        with self.accelerator.autocast():
            yield

    def sum(self, values: Tensor) -> Tensor:
        """Element-wise sum over all processes, exact for integers."""
        if self.world == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.device), reduction="sum")
        return total

    def any(self, flag: bool) -> bool:
        """Whether `flag` is true in any process."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor([int(flag)])).item())

    def wait(self) -> None:
        """Wait for all processes."""
        self.accelerator.wait_for_everyone()


def make_runtime(training: TrainingConfig) -> Runtime:
    """The Runtime that `device` and `precision` ask for. Raises ConfigError for a missing GPU."""
    _check_device(training.device)
    # accelerate keeps one state a process; teacher and student may differ in precision.
    AcceleratorState._reset_state()
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if ":" in training.device:
        os.environ["ACCELERATE_TORCH_DEVICE"] = training.device
    accelerator = Accelerator(
        cpu=training.device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=PRECISIONS[training.precision],
        gradient_accumulation_steps=1,
    )
    runtime = Runtime(accelerator)
    if training.batch_size % (runtime.world * training.accumulate):
        raise ConfigError(
            f"training.batch_size = {training.batch_size} can't be split evenly over "
            f"{runtime.world} process(es) x training.accumulate = {training.accumulate}"
        )
    if training.precision == "fp16" and runtime.device.type == "cpu":
        raise ConfigError("training.precision = fp16 needs a GPU; use bf16 or fp32 on a CPU")
    return runtime


def _check_device(device: str) -> None:
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {device}: no CUDA GPU can be used here. Use --device cpu, or install a "
            "CUDA build of torch and a driver"
        )
    if ":" in device and int(device.split(":")[1]) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs here")


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch; `deterministic` also forbids non-deterministic kernels."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def random_state() -> dict[str, Any]:
    """The random states of Python, NumPy, torch and CUDA as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (
            str(kind),
            torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            position,
            has_gauss,
            cached,
        ),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put `random_state()` back; CUDA states only where the number of GPUs is the same."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
