"""What torch.compile is used for, and what it needs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from tser_cli.base.errors import ConfigError
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.training import settle
from tser_cli.engine.training.settle import compile_networks
from tser_cli.engine.training.task import Task
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
Prepared = Callable[..., tuple[Task, Context]]


class Compiled:
    """Stands for a network; notes whether it was told to compile."""

    def __init__(self) -> None:
        self.compiled = False

    def compile(self) -> None:
        """As torch's."""
        self.compiled = True


@pytest.mark.parametrize("mode", ["on", "off"])
def test_what_is_compiled(prepared: Prepared, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    monkeypatch.setattr(settle, "what_compiling_lacks", lambda device: "")
    task, context = prepared({"performance.compile": mode})
    taught, network = Compiled(), Compiled()
    task.teacher, task.network = taught, network  # type: ignore[assignment]
    compile_networks(task, context.config, torch.device("cpu"))
    assert taught.compiled == network.compiled == (mode == "on")


def test_compiling_on_a_cpu_asks_for_a_compiler(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle.shutil, "which", lambda name: None)
    task, context = prepared({"performance.compile": "on"})
    with pytest.raises(ConfigError, match=r"needs a compiler \(CXX, g\+\+ or clang\+\+\)"):
        compile_networks(task, context.config, torch.device("cpu"))


def test_compiling_does_not_go_with_saving_memory(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="does not go with"):
        make_config({"performance.compile": "on", "performance.save_memory": True})
