"""Images of one's own in one NumPy file."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser_cli.base.errors import DataError
from tser_cli.data.base import Dataset, TensorSource, load_dataset
from tser_cli.settings.config import DataConfig

Arrays = dict[str, Any]


@pytest.fixture
def arrays() -> Arrays:
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (12, 6, 5), dtype=np.uint8),
        "train_labels": np.arange(12) % 3,
        "test_images": rng.integers(0, 256, (4, 6, 5), dtype=np.uint8),
        "test_labels": np.arange(4) % 3,
    }


def load(path: Path, arrays: Arrays, **more: Any) -> Dataset:
    np.savez(path, **arrays)
    return load_dataset(DataConfig(name="npz", dir=str(path), **more))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "images.npz"


def test_grey_bytes_come_as_they_are(path: Path, arrays: Arrays) -> None:
    dataset = load(path, arrays)
    assert dataset.spec.image_shape == (1, 6, 5) and dataset.spec.classes == ("0", "1", "2")
    np.testing.assert_array_equal(dataset.train.image(7)[0].numpy(), arrays["train_images"][7])
    assert dataset.test.labels.tolist() == [0, 1, 2, 0]
    pixels = arrays["train_images"] / 255
    assert dataset.spec.mean == pytest.approx([pixels.mean()], abs=1e-6)
    assert dataset.spec.std == pytest.approx([pixels.std()], abs=1e-6)
    assert dataset.measured.keys() == {"data.mean", "data.std"}


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_may_come_first_or_last(
    path: Path, arrays: Arrays, channels: int, last: bool
) -> None:
    rng = np.random.default_rng(0)
    for part, count in (("train", 12), ("test", 4)):
        first = rng.integers(0, 256, (count, channels, 6, 5), dtype=np.uint8)
        arrays[f"{part}_images"] = first.transpose(0, 2, 3, 1) if last else first
    dataset = load(path, arrays)
    assert dataset.spec.image_shape == (channels, 6, 5) and len(dataset.spec.mean) == channels
    np.testing.assert_array_equal(dataset.test.image(3).numpy(), first[3])


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_floats_become_bytes(path: Path, arrays: Arrays, kind: Any) -> None:
    expected = load(path, arrays).train
    for part in ("train", "test"):
        arrays[f"{part}_images"] = (arrays[f"{part}_images"] / 255).astype(kind)
    train = load(path, arrays).train
    assert isinstance(train, TensorSource) and isinstance(expected, TensorSource)
    assert torch.equal(train.images_MCHW, expected.images_MCHW)


def test_labels_may_be_a_column_of_any_integers(path: Path, arrays: Arrays) -> None:
    arrays["train_labels"] = arrays["train_labels"].astype(np.uint8)[:, None]
    assert load(path, arrays).train.labels.tolist() == [0, 1, 2] * 4


def test_stated_mean_and_std_hold(path: Path, arrays: Arrays) -> None:
    dataset = load(path, arrays, mean=(0.5,), std="auto")
    assert dataset.spec.mean == (0.5,) and dataset.measured.keys() == {"data.std"}


@pytest.mark.parametrize(
    ("name", "change", "why"),
    [
        ("train_images", lambda a: a / 1.0, "values from 0.0 to 255.0; floats must lie in 0..1"),
        ("test_images", lambda a: a / -255, "floats must lie in"),
        ("test_images", lambda a: a * np.nan, "values from nan to nan"),
        ("train_images", lambda a: a.astype(np.int64), "train_images has type int64"),
        ("train_images", lambda a: a[0], r"train_images has shape \[6, 5\]"),
        ("test_images", lambda a: a[:0], r"test_images has shape \[0, 1, 6, 5\]"),
        ("train_images", lambda a: np.stack([a] * 2, 1), "shape"),
        ("test_images", lambda a: a[:, :5], "they must be alike"),
        ("train_labels", lambda a: a[:-1], r"train_labels has shape \[11\]"),
        ("train_labels", lambda a: a / 1.0, "train_labels has .* type float64"),
        ("train_labels", lambda a: np.eye(3)[a], "train_labels has shape"),
        ("train_labels", lambda a: a - 1, "3 classes, from -1 to 1; number them from 0"),
        ("train_labels", lambda a: a * 10**9, "3 classes, from 0 to 2000000000"),
        ("train_images", lambda a: a / 255**2, "of which 8 bits keep nothing"),
        ("train_labels", lambda a: a * 0, "one class alone"),
        ("test_labels", lambda a: a + 1, "test_labels holds 3, which train_labels does not"),
        ("train_images", lambda a: a.astype(object), "allow_pickle"),
        ("test_labels", lambda a: np.array([[1], 2, 3, 4], dtype=object), "allow_pickle"),
    ],
)
def test_what_does_not_fit_is_named(
    path: Path, arrays: Arrays, name: str, change: Any, why: str
) -> None:
    with pytest.raises(DataError, match=why) as caught:
        load(path, {**arrays, name: change(arrays[name])})
    assert str(caught.value).startswith(str(path))


def test_a_missing_array_is_named(path: Path, arrays: Arrays) -> None:
    del arrays["test_labels"]
    with pytest.raises(DataError, match="it lacks test_labels"):
        load(path, arrays)


class Attack:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_no_pickle_is_opened(path: Path, arrays: Arrays, tmp_path: Path) -> None:
    arrays["train_labels"] = np.array([Attack(tmp_path / "attacked")] * 12, dtype=object)
    with pytest.raises(DataError, match="allow_pickle"):
        load(path, arrays)
    assert not (tmp_path / "attacked").exists()


def test_more_than_memory_holds_is_not_unpacked(path: Path, arrays: Arrays) -> None:
    np.savez(path, **arrays)
    content = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        content, {"descr": "|u1", "fortran_order": False, "shape": (2**44, 1, 1)}
    )
    kept = {name: array for name, array in arrays.items() if name != "train_images"}
    np.savez(path, **kept)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_images.npy", content.getvalue())
    with pytest.raises(DataError, match="can't be read"):
        load_dataset(DataConfig(name="npz", dir=str(path)))


def test_damage_anywhere_is_told(path: Path, arrays: Arrays) -> None:
    np.savez_compressed(path, **arrays)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        content = bytearray(whole)
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content[: rng.integers(1, len(content) + 1)])
        try:
            load_dataset(DataConfig(name="npz", dir=str(path)))
        except DataError as error:
            assert str(error).startswith(str(path))


def test_what_is_no_file_is_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for folder in (tmp_path, tmp_path / "pipe", tmp_path / "missing", tmp_path / ("x" * 300)):
        with pytest.raises(DataError, match="is no regular file"):
            load_dataset(DataConfig(name="npz", dir=str(folder)))
    with pytest.raises(DataError, match="npz needs a file"):
        load_dataset(DataConfig(name="npz"))
