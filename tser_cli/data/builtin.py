"""`digits`: scikit-learn's 1,797 images of hand-written digits, 8 x 8; comes with scikit-learn.

Source: UCI, Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998).

MNIST, Fashion-MNIST, CIFAR-10 and CIFAR-100: found on disk, else downloaded once.

torchvision's classes download, check and read them, and the files lie as it lays them out, so
that an existing download serves. Packed files serve as they are, from folders that can't be
written to as well.

torchvision's data set classes made safe: whole downloads, and errors that say what to do.
"""

from __future__ import annotations

import base64
import importlib.util
import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import platformdirs
import torch
from filelock import FileLock

from tser_cli.base.errors import DataError
from tser_cli.base.files import is_file
from tser_cli.data.base import Dataset, DataSpec, TensorSource, given_path
from tser_cli.settings.config import DataConfig

# Which images are for testing, a bit each: scikit-learn's train_test_split(range(1797),
# test_size=360, stratify=labels, random_state=0), written down so that it never changes.
TEST_IMAGES = (
    "000DtH6#!~00uz-lR^am8UP3Z03-"
    "k?1}qW)5CD`40FW6H1R(gJ0)Y^q00;_*AVd`;NkTxN3IG5AKm^zT0D*uY07wPI01!Y3pb!8BKu7>E5C8%W#0dZbB"
    "!mEir~y16rkDx<000XJKnMh&7)SyFKtaI(fCNBBgg0t|0u}&7fB-;3prjZIPymDrg<-"
    "}B5P%2(On|^31O|=(0SJNsfdDuN1HcFw000mU0RV&$pdkP=C@BQMM8JS(4gms#0D=IBBBnqrBm^M{s9=DQfuIZmf"
    "&xMk0XU=;00"
)

SPEC = DataSpec(
    name="digits",
    channels=1,
    height=8,
    width=8,
    classes=tuple("0123456789"),
    # of the 1,437 training images
    mean=(0.305434,),
    std=(0.375957,),
)


def load(config: DataConfig) -> Dataset:
    """1,437 training and 360 test images, a fixed stratified split. Grey 0..16 becomes 0..255."""
    table_M65 = _table()
    images_MHW = np.round(table_M65[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    bits = np.frombuffer(base64.b85decode(TEST_IMAGES), dtype=np.uint8)
    is_test_M = np.unpackbits(bits, count=len(table_M65)).astype(bool)

    def source(chosen_M: np.ndarray) -> TensorSource:
        return TensorSource(
            torch.from_numpy(images_MHW[chosen_M, None]),
            torch.from_numpy(table_M65[chosen_M, 64].astype(np.int64)),
        )

    return Dataset(SPEC, source(~is_test_M), source(is_test_M))


def _table() -> np.ndarray:
    """scikit-learn's table: 64 pixels and the label of each image, [1797, 65]."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.origin is not None, "it is a dependency"
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    # read without importing scikit-learn, which takes seconds
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])


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


NETWORK_TIMEOUT_SECONDS = 30.0

Found = TypeVar("Found")


def provide(
    name: str, kind: Any, home: Path, files: dict[str, str], present: Callable[[], Found | None]
) -> Found:
    """Return what `present` finds, after a download by the class `kind` where it finds nothing.

    `files` are the paths below `home` that a user could put there instead, each with its address.
    Processes that ask at the same time wait for one of them. Raises DataError, which says what to
    put where, if the download fails.
    """
    try:
        found = present()
        if found is not None:
            return found
        home.mkdir(parents=True, exist_ok=True)
        with FileLock(home / f".{name}.lock"):
            found = present()
            if found is None:
                _download(kind, home / f".{name}.part", home)
                found = present()
    # torchvision raises RuntimeError for a wrong MD5 sum, and reads all that it downloaded
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        raise DataError(_advice(name, home, files, error)) from error
    assert found is not None, "the files downloaded are not those looked for"
    return found


def _download(kind: Any, staging: Path, home: Path) -> None:
    """Let torchvision download into `staging`, then move what it unpacked to `home`.

    Archives stay in `staging` until all is done, so that an interrupted download goes on.
    """
    for path in _unpacked_files(staging):
        path.unlink()  # torchvision would take it for whole, though its unpacking was interrupted
    with _timeout(), _quiet_tarfile():
        kind(staging, download=True)
    for path in _unpacked_files(staging):
        target = home / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(staging)


def _unpacked_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".gz"]


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Unpack a .gz or .tar.gz file into a temporary folder, which is given and then removed.

    It need not be writable where the archive lies. Verify a tar first: its members may land
    anywhere.
    """
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory(prefix="tser-") as folder:
        with naming(path), _quiet_tarfile():
            extract_archive(str(path), folder)
        yield Path(folder)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Inside, any error becomes a DataError that names `path` and says what to do."""
    try:
        yield
    # torchvision's readers meet damage with whatever their parsing runs into
    except Exception as error:
        why = str(error) or f"it is not in its format ({type(error).__name__})"
        raise DataError(
            f"{path} can't be read: {why}. If the file is truncated or damaged, delete it and run "
            "again, or put a good copy in its place"
        ) from error


@contextmanager
def _timeout() -> Iterator[None]:
    # torchvision sets no timeout, and a network that swallows packets would hang us for ever
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@contextmanager
def _quiet_tarfile() -> Iterator[None]:
    # Python 3.12 and 3.13 tell torchvision that it should name a filter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _advice(name: str, home: Path, files: dict[str, str], error: Exception) -> str:
    listing = "\n".join(f"  {home / file}  from {url}" for file, url in files.items())
    return (
        f"{name} is not on this machine, and the download failed: {error}\n"
        f"Run again to go on with the download, or put these files here:\n{listing}\n"
        "or name the folder where they lie in this layout: --data-dir, TSER_DATA_DIR or data.dir"
    )
