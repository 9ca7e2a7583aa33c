"""Files written whole, and our own files read with suspicion.

A crash leaves the old file or the new one, never a part. Nothing but a regular file is replaced.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from tser_cli.base.errors import DamagedFileError, DiskFullError, RunError, reason

NAME_MAX = 255  # bytes, on the usual file systems
# What read_json takes at most. Our own files are far below that, and anybody may have changed one
# into what would fill the memory or end Python's stack.
JSON_BYTES = 2**24
JSON_DEPTH = 64
JSON_INTEGER_MAX = 2**63
TOML_BYTES = 2**24
# 64 names joined by dots: the time that tomllib takes grows with the square of their number
LONG_KEY = re.compile(r"(?<![^\s.=\[\]{},])(?:[^\s.=\[\]{},]+[ \t]*\.[ \t]*){64}")


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` under a temporary name, flush it to disk, rename it over `path`.

    A character device, such as /dev/null, is written to in place. Raises RunError, which says
    why and what to do, where that fails or `path` is a link or anything else that is no regular
    file; `path` is then untouched.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes]) -> None:
    """Do as `write_whole` for several files: all are on disk before the first is renamed."""
    parts: dict[Path, Path] = {}
    path = Path()
    try:
        for path, content in contents.items():
            if is_device(path):
                path.write_bytes(content)
                continue
            # in the same folder: a rename from another file system is a copy, and can break off
            parts[path] = partial = _beside(path, "part")
            partial.unlink(missing_ok=True)
            with partial.open("xb") as stream:  # x: never through a link that somebody put there
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
        for path, partial in parts.items():
            partial.replace(path)
            # a rename is durable only once the folder that holds the name is on disk too
            if os.name == "posix":
                handle = os.open(path.parent, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error
    finally:
        remove_parts(parts.values())


def remove_parts(parts: Iterable[Path]) -> None:
    """Remove parts of files that were never renamed; what is no file, or can't go, stays."""
    for part in parts:
        with suppress(OSError, ValueError):
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """`write_whole` for text, as UTF-8; what UTF-8 has no bytes for is written as \\udcff."""
    write_whole(path, text.encode(errors="backslashreplace"))


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """`write_whole` for what `read_json` can read; what UTF-8 has no bytes for becomes "?"."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    write_whole(path, f"{text}\n".encode(errors="replace"))


def is_file(path: Path) -> bool:
    """Return whether `path` is a regular file; no for a name that none can have, as a long one."""
    return os.path.isfile(path)  # noqa: PTH113  (Path's raises then)


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; no for a name that none can have, as a long one."""
    return os.path.isdir(path)  # noqa: PTH112  (Path's raises then)


def make_folder(path: Path) -> None:
    """Create `path` and its parents. Raises RunError where that can't be done."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error


def check_folder(path: Path) -> None:
    """Raise RunError where a file at `path` could not be written: before work is spent on it.

    What killed processes left of it is removed.
    """
    if not path.name or is_folder(path):
        raise RunError(f'"{path}" is a folder; name a file in it')
    try:
        if is_device(path):
            return
        make_folder(path.parent)
        probe = _beside(path, "probe")
        probe.unlink(missing_ok=True)
        probe.touch(exist_ok=False)
        probe.unlink()
        start = glob.escape(probe.name.removesuffix(f"{os.getpid()}.probe"))
        remove_parts(path.parent.glob(f"{start}[0-9]*.part"))
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error


def is_device(path: Path) -> bool:
    """Return whether `path` is to be written in place: a character device, such as /dev/null.

    Raises RunError where it is neither that nor a regular file nor missing: a link is not
    followed, since a folder from somebody else may hold one that leads anywhere.
    """
    try:
        mode = path.lstat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    if stat.S_ISLNK(mode):
        raise RunError(f"{path} is a link to {path.readlink()}; name that file itself")
    if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
        raise RunError(f"{path} is no regular file and is left as it is; name another")
    return stat.S_ISCHR(mode)


def hold_lock(path: Path, seconds: float = 0) -> AbstractContextManager[Any]:
    """Take the lock that `path` stands for, once; hold it until the result is closed.

    Raises filelock.Timeout where another process has it for so many seconds, RunError where it
    can't be taken: a link is not followed, and a folder or a pipe is no lock.
    """
    import filelock  # too slow for --help

    # of the system, not a file that stands for one: a killed process leaves no lock behind
    try:
        if is_device(path):
            raise RunError(f"{path} is a device and no lock; remove it")
        return filelock.FileLock(path).acquire(timeout=seconds)
    except filelock.Timeout:  # an OSError too
        raise
    except (OSError, ValueError) as error:
        raise write_error(path, error) from error


def write_error(path: Path, error: OSError | ValueError) -> RunError:
    """Return the error for a failed write: the path, the reason, and what helps against it."""
    code = getattr(error, "errno", None)
    # the system's word alone ("No space left") leaves open what to do
    what = f"{path} can't be written: {reason(error)}."
    if code in (errno.ENOSPC, errno.EDQUOT):
        free = "Free space is not known"
        for folder in (path, *path.parents):
            if folder.is_dir():
                free = f"{shutil.disk_usage(folder).free / 2**20:,.0f} MiB are free there"
                break
        return DiskFullError(f"{what} {free}. Free some space, or choose another place")
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        return RunError(f"{what} Mend the folder's permissions, or choose another place")
    if code == errno.ENAMETOOLONG:
        return RunError(f"{what} Choose a shorter one")
    return RunError(f"{what} Choose another place")


def read_json(
    path: Path,
    limit: int = JSON_BYTES,
    types: Mapping[str, type | tuple[type, ...]] | None = None,
) -> dict[str, Any]:
    """Return the JSON object in one of our own files, which anybody may have changed.

    `types`: what the values of these keys must be, where they are there; a bool is no int. Raises
    DamagedFileError, which names the file, where it is missing, no regular file, larger than
    `limit` bytes, no UTF-8, no JSON object, nested more than 64 deep, or holds NaN, an infinity,
    an integer of more than 63 bits, a NUL or half a surrogate pair.
    """
    try:
        document = json.loads(read_regular(path, limit).decode())
        _check_values(document)
        if not isinstance(document, dict):
            raise ValueError("it holds no object")
        for key, expected in (types or {}).items():
            kinds = expected if isinstance(expected, tuple) else (expected,)
            value = document.get(key)
            # True is an int to Python
            right = bool in kinds if isinstance(value, bool) else isinstance(value, kinds)
            if key in document and not right:
                raise ValueError(f'"{key}" is no {" or ".join(kind.__name__ for kind in kinds)}')
    except (OSError, ValueError, RecursionError) as error:
        why = "it is nested too deep" if isinstance(error, RecursionError) else reason(error)
        raise DamagedFileError(
            f"{path} can't be read: {why}. Restore it from a copy, or remove it"
        ) from error
    return document


def read_toml(path: Path) -> dict[str, Any]:
    """Return what a TOML file says. Raises OSError or ValueError."""
    return parse_toml(read_regular(path, TOML_BYTES).decode())


def parse_toml(text: str) -> dict[str, Any]:
    """Return what TOML says. Raises ValueError, also where it is nested too deep."""
    try:
        if LONG_KEY.search(text):
            raise RecursionError
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def read_regular(path: Path, limit: int) -> bytes:
    """Return the content of a regular file. Raises OSError; ValueError above `limit` bytes."""
    # a pipe would be waited for without this flag, which Windows has not
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(handle, "rb") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is no regular file")
        size = os.fstat(handle).st_size
        try:
            content = stream.read(min(limit, size) + 1)  # room for as much as this is made at once
        except MemoryError:
            raise ValueError(f"its {size:,} bytes do not fit into the memory") from None
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def foreign(path: Path, head: bytes | None = None) -> str:
    """Return why a file for other programs is not read here, "" where it is no such file.

    By its name, or where the content is known by its first bytes.
    """
    suffix = path.suffix.lower()
    if suffix == ".nir" if head is None else head.startswith(b"\x89HDF\r\n\x1a\n"):
        kind = "a NIR file" if suffix == ".nir" else "an HDF5 file, as NIR's and Keras's are"
        return f"{path}: this is {kind}; tser writes NIR and does not read it"
    # protobuf has no magic number: ONNX begins with its version, then its producer or its graph
    begins = head is not None and head[:1] == b"\x08" and head[2:3] in (b"\x12", b":")
    if suffix == ".onnx" or (begins and suffix != ".safetensors"):
        return f"{path}: this is an ONNX file; tser writes ONNX and does not read it"
    return ""


def _check_values(document: Any) -> None:
    # a list of what waits, not a call for each level: those would end Python's stack first
    waiting = [(document, 1)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth > JSON_DEPTH:
                raise ValueError(f"it is nested more than {JSON_DEPTH} deep")
            inside = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(part, depth + 1) for part in inside]
        elif isinstance(value, str):
            if "\0" in value:
                raise ValueError("it holds a NUL character")
            if not is_unicode(value):
                raise ValueError("it holds half a surrogate pair")
        elif isinstance(value, float) and not math.isfinite(value):
            raise ValueError("it holds a number that is not finite")
        elif isinstance(value, int) and abs(value) >= JSON_INTEGER_MAX:
            raise ValueError("it holds an integer of more than 63 bits")


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold `text`: bytes that are none come as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def _beside(path: Path, suffix: str) -> Path:
    """Return a hidden name beside `path`, this process's own; a long one is shortened."""
    # by the process: two that write one file must not write into one part
    name = f".{path.name}.{os.getpid()}.{suffix}"
    if len(os.fsencode(name)) > NAME_MAX:
        name = f".{sha256(os.fsencode(path.name))}.{os.getpid()}.{suffix}"
    return path.with_name(name)
