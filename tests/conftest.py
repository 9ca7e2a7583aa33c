"""What every test can rely on: one torch thread, a fixed seed, no settings from outside."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

from tests.command import Invoke, call
from tser_cli.settings import config, plugins, registry

# Examples are drawn from a fixed seed and without a clock, so that a test fails always or never.
settings.register_profile("tser", derandomize=True, deadline=None, database=None)
settings.load_profile("tser")

torch.set_num_threads(1)
# Dozens of processes are started: each would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """TSER_* variables of the developer's shell never reach a test."""
    for name in [name for name in os.environ if name.startswith("TSER_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """The global random states are the same at the start of every test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def tser(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Call the command line: (exit code, standard output, standard error)."""

    def invoke(*arguments: object) -> tuple[int, str, str]:
        code = call(*arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return invoke


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs that check an export run in this process: that spares their imports."""
    from tser_cli.export import consumers, verify

    def run(library: str, path: Path, images: Path) -> consumers.Result:
        with np.load(images) as given:
            images_NCHW, timesteps = given["images_NCHW"], int(given["timesteps"])
        return consumers.LIBRARIES[library](str(path), images_NCHW, timesteps)

    monkeypatch.setattr(verify, "run", run)


@pytest.fixture
def nothing_added(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Plug-ins of `tmp_path`, and what they add to the registries, end with the test."""
    tables = {kind: dict(table) for kind, table in registry.TABLES.items()}
    before = set(sys.modules)
    monkeypatch.setattr(plugins, "_loaded", {})
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    for kind, table in tables.items():
        registry.TABLES[kind].clear()
        registry.TABLES[kind].update(table)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]
    config._keys.cache_clear()
