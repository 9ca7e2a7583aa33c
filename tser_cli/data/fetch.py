"""Downloading the files of a data set, once, whole or not at all."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

from tser_cli.errors import DataError

NETWORK_TIMEOUT_SECONDS = 30.0

Found = TypeVar("Found")


@dataclass(frozen=True)
class Remote:
    """A file to download: its mirrors' addresses, its name and its MD5 sum."""

    urls: tuple[str, ...]
    name: str
    md5: str


def ensure(
    name: str,
    folder: Path,
    present: Callable[[], Found | None],
    remotes: Callable[[], Sequence[Remote]],
) -> Found:
    """What `present` finds, after a download of `remotes` into `folder` where it finds nothing.

    Processes that ask at the same time wait for one of them. Raises DataError, which says what
    to put where, if the download fails.
    """
    found = present()
    if found is not None:
        return found
    files = remotes()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f".{name}.lock"):
            found = present()
            if found is None:
                for file in files:
                    _download(file, folder)
                found = present()
    # urllib's errors are OSErrors; torchvision raises RuntimeError for a wrong MD5 sum
    except (OSError, RuntimeError) as error:
        raise DataError(_advice(name, folder, files, error)) from error
    assert found is not None, "the files downloaded are not those looked for"
    return found


def _download(file: Remote, folder: Path) -> None:
    from torchvision.datasets.utils import download_url

    with tempfile.TemporaryDirectory(dir=folder) as temporary, _timeout():
        for attempt, url in enumerate(file.urls, start=1):
            try:
                download_url(url, temporary, filename=file.name, md5=file.md5)
                break
            except (OSError, RuntimeError):
                if attempt == len(file.urls):
                    raise
        os.replace(Path(temporary) / file.name, folder / file.name)  # noqa: PTH105


@contextmanager
def _timeout() -> Iterator[None]:
    # torchvision sets no timeout, and a network that swallows packets would hang us for ever
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(NETWORK_TIMEOUT_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _advice(name: str, folder: Path, files: Sequence[Remote], error: Exception) -> str:
    listing = "\n".join(f"  {file.name}  from {file.urls[0]}" for file in files)
    return (
        f"{name} is not on this machine, and the download failed: {error}\n"
        f"Put these files into {folder}:\n{listing}\n"
        "or name the folder where they lie in this layout: --data-dir, TSER_DATA_DIR or data.dir"
    )
