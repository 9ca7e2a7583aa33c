"""The scripts of docs/ as modules."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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
