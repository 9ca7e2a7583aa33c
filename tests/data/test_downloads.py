from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser_cli.base.errors import DataError
from tser_cli.data import builtin
from tser_cli.data.base import TensorSource, load_dataset
from tser_cli.settings.config import DataConfig


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    debian = tmp_path / "debian"
    monkeypatch.setattr(builtin, "DEBIAN", debian)
    return debian


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


@pytest.mark.usefixtures("served")
def test_fashion_mnist_is_not_taken_for_mnist(
    tmp_path: Path, write_idx: Callable[..., Any]
) -> None:
    write_idx(tmp_path)
    write_idx(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="mnist is not on this machine"):
        load_dataset(config("mnist", tmp_path))


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        ("mnist", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "MNIST/raw"),
        ("fashion-mnist", ["train-labels-idx1-ubyte.gz"], "FashionMNIST/raw"),
        ("cifar10", ["cifar-10-python.tar.gz"], ""),
        ("cifar100", ["cifar-100-python.tar.gz"], ""),
    ],
)
def test_missing_files_are_listed_with_their_place(
    tmp_path: Path, name: str, files: list[str], folder: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_dataset(config(name, tmp_path))
    for part in (*files, str(tmp_path / folder / files[0]), "--data-dir", "TSER_DATA_DIR", "http"):
        assert part in str(caught.value)


@pytest.mark.parametrize("gz", [False, True])
def test_an_idx_file_cut_anywhere_is_named(
    tmp_path: Path, write_idx: Callable[..., Any], gz: bool
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, gz=gz)
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        path = folder / f"{name}.gz" if gz else folder / name
        whole = path.read_bytes()
        for length in (0, 3, 9, len(whole) - 1):
            path.write_bytes(whole[:length])
            with pytest.raises(DataError, match="delete it") as caught:
                load_dataset(config("mnist", tmp_path))
            assert str(caught.value).startswith(f"{path} can't be read: ")
        path.write_bytes(whole)


@pytest.mark.parametrize(
    "bad",
    [
        b"hello, world, this is no image",
        b"\0\0\x0d\x03" + bytes(32),  # floats
        bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]),  # one dimension
        bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 7, 8, 9]),  # a byte too many
    ],
)
def test_an_idx_file_of_another_kind_is_named(
    tmp_path: Path, write_idx: Callable[..., Any], bad: bytes
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, gz=False)
    (folder / "train-images-idx3-ubyte").write_bytes(bad)
    with pytest.raises(DataError, match="train-images-idx3-ubyte can't be read"):
        load_dataset(config("mnist", tmp_path))


def test_damage_inside_gzip_is_noticed(tmp_path: Path, write_idx: Callable[..., Any]) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder)
    path = folder / "train-labels-idx1-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[-8] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"train-labels-idx1-ubyte\.gz can't be read: CRC"):
        load_dataset(config("mnist", tmp_path))


@pytest.mark.parametrize(
    ("name", "values", "why"),
    [
        ("train-labels-idx1-ubyte", np.zeros(5, np.uint8), "5 labels for 6 images"),
        ("train-labels-idx1-ubyte", np.full(6, 10, np.uint8), "below 10"),
        ("t10k-images-idx3-ubyte", np.zeros((4, 28, 27), np.uint8), "28 x 27 pixels"),
        ("t10k-images-idx3-ubyte", np.zeros((0, 28, 28), np.uint8), "t10k-images-idx3-ubyte"),
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


def test_the_root_is_the_cache_folder_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/someone/.cache")
    assert builtin.root(DataConfig()).name == "tser"
    assert builtin.root(DataConfig(dir="~/images")) == Path("/home/someone/images")


@pytest.mark.parametrize("folder", ["~nobody-of-that-name/x", "a\0b"])
@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagefolder"])
def test_a_folder_that_is_no_path_is_told(name: str, folder: str) -> None:
    with pytest.raises(DataError, match="is no path"):
        load_dataset(DataConfig(name=name, dir=folder))


def test_a_name_too_long_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="File name too long"):
        load_dataset(config("mnist", tmp_path / ("x" * 300)))


def test_digits_load_without_torchvision() -> None:
    program = (
        "import sys; from tser_cli.settings.config import DataConfig\n"
        "from tser_cli.data import base\n"
        "base.load_dataset(DataConfig(name='digits')); print('torchvision' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.strip() == "False", result.stderr


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist"
)
def test_fashion_mnists_constants_are_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builtin, "DEBIAN", Path("/usr/share/datasets"))
    dataset = builtin.fashion_mnist(config("fashion-mnist", tmp_path))
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert torch.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert isinstance(dataset.train, TensorSource)
    std, mean = torch.std_mean(dataset.train.images_MCHW.float() / 255)
    assert dataset.spec.mean == pytest.approx((mean.item(),), abs=1e-4)
    assert dataset.spec.std == pytest.approx((std.item(),), abs=1e-4)
    digests = [
        hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:20]
        for source in (dataset.train, dataset.test)
        for tensor in (source.images_MCHW, source.labels)  # type: ignore[attr-defined]
    ]
    # of the same files, read before by a parser written from the format's description
    assert digests == [
        *("2e487a6c89124f78f2d7", "e3245b63f7c40d1c8b65"),
        *("c867c93ff95360594e8e", "d51d859896c55775b9e9"),
    ]
