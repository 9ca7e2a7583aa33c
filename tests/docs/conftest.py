"""The scripts of docs/ as modules, and images so few that a page's commands take little time."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tser_cli.data import builtin
from tser_cli.data.base import Dataset
from tser_cli.settings.config import DataConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="session")
def docs_script() -> Callable[[str], ModuleType]:
    """Load a script of docs/ by its name; skip the test where there is no checkout."""

    def load(name: str) -> ModuleType:
        path = DOCS / f"{name}.py"
        if not path.is_file():
            pytest.skip("docs/ is only in a checkout")
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # its dataclasses look themselves up there
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    """digits has every sixth of its images alone: 240 to train on, 60 to test on."""
    whole = builtin.digits

    def fewer(config: DataConfig) -> Dataset:
        found = whole(config)
        parts = [
            builtin.TensorSource(part.images_MCHW[::6], part.labels[::6])
            for part in (found.train, found.test)
            if isinstance(part, builtin.TensorSource)
        ]
        return Dataset(found.spec, *parts)

    monkeypatch.setattr(builtin, "digits", fewer)
