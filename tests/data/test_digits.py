from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from tser_cli.data.builtin import load
from tser_cli.settings.config import DataConfig


def test_split_sizes_and_strata() -> None:
    dataset = load(DataConfig())
    assert (len(dataset.train), len(dataset.test)) == (1437, 360)
    whole = np.bincount(load_digits().target)
    held = torch.bincount(dataset.test.labels).numpy()
    np.testing.assert_allclose(held, whole * 360 / 1797, atol=1.0)


def test_every_image_is_in_one_split_with_its_label_and_scale() -> None:
    bunch = load_digits()
    expected = Counter(
        (int(label), tuple(int(grey * 255 / 16 + 0.5) for grey in image.ravel()))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    dataset = load(DataConfig())
    found = Counter(
        (int(source.labels[index]), tuple(source.image(index).flatten().tolist()))
        for source in (dataset.train, dataset.test)
        for index in range(len(source))
    )
    assert found == expected


def test_the_split_is_scikit_learn_s() -> None:
    bunch = load_digits()
    everything = np.arange(len(bunch.target))
    _, test = train_test_split(everything, test_size=360, stratify=bunch.target, random_state=0)
    expected = sorted(np.round(bunch.data[test] * (255 / 16)).astype(int).tolist())
    held = load(DataConfig()).test
    assert sorted(held.image(index).flatten().tolist() for index in range(360)) == expected


def test_the_table_is_found_elsewhere_too(monkeypatch: pytest.MonkeyPatch) -> None:
    usual = load(DataConfig())
    monkeypatch.setattr(Path, "is_file", lambda path: False)
    other = load(DataConfig())
    assert torch.equal(usual.train.labels, other.train.labels)
    assert all(torch.equal(usual.train.image(i), other.train.image(i)) for i in range(1437))


def test_split_is_fixed() -> None:
    first, second = load(DataConfig()), load(DataConfig())
    assert torch.equal(first.test.image(17), second.test.image(17))
    assert first.test.labels[:12].tolist() == second.test.labels[:12].tolist()


def test_mean_and_std_are_those_of_the_training_images() -> None:
    dataset = load(DataConfig())
    pixels = torch.stack([dataset.train.image(i) for i in range(1437)]).double() / 255
    assert dataset.spec.mean == pytest.approx((pixels.mean().item(),), abs=1e-5)
    assert dataset.spec.std == pytest.approx((pixels.std(correction=0).item(),), abs=1e-5)


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
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
