"""Names and what lies behind them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.settings import recipe, registry

HEAVY = ("torch", "torchvision", "spikingjelly", "pandas", "numpy", "matplotlib", "sklearn")


def test_what_the_tables_name_is_there() -> None:
    for entry in (*registry.DATASETS.values(), *registry.MODELS.values()):
        assert callable(registry.load(entry.target))
    for name, method in registry.METHODS.items():
        assert callable(method.loss)
        assert method.settings().name == name
        assert method.settings.summary and method.settings.source
    for dataset in registry.DATASETS.values():
        assert {dataset.teacher_recipe, dataset.student_recipe} <= set(recipe.available())


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
