"""Names and what lies behind them."""

from __future__ import annotations

import importlib.util
import subprocess
import sys

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.settings import recipe, registry

TABLES = {
    "data set": registry.DATASETS,
    "model": registry.MODELS,
    "method": registry.METHODS,
}
ENTRIES = [(kind, name) for kind, table in TABLES.items() for name in table]
HEAVY = ("torch", "torchvision", "spikingjelly", "pandas", "numpy", "matplotlib", "sklearn")


@pytest.mark.parametrize(("kind", "name"), ENTRIES)
def test_every_target_is_a_module_that_exists(kind: str, name: str) -> None:
    module, colon, attribute = TABLES[kind][name].target.partition(":")
    specification = importlib.util.find_spec(module)
    assert specification is not None and specification.origin is not None
    assert bool(attribute) == bool(colon) == (kind != "method")


@pytest.mark.parametrize(("kind", "name"), [e for e in ENTRIES if e[0] != "method"])
def test_data_sets_and_models_load(kind: str, name: str) -> None:
    assert callable(registry.load(TABLES[kind][name].target))


@pytest.mark.parametrize("name", sorted(registry.METHODS))
def test_methods_load(name: str) -> None:
    entry = registry.METHODS[name]
    assert callable(entry.loss)
    assert entry.settings().name == name
    assert entry.settings.summary and entry.settings.source


@pytest.mark.parametrize("name", sorted(registry.DATASETS))
def test_the_recipes_of_a_data_set_are_packaged(name: str) -> None:
    entry = registry.DATASETS[name]
    assert {entry.teacher_recipe, entry.student_recipe} <= set(recipe.available())


def test_what_the_design_promises_is_registered() -> None:
    assert registry.DATASETS.keys() >= {
        *("digits", "mnist", "fashion-mnist", "cifar10", "cifar100"),
        *("imagenet", "imagefolder", "npz"),
    }
    assert registry.MODELS.keys() >= {
        *("resnet18", "resnet19", "resnet20", "resnet34", "resnet50", "vgg11", "vgg16"),
        *("sew_resnet18", "sew_resnet20", "sew_resnet34"),
    }
    assert registry.METHODS.keys() >= {"ce", "kd", "tskl", "tsce", "ts", "tser"}


def test_ce_alone_of_the_ladder_needs_no_teacher() -> None:
    ladder = ["ce", "kd", "tskl", "tsce", "ts", "tser"]
    assert [registry.METHODS[name].needs_teacher for name in ladder] == [False] + [True] * 5
    separated = [registry.METHODS[name].settings.separated for name in ladder]
    assert separated == [False] * 2 + [True] * 4


def test_lookup_finds_or_explains() -> None:
    assert registry.lookup("model", registry.MODELS, "vgg11") is registry.MODELS["vgg11"]
    with pytest.raises(ConfigError, match=r'unknown model "vgg12" \(did you mean "vgg1'):
        registry.lookup("model", registry.MODELS, "vgg12")


def test_load_takes_a_module_or_an_object() -> None:
    assert registry.load("tser_cli.settings.registry") is registry
    assert registry.load("tser_cli.settings.registry:load") is registry.load


def test_names_and_settings_are_read_without_heavy_imports() -> None:
    program = (
        "import sys, tser_cli.settings.registry, tser_cli.settings.config\n"
        "from tser_cli.settings.recipe import from_assignments, resolve\n"
        "for name in tser_cli.settings.registry.METHODS:\n"
        "    resolve([from_assignments([f'method.name={name}'])])\n"
        f"print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
