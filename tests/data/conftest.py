"""Small data sets in the real formats."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import socket
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import utils

from tser_cli.data.base import Dataset, DataSpec, TensorSource


def idx_bytes(values: np.ndarray) -> bytes:
    header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.tobytes()


@pytest.fixture
def write_idx() -> Callable[..., dict[str, np.ndarray]]:
    """Writes the four files of an MNIST-like set; returns the arrays by file name."""

    def write(folder: Path, *, train: int = 6, test: int = 4, gz: bool = True) -> dict[str, Any]:
        rng = np.random.default_rng(0)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {}
        for part, count in (("train", train), ("t10k", test)):
            arrays[f"{part}-images-idx3-ubyte"] = rng.integers(
                0, 256, (count, 28, 28), dtype=np.uint8
            )
            arrays[f"{part}-labels-idx1-ubyte"] = rng.integers(0, 10, count, dtype=np.uint8)
        for name, values in arrays.items():
            if gz:
                (folder / f"{name}.gz").write_bytes(gzip.compress(idx_bytes(values)))
            else:
                (folder / name).write_bytes(idx_bytes(values))
        return arrays

    return write


@pytest.fixture
def cifar10_members() -> dict[str, Any]:
    """The dicts of CIFAR-10's files, three images a file."""
    rng = np.random.default_rng(0)
    members: dict[str, Any] = {
        name: {
            "data": rng.integers(0, 256, (3, 3072), dtype=np.uint8),
            "labels": rng.integers(0, 10, 3).tolist(),
        }
        for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    }
    members["batches.meta"] = {"label_names": [f"class {number}" for number in range(10)]}
    return members


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def publish_cifar(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, dict[str, Any]], bytes]:
    """Makes torchvision's class take these dicts, one a file, for the published; gives the tar."""

    def publish(kind: Any, members: dict[str, Any]) -> bytes:
        contents = {name: pickle.dumps(entry, protocol=2) for name, entry in members.items()}
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as tar:
            for name, content in contents.items():
                info = tarfile.TarInfo(f"{kind.base_folder}/{name}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for part in ("train_list", "test_list"):
            known = [[name, md5(contents[name])] for name, _ in getattr(kind, part)]
            monkeypatch.setattr(kind, part, known)
        meta = kind.meta["filename"]
        monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(contents[meta])})
        monkeypatch.setattr(kind, "tgz_md5", md5(packed.getvalue()))
        return packed.getvalue()

    return publish


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """What each address answers; an address that is not here can't be reached."""
    served: dict[str, bytes] = {}

    def retrieve(url: str, path: str) -> None:
        assert socket.getdefaulttimeout() is not None
        if url not in served:
            raise URLError("Name or service not known")
        Path(path).write_bytes(served[url])

    monkeypatch.setattr(utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(utils, "_urlretrieve", retrieve)
    return served


@pytest.fixture
def image_folders(tmp_path: Path) -> Path:
    """train/ with 3 and val/ with 2 images of odd sizes for each of the classes ant, bee."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 2)):
        for name in ("ant", "bee"):
            folder = tmp_path / "images" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40 + number, 30, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return tmp_path / "images"


@pytest.fixture
def make_dataset() -> Callable[..., Dataset]:
    """A data set of random images in memory, 12 x 10, with 4 classes."""

    def make(train: int = 50, test: int = 101, channels: int = 3) -> Dataset:
        def source(count: int, seed: int) -> TensorSource:
            generator = torch.Generator().manual_seed(seed)
            images = torch.randint(
                0, 256, (count, channels, 12, 10), dtype=torch.uint8, generator=generator
            )
            return TensorSource(images, torch.arange(count) % 4)

        mean, std = (0.1, 0.2, 0.3)[:channels], (0.5, 0.6, 0.7)[:channels]
        spec = DataSpec("toy", channels, 12, 10, tuple("abcd"), mean, std)
        return Dataset(spec, source(train, 0), source(test, 1))

    return make
