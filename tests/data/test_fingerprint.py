"""Data sets of one's own are told apart by what they hold, not by where it lies."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from tser_cli.data.base import load_dataset
from tser_cli.data.own import fingerprint
from tser_cli.settings.config import DataConfig


def of_arrays(path: Path, **changes: Any) -> str:
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (8, 6, 5), dtype=np.uint8), np.arange(8) % 2
    arrays: dict[str, Any] = {"train_images": images, "train_labels": labels}
    arrays |= {"test_images": images, "test_labels": labels, **changes}
    np.savez(path, **arrays)
    return fingerprint(load_dataset(DataConfig(name="npz", dir=str(path))))


def of_folder(path: Path, **more: Any) -> str:
    return fingerprint(load_dataset(DataConfig(name="imagefolder", dir=str(path), **more)))


def test_an_npz_file_is_known_by_its_images_and_labels(tmp_path: Path) -> None:
    first = of_arrays(tmp_path / "a.npz")
    assert first == of_arrays(tmp_path / "b.npz") and len(first) == 64
    assert first != of_arrays(tmp_path / "a.npz", test_labels=(np.arange(8) + 1) % 2)
    black = np.zeros((8, 6, 5), np.uint8)
    assert first != of_arrays(tmp_path / "a.npz", test_images=black)


def test_a_folder_is_known_by_its_names(image_folders: Path, tmp_path: Path) -> None:
    first = of_folder(image_folders)
    moved = shutil.copytree(image_folders, tmp_path / "moved")
    assert of_folder(moved) == first
    image = next((moved / "train" / "ant").iterdir())
    image.rename(image.with_name(f"another{image.suffix}"))
    assert of_folder(moved) != first


def test_another_scale_is_another_data_set_and_one_measured_the_same(image_folders: Path) -> None:
    measured = of_folder(image_folders, size="auto", mean="auto", std="auto")
    found = load_dataset(
        DataConfig(name="imagefolder", dir=str(image_folders), size="auto", mean="auto", std="auto")
    ).measured
    stated = {key.removeprefix("data."): value for key, value in found.items()}
    assert of_folder(image_folders, **stated) == measured
    assert of_folder(image_folders, **{**stated, "size": 16}) != measured
    assert of_folder(image_folders, **{**stated, "std": (0.5,) * 3}) != measured


def test_what_is_always_the_same_has_none() -> None:
    assert fingerprint(load_dataset(DataConfig(name="digits"))) == ""
