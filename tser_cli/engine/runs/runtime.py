"""Device, precision and processes, on Hugging Face accelerate; and random states.

One process is the ordinary case. Under torchrun or accelerate launch the same code runs in several
processes, and only the `Runtime` knows about them.
"""

from __future__ import annotations

import ctypes
import os
import platform
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn, TypeVar

import numpy as np
import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError, Interrupted, TrainingError, TserError, lost_worker
from tser_cli.base.system import end_with_parent
from tser_cli.settings.config import TrainingConfig

# auto is fp32 until it is settled
PRECISIONS = {"auto": "no", "fp32": "no", "bf16": "bf16", "fp16": "fp16"}
# A process that vanished without closing its connections is given up after this time.
PATIENCE = timedelta(minutes=10)

Result = TypeVar("Result")


@dataclass(frozen=True)
class Runtime:
    """Say where a run happens: its device, its precision, its rank among the processes.

    `world`: the number of processes. `memory_format`: how networks and images lie in memory.
    """

    accelerator: Any
    memory_format: torch.memory_format = torch.channels_last

    @property
    def device(self) -> torch.device:
        device: torch.device = self.accelerator.device
        return device

    @property
    def rank(self) -> int:
        """0 .. world - 1."""
        return int(self.accelerator.process_index)

    @property
    def world(self) -> int:
        return int(self.accelerator.num_processes)

    @property
    def is_main(self) -> bool:
        """Return whether this is rank 0, the process that writes and prints."""
        return self.rank == 0

    def place(self, model: nn.Module) -> nn.Module:
        """Move `model` to the device."""
        return model.to(device=self.device, memory_format=self.memory_format)  # type: ignore[call-overload, no-any-return]

    def images(self, images_NCHW: Tensor) -> Tensor:
        """Move a batch of images, or of samples with a time axis, to the device."""
        # the layout is one of four axes: frames get it where they are folded into the batch
        layout = self.memory_format if images_NCHW.dim() == 4 else torch.contiguous_format
        return images_NCHW.to(self.device, non_blocking=True, memory_format=layout)

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """Run forward passes in the precision of the settings."""
        with self.accelerator.autocast():
            yield

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over all processes, exact for integers."""
        if self.world == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.device), reduction="sum")
        return total

    def any(self, flag: bool) -> bool:
        """Return whether `flag` is true in any process."""
        if self.world == 1:
            return flag
        return bool(self.sum(torch.tensor([int(flag)])).item())

    def largest(self, value: int) -> int:
        """Return the largest `value` of any process."""
        if self.world == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
        return int(shared.item())

    def gather(self, value: Any) -> list[Any]:
        """Return the `value` of every process, by rank."""
        values = [value] * self.world
        if self.world > 1:
            torch.distributed.all_gather_object(values, value)
        return values

    def on_main(self, action: Callable[[], Result]) -> Result:
        """Run `action` on rank 0 and broadcast its result.

        If it raises a TserError, all processes end with its exit code, and rank 0 prints it.
        """
        if self.world == 1:
            return action()
        # The error travels too: a process that hears of none would wait in the next exchange.
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except TserError as error:
                outcome[1] = error
        torch.distributed.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            self.fail(outcome[1])
        result: Result = outcome[0]
        return result

    def main_first(self, action: Callable[[], Result]) -> Result:
        """Run `action` in every process, on rank 0 before the others; return its result."""
        results: list[Result] = []
        # on_main broadcasts at its end: so the others begin when rank 0 is done
        self.on_main(lambda: results.append(action()))
        return results[0] if results else action()

    def fail(self, error: TserError) -> NoReturn:
        """End all processes with the exit code of `error`; only rank 0 prints it."""
        if self.is_main:
            raise error
        # with the same exit code, so that a launcher sees one reason, and not a crash
        raise SystemExit(error.exit_code)

    @contextmanager
    def naming_failed_process(self) -> Iterator[None]:
        """Name this process in errors that are raised inside.

        A request to stop reaches all processes; only rank 0 prints it. The loss of another process,
        or of a data loader's worker, becomes a TrainingError.
        """
        try:
            yield
        except Interrupted as stop:
            if self.is_main:
                raise
            raise SystemExit(stop.exit_code) from stop
        except TserError as error:
            if self.is_main:
                raise
            raise type(error)(f"{self.process_description}: {error}") from error
        except RuntimeError as error:
            if lost := lost_worker(error):
                where = f"{self.process_description}: " if self.world > 1 else ""
                raise TrainingError(f"{where}{lost}") from error
            # gloo raises plain RuntimeErrors, which name its source files
            if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error):
                raise
            raise TrainingError(
                f"{self.process_description} lost the connection to another process, "
                f"which has died or hangs: see the messages of the others. "
                f"Repeat the command, and it is resumed ({error})"
            ) from error

    @property
    def process_description(self) -> str:
        """Describe this process, for messages: "process 1 of 2 on host"."""
        return f"process {self.rank} of {self.world} on {socket.gethostname()}"


def make_runtime(training: TrainingConfig, channels_last: bool = True) -> Runtime:
    """Return the Runtime that `device` and `precision` ask for.

    `channels_last`: the memory layout that convolutions prefer on CPU and GPU. Raises ConfigError
    for a GPU that is not there, and for a batch that can't be split evenly.
    """
    device = training.device
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(
            f"--device {device}: no CUDA GPU can be used here. Use --device cpu, or install a "
            "CUDA build of torch and a driver"
        )
    if ":" in device and int(device.split(":")[1]) >= torch.cuda.device_count():
        raise ConfigError(f"--device {device}: there are {torch.cuda.device_count()} GPUs here")
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun
    # accelerate keeps one state a process; teacher and student may differ in precision.
    AcceleratorState._reset_state()
    # a GPU by its number: accelerate has no argument for it
    os.environ.pop("ACCELERATE_TORCH_DEVICE", None)
    if ":" in device:
        os.environ["ACCELERATE_TORCH_DEVICE"] = device
    accelerator = Accelerator(
        cpu=device == "cpu" or not torch.cuda.is_available(),
        mixed_precision=PRECISIONS[training.precision],
        gradient_accumulation_steps=1,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    runtime = Runtime(accelerator, memory_format)
    if runtime.device.type == "cpu" and platform.libc_ver()[0] == "glibc":
        # Let glibc keep large freed blocks: asking for them again takes a tenth of a CPU step.
        # M_TRIM_THRESHOLD is -1, M_MMAP_THRESHOLD -3 in its malloc.h.
        for parameter in (-1, -3):
            ctypes.CDLL(None).mallopt(parameter, 2**31 - 1)
    if training.batch_size % (runtime.world * training.accumulate):
        problem = (
            f"training.batch_size = {training.batch_size} can't be split evenly over "
            f"{runtime.world} process(es) x training.accumulate = {training.accumulate}"
        )
        runtime.fail(ConfigError(problem))
    if training.precision == "fp16" and runtime.device.type == "cpu":
        problem = "training.precision = fp16 needs a GPU; use bf16 or fp32 on a CPU"
        runtime.fail(ConfigError(problem))
    return runtime


def seed_everything(seed: int, deterministic: bool) -> None:
    """Seed Python, NumPy and torch. With `deterministic`, forbid non-deterministic kernels too."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS is deterministic only with a workspace of a fixed size, and reads this once
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if torch.are_deterministic_algorithms_enabled() != deterministic:
        # the call imports torch's compiler, which takes seconds
        torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = not deterministic


def teacher_seed(seed: int) -> int:
    """Return what `seed_everything` gets for a teacher of `seed`: 32 bits mixed from both.

    A student of the same seed and architecture would otherwise start with its teacher's own initial
    weights, and a comparison over seeds would measure that, too.
    """
    mixed = np.random.SeedSequence([int.from_bytes(b"teacher"), seed])
    return int(mixed.generate_state(1)[0])


def random_state() -> dict[str, Any]:
    """Return the random states of Python, NumPy, torch and CUDA, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    # as a tensor: torch.load reads no NumPy array without running code
    keys_K = torch.from_numpy(np.asarray(keys, dtype=np.int64))
    return {
        "python": random.getstate(),
        "numpy": (str(kind), keys_K, position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_state(state: dict[str, Any]) -> None:
    """Put back what `random_state` returned.

    CUDA states are put back only where the number of GPUs is the same.
    """
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
