"""Every recipe that ships: it loads, is what its name says, and builds its networks."""

from __future__ import annotations

import pytest
import torch

from tser_cli.models.base import build_model
from tser_cli.settings import recipe, registry
from tser_cli.settings.config import Config
from tser_cli.settings.recipe import resolve


def settings_of(name: str) -> Config:
    return resolve([recipe.read(name)])


@pytest.mark.parametrize("name", recipe.available())
def test_packaged_recipes_load(name: str) -> None:
    assert isinstance(settings_of(name), Config)


@pytest.mark.parametrize("name", [n for n in recipe.available() if not n.startswith("ablations/")])
def test_packaged_recipes_are_what_their_names_say(name: str) -> None:
    dataset, _, experiment = name.partition("/")
    config = settings_of(name)
    # a method's own name may hold an underscore, as kd_feature
    of_method = experiment.endswith(f"_{config.method.name}")
    method = config.method.name if of_method else experiment.rpartition("_")[2]
    network = experiment.removesuffix(f"_{method}")
    assert config.data.name == dataset
    if method == "teacher":
        assert config.model.teacher == network
    else:
        assert (config.model.student, config.method.name) == (network, method)


@pytest.mark.parametrize("name", recipe.available())
def test_packaged_recipes_build_their_networks(name: str) -> None:
    settings = settings_of(name)
    shape = {"channels": 3, "height": 32, "width": 32, "num_classes": 10}
    with torch.device("meta"):
        student = build_model(settings.model.student, neuron=settings.neuron, **shape)
        assert student(torch.empty(2, 3, 32, 32), timesteps=2).shape == (2, 2, 10)
        if settings.model.teacher in registry.MODELS:
            teacher = build_model(settings.model.teacher, **shape)
            assert teacher(torch.empty(2, 3, 32, 32)).shape == (2, 10)
