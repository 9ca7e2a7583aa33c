"""torchvision's data set classes made safe: whole downloads, and errors that say what to do."""

from __future__ import annotations

import shutil
import socket
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from tser_cli.errors import DataError

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
