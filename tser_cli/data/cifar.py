"""Reading CIFAR-10 and CIFAR-100's Python archives without running what a pickle says.

Format: https://www.cs.toronto.edu/~kriz/cifar.html. Each file is a pickled dict with `data`,
uint8 [M, 3072] (red, green, blue planes of 32 x 32), and the labels as a list. Unpickling may
call any function, so the few objects that these files hold are rebuilt from stand-ins here, and
any other name in the pickle is refused.
"""

from __future__ import annotations

import io
import pickle
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tser_cli.data.base import TensorSource
from tser_cli.errors import DataError

SIDE = 32


@dataclass(frozen=True)
class Archive:
    """Where a data set's parts lie, unpacked or as downloaded, and by which keys to read them."""

    folder: Path
    packed: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    meta: str
    label_key: str
    names_key: str
    classes: int

    @property
    def members(self) -> tuple[str, ...]:
        """All files that are read."""
        return (*self.train, *self.test, self.meta)

    def is_unpacked(self) -> bool:
        """Whether the folder holds every file."""
        return all((self.folder / name).is_file() for name in self.members)

    def place(self, name: str) -> Path:
        """The file that holds a member."""
        return self.folder / name if self.is_unpacked() else self.packed

    def exists(self) -> bool:
        """Whether the data set is here, unpacked or not."""
        return self.is_unpacked() or self.packed.is_file()


def read(archive: Archive) -> tuple[tuple[str, ...], TensorSource, TensorSource]:
    """The names of the classes, the training and the test images.

    Raises DataError that names the file where one is damaged or would run code.
    """
    entries = _entries(archive)
    train, test = (_source(archive, entries, names) for names in (archive.train, archive.test))
    return _class_names(archive, entries[archive.meta]), train, test


def _entries(archive: Archive) -> dict[str, dict[str, Any]]:
    if archive.is_unpacked():
        contents = {name: _bytes(archive.folder / name) for name in archive.members}
    else:
        contents = _unpacked(archive)
    return {name: _unpickled(content, archive.place(name)) for name, content in contents.items()}


def _unpacked(archive: Archive) -> dict[str, bytes]:
    try:
        with tarfile.open(archive.packed, "r:gz") as tar:
            return _contents(tar, archive)
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise _damaged(archive.packed, error) from error


def _contents(tar: tarfile.TarFile, archive: Archive) -> dict[str, bytes]:
    wanted = {f"{archive.folder.name}/{name}": name for name in archive.members}
    contents = {}
    for member in tar:
        if member.name in wanted and member.isfile():
            file = tar.extractfile(member)
            assert file is not None
            contents[wanted[member.name]] = file.read()
    missing = sorted(set(archive.members) - set(contents))
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)}")
    return contents


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, why: object) -> DataError:
    return DataError(
        f"{path} can't be read: {why}. The file is truncated or damaged: delete it and run "
        "again, or put a good copy in its place"
    )


class _DType:
    """Stand-in for numpy.dtype; `code` is its type string, such as b"u1"."""

    def __init__(self, code: object = None, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        """The byte order and alignment: of no concern for bytes."""


class _Array:
    """Stand-in for numpy.ndarray and its constructor; keeps the pickled state."""

    def __init__(self, *_: object) -> None:
        self.state: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def pixels(self) -> np.ndarray:
        """The array, which must be uint8 in C order. Raises ValueError otherwise."""
        _, shape, dtype, is_fortran, raw = self.state
        if dtype.code not in (b"u1", "u1") or is_fortran:
            raise ValueError("its images are not unsigned bytes")
        return np.frombuffer(raw, np.uint8).reshape(shape)


def _encode(text: str, _encoding: object = None) -> bytes:
    return text.encode("latin1")


_STAND_INS: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _STAND_INS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not run")
        return _STAND_INS[module, name]


def _unpickled(content: bytes, path: Path) -> dict[str, Any]:
    try:
        entry = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(entry, dict):
            raise ValueError("it holds no dictionary")
    # a damaged pickle can raise anything
    except Exception as error:
        raise _damaged(path, error) from error
    return {_text(key): value for key, value in entry.items()}


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _source(
    archive: Archive, entries: dict[str, dict[str, Any]], names: tuple[str, ...]
) -> TensorSource:
    images, labels = [], []
    for name in names:
        try:
            images_MCHW, labels_M = _labelled(entries[name], archive)
        # the entry is whatever the file held
        except Exception as error:
            raise _damaged(archive.place(name), error) from error
        images.append(images_MCHW)
        labels.append(labels_M)
    return TensorSource(
        torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))
    )


def _labelled(entry: dict[str, Any], archive: Archive) -> tuple[np.ndarray, np.ndarray]:
    images_MCHW = entry["data"].pixels().reshape(-1, 3, SIDE, SIDE)
    labels_M = np.array(entry[archive.label_key], np.int64)
    if len(images_MCHW) == 0 or labels_M.shape != images_MCHW.shape[:1]:
        raise ValueError(f"{len(images_MCHW)} images do not go with {labels_M.size} labels")
    if labels_M.min() < 0 or labels_M.max() >= archive.classes:
        raise ValueError(f"a label is not in 0..{archive.classes - 1}")
    return images_MCHW, labels_M


def _class_names(archive: Archive, entry: dict[str, Any]) -> tuple[str, ...]:
    names = entry.get(archive.names_key)
    if not isinstance(names, list) or len(names) != archive.classes:
        why = f"it has no list of {archive.classes} {archive.names_key}"
        raise _damaged(archive.place(archive.meta), why)
    return tuple(_text(name) for name in names)
