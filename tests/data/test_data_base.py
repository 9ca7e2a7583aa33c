from __future__ import annotations

import pytest
import torch

from tser_cli import registry
from tser_cli.config import DataConfig
from tser_cli.data.base import DataSpec, TensorSource, load_dataset
from tser_cli.errors import ConfigError


def test_spec_tells_classes_and_shape() -> None:
    spec = DataSpec("x", 3, 12, 10, ("a", "b"), (0.0,) * 3, (1.0,) * 3)
    assert spec.num_classes == 2
    assert spec.image_shape == (3, 12, 10)


def test_tensor_source_gives_raw_images() -> None:
    images = torch.arange(2 * 3 * 4 * 5, dtype=torch.uint8).view(2, 3, 4, 5)
    source = TensorSource(images, torch.tensor([1, 0]))
    assert len(source) == 2
    assert torch.equal(source.image(1), images[1])


def test_every_registered_data_set_has_a_loader() -> None:
    for entry in registry.DATASETS.values():
        assert callable(registry.load(entry.target))


def test_the_named_data_set_is_loaded() -> None:
    assert load_dataset(DataConfig(name="digits")).spec.name == "digits"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(ConfigError, match='did you mean "digits"'):
        load_dataset(DataConfig.model_construct(name="digit"))
