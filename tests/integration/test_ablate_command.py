"""`tser ablate` with real processes: stopped, killed, failing, side by side, and refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tser_cli.cli import app
from tser_cli.data.base import load_dataset
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.find import all_runs
from tser_cli.engine.runs.folder import Run
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import Config

pytestmark = pytest.mark.integration

RECIPE = """
[data]
name = "digits"
[model]
teacher = "{teacher}"
student = "resnet20"
timesteps = 1
[optimizer]
lr = 0.05
[training]
epochs = 3
batch_size = 96
device = "cpu"
checkpoint_every = "1epoch"
tensorboard = false
[ablation]
vary = ["method=ce,kd"]
seeds = 1
baseline = "method=ce"
"""
PATIENCE = 900.0  # a loaded machine is slow, and that is no fault
DEAD = ("Z", "X", "")
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A recipe, and a teacher that has learnt nothing: it has to be the same, not good."""
    folder, config = tmp_path, Config()
    spec, teacher = load_dataset(config.data).spec, folder / "teacher.safetensors"
    model = networks.build("resnet20", spec, config, spiking=False)
    networks.write(teacher, model, networks.describe("resnet20", spec, config, False))
    (folder / "recipe.toml").write_text(RECIPE.format(teacher=teacher))
    return folder


@pytest.fixture
def start(home: Path) -> Iterator[Start]:
    """`start("recipe.toml")`: `tser ablate recipe.toml` in a process that ends with the test."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TSER_")}
    begun = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tser_cli", "ablate", *arguments, "--runs-dir", "runs"],
            cwd=home,
            env={**environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
        process.wait()


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def table(folder: Path) -> list[dict[str, str]]:
    """ablation.csv without what the clock wrote."""
    rows = read_csv(folder / "ablation.csv")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def cell_runs(folder: Path) -> list[Run]:
    return [run for cell in (folder / "cells").glob("*") for run in all_runs(cell, "student")]


def states(folder: Path) -> list[str]:
    return [str(run.status().get("state")) for run in cell_runs(folder)]


def in_this_process(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """The exit code of `tser ablate` with these arguments."""
    monkeypatch.setattr("sys.argv", ["tser", "ablate", *arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert isinstance(stop.value.code, int)
    return stop.value.code


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    latest = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < latest, "nothing happened for long"
        time.sleep(0.1)


def training(folder: Path) -> list[int]:
    """The living processes of cells that have trained for an epoch or more."""
    status = [run.status() for run in cell_runs(folder)]
    begun = [s for s in status if s.get("state") == "running" and s.get("epoch", 0) > 0]
    return [s["pid"] for s in begun if alive(s["pid"], folder)]


def alive(pid: int, folder: Path) -> bool:
    """Whether a process works in the folder: a number may be another process's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in DEAD and str(folder) in command


def freeze_one(process: subprocess.Popen[str], folder: Path, finished: int) -> int:
    """Stop a cell in the middle, once so many have finished; returns its process id."""
    while True:
        wait_until(process, lambda: len(training(folder)) == 1)
        for pid in training(folder):
            os.kill(pid, signal.SIGSTOP)
            if pid in training(folder) and states(folder).count("finished") == finished:
                return pid
            os.kill(pid, signal.SIGCONT)


def kill(process: subprocess.Popen[str], folder: Path, finished: int) -> None:
    """kill -9 of an ablation in the middle of a cell, which ends with it."""
    cell = freeze_one(process, folder, finished)
    process.kill()
    process.communicate(timeout=PATIENCE)
    latest = time.monotonic() + PATIENCE
    while alive(cell, folder):
        assert time.monotonic() < latest, "a killed ablation's cell lives on"
        time.sleep(0.02)


def check_whole(folder: Path, out: str, err: str) -> None:
    """An ablation of two cells that nothing disturbed."""
    assert "whole: accuracy" in out
    assert "2 of 2" in err
    rows = table(folder)
    assert [(row["method.name"], row["seed"], row["state"]) for row in rows] == [
        ("ce", "0", "finished"),
        ("kd", "0", "finished"),
    ]
    assert states(folder) == ["finished"] * 2
    summary = read_csv(folder / "summary.csv")
    assert [(row["n"], row["pairs"]) for row in summary] == [("1", "0"), ("1", "1")]
    networks_drawn = {row["network"] for row in read_csv(folder / "tsne.csv")}
    assert networks_drawn == {"teacher", "method=ce", "method=kd"}


@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed parent's cells live on")
def test_killed_and_repeated_gives_the_tables_of_an_undisturbed_ablation(
    home: Path, start: Start
) -> None:
    whole = start("recipe.toml", "--jobs", "2", "--output", "whole")
    folder, command = home / "parts", ("recipe.toml", "--output", "parts")

    kill(start(*command), folder, finished=1)

    (done,) = [run for run in cell_runs(folder) if run.status()["state"] == "finished"]
    before = done.model_file.stat().st_mtime_ns
    code, _, err = end(start(*command))
    assert code == 0, err
    assert "2 runs, 1 finished before" in err
    assert states(folder) == ["finished"] * 2  # one run a cell
    assert done.model_file.stat().st_mtime_ns == before

    code, out, err = end(whole)
    assert code == 0, err
    check_whole(home / "whole", out, err)
    assert table(folder) == table(home / "whole")
    for name in ("summary.csv", "tsne.csv"):
        assert (folder / name).read_bytes() == (home / "whole" / name).read_bytes()


@pytest.mark.timeout(2 * PATIENCE)
def test_a_cell_that_fails_and_then_the_folder_of_another_ablation(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    vary = ("--set", "method.name=ce", "--seeds", "1", "--vary", "lr=1e30,0.05", "--jobs", "2")
    vary = (*vary, "--output", "failing")
    monkeypatch.chdir(home)
    assert in_this_process(monkeypatch, "recipe.toml", *vary, "--epochs", "1") == 1
    out, err = capsys.readouterr()
    assert "failing: accuracy" in out
    assert "error: 1 of 2 runs failed" in err
    assert "lr=1e+30, seed 0: exit code 1: " in err
    assert "not finite" in err
    assert "Traceback" not in err
    rows = table(home / "failing")
    assert [(row["optimizer.lr"], row["state"]) for row in rows] == [
        ("1e+30", "failed"),
        ("0.05", "finished"),
    ]

    before = sorted((home / "failing").rglob("*"))
    code = in_this_process(monkeypatch, "recipe.toml", *vary, "--epochs", "2")
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert "belongs to an ablation with other settings" in err
    assert "training.epochs: 1 -> 2" in err
    assert sorted((home / "failing").rglob("*")) == before


def test_a_dry_run_writes_nothing(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(home.rglob("*"))
    monkeypatch.chdir(home)
    command = ("recipe.toml", "--vary", "T=1,2", "--seeds", "2", "--jobs", "2", "--dry-run")
    assert in_this_process(monkeypatch, *command) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[:2] == ["timesteps=1, seed 0", "timesteps=2, seed 0"]
    assert "4 runs, 0 finished; about " in out
    assert "2 side by side" in out
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vary", "methd=ce"), 'did you mean "method"'),
        (("--vary", "method=ce,kdd"), 'did you mean "kd"'),
        (("--vary", "method=ce", "--seeds", "0"), "--seeds 0: at least one"),
        (("--vary", "method=ce", "--baseline", "method=ts"), "no such cell"),
        (("--vary", "training.seed=1,2"), "seeds are counted by --seeds"),
        (("no/such/recipe",), "no recipe"),
        (("digits/resnet18_tser",), "nothing is varied"),
        (("ablations/digits_rivals", "--address", "there"), "write auto or HOST:PORT"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code = in_this_process(monkeypatch, *arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert list(tmp_path.iterdir()) == []
