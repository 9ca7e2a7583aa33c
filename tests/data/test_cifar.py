from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tser_cli.data.cifar import Archive, read
from tser_cli.errors import DataError

Members = dict[str, Any]


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(
        folder=tmp_path / "cifar-10-batches-py",
        packed=tmp_path / "cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        meta="batches.meta",
        label_key="labels",
        names_key="label_names",
        classes=10,
    )


@pytest.fixture(params=["folder", "tar"])
def write(
    request: pytest.FixtureRequest,
    archive: Archive,
    write_folder: Callable[..., None],
    write_tar: Callable[..., None],
) -> Callable[[Members], None]:
    if request.param == "folder":
        return lambda members: write_folder(archive.folder, members)
    return lambda members: write_tar(archive.packed, archive.folder.name, members)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_images_labels_and_names(
    archive: Archive, write: Callable[[Members], None], cifar10_members: Members
) -> None:
    write(cifar10_members)
    classes, train, test = read(archive)
    assert classes == tuple(f"class {number}" for number in range(10))
    assert (len(train), len(test)) == (15, 3)
    # the second image of the third file: red, green and blue planes, row by row
    expected = cifar10_members["data_batch_3"]["data"][1]
    image = train.image(7).numpy()
    assert image[1, 2, 3] == expected[1024 + 2 * 32 + 3]
    np.testing.assert_array_equal(image.ravel(), expected)
    assert train.labels[7] == cifar10_members["data_batch_3"]["labels"][1]
    assert test.labels.tolist() == cifar10_members["test_batch"]["labels"]


def test_files_pickled_by_python_2_are_read(
    archive: Archive, write_folder: Callable[..., None], cifar10_members: Members
) -> None:
    # as in the published archives: str as byte strings, numpy.core, opcodes of protocol 2
    pixels = bytes(range(256)) * 12
    python_2 = (
        b"\x80\x02}q\x01(U\x04dataq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03"
        b"cnumpy\nndarray\nq\x04K\x00\x85U\x01b\x87Rq\x05(K\x01K\x01M\x00\x0c\x86"
        b"cnumpy\ndtype\nq\x06U\x02u1K\x00K\x01\x87Rq\x07"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        b"T\x00\x0c\x00\x00" + pixels + b"tbU\x06labelsq\x08]q\x09K\x07au."
    )
    assert pickle.loads(python_2, encoding="latin1")["data"].shape == (1, 3072)
    write_folder(archive.folder, cifar10_members)
    (archive.folder / "test_batch").write_bytes(python_2)
    _, _, test = read(archive)
    assert test.image(0).flatten().numpy().tobytes() == pixels
    assert test.labels.tolist() == [7]


@pytest.mark.parametrize("member", ["data_batch_2", "batches.meta"])
def test_a_pickle_that_would_run_code_is_refused(
    archive: Archive,
    write: Callable[[Members], None],
    cifar10_members: Members,
    tmp_path: Path,
    member: str,
) -> None:
    marker = tmp_path / "attacked"
    pickle.loads(pickle.dumps(Attack(marker)))
    assert marker.exists()
    marker.rmdir()
    write(cifar10_members | {member: Attack(marker)})
    with pytest.raises(DataError, match="mkdir, which is not run"):
        read(archive)
    assert not marker.exists()


def test_a_truncated_archive_is_named(
    archive: Archive, write_tar: Callable[..., None], cifar10_members: Members
) -> None:
    write_tar(archive.packed, archive.folder.name, cifar10_members)
    whole = archive.packed.read_bytes()
    for length in (0, 1, 10, len(whole) // 3, len(whole) // 2, len(whole) - 2000):
        archive.packed.write_bytes(whole[:length])
        with pytest.raises(DataError, match="delete it") as caught:
            read(archive)
        assert str(archive.packed) in str(caught.value)


def test_a_truncated_file_is_named(
    archive: Archive, write_folder: Callable[..., None], cifar10_members: Members
) -> None:
    write_folder(archive.folder, cifar10_members)
    path = archive.folder / "data_batch_4"
    whole = path.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="delete it") as caught:
            read(archive)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("member", "entry", "why"),
    [
        ("test_batch", {"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, "2 images"),
        ("test_batch", {"data": np.zeros((1, 3072), np.uint8), "labels": [10]}, "not in 0..9"),
        ("test_batch", {"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, "not in 0..9"),
        ("test_batch", {"data": np.zeros((1, 3072), np.float32), "labels": [1]}, "bytes"),
        ("test_batch", {"data": np.zeros((1, 3071), np.uint8), "labels": [1]}, "reshape"),
        ("test_batch", {"labels": [1]}, "data"),
        ("test_batch", ["data"], "no dictionary"),
        ("batches.meta", {"label_names": ["one"]}, "no list of 10"),
        ("batches.meta", {}, "no list of 10"),
    ],
)
def test_entries_that_do_not_fit_are_refused(
    archive: Archive,
    write: Callable[[Members], None],
    cifar10_members: Members,
    member: str,
    entry: Any,
    why: str,
) -> None:
    write(cifar10_members | {member: entry})
    with pytest.raises(DataError, match=why):
        read(archive)


def test_an_archive_without_a_member_says_which(
    archive: Archive, write_tar: Callable[..., None], cifar10_members: Members
) -> None:
    del cifar10_members["data_batch_5"]
    write_tar(archive.packed, archive.folder.name, cifar10_members)
    with pytest.raises(DataError, match="lacks data_batch_5"):
        read(archive)


def test_an_incomplete_folder_gives_way_to_the_archive(
    archive: Archive,
    write_folder: Callable[..., None],
    write_tar: Callable[..., None],
    cifar10_members: Members,
) -> None:
    write_tar(archive.packed, archive.folder.name, cifar10_members)
    write_folder(archive.folder, {"test_batch": {}})
    assert len(read(archive)[1]) == 15
