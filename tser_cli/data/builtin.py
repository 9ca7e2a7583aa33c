"""The data sets with a name: digits, which is always there; MNIST, Fashion-MNIST and CIFAR.

`digits` are scikit-learn's 1,797 images of hand-written digits, 8 x 8 (UCI, Optical Recognition of
Handwritten Digits, E. Alpaydin and C. Kaynak, 1998). The others are downloaded once. torchvision's
classes download, check and read them, and the files lie as it lays them out: an existing download
serves, packed or not, also from a folder that can't be written to. What torchvision lacks is added
here: whole downloads, a time limit, and errors that say what to do.
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
from http.client import HTTPException
from pathlib import Path
from typing import Any

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


def digits(config: DataConfig) -> Dataset:
    """1,437 training and 360 test images, a fixed stratified split. Grey 0..16 becomes 0..255."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.origin is not None, "it is a dependency"
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    # 64 pixels and the label of each image, read without importing scikit-learn: that takes seconds
    table_M65 = np.loadtxt(path, delimiter=",")
    images_MHW = np.round(table_M65[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    bits = np.frombuffer(base64.b85decode(TEST_IMAGES), dtype=np.uint8)
    is_test_M = np.unpackbits(bits, count=len(table_M65)).astype(bool)

    def source(chosen_M: np.ndarray) -> TensorSource:
        return TensorSource(
            torch.from_numpy(images_MHW[chosen_M, None]),
            torch.from_numpy(table_M65[chosen_M, 64].astype(np.int64)),
        )

    # mean and std of the 1,437 training images
    spec = DataSpec("digits", 1, 8, 8, tuple("0123456789"), (0.305434,), (0.375957,))
    return Dataset(spec, source(~is_test_M), source(is_test_M))


# Mean and std of the training pixels, by channel; MNIST's as in pytorch/examples.


def mnist(config: DataConfig) -> Dataset:
    """Load MNIST: 60,000 training and 10,000 test images, 28 x 28 grey, 10 digits."""
    spec = DataSpec("mnist", 1, 28, 28, tuple("0123456789"), (0.1307,), (0.3081,))
    return _idx_dataset(config, spec)


def fashion_mnist(config: DataConfig) -> Dataset:
    """Load Fashion-MNIST: 60,000 training and 10,000 test images, 28 x 28 grey, 10 classes."""
    classes = tuple(_torchvision("fashion-mnist").classes)
    return _idx_dataset(config, DataSpec("fashion-mnist", 1, 28, 28, classes, (0.2860,), (0.3530,)))


def cifar10(config: DataConfig) -> Dataset:
    """Load CIFAR-10: 50,000 training and 10,000 test images, 32 x 32 colour, 10 classes."""
    return _cifar_dataset(config, "cifar10", (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


def cifar100(config: DataConfig) -> Dataset:
    """Load CIFAR-100: 50,000 training and 10,000 test images, 32 x 32 colour, 100 classes."""
    return _cifar_dataset(config, "cifar100", (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))


def _torchvision(name: str) -> Any:
    """Return torchvision's class of a data set."""
    from torchvision import datasets

    classes = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST"}
    return getattr(datasets, classes.get(name, name.upper()))


DEBIAN = Path("/usr/share/datasets")  # of Debian's package dataset-fashion-mnist


def root(config: DataConfig) -> Path:
    """Return `config.dir`, or the platform's cache folder. Raises DataError."""
    return given_path(config) or Path(platformdirs.user_cache_dir("tser"))


def find_downloaded(name: str, config: DataConfig) -> Path | None:
    """Return where the files of `name` lie whole, None where they would be downloaded.

    `name`: mnist, fashion-mnist, cifar10 or cifar100; of these two the archive serves where the
    folder is not whole. Nothing is opened.
    """
    home, kind = root(config), _torchvision(name)
    if name.startswith("cifar"):
        whole = all(is_file(home / file) for file in _cifar_files(kind))
        packed = home / kind.filename
        return home if whole else packed if is_file(packed) else None
    # never the root itself: the files of MNIST and of Fashion-MNIST have the same names
    folders = (home / kind.__name__ / "raw", home / name, DEBIAN / name)
    files = [Path(packed).stem for packed, _ in kind.resources]
    return next((folder for folder in folders if all(_idx_file(folder, f) for f in files)), None)


def _idx_dataset(config: DataConfig, spec: DataSpec) -> Dataset:
    kind = _torchvision(spec.name)
    raw = Path(kind.__name__, "raw")
    files = {str(raw / name): f"{kind.mirrors[0]}{name}" for name, _ in kind.resources}
    folder = _provided(spec.name, config, files)
    return Dataset(spec, _idx_source(folder, "train", spec), _idx_source(folder, "t10k", spec))


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
        with _unpacked(path) as folder, _naming(path):
            return read(str(folder / path.stem))
    with _naming(path):
        return read(str(path))


def _cifar_dataset(
    config: DataConfig, name: str, mean: tuple[float, ...], std: tuple[float, ...]
) -> Dataset:
    from torchvision.datasets.utils import check_integrity

    def read(folder: Path) -> Dataset:
        # the files are pickles, which can run code: none is opened unless its MD5 sum is right
        for file, md5 in _cifar_files(kind).items():
            with _naming(folder / file):
                if not check_integrity(str(folder / file), md5):
                    raise ValueError("its MD5 sum is not that of the published file")
        with _naming(folder / kind.base_folder):
            train, test = (kind(folder, train=is_train) for is_train in (True, False))
        spec = DataSpec(name, 3, 32, 32, tuple(train.classes), mean, std)
        # channels first, as the pixels lie in the file
        sources = [
            TensorSource(torch.from_numpy(of.data.transpose(0, 3, 1, 2)), torch.tensor(of.targets))
            for of in (train, test)
        ]
        return Dataset(spec, sources[0], sources[1])

    kind = _torchvision(name)
    found = _provided(name, config, {kind.filename: kind.url})
    if found == root(config):
        return read(found)
    with _naming(found):
        if not check_integrity(str(found), kind.tgz_md5):
            raise ValueError("its MD5 sum is not that of the published archive")
    with _unpacked(found) as folder:
        return read(folder)


def _cifar_files(kind: Any) -> dict[str, str]:
    """Return the files that are read, below the root, with their MD5 sums."""
    entries = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
    return {f"{kind.base_folder}/{file}": md5 for file, md5 in entries}


NETWORK_TIMEOUT_SECONDS = 30.0


def _provided(name: str, config: DataConfig, files: dict[str, str]) -> Path:
    """Return where a data set lies, after a download where it is nowhere.

    `files` are the paths below the root that a user could put there instead, each with its address.
    Processes that ask at the same time wait for one of them. Raises DataError, which says what to
    put where, if the download fails.
    """
    home = root(config)
    try:
        found = find_downloaded(name, config)
        if found is not None:
            return found
        home.mkdir(parents=True, exist_ok=True)
        # processes of one run, or cells of an ablation, may all find it missing
        with FileLock(home / f".{name}.lock"):
            # another process may have finished meanwhile
            found = find_downloaded(name, config)
            if found is None:
                _download(_torchvision(name), home / f".{name}.part", home)
                found = find_downloaded(name, config)
    # torchvision raises RuntimeError for a wrong MD5 sum, and reads all that it downloaded
    except (OSError, RuntimeError, ValueError, HTTPException) as error:
        listing = "\n".join(f"  {home / file}  from {url}" for file, url in files.items())
        raise DataError(
            f"{name} is not on this machine, and the download failed: {error}\n"
            f"Run again to resume the download, or put these files here:\n{listing}\n"
            "or name the folder where they lie in this layout: --data-dir, TSER_DATA_DIR or "
            "data.dir"
        ) from error
    assert found is not None, "the files downloaded are not those looked for"
    return found


def _download(kind: Any, staging: Path, home: Path) -> None:
    """Let torchvision download into `staging`, then move what it unpacked to `home`.

    Archives stay in `staging` until all is done, so that an interrupted download can be resumed.
    """

    def unpacked_files() -> list[Path]:
        return [path for path in staging.rglob("*") if path.is_file() and path.suffix != ".gz"]

    for path in unpacked_files():
        path.unlink()  # torchvision would take it for whole, though its unpacking was interrupted
    # torchvision sets no time limit, and a network that swallows packets would hang us for ever
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_SECONDS)
    try:
        with _quiet_tarfile():
            kind(staging, download=True)
    finally:
        socket.setdefaulttimeout(before)
    for path in unpacked_files():
        target = home / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(staging)


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """Unpack a .gz or .tar.gz file into a temporary folder, which is given and then removed.

    It need not be writable where the archive lies. Verify a tar first: its members may land
    anywhere.
    """
    from torchvision.datasets.utils import extract_archive

    with tempfile.TemporaryDirectory(prefix="tser-") as folder:
        with _naming(path), _quiet_tarfile():
            extract_archive(str(path), folder)
        yield Path(folder)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
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
def _quiet_tarfile() -> Iterator[None]:
    # Python 3.12 and 3.13 tell torchvision that it should name a filter
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
