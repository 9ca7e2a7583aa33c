"""One cell of an ablation: its folder, its process's environment, its row; and t-SNE."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.config import Config
from tser_cli.engine.ablation import cell_folder as cells
from tser_cli.engine.ablation import cell_process as bound
from tser_cli.engine.ablation import tsne
from tser_cli.engine.ablation.cell_folder import (
    Launcher,
    cell_environment,
    cell_folder,
    cell_name,
    default_jobs,
    find_cell,
    result_row,
)
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs import run_folder
from tser_cli.engine.runs.run_folder import create
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.recipe import read, resolve

MakeConfig = Callable[..., Config]


@pytest.fixture
def make_cell(make_config: MakeConfig) -> Callable[..., Cell]:
    def make(varied: dict[str, Any], seed: int = 0, **changes: Any) -> Cell:
        return Cell(varied, seed, make_config({"training.seed": seed, **changes}))

    return make


@pytest.mark.parametrize(
    ("varied", "name"),
    [
        ({"method.name": "kd"}, "method=kd_s3"),
        ({"method.name": "kd", "model.timesteps": 2}, "method=kd_timesteps=2_s3"),
        ({"method.entropy_weight": 1e-05}, "entropy_weight=1e-05_s3"),
        ({"optimizer.weight_decay": 0.5}, "weight_decay=0.5_s3"),
        ({"method.entropy_weight": -0.1}, "entropy_weight=-0.1_s3"),
        ({"optimizer.lr": 1e30}, "lr=1e+30_s3"),
        ({"training.deterministic": True}, "deterministic=True_s3"),
        ({"model.teacher": "runs/a b"}, "teacher=runs-a-b_s3-0f733132"),
    ],
)
def test_folders_are_named_by_what_is_varied(
    make_cell: Callable[..., Cell], varied: dict[str, Any], name: str
) -> None:
    cell = make_cell(varied, 3)
    assert cell_name(cell) == name
    assert cell_folder(cell, Path("x")) == Path("x/cells") / name


def test_no_two_cells_share_a_folder(make_cell: Callable[..., Cell]) -> None:
    values = ["a/b", "a-b", "a b", "../a", "x" * 300, "x" * 301, "é" * 300, "[a]", "a\nb"]
    names = [cell_name(make_cell({"model.teacher": value})) for value in values]
    assert len(set(names)) == len(names)
    assert all(Path(name).name == name and len(name.encode()) < 255 for name in names)


def test_a_cell_s_process_gets_its_share_of_the_threads(
    make_cell: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(cells, "cores", lambda: 8)
    cell = make_cell({"method.name": "kd"})
    assert [cell_environment(cell, 0, jobs)["OMP_NUM_THREADS"] for jobs in (1, 3, 9)] == [
        *("8", "2", "1")
    ]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert cell_environment(cell, 0, 2)["OMP_NUM_THREADS"] == "5"


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str) -> list[list[str]]:
    """Cells run this program instead; returns the commands that they would have run."""
    begin, commands = subprocess.Popen, list[list[str]]()

    def popen(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        commands.append(command)
        return begin([sys.executable, "-c", program], **options)

    monkeypatch.setattr(bound.subprocess, "Popen", popen)
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
    assert seen == [
        [
            *(
                sys.executable,
                "-m",
                "tser_cli.engine.ablation.cell_process",
                str(os.getpid()),
                "distill",
            ),
            *("--recipe", str(log.parent / "cell.toml"), "--runs-dir", str(log.parent)),
            *("--resume", "auto"),
        ]
    ]


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


def test_a_row_of_a_cell_that_was_never_run(make_cell: Callable[..., Cell], tmp_path: Path) -> None:
    cell = make_cell({"method.name": "kd"}, 2)
    row = result_row(cell, tmp_path)
    assert row == {"seed": 2, "state": "missing", "folder": "cells/method=kd_s2"}


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_a_row_of_an_unfinished_cell_says_so(
    make_cell: Callable[..., Cell], tmp_path: Path, state: str
) -> None:
    cell = make_cell({"method.name": "kd"})
    create(cell_folder(cell, tmp_path), "student", cell.config).update_status(state=state)
    assert find_cell(cell, tmp_path) is None
    row = result_row(cell, tmp_path)
    assert row == {"seed": 0, "state": state, "folder": "cells/method=kd_s0"}


def test_a_cell_without_a_place_to_write_is_a_failure(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    (tmp_path / "cells").write_text("a file")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    for _ in range(2):  # its slot was given back
        assert "can't be written" in launcher.run(make_cell({"method.name": "kd"}))


def test_no_cell_starts_once_a_stop_was_asked_for(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    stop = StopRequest(lambda text: None)
    stop.signal = 15
    assert Launcher(tmp_path, 1, stop).run(make_cell({"method.name": "kd"})) == "not started"
    assert list(tmp_path.iterdir()) == []


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
        assert told.result(timeout=60).startswith("exit code 143: saved (see ")


def test_what_a_failed_cell_said_last_is_told(
    make_cell: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, "for n in range(9): print(n)\nraise SystemExit(7)")
    launcher = Launcher(tmp_path, 1, StopRequest(lambda text: None))
    log = cell_folder(make_cell({"method.name": "kd"}), tmp_path) / "cell.log"
    assert launcher.run(make_cell({"method.name": "kd"})) == f"exit code 7: 6 / 7 / 8 (see {log})"


def test_a_cell_s_paths_hold_from_anywhere(
    make_cell: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cell = make_cell({"method.name": "kd"}, **{"data.dir": "images"})
    home = cells.write_settings(cell, Path("out"))
    assert home == tmp_path / "out" / "cells" / "method=kd_s0"
    stated = tomllib.loads((home / "cell.toml").read_text())
    assert stated["data"]["dir"] == str(tmp_path / "images")


def test_a_cell_goes_on_where_the_images_have_moved(
    make_cell: Callable[..., Cell], tmp_path: Path
) -> None:
    def settings_at(folder: str) -> tuple[Path, Config]:
        home = cells.write_settings(
            make_cell({"method.name": "kd"}, **{"data.dir": str(tmp_path / folder)}), tmp_path
        )
        return home, resolve([read(str(home / cells.SETTINGS))])

    home, before = settings_at("images")
    run = run_folder.create(home, "student", before)
    run.update_status(state="stopped")
    _, moved = settings_at("moved")
    assert moved.data.dir == str(tmp_path / "moved")
    assert run_folder.find_unfinished(home, "student", moved, must=False) == run


@pytest.mark.parametrize(
    ("arguments", "code", "out", "err"),
    [
        (["--version"], 0, "tser ", ""),
        (["energy", "--nonsense"], 2, "", "No such option"),
        (["ablate", "no/such/recipe"], 2, "", 'error: no recipe "no/such/recipe"'),
    ],
)
def test_a_cell_s_process_ends_with_the_code_of_tser(
    tmp_path: Path, arguments: list[str], code: int, out: str, err: str
) -> None:
    command = [
        sys.executable,
        "-m",
        "tser_cli.engine.ablation.cell_process",
        str(os.getpid()),
        *arguments,
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout[:5]) == (code, out)
    assert err in done.stderr


def test_what_is_left_to_do_at_exit_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    program = (
        "import atexit, runpy, sys\n"
        "from tser_cli.engine.ablation import cell_process as bound\n"
        "def tser(*rest, **options):\n"
        "    atexit.register(print, 'at exit')\n"
        "    print('half a line', end=' ')\n"
        "    {}\n"
        "bound.runpy.run_module = tser\n"
        "bound.run_here()\n"
    )
    for ending, code in (("sys.exit(5)", 5), ("raise ValueError", 1), ("sys.exit('why')", 1)):
        done = subprocess.run(
            [sys.executable, "-c", program.format(ending)], capture_output=True, text=True
        )
        assert (done.returncode, done.stdout) == (code, "half a line at exit\n")
        assert ("ValueError" in done.stderr, "why" in done.stderr) == (
            "Value" in ending,
            "why" in ending,
        )


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends it")
def test_a_process_whose_parent_ended_before_it_began_ends_too() -> None:
    program = (
        "from tser_cli.engine.ablation.cell_process import end_with\nend_with({})\nprint('alive')"
    )
    orphan = subprocess.run(
        [sys.executable, "-c", program.format(1)], capture_output=True, text=True
    )
    assert (orphan.returncode, orphan.stdout) == (137, "")
    child = subprocess.run(
        [sys.executable, "-c", program.format(os.getpid())], capture_output=True, text=True
    )
    assert (child.returncode, child.stdout) == (0, "alive\n")


def test_t_sne_keeps_groups_apart_and_is_the_same_again() -> None:
    centres = torch.tensor([[0.0] * 8, [9.0] * 8]).repeat_interleave(20, 0)
    features = centres + torch.randn(40, 8)
    points = torch.tensor(tsne.coordinates(features))
    assert points.shape == (40, 2)
    assert torch.equal(points, torch.tensor(tsne.coordinates(features)))
    distances = torch.cdist(points, points)
    distances.fill_diagonal_(torch.inf)
    nearest = distances.argmin(1)
    assert ((nearest < 20) == (torch.arange(40) < 20)).all()


def test_t_sne_of_a_silent_network_is_no_error() -> None:
    points = torch.tensor(tsne.coordinates(torch.zeros(11, 4)))
    assert points.shape == (11, 2)
    assert torch.isfinite(points).all()
