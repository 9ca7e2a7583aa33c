from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tser_cli.data.base import Dataset, TensorSource
from tser_cli.data.loaders import LocalFeed
from tser_cli.data.transforms import CPU, device_of, fits, placed, sent, training_pipeline
from tser_cli.settings.config import AugmentConfig

Make = Callable[..., Dataset]

CUDA = torch.device("cuda")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("needed", "free", "answer"),
    [
        (0, 0, True),
        (1, 0, False),
        (250, 1000, True),
        (251, 1000, False),
        # CIFAR on a GPU with 80 GB, and on one that is nearly full
        (50_000 * 3072, 80 * 10**9, True),
        (50_000 * 3072, 600 * 10**6, False),
    ],
)
def test_a_quarter_of_the_free_memory_may_be_taken(needed: int, free: int, answer: bool) -> None:
    assert fits(needed, free) is answer


def test_images_that_do_not_fit_stay_where_they_are(
    make_dataset: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_dataset(train=50).train
    # 50 images of 3 x 12 x 10 bytes
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 18_000 - 1, 10**9))
    assert placed(source, CUDA) is source
    moves: list[torch.device] = []

    def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        moves.append(device)
        return tensor

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (4 * 18_000, 10**9))
    monkeypatch.setattr(torch.Tensor, "to", move)
    copy = placed(source, CUDA)
    assert isinstance(copy, TensorSource) and copy is not source
    assert moves == [CUDA, CUDA]


@pytest.mark.parametrize("device", ["cpu", "mps", "xpu"])
def test_images_move_to_cuda_alone(make_dataset: Make, device: str) -> None:
    source = make_dataset().train
    assert placed(source, torch.device(device)) is source


def test_files_stay_files() -> None:
    class Files:
        labels = torch.zeros(2, dtype=torch.int64)

        def __len__(self) -> int:
            return 2

        def image(self, index: int) -> torch.Tensor:
            return torch.zeros(3, 4, 5, dtype=torch.uint8)

    source = Files()
    assert placed(source, CUDA) is source
    assert device_of(source) == CPU


def test_what_is_sent_arrives() -> None:
    tensor = torch.arange(5)
    assert torch.equal(sent(tensor, CPU), tensor)
    assert sent(tensor, torch.device("meta")).device.type == "meta"


class OneDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Refuses operations on tensors of several devices: the meta device itself lets some pass."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        # one number may come from anywhere
        assert len({tensor.device for tensor in tensors if tensor.ndim}) < 2, func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_that_meets_the_images_is_on_their_device(make_dataset: Make, channels: int) -> None:
    dataset = make_dataset()
    spec = make_dataset(channels=channels).spec
    meta = torch.device("meta")
    source = TensorSource(
        torch.zeros(50, channels, 12, 10, dtype=torch.uint8, device=meta),
        dataset.train.labels.to(meta),
    )
    augment = AugmentConfig(crop_padding=2, flip=True, autoaugment="cifar10", cutout=4)
    pipeline = training_pipeline(source, spec, augment, seed=0)
    assert device_of(source) == meta
    with OneDevice():  # type: ignore[no-untyped-call]
        (batch,) = LocalFeed(pipeline, pin=False).batches([(0, list(range(50)) * 4)])
    assert {tensor.device for tensor in batch} == {meta}
    assert batch.images_NCHW.shape == (200, channels, 12, 10)
    assert batch.labels_N.shape == batch.indices_N.shape == (200,)


@needs_gpu
@pytest.mark.parametrize("autoaugment", ["none", "cifar10"])
def test_a_gpus_images_depend_on_seed_epoch_and_index_alone(
    make_dataset: Make, autoaugment: str
) -> None:
    dataset = make_dataset()
    augment = AugmentConfig.model_validate(
        {"crop_padding": 2, "flip": True, "autoaugment": autoaugment, "cutout": 4}
    )
    there = training_pipeline(placed(dataset.train, CUDA), dataset.spec, augment, seed=0)
    together = there(1, range(50))
    assert together.device.type == "cuda"
    one_by_one = torch.cat([there(1, [index]) for index in range(50)])
    assert torch.equal(together, one_by_one)
    here = training_pipeline(dataset.train, dataset.spec, augment, seed=0)(1, range(50))
    # one grey level in a few pixels, where a product is rounded otherwise
    far = (together.cpu() - here).abs() > 1e-5
    assert far.float().mean() < (1e-3 if autoaugment == "cifar10" else 1e-9)
