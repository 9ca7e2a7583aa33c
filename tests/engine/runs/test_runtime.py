"""Device, processes and random states."""

from __future__ import annotations

import os
import random
from typing import Any, cast

import numpy as np
import pytest
import torch

from tser_cli.base.errors import ConfigError
from tser_cli.engine.runs.runtime import (
    Runtime,
    make_runtime,
    random_state,
    restore_random_state,
    seed_everything,
    teacher_seed,
)
from tser_cli.settings.config import TrainingConfig

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")


class FourProcesses:
    """An accelerator of four processes, of which this is the third."""

    num_processes, process_index = 4, 2
    device = torch.device("cpu")

    def reduce(self, values: torch.Tensor, reduction: str) -> torch.Tensor:
        assert reduction == "sum"
        return values * 4


def settings(**values: Any) -> TrainingConfig:
    return TrainingConfig.model_validate({"device": "cpu", **values})


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(device: str) -> None:
    with pytest.raises(ConfigError, match=f"--device {device}: no CUDA GPU can be used here"):
        make_runtime(settings(device=device))


def test_settings_that_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="fp16 needs a GPU"):
        make_runtime(settings(precision="fp16"))
    with pytest.raises(ConfigError, match=r"batch_size = 10 can't be split evenly over 1 process"):
        make_runtime(settings(batch_size=10, accumulate=4))


@pytest.mark.parametrize("device", ["cpu", pytest.param("auto", marks=no_gpu)])
def test_one_process_on_the_cpu(device: str) -> None:
    runtime = make_runtime(settings(device=device))
    assert runtime.device.type == "cpu"
    assert (runtime.rank, runtime.world, runtime.is_main) == (0, 1, True)
    assert runtime.any(True)
    assert not runtime.any(False)
    counts = torch.tensor([3, 4])
    assert torch.equal(runtime.sum(counts), counts)
    # alone, every agreement is its own
    assert (runtime.largest(15), runtime.gather("a")) == (15, ["a"])
    assert runtime.on_main(lambda: cast(Any, [1])) == [1]
    assert runtime.main_first(lambda: None) is None


def test_one_of_several_processes() -> None:
    runtime = Runtime(FourProcesses())
    assert (runtime.rank, runtime.world, runtime.is_main) == (2, 4, False)
    assert runtime.sum(torch.tensor([2**60, 1])).tolist() == [2**62, 4]
    assert runtime.any(True)
    assert not runtime.any(False)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)]
)
def test_autocast_runs_in_the_precision_asked_for(precision: str, dtype: torch.dtype) -> None:
    runtime = make_runtime(settings(precision=precision))
    layer = torch.nn.Linear(4, 2)
    with runtime.autocast():
        result = layer(torch.randn(3, 4))
    assert result.dtype == dtype
    assert layer(torch.randn(3, 4)).dtype == torch.float32
    result.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_two_precisions_one_after_the_other() -> None:
    kinds = [
        make_runtime(settings(precision=p)).accelerator.mixed_precision
        for p in ("bf16", "fp32", "bf16")
    ]
    assert kinds == ["bf16", "no", "bf16"]


def test_images_are_placed_channels_last(runtime: Runtime) -> None:
    images = torch.randn(2, 3, 4, 4)
    placed = runtime.images(images)
    assert placed.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(placed, images)
    layer = runtime.place(torch.nn.Conv2d(3, 2, 3))
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)  # type: ignore[union-attr, operator]


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))


@pytest.mark.usefixtures("deterministic_flags")
def test_the_same_seed_gives_the_same_numbers() -> None:
    seed_everything(5, False)
    first = draws()
    seed_everything(5, False)
    assert draws() == first
    seed_everything(6, False)
    assert all(a != b for a, b in zip(draws(), first, strict=True))


@pytest.mark.usefixtures("deterministic_flags")
def test_deterministic_is_turned_on_and_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seed_everything(0, True)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.benchmark
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    seed_everything(0, False)
    assert not torch.are_deterministic_algorithms_enabled()


def test_random_states_go_round_a_file_of_tensors(tmp_path: Any) -> None:
    np.random.standard_normal(3)  # leaves a cached Gaussian behind, a part of the state
    random.gauss(0, 1)
    torch.save(random_state(), tmp_path / "state.pt")
    first = (*draws(), random.gauss(0, 1), float(np.random.standard_normal()))
    draws()
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (*draws(), random.gauss(0, 1), float(np.random.standard_normal())) == first


def test_a_teacher_has_a_seed_of_its_own() -> None:
    seeds = [teacher_seed(seed) for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert not set(seeds) & set(range(1000))
    assert max(seeds) < 2**32
    # other numbers would give another teacher for the same settings
    assert seeds[:2] == [1777519501, 3501471030]
