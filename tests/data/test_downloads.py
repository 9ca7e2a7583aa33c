from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from tser_cli.config import DataConfig
from tser_cli.data import downloads
from tser_cli.data.base import TensorSource, load_dataset
from tser_cli.errors import DataError


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    debian = tmp_path / "debian"
    monkeypatch.setattr(downloads, "DEBIAN", debian)
    return debian


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import utils

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr(utils, "download_url", unreachable)


def config(name: str, folder: Path) -> DataConfig:
    return DataConfig(name=name, dir=str(folder))


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_idx_files_in_torchvisions_layout(
    tmp_path: Path, write_idx: Callable[..., Any], name: str, folder: str, gz: bool
) -> None:
    arrays = write_idx(tmp_path / folder, gz=gz)
    dataset = load_dataset(config(name, tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (6, 4)
    assert dataset.spec.image_shape == tuple(dataset.train.image(0).shape) == (1, 28, 28)
    images, labels = arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]
    np.testing.assert_array_equal(dataset.test.image(2)[0].numpy(), images[2])
    assert dataset.test.labels.tolist() == labels.tolist()


def test_debians_fashion_mnist_is_found(
    tmp_path: Path, nothing_installed: Path, write_idx: Callable[..., Any]
) -> None:
    write_idx(nothing_installed / "fashion-mnist", train=9)
    assert len(load_dataset(config("fashion-mnist", tmp_path)).train) == 9


def test_the_users_files_win_over_debians(
    tmp_path: Path, nothing_installed: Path, write_idx: Callable[..., Any]
) -> None:
    write_idx(nothing_installed / "fashion-mnist", train=9)
    write_idx(tmp_path / "FashionMNIST" / "raw", train=7)
    assert len(load_dataset(config("fashion-mnist", tmp_path)).train) == 7


@pytest.mark.usefixtures("no_network")
def test_fashion_mnist_is_not_taken_for_mnist(
    tmp_path: Path, write_idx: Callable[..., Any]
) -> None:
    write_idx(tmp_path)
    write_idx(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="mnist is not on this machine"):
        load_dataset(config("mnist", tmp_path))


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        ("mnist", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "MNIST/raw"),
        ("fashion-mnist", ["train-labels-idx1-ubyte.gz"], "FashionMNIST/raw"),
        ("cifar10", ["cifar-10-python.tar.gz"], "."),
        ("cifar100", ["cifar-100-python.tar.gz"], "."),
    ],
)
def test_missing_files_are_listed_with_their_place(
    tmp_path: Path, name: str, files: list[str], folder: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(config(name, tmp_path))
    for part in (*files, f"into {tmp_path / folder}:", "--data-dir", "TSER_DATA_DIR", "http"):
        assert part in str(caught.value)


def test_a_truncated_file_is_named(tmp_path: Path, write_idx: Callable[..., Any]) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder)
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz can't be read"):
        load_dataset(config("mnist", tmp_path))


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("train-labels-idx1-ubyte", np.zeros(5, np.uint8), "5 labels for 6 images"),
        ("train-labels-idx1-ubyte", np.full(6, 10, np.uint8), "below 10"),
        ("t10k-images-idx3-ubyte", np.zeros((4, 28, 27), np.uint8), "28 x 27 pixels"),
        ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "0 images"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, write_idx: Callable[..., Any], name: str, values: np.ndarray, why: str
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, gz=False)
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    (folder / name).write_bytes(bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes())
    with pytest.raises(DataError, match=why):
        load_dataset(config("mnist", tmp_path))


def test_cifar10_from_its_archive(
    tmp_path: Path, write_tar: Callable[..., None], cifar10_members: dict[str, Any]
) -> None:
    write_tar(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", cifar10_members)
    dataset = load_dataset(config("cifar10", tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (15, 3)
    assert dataset.spec.image_shape == (3, 32, 32)
    assert dataset.spec.classes[9] == "class 9"


def test_cifar100_takes_the_fine_labels(tmp_path: Path, write_folder: Callable[..., None]) -> None:
    images = np.zeros((2, 3072), np.uint8)
    entry = {"data": images, "fine_labels": [99, 0], "coarse_labels": [1, 2]}
    meta = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": ["x"]}
    write_folder(tmp_path / "cifar-100-python", {"train": entry, "test": entry, "meta": meta})
    dataset = load_dataset(config("cifar100", tmp_path))
    assert dataset.train.labels.tolist() == [99, 0]
    assert dataset.spec.num_classes == 100 and dataset.spec.classes[42] == "fine 42"


def test_the_root_is_the_cache_folder_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/someone/.cache")
    assert downloads.root(DataConfig()).name == "tser"
    assert downloads.root(DataConfig(dir="~/images")) == Path("/home/someone/images")


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist"
)
def test_fashion_mnists_constants_are_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(downloads, "DEBIAN", Path("/usr/share/datasets"))
    dataset = downloads.fashion_mnist(config("fashion-mnist", tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert torch.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert isinstance(dataset.train, TensorSource)
    std, mean = torch.std_mean(dataset.train.images_MCHW.float() / 255)
    assert dataset.spec.mean == pytest.approx((mean.item(),), abs=1e-4)
    assert dataset.spec.std == pytest.approx((std.item(),), abs=1e-4)
