"""digits, MNIST and CIFAR: what is read is what was published, wherever it lies."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import pickle
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torchvision import datasets
from torchvision.datasets import utils

from tser_cli.base.errors import DataError
from tser_cli.data import builtin
from tser_cli.data.base import Dataset, TensorSource, load_dataset
from tser_cli.data.builtin import digits
from tser_cli.settings.config import DataConfig

Members = dict[str, Any]
Publish = Callable[[Any, Members], bytes]
FOLDER, PACKED = "cifar-10-batches-py", "cifar-10-python.tar.gz"


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def load(home: Path, name: str = "cifar10") -> Dataset:
    return load_dataset(DataConfig(name=name, dir=str(home)))


def unpack(home: Path, packed: bytes) -> None:
    with tarfile.open(fileobj=BytesIO(packed)) as tar:
        tar.extractall(home, filter="data")


@pytest.fixture(params=["folder", "tar"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[bytes], None]:
    """Puts a data set where it is looked for, unpacked or not."""
    if request.param == "folder":
        return lambda packed: unpack(tmp_path, packed)
    return lambda packed: (tmp_path / PACKED).write_bytes(packed) and None


def test_images_labels_and_names(
    tmp_path: Path,
    place: Callable[[bytes], None],
    publish_cifar: Publish,
    cifar10_members: Members,
) -> None:
    place(publish_cifar(datasets.CIFAR10, cifar10_members))
    before = sorted(tmp_path.rglob("*"))
    dataset = load(tmp_path)
    assert dataset.spec.classes == tuple(f"class {number}" for number in range(10))
    assert dataset.spec.image_shape == (3, 32, 32)
    assert (len(dataset.train), len(dataset.test)) == (15, 3)
    # the second image of the third file: red, green and blue planes, row by row
    expected = cifar10_members["data_batch_3"]["data"][1]
    image = dataset.train.image(7).numpy()
    assert image[1, 2, 3] == expected[1024 + 2 * 32 + 3]
    np.testing.assert_array_equal(image.ravel(), expected)
    assert dataset.train.image(7).is_contiguous()
    assert dataset.train.labels[7] == cifar10_members["data_batch_3"]["labels"][1]
    assert dataset.test.labels.tolist() == cifar10_members["test_batch"]["labels"]
    # nothing is written beside a data set that is there: its folder may be closed
    assert sorted(tmp_path.rglob("*")) == before


def test_cifar100_takes_the_fine_labels(tmp_path: Path, publish_cifar: Publish) -> None:
    images = np.zeros((2, 3072), np.uint8)
    entry = {"data": images, "fine_labels": [99, 0], "coarse_labels": [1, 2]}
    meta = {"fine_label_names": [f"fine {n}" for n in range(100)], "coarse_label_names": ["x"]}
    members = {"train": entry, "test": entry, "meta": meta}
    unpack(tmp_path, publish_cifar(datasets.CIFAR100, members))
    dataset = load(tmp_path, "cifar100")
    assert dataset.train.labels.tolist() == [99, 0]
    assert dataset.spec.num_classes == 100 and dataset.spec.classes[42] == "fine 42"


@pytest.mark.parametrize("member", ["data_batch_2", "batches.meta"])
def test_a_pickle_that_is_not_the_published_one_is_not_opened(
    tmp_path: Path, publish_cifar: Publish, cifar10_members: Members, member: str
) -> None:
    marker = tmp_path / "attacked"
    attack = pickle.dumps(Attack(marker))
    pickle.loads(attack)
    assert marker.exists()
    marker.rmdir()
    unpack(tmp_path, publish_cifar(datasets.CIFAR10, cifar10_members))
    (tmp_path / FOLDER / member).write_bytes(attack)
    with pytest.raises(DataError, match=rf"{member} can't be read: its MD5 sum is not"):
        load(tmp_path)
    assert not marker.exists()


def test_an_archive_that_is_not_the_published_one_is_not_unpacked(
    tmp_path: Path, publish_cifar: Publish, cifar10_members: Members
) -> None:
    whole = publish_cifar(datasets.CIFAR10, cifar10_members)
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        (tmp_path / PACKED).write_bytes(whole[:length])
        with pytest.raises(DataError, match="delete it") as caught:
            load(tmp_path)
        assert str(tmp_path / PACKED) in str(caught.value)


def test_an_incomplete_folder_gives_way_to_the_archive(
    tmp_path: Path, publish_cifar: Publish, cifar10_members: Members
) -> None:
    packed = publish_cifar(datasets.CIFAR10, cifar10_members)
    unpack(tmp_path, packed)
    (tmp_path / FOLDER / "batches.meta").unlink()
    (tmp_path / PACKED).write_bytes(packed)
    assert len(load(tmp_path).train) == 15


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    debian = tmp_path / "debian"
    monkeypatch.setattr(builtin, "DEBIAN", debian)
    return debian


@pytest.mark.parametrize("gz", [False, True])
@pytest.mark.parametrize(
    ("name", "folder"), [("mnist", "MNIST/raw"), ("fashion-mnist", "FashionMNIST/raw")]
)
def test_idx_files_in_torchvisions_layout(
    tmp_path: Path, write_idx: Callable[..., Any], name: str, folder: str, gz: bool
) -> None:
    arrays = write_idx(tmp_path / folder, gz=gz)
    dataset = load(tmp_path, name)
    assert (len(dataset.train), len(dataset.test)) == (6, 4)
    assert dataset.spec.image_shape == tuple(dataset.train.image(0).shape) == (1, 28, 28)
    images, labels = arrays["t10k-images-idx3-ubyte"], arrays["t10k-labels-idx1-ubyte"]
    np.testing.assert_array_equal(dataset.test.image(2)[0].numpy(), images[2])
    assert dataset.test.labels.tolist() == labels.tolist()


def test_debians_fashion_mnist_is_found_and_the_users_files_win(
    tmp_path: Path, nothing_installed: Path, write_idx: Callable[..., Any]
) -> None:
    write_idx(nothing_installed / "fashion-mnist", train=9)
    assert len(load(tmp_path, "fashion-mnist").train) == 9
    write_idx(tmp_path / "FashionMNIST" / "raw", train=7)
    assert len(load(tmp_path, "fashion-mnist").train) == 7


@pytest.mark.usefixtures("served")
def test_fashion_mnist_is_not_taken_for_mnist(
    tmp_path: Path, write_idx: Callable[..., Any]
) -> None:
    write_idx(tmp_path)
    write_idx(tmp_path / "FashionMNIST" / "raw")
    with pytest.raises(DataError, match="mnist is not on this machine"):
        load(tmp_path, "mnist")


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(
    ("name", "files", "folder"),
    [
        ("mnist", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"], "MNIST/raw"),
        ("fashion-mnist", ["train-labels-idx1-ubyte.gz"], "FashionMNIST/raw"),
        ("cifar10", ["cifar-10-python.tar.gz"], ""),
        ("cifar100", ["cifar-100-python.tar.gz"], ""),
    ],
)
def test_missing_files_are_listed_with_their_place(
    tmp_path: Path, name: str, files: list[str], folder: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, name)
    for part in (*files, str(tmp_path / folder / files[0]), "--data-dir", "TSER_DATA_DIR", "http"):
        assert part in str(caught.value)


@pytest.mark.parametrize("gz", [False, True])
def test_an_idx_file_cut_anywhere_is_named(
    tmp_path: Path, write_idx: Callable[..., Any], gz: bool
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, gz=gz)
    for name in ("train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        path = folder / f"{name}.gz" if gz else folder / name
        whole = path.read_bytes()
        damaged = [whole[:length] for length in (0, 3, 9, len(whole) - 1)]
        if gz:
            damaged.append(whole[:-8] + bytes([whole[-8] ^ 1]) + whole[-7:])  # its checksum
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(DataError, match="delete it") as caught:
                load(tmp_path, "mnist")
            assert str(caught.value).startswith(f"{path} can't be read: ")
        path.write_bytes(whole)


def idx(*shape: int, value: int = 0) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes([0, 0, 8, len(shape)]) + sizes + bytes([value]) * math.prod(shape)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("train-labels-idx1-ubyte", idx(5), "5 labels for 6 images"),
        ("train-labels-idx1-ubyte", idx(6, value=10), "below 10"),
        ("t10k-images-idx3-ubyte", idx(4, 28, 27), "28 x 27 pixels"),
        ("t10k-images-idx3-ubyte", idx(0, 28, 28), "t10k-images-idx3-ubyte"),
        *(
            ("train-images-idx3-ubyte", content, "train-images-idx3-ubyte can't be read")
            for content in (
                b"hello, world, this is no image",
                b"\0\0\x0d\x03" + bytes(32),  # floats
                idx(1),  # one dimension
                idx(1, 2, 1) + b"x",  # a byte too many
            )
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, write_idx: Callable[..., Any], name: str, content: bytes, why: str
) -> None:
    folder = tmp_path / "MNIST" / "raw"
    write_idx(folder, gz=False)
    (folder / name).write_bytes(content)
    with pytest.raises(DataError, match=why):
        load(tmp_path, "mnist")


def test_the_root_is_the_cache_folder_unless_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/someone/.cache")
    assert builtin.root(DataConfig()).name == "tser"
    assert builtin.root(DataConfig(dir="~/images")) == Path("/home/someone/images")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "imagefolder"])
def test_a_folder_that_is_no_path_is_told(name: str) -> None:
    for folder, said in (
        ("~nobody-of-that-name/x", "is no path"),
        ("a\0b", "is no path"),
    ):
        with pytest.raises(DataError, match=said):
            load(Path(folder), name)
    if name == "mnist":
        with pytest.raises(DataError, match="File name too long"):
            load(Path("/tmp") / ("x" * 300), name)


@pytest.mark.skipif(
    not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist"
)
def test_fashion_mnists_constants_are_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(builtin, "DEBIAN", Path("/usr/share/datasets"))
    dataset = load(tmp_path, "fashion-mnist")
    assert (len(dataset.train), len(dataset.test)) == (60_000, 10_000)
    assert torch.bincount(dataset.train.labels).tolist() == [6000] * 10
    assert isinstance(dataset.train, TensorSource)
    std, mean = torch.std_mean(dataset.train.images_MCHW.float() / 255)
    assert dataset.spec.mean == pytest.approx((mean.item(),), abs=1e-4)
    assert dataset.spec.std == pytest.approx((std.item(),), abs=1e-4)
    digests = [
        hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:20]
        for source in (dataset.train, dataset.test)
        for tensor in (source.images_MCHW, source.labels)  # type: ignore[attr-defined]
    ]
    # of the same files, read before by a parser written from the format's description
    assert digests == [
        *("2e487a6c89124f78f2d7", "e3245b63f7c40d1c8b65"),
        *("c867c93ff95360594e8e", "d51d859896c55775b9e9"),
    ]


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


def files(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.rglob("*") if path.is_file())


@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_download_lands_whole(
    home: Path, published: dict[str, bytes], served: dict[str, bytes], mirror: str
) -> None:
    served.update({f"{mirror}{name}": content for name, content in published.items()})
    assert len(load(home, "mnist").train) == 6
    plain = sorted(f"MNIST/raw/{name.removesuffix('.gz')}" for name in published)
    assert [file for file in files(home) if not file.endswith(".lock")] == plain
    assert socket.getdefaulttimeout() is None
    served.clear()
    assert len(load(home, "mnist").train) == 6


def test_a_failure_says_what_to_put_where(
    home: Path, published: dict[str, bytes], served: dict[str, bytes]
) -> None:
    for name, content in published.items():
        served[f"{MIRRORS[0]}{name}"] = content[:-1]
    with pytest.raises(DataError) as caught:
        load(home, "mnist")
    for name in published:
        assert f"{home}/MNIST/raw/{name}  from {MIRRORS[0]}{name}" in str(caught.value)
    for part in ("the download failed", "--data-dir", "TSER_DATA_DIR"):
        assert part in str(caught.value)
    assert not (home / "MNIST").exists()
    (home / "file").touch()
    with pytest.raises(DataError, match="download failed"):
        load(home / "file" / "folder", "mnist")


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
        len(load(home, "mnist").train)
    assert len(load(home, "mnist").train) == 6
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
    assert len(load(home, "mnist").train) == 6


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
    threads = [threading.Thread(target=load, args=(home, "mnist")) for _ in range(3)]
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
    dataset = load(home)
    expected = cifar10_members["data_batch_3"]["data"][1]
    np.testing.assert_array_equal(dataset.train.image(7).numpy().ravel(), expected)
    assert {Path(file).parent.name for file in files(home)} == {"", "cifar-10-batches-py"}
    served.clear()
    assert len(load(home).test) == 3


def test_every_image_is_in_one_split_with_its_label_and_scale() -> None:
    bunch = load_digits()
    expected = Counter(
        (int(label), tuple(int(grey * 255 / 16 + 0.5) for grey in image.ravel()))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    dataset = digits(DataConfig())
    found = Counter(
        (int(source.labels[index]), tuple(source.image(index).flatten().tolist()))
        for source in (dataset.train, dataset.test)
        for index in range(len(source))
    )
    assert found == expected
    everything = np.arange(len(bunch.target))
    # the split is scikit-learn's
    _, test = train_test_split(everything, test_size=360, stratify=bunch.target, random_state=0)
    held = sorted(np.round(bunch.data[test] * (255 / 16)).astype(int).tolist())
    assert sorted(dataset.test.image(index).flatten().tolist() for index in range(360)) == held
    pixels = torch.stack([dataset.train.image(i) for i in range(1437)])
    assert dataset.spec.mean == pytest.approx((pixels.double().mean() / 255).view(1), abs=1e-5)
    std = pixels.double().std(correction=0) / 255
    assert dataset.spec.std == pytest.approx(std.view(1), abs=1e-5)


@pytest.mark.slow
def test_digits_with_crop_flip_and_cutout_do_without_torchvision() -> None:
    script = """
import sys
from tser_cli.settings.config import Config
from tser_cli.data.base import load_dataset
from tser_cli.data.loaders import build_eval_loader, build_train_loader
config = Config().updated(
    {"augment.crop_padding": 1, "augment.flip": True, "augment.cutout": 2,
     "data.validation_fraction": 0.1}
)
dataset = load_dataset(config.data)
evaluation = [build_eval_loader(dataset, split, config) for split in ("validation", "test")]
for batches in (build_train_loader(dataset, config).epoch(0), *evaluation):
    assert next(iter(batches)).images_NCHW.shape[1:] == (1, 8, 8)
assert "torchvision" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script], check=True)
