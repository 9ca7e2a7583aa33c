"""CIFAR: what is read is what was published, wherever it lies; nothing else is opened."""

from __future__ import annotations

import os
import pickle
import tarfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torchvision import datasets

from tser_cli.base.errors import DataError
from tser_cli.data.base import Dataset, load_dataset
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
