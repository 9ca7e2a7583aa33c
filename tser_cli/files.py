"""Files written whole: a crash leaves the old file or the new one, never a part."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tser_cli.errors import RunError


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to disk, rename it over `path`.

    Raises RunError with the path and the free space where that fails; `path` is then untouched.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove_quietly(partial)
        raise RunError(cannot_write(path, error)) from error


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, as UTF-8."""
    write_whole(path, text.encode())


def make_folder(path: Path) -> None:
    """Create `path` and its parents. Raises RunError where that can't be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error


def check_folder(path: Path) -> None:
    """Raise RunError where a file at `path` could not be written: before work is spent on it."""
    if path.is_dir():
        raise RunError(f"{path} is a folder; name a file in it")
    make_folder(path.parent)
    probe = path.with_name(f".{path.name}.{os.getpid()}.probe")
    try:
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise RunError(cannot_write(path, error)) from error


def cannot_write(path: Path, error: OSError) -> str:
    """The message for a failed write: the path, the reason and the free space."""
    return (
        f"{path} can't be written: {error.strerror or error}. {_free_space(path)}. "
        "Free some space, mend the folder's permissions, or choose another place"
    )


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once the folder that holds the name is on disk too.
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove_quietly(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # the error worth telling is the one that brought us here


def _free_space(path: Path) -> str:
    for folder in (path, *path.parents):
        if folder.is_dir():
            free = shutil.disk_usage(folder).free
            return f"{free / 2**20:,.0f} MiB are free there"
    return "Free space is not known"
