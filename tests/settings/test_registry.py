"""Names and what lies behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.settings import recipe, registry


def test_what_the_tables_name_is_there() -> None:
    for entry in (*registry.DATASETS.values(), *registry.MODELS.values()):
        assert callable(registry.load(entry.target))
    for name, method in registry.METHODS.items():
        assert callable(method.loss)
        assert method.settings().name == name
        assert method.settings.summary and method.settings.source
    for dataset in registry.DATASETS.values():
        assert {dataset.teacher_recipe, dataset.student_recipe} <= set(recipe.available())


def test_ce_alone_of_the_ladder_needs_no_teacher() -> None:
    ladder = ["ce", "kd", "tskl", "tsce", "ts", "tser"]
    assert [registry.METHODS[name].needs_teacher for name in ladder] == [False] + [True] * 5
    separated = [registry.METHODS[name].settings.separated for name in ladder]
    assert separated == [False] * 2 + [True] * 4


def test_lookup_finds_or_explains() -> None:
    assert registry.lookup("model", registry.MODELS, "vgg11") is registry.MODELS["vgg11"]
    with pytest.raises(ConfigError, match=r'unknown model "vgg12" \(did you mean "vgg1'):
        registry.lookup("model", registry.MODELS, "vgg12")


@pytest.mark.parametrize(("name", "reader"), [("photos", "imagefolder"), ("x.npz", "npz")])
def test_a_path_is_no_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reader: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    with pytest.raises(ConfigError, match=f"--dataset {reader} --data-dir {name}$"):
        registry.lookup("data set", registry.DATASETS, name)


def test_load_takes_a_module_or_an_object() -> None:
    assert registry.load("tser_cli.settings.registry") is registry
    assert registry.load("tser_cli.settings.registry:load") is registry.load
