"""Size, channels, mean and std of one's own images: stated, or measured on the training images."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tser_cli.base.errors import ConfigError, DataError
from tser_cli.data import own
from tser_cli.data.base import load_dataset
from tser_cli.data.loaders import build_eval_loader
from tser_cli.data.own import mean_and_std
from tser_cli.settings.config import Config, DataConfig

AUTO = dict.fromkeys(("size", "channels", "mean", "std"), "auto")


def config(folder: Path, **more: Any) -> DataConfig:
    return DataConfig(name="imagefolder", dir=str(folder), **more)


@pytest.fixture
def grey_images(tmp_path: Path) -> Path:
    """20 grey images of 12 x 12 in each of two class folders, without train/ and val/."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee"):
        folder = tmp_path / "grey" / name
        folder.mkdir(parents=True)
        for number in range(20):
            pixels = rng.integers(0, 200, (12, 12), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return tmp_path / "grey"


def test_small_grey_images_stay_small_and_grey(grey_images: Path) -> None:
    dataset = load_dataset(config(grey_images, **AUTO))
    assert dataset.spec.image_shape == (1, 12, 12)
    pixels = torch.stack([dataset.train.image(index) for index in range(len(dataset.train))])
    std, mean = torch.std_mean(pixels.double() / 255, correction=0)
    assert dataset.spec.mean == pytest.approx([mean.item()], abs=1e-6)
    assert dataset.spec.std == pytest.approx([std.item()], abs=1e-6)
    assert dataset.measured == {
        "data.size": 12,
        "data.channels": 1,
        "data.mean": list(dataset.spec.mean),
        "data.std": list(dataset.spec.std),
    }


def test_no_pixel_of_a_square_image_is_lost(grey_images: Path) -> None:
    settings = Config(data=config(grey_images, **AUTO, workers=0))
    dataset = load_dataset(settings.data)
    (batch,) = build_eval_loader(dataset, "test", settings)
    raw = torch.stack([dataset.test.image(index) for index in range(8)]).float() / 255
    expected = (raw - dataset.spec.mean[0]) / dataset.spec.std[0]
    torch.testing.assert_close(batch.images_NCHW, expected)


def test_what_was_measured_gives_the_same_data_set_when_stated(grey_images: Path) -> None:
    measured = load_dataset(config(grey_images, **AUTO))
    values = {key.removeprefix("data."): value for key, value in measured.measured.items()}
    stated = load_dataset(config(grey_images, **values))
    assert stated.spec == measured.spec and stated.measured == {}


def test_one_coloured_image_makes_the_input_coloured(grey_images: Path) -> None:
    Image.new("RGB", (12, 12), (9, 8, 7)).save(grey_images / "bee" / "new.png")
    dataset = load_dataset(config(grey_images, **AUTO))
    assert dataset.spec.image_shape == (3, 12, 12)
    assert dataset.train.image(0).shape[0] == dataset.test.image(0).shape[0] == 3


def test_the_size_is_the_median_of_the_shorter_sides(image_folders: Path) -> None:
    dataset = load_dataset(config(image_folders, size="auto"))
    assert dataset.spec.image_shape == (3, 30, 30)
    assert dataset.measured == {"data.size": 30}
    Image.new("L", (900, 800)).save(image_folders / "train" / "ant" / "0.png")
    Image.new("L", (900, 800)).save(image_folders / "train" / "ant" / "1.png")
    for path in (image_folders / "train" / "bee").iterdir():
        Image.new("L", (500, 400)).save(path)
    assert load_dataset(config(image_folders, size="auto")).spec.height == 224


def test_stated_values_hold(grey_images: Path) -> None:
    stated = {"size": 16, "channels": 3, "mean": (0.1, 0.2, 0.3), "std": (1.0, 2.0, 3.0)}
    spec = load_dataset(config(grey_images, **stated)).spec
    assert spec.image_shape == (3, 16, 16)
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (1.0, 2.0, 3.0))


def test_without_settings_the_input_is_imagenets(grey_images: Path) -> None:
    spec = load_dataset(config(grey_images)).spec
    assert spec.image_shape == (3, 224, 224)
    assert (spec.mean[0], spec.std[2], spec.shorter) == (0.485, 0.225, 0)


@pytest.mark.parametrize("key", ["mean", "std"])
def test_a_value_for_each_channel_is_needed(grey_images: Path, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.{key} has 2 values for 3 channels"):
        load_dataset(config(grey_images, **{key: (0.1, 0.2)}))


def test_a_constant_channel_has_std_1() -> None:
    images = torch.full((2, 2, 1, 2), 51, dtype=torch.uint8)
    images[:, 1] = torch.tensor([0, 255], dtype=torch.uint8)
    assert mean_and_std([images]) == {"mean": [0.2, 0.5], "std": [1.0, 0.5]}


def test_images_without_any_content_are_refused() -> None:
    with pytest.raises(DataError, match="all of one colour"):
        mean_and_std([torch.full((2, 3, 3, 3), 51, dtype=torch.uint8)])


def test_of_many_images_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own, "SAMPLE", 4)
    assert own.sample(3) == [0, 1, 2]
    assert own.sample(4) == [0, 1, 2, 3]
    assert own.sample(10) == [0, 2, 5, 7]


def test_the_test_split_is_stratified_and_always_the_same(grey_images: Path) -> None:
    dataset = load_dataset(config(grey_images, test_fraction=0.25))
    assert torch.bincount(dataset.train.labels).tolist() == [15, 15]
    assert torch.bincount(dataset.test.labels).tolist() == [5, 5]
    again = load_dataset(config(grey_images, test_fraction=0.25))
    assert dataset.test_images == again.test_images and len(set(dataset.test_images)) == 10
    first = Path(dataset.test_images[0])
    assert first.parent.name == "ant"
    expected = np.array(Image.open(grey_images / first))
    np.testing.assert_array_equal(dataset.test.image(0)[0].numpy(), expected)
    folder = grey_images / "ant"
    trained = {dataset.train.image(i).numpy().tobytes() for i in range(15)}
    tested = {dataset.test.image(i).numpy().tobytes() for i in range(5)}
    assert len(trained) + len(tested) == len(list(folder.iterdir())) and not trained & tested


def test_where_train_and_val_are_there_nothing_is_split_off(image_folders: Path) -> None:
    assert load_dataset(config(image_folders, test_fraction=0.5)).test_images == ()


@pytest.mark.parametrize(
    ("fraction", "why"), [(0.0, "leaves no image to test"), (0.001, "does not split")]
)
def test_a_split_that_tests_nothing_is_told(grey_images: Path, fraction: float, why: str) -> None:
    with pytest.raises(DataError, match=why):
        load_dataset(config(grey_images, test_fraction=fraction))


def test_a_class_of_one_image_is_told(grey_images: Path) -> None:
    shutil.rmtree(grey_images / "bee")
    (grey_images / "bee").mkdir()
    Image.new("L", (9, 9)).save(grey_images / "bee" / "0.png")
    with pytest.raises(DataError, match=r"data\.test_fraction = 0\.2 does not split"):
        load_dataset(config(grey_images))


@pytest.mark.parametrize("key", ["size", "channels", "mean", "std", "test_fraction"])
def test_data_sets_with_an_input_of_their_own_refuse_another(key: str) -> None:
    value: Any = {"mean": (0.5,), "std": (0.5,), "channels": 1}.get(key, 0.5 if "_" in key else 8)
    with pytest.raises(ValueError, match=rf"data\.{key} has no effect on cifar10"):
        DataConfig(name="cifar10", **{key: value})
