"""MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: found on disk, else downloaded once.

Files lie as torchvision lays them out, so that an existing download serves. A download comes
from torchvision's addresses and is checked against its MD5 sums.
"""

from __future__ import annotations

from pathlib import Path

import platformdirs
import torch

from tser_cli.config import DataConfig
from tser_cli.data import cifar, idx
from tser_cli.data.base import Dataset, DataSpec, TensorSource
from tser_cli.data.fetch import Remote, ensure
from tser_cli.errors import DataError

# Debian's package dataset-fashion-mnist
DEBIAN = Path("/usr/share/datasets")
IDX_FILES = tuple(
    f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)

# mean and std of the training pixels; MNIST's as in pytorch/examples
MNIST = DataSpec("mnist", 1, 28, 28, tuple("0123456789"), (0.1307,), (0.3081,))
FASHION_MNIST = DataSpec(
    "fashion-mnist",
    1,
    28,
    28,
    # https://github.com/zalandoresearch/fashion-mnist
    (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    (0.2860,),
    (0.3530,),
)
# mean and std of the 50,000 training images' pixels, by channel
CIFAR10_MEAN_STD = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
CIFAR100_MEAN_STD = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def root(config: DataConfig) -> Path:
    """`config.dir`, or the platform's cache folder."""
    return Path(config.dir or platformdirs.user_cache_dir("tser")).expanduser()


def mnist(config: DataConfig) -> Dataset:
    """MNIST: 60,000 training and 10,000 test images, 28 x 28 grey, 10 digits."""
    return _idx_dataset(config, MNIST, "MNIST")


def fashion_mnist(config: DataConfig) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28 grey, 10 classes."""
    return _idx_dataset(config, FASHION_MNIST, "FashionMNIST")


def cifar10(config: DataConfig) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 colour, 10 classes."""
    archive = cifar.Archive(
        folder=root(config) / "cifar-10-batches-py",
        packed=root(config) / "cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
        classes=10,
    )
    return _cifar_dataset("cifar10", archive, *CIFAR10_MEAN_STD)


def cifar100(config: DataConfig) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images, 32 x 32 colour, 100 classes."""
    archive = cifar.Archive(
        folder=root(config) / "cifar-100-python",
        packed=root(config) / "cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        meta="meta",
        label_key="fine_labels",
        names_key="fine_label_names",
        classes=100,
    )
    return _cifar_dataset("cifar100", archive, *CIFAR100_MEAN_STD)


def _idx_dataset(config: DataConfig, spec: DataSpec, folder_name: str) -> Dataset:
    home = root(config) / folder_name / "raw"
    # never the root itself: the two data sets' files have the same names
    folders = (home, root(config) / spec.name, DEBIAN / spec.name)

    def present() -> Path | None:
        return next((folder for folder in folders if _has_idx_files(folder)), None)

    def remotes() -> list[Remote]:
        from torchvision import datasets

        origin = getattr(datasets, folder_name)
        return [
            Remote(tuple(mirror + name for mirror in origin.mirrors), name, md5)
            for name, md5 in origin.resources
        ]

    folder = ensure(spec.name, home, present, remotes)
    return Dataset(spec, _idx_source(folder, "train", spec), _idx_source(folder, "t10k", spec))


def _has_idx_files(folder: Path) -> bool:
    return all(idx.find(folder, name) for name in IDX_FILES)


def _idx_source(folder: Path, part: str, spec: DataSpec) -> TensorSource:
    images_path = idx.find(folder, f"{part}-images-idx3-ubyte")
    labels_path = idx.find(folder, f"{part}-labels-idx1-ubyte")
    assert images_path is not None and labels_path is not None
    images_MHW, labels_M = idx.read(images_path, 3), idx.read(labels_path, 1)
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
    return TensorSource(images_MHW[:, None], labels_M.to(torch.int64))


def _cifar_dataset(
    name: str, archive: cifar.Archive, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    def present() -> cifar.Archive | None:
        return archive if archive.exists() else None

    def remotes() -> list[Remote]:
        from torchvision import datasets

        origin = getattr(datasets, name.upper())
        return [Remote((origin.url,), origin.filename, origin.tgz_md5)]

    ensure(name, archive.packed.parent, present, remotes)
    classes, train, test = cifar.read(archive)
    return Dataset(DataSpec(name, 3, cifar.SIDE, cifar.SIDE, classes, mean, std), train, test)
