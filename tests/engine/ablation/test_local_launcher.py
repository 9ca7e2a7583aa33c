"""Cells on this machine: their environment, their process, what is told of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.engine.ablation import cell_process, local_launcher
from tser_cli.engine.ablation.folder import cell_folder
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.ablation.local_launcher import Launcher, cell_environment, default_jobs
from tser_cli.engine.runs.stop import StopRequest


def test_a_cell_s_process_gets_its_share_of_the_threads(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local_launcher, "cores", lambda: 8)
    cell = make_cell({"method.name": "kd"})
    assert [cell_environment(cell, 0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 3, 9)] == [
        *("8", "2", "1")
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cell_environment(cell, 0, 2)["OMP_NUM_THREADS"] == "5"
    for odd in ("x", "0", "99999999999", "9" * 5000):
        monkeypatch.setenv("OMP_NUM_THREADS", odd)
        assert local_launcher.threads_of(1) == 8


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[list[str]]:
    """Cells run this program instead; returns the commands that they would have run."""
    begin, commands = subprocess.Popen, list[list[str]]()

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        commands.append(command)
        return begin([sys.executable, "-c", program], **options)

    monkeypatch.setattr(cell_process.subprocess, "Popen", popen)
    return commands


def test_no_setting_from_outside_reaches_a_cell(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TSER_OPTIMIZER_LR", "3")
    seen = stand_in(monkeypatch, "import os; print(sorted(os.environ))")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    assert launcher.run(make_cell({"method.name": "kd"})) == ""
    (log,) = tmp_path.rglob("cell.log")
    assert "PATH" in log.read_text()
    assert "TSER_" not in log.read_text()
    module, home = "tser_cli.engine.ablation.cell_process", str(log.parent)
    command = [sys.executable, "-P", "-m", module, str(os.getpid()), "distill"]
    command += ["--recipe", f"{home}/cell.toml", "--runs-dir", home, "--resume", "auto"]
    assert seen == [command]


@pytest.mark.parametrize(
    ("device", "visible", "jobs", "given"),
    [
        ("auto", "", 2, ["0", "1", "0"]),
        ("cuda", "5,7", 2, ["5", "7", "5"]),
        ("auto", "", 1, [None, None, None]),
        ("cuda:1", "", 2, [None, None, None]),
        ("cpu", "", 2, [None, None, None]),
    ],
)
def test_cells_side_by_side_get_a_gpu_each(
    make_cell: Callable[..., Cell],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    visible: str,
    jobs: int,
    given: list[str | None],
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    cell = make_cell({"method.name": "kd"}, **{"training.device": device})
    found = [cell_environment(cell, slot, jobs).get("CUDA_VISIBLE_DEVICES") for slot in range(3)]
    assert found == given


def test_as_many_cells_at_once_as_gpus(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    free = make_cell({"method.name": "kd"}, **{"training.device": "auto"})
    bound = make_cell({"method.name": "kd"}, **{"training.device": "cpu"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert default_jobs([free, free]) == 4
    assert default_jobs([free, bound]) == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert default_jobs([free]) == 1


def test_no_cell_starts_once_a_stop_was_asked_for(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    stop = StopRequest(lambda text: None)
    stop.signal = 15
    assert Launcher(tmp_path, 1, stop).run(make_cell({"method.name": "kd"})) == "not started"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cells").write_text("a file")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    for _ in range(2):  # its slot was given back
        assert "can't be written" in launcher.run(make_cell({"method.name": "kd"}))


SAVES = """
import signal, sys, time
from pathlib import Path
def save(*rest):
    time.sleep(0.3)
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
Path({ready!r}).touch()
while True:
    time.sleep(0.01)
"""


def test_a_stopped_cell_may_save_before_its_end_is_told(
    make_cell: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready, stop = tmp_path / "ready", StopRequest(lambda text: None)
    stand_in(monkeypatch, SAVES.format(ready=str(ready)))
    with ThreadPoolExecutor(1) as pool:
        told = pool.submit(Launcher(tmp_path, 1, stop).run, make_cell({"method.name": "kd"}))
        while not ready.exists():
            assert not told.done(), told.result()
            time.sleep(0.01)
        stop.signal = signal.SIGTERM
        assert told.result().startswith("exit code 143: saved (see ")


def test_what_a_failed_cell_said_last_is_told(
    make_cell: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "for n in range(9): print(n)\nraise SystemExit(7)")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    log = cell_folder(make_cell({"method.name": "kd"}), tmp_path) / "cell.log"
    assert launcher.run(make_cell({"method.name": "kd"})) == f"exit code 7: 6 / 7 / 8 (see {log})"
