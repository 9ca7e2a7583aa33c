"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: found on disk, else downloaded once.

torchvision's classes download, check and read them, and the files lie as it lays them out, so
that an existing download serves. Packed files serve as they are, from folders that can't be
written to as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import platformdirs
import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import Dataset, DataSpec, TensorSource, given_path
from tser_cli.data.fetch import naming, provide, unpacked
from tser_cli.errors import DataError
from tser_cli.files import is_file

# Debian's package dataset-fashion-mnist
DEBIAN = Path("/usr/share/datasets")
CIFAR_SIDE = 32

# mean and std of the training pixels; MNIST's as in pytorch/examples
MNIST_MEAN_STD = ((0.1307,), (0.3081,))
FASHION_MNIST_MEAN_STD = ((0.2860,), (0.3530,))
# mean and std of the 50,000 training images' pixels, by channel
CIFAR10_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_MEAN_STD = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def root(config: DataConfig) -> Path:
    """Return `config.dir`, or the platform's cache folder. Raises DataError."""
    return given_path(config) or Path(platformdirs.user_cache_dir("tser"))


def find_downloaded(name: str, config: DataConfig) -> Path | None:
    """Return where the files of `name` lie whole, None where they would be downloaded.

    `name`: mnist, fashion-mnist, cifar10 or cifar100. Nothing is opened.
    """
    from torchvision import datasets

    idx = {"mnist": datasets.MNIST, "fashion-mnist": datasets.FashionMNIST}
    cifar = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}
    return _find_idx(config, name, idx[name]) if name in idx else _find_cifar(config, cifar[name])


def mnist(config: DataConfig) -> Dataset:
    """Load MNIST: 60,000 training and 10,000 test images, 28 x 28 grey, 10 digits."""
    from torchvision import datasets

    spec = DataSpec("mnist", 1, 28, 28, tuple("0123456789"), *MNIST_MEAN_STD)
    return _idx_dataset(config, spec, datasets.MNIST)


def fashion_mnist(config: DataConfig) -> Dataset:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28 grey, 10 classes."""
    from torchvision import datasets

    classes = tuple(datasets.FashionMNIST.classes)
    spec = DataSpec("fashion-mnist", 1, 28, 28, classes, *FASHION_MNIST_MEAN_STD)
    return _idx_dataset(config, spec, datasets.FashionMNIST)


def cifar10(config: DataConfig) -> Dataset:
    """Load CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 colour, 10 classes."""
    from torchvision import datasets

    return _cifar_dataset(config, "cifar10", datasets.CIFAR10, *CIFAR10_MEAN_STD)


def cifar100(config: DataConfig) -> Dataset:
    """Load CIFAR-100: 50,000 training and 10,000 test images, 32 x 32 colour, 100 classes."""
    from torchvision import datasets

    return _cifar_dataset(config, "cifar100", datasets.CIFAR100, *CIFAR100_MEAN_STD)


def _idx_dataset(config: DataConfig, spec: DataSpec, kind: Any) -> Dataset:
    raw = Path(kind.__name__, "raw")
    files = {str(raw / name): f"{kind.mirrors[0]}{name}" for name, _ in kind.resources}
    present = partial(_find_idx, config, spec.name, kind)
    folder = provide(spec.name, kind, root(config), files, present)
    return Dataset(spec, _idx_source(folder, "train", spec), _idx_source(folder, "t10k", spec))


def _find_idx(config: DataConfig, name: str, kind: Any) -> Path | None:
    # never the root itself: the two data sets' files have the same names
    folders = (root(config) / kind.__name__ / "raw", root(config) / name, DEBIAN / name)
    packed = [Path(file).stem for file, _ in kind.resources]
    return next((f for f in folders if all(_idx_file(f, file) for file in packed)), None)


def _idx_file(folder: Path, name: str) -> Path | None:
    """Return the file `name` or `name`.gz in `folder`, or None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if is_file(path)), None)


def _idx_source(folder: Path, part: str, spec: DataSpec) -> TensorSource:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    images_path = _idx_file(folder, f"{part}-images-idx3-ubyte")
    labels_path = _idx_file(folder, f"{part}-labels-idx1-ubyte")
    assert images_path is not None and labels_path is not None
    images_MHW = _read_idx(images_path, read_image_file)
    labels_M = _read_idx(labels_path, read_label_file)
    if images_MHW.shape[1:] != (spec.height, spec.width) or len(images_MHW) == 0:
        count, height, width = images_MHW.shape
        raise DataError(
            f"{images_path} holds {count} images of {height} x {width} pixels; {spec.name} has "
            f"some of {spec.height} x {spec.width}. Put the right file in its place"
        )
    if len(labels_M) != len(images_MHW) or int(labels_M.max()) >= spec.num_classes:
        raise DataError(
            f"{labels_path} holds {len(labels_M)} labels for {len(images_MHW)} images, and they "
            f"must be below {spec.num_classes}. Put the right file in its place"
        )
    return TensorSource(images_MHW[:, None], labels_M)


def _read_idx(path: Path, read: Callable[[str], torch.Tensor]) -> torch.Tensor:
    if path.suffix == ".gz":
        with unpacked(path) as folder, naming(path):
            return read(str(folder / path.stem))
    with naming(path):
        return read(str(path))


def _cifar_dataset(
    config: DataConfig, name: str, kind: Any, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    from torchvision.datasets.utils import check_integrity

    home, packed = root(config), root(config) / kind.filename
    present = partial(_find_cifar, config, kind)
    place = provide(name, kind, home, {kind.filename: kind.url}, present)
    if place == home:
        return _read_cifar(home, name, kind, mean, std)
    with naming(packed):
        if not check_integrity(str(packed), kind.tgz_md5):
            raise ValueError("its MD5 sum is not that of the published archive")
    with unpacked(packed) as folder:
        return _read_cifar(folder, name, kind, mean, std)


def _find_cifar(config: DataConfig, kind: Any) -> Path | None:
    """Return the folder of the unpacked files, else the archive."""
    home, packed = root(config), root(config) / kind.filename
    if all(is_file(home / file) for file in _cifar_files(kind)):
        return home
    return packed if is_file(packed) else None


def _cifar_files(kind: Any) -> dict[str, str]:
    """Return the files that are read, below the root, with their MD5 sums."""
    entries = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {f"{kind.base_folder}/{file}": md5 for file, md5 in entries}


def _read_cifar(
    folder: Path, name: str, kind: Any, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    """Read the unpacked files: pickles, none of which is opened unless its MD5 sum is right."""
    from torchvision.datasets.utils import check_integrity

    for file, md5 in _cifar_files(kind).items():
        with naming(folder / file):
            if not check_integrity(str(folder / file), md5):
                raise ValueError("its MD5 sum is not that of the published file")
    with naming(folder / kind.base_folder):
        train, test = (kind(folder, train=is_train) for is_train in (True, False))
    spec = DataSpec(name, 3, CIFAR_SIDE, CIFAR_SIDE, tuple(train.classes), mean, std)
    return Dataset(spec, _cifar_source(train), _cifar_source(test))


def _cifar_source(read: Any) -> TensorSource:
    images_MCHW = read.data.transpose(0, 3, 1, 2)  # as it lies in the file
    return TensorSource(torch.from_numpy(images_MCHW), torch.tensor(read.targets))
