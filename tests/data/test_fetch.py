"""Downloads: whole or not at all, once, and with a message where they fail."""

from __future__ import annotations

import gzip
import hashlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets import utils

from tser_cli.base.errors import DataError
from tser_cli.data import builtin
from tser_cli.data.base import load_dataset
from tser_cli.settings.config import DataConfig

MIRRORS = ("http://one.example/", "http://two.example/")


@pytest.fixture
def published(
    tmp_path: Path, write_idx: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> dict[str, bytes]:
    """The packed files of a small MNIST at the addresses of torchvision's class, by name."""
    write_idx(tmp_path / "published")
    contents = {path.name: path.read_bytes() for path in (tmp_path / "published").iterdir()}
    monkeypatch.setattr(builtin, "DEBIAN", tmp_path / "debian")
    monkeypatch.setattr(datasets.MNIST, "mirrors", list(MIRRORS))
    sums = [
        (name, hashlib.md5(content, usedforsecurity=False).hexdigest())
        for name, content in contents.items()
    ]
    monkeypatch.setattr(datasets.MNIST, "resources", sums)
    return contents


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "a" / "b"


def load(home: Path) -> int:
    return len(load_dataset(DataConfig(name="mnist", dir=str(home))).train)


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


def test_a_download_lands_whole(
    home: Path, published: dict[str, bytes], served: dict[str, bytes]
) -> None:
    served.update({f"{MIRRORS[0]}{name}": content for name, content in published.items()})
    assert load(home) == 6
    plain = sorted(f"MNIST/raw/{name.removesuffix('.gz')}" for name in published)
    assert [file for file in files(home) if not file.endswith(".lock")] == plain
    assert socket.getdefaulttimeout() is None
    served.clear()
    assert load(home) == 6


def test_the_second_mirror_serves(
    home: Path, published: dict[str, bytes], served: dict[str, bytes]
) -> None:
    served.update({f"{MIRRORS[1]}{name}": content for name, content in published.items()})
    assert load(home) == 6


def test_a_failure_says_what_to_put_where(
    home: Path, published: dict[str, bytes], served: dict[str, bytes]
) -> None:
    for name, content in published.items():
        served[f"{MIRRORS[0]}{name}"] = content[:-1]
    with pytest.raises(DataError) as caught:
        load(home)
    for name in published:
        assert f"{home}/MNIST/raw/{name}  from {MIRRORS[0]}{name}" in str(caught.value)
    for part in ("the download failed", "--data-dir", "TSER_DATA_DIR"):
        assert part in str(caught.value)
    assert not (home / "MNIST").exists()


def test_an_interrupted_download_goes_on(
    home: Path,
    published: dict[str, bytes],
    served: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served.update({f"{MIRRORS[0]}{name}": content for name, content in published.items()})
    asked: list[str] = []
    retrieve = utils._urlretrieve

    def interrupted(url: str, path: str) -> None:
        asked.append(url)
        if len(asked) == 3:
            Path(path).write_bytes(served[url][:-5])
            raise KeyboardInterrupt
        retrieve(url, path)

    monkeypatch.setattr(utils, "_urlretrieve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(home)
    assert load(home) == 6
    # the two that were whole are not asked for again
    assert len(asked) == 5 and len(set(asked)) == 4


def test_an_interrupted_unpacking_is_done_again(
    home: Path, published: dict[str, bytes], served: dict[str, bytes]
) -> None:
    served.update({f"{MIRRORS[0]}{name}": content for name, content in published.items()})
    raw = home / ".mnist.part" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, content in published.items():
        (raw / name).write_bytes(content)
        (raw / name.removesuffix(".gz")).write_bytes(gzip.decompress(content)[:-10])
    served.clear()
    assert load(home) == 6


def test_a_folder_that_can_not_be_made_is_told(
    tmp_path: Path, published: dict[str, bytes], served: dict[str, bytes]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="download failed"):
        load(tmp_path / "file" / "folder")


def test_one_download_serves_all_who_wait(
    home: Path,
    published: dict[str, bytes],
    served: dict[str, bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served.update({f"{MIRRORS[0]}{name}": content for name, content in published.items()})
    asked: list[str] = []
    retrieve = utils._urlretrieve

    def slow(url: str, path: str) -> None:
        asked.append(url)
        time.sleep(0.05)
        retrieve(url, path)

    monkeypatch.setattr(utils, "_urlretrieve", slow)
    threads = [threading.Thread(target=load, args=(home,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 4


def test_cifar_is_downloaded_and_unpacked(
    home: Path,
    served: dict[str, bytes],
    publish_cifar: Callable[..., bytes],
    cifar10_members: dict[str, Any],
) -> None:
    served[datasets.CIFAR10.url] = publish_cifar(datasets.CIFAR10, cifar10_members)
    dataset = load_dataset(DataConfig(name="cifar10", dir=str(home)))
    expected = cifar10_members["data_batch_3"]["data"][1]
    np.testing.assert_array_equal(dataset.train.image(7).numpy().ravel(), expected)
    assert {Path(file).parent.name for file in files(home)} == {"", "cifar-10-batches-py"}
    served.clear()
    assert len(load_dataset(DataConfig(name="cifar10", dir=str(home))).test) == 3
