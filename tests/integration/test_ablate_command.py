"""`tser ablate` with real processes: stopped, killed, failing, side by side, and refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tser_cli.cli import app
from tser_cli.config import Config
from tser_cli.data.base import load_dataset
from tser_cli.engine import networks
from tser_cli.engine.runs import Run, all_runs
from tser_cli.report.tables import read_csv

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("integration")]

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
epochs = {epochs}
batch_size = 96
device = "cpu"
checkpoint_every = "1epoch"
tensorboard = false
[ablation]
vary = ["method=ce,kd"]
seeds = 2
baseline = "method=ce"
"""
PATIENCE = 240.0
DEAD = ("Z", "X", "")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes, and a teacher that has learnt nothing: it has to be the same, not good."""
    folder, config = tmp_path_factory.mktemp("ablate"), Config()
    spec, teacher = load_dataset(config.data).spec, folder / "teacher.safetensors"
    model = networks.build("resnet20", spec, config, spiking=False)
    networks.write(teacher, model, networks.describe("resnet20", spec, config, False))
    for epochs in (1, 4):
        text = RECIPE.format(teacher=teacher, epochs=epochs)
        (folder / f"epochs{epochs}.toml").write_text(text)
    return folder


def start(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TSER_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tser_cli", "ablate", *arguments, "--runs-dir", "runs"],
        cwd=home,
        env={**environment, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def tser(home: Path, *arguments: str) -> tuple[int, str, str]:
    process = start(home, *arguments)
    try:
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
    return process.returncode, out, err


def table(folder: Path) -> list[dict[str, str]]:
    """ablation.csv without what the clock wrote."""
    rows = read_csv(folder / "ablation.csv")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def cell_runs(folder: Path) -> list[Run]:
    return [run for cell in (folder / "cells").glob("*") for run in all_runs(cell, "student")]


def states(folder: Path) -> list[str]:
    return [str(run.status().get("state")) for run in cell_runs(folder)]


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "nothing happened for long"
        time.sleep(0.02)


def training(folder: Path) -> list[int]:
    """The processes of cells that have trained for an epoch or more."""
    status = [run.status() for run in cell_runs(folder)]
    return [s["pid"] for s in status if s.get("state") == "running" and s.get("epoch", 0) > 0]


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in DEAD


@pytest.fixture(scope="module")
def undisturbed(home: Path) -> Path:
    """An ablation of four cells, two side by side, that nothing disturbed."""
    code, out, err = tser(home, "epochs4.toml", "--jobs", "2", "--output", "whole")
    assert code == 0, err
    assert "whole: accuracy" in out
    assert "4 of 4" in err
    return home / "whole"


def test_two_jobs_give_every_cell_once(undisturbed: Path) -> None:
    rows = table(undisturbed)
    assert [(row["method.name"], row["seed"], row["state"]) for row in rows] == [
        ("ce", "0", "finished"),
        ("kd", "0", "finished"),
        ("ce", "1", "finished"),
        ("kd", "1", "finished"),
    ]
    assert states(undisturbed) == ["finished"] * 4
    summary = read_csv(undisturbed / "summary.csv")
    assert [(row["n"], row["pairs"]) for row in summary] == [("2", "0"), ("2", "2")]
    networks_drawn = {row["network"] for row in read_csv(undisturbed / "tsne.csv")}
    assert networks_drawn == {"teacher", "method=ce", "method=kd"}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed parent's cells live on")
def test_stopped_and_killed_and_repeated(home: Path, undisturbed: Path) -> None:
    folder, command = home / "parts", ("epochs4.toml", "--jobs", "2", "--output", "parts")

    process = start(home, *command)
    wait_until(process, lambda: bool(training(folder)))
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert "Repeat the command" in err
    assert "running" not in states(folder)

    process = start(home, *command)
    wait_until(process, lambda: "finished" in states(folder) and bool(training(folder)))
    left = training(folder)
    process.kill()
    process.communicate(timeout=PATIENCE)
    end = time.monotonic() + 10
    while any(alive(pid) for pid in left):
        assert time.monotonic() < end, "a killed ablation's cells live on"
        time.sleep(0.02)

    finished = [run for run in cell_runs(folder) if run.status()["state"] == "finished"]
    before = {run.folder: run.model_file.stat().st_mtime_ns for run in finished}
    code, _, err = tser(home, "epochs4.toml", "--output", "parts")
    assert code == 0, err
    assert f"4 runs, {len(before)} finished before" in err
    assert states(folder) == ["finished"] * 4  # one run a cell
    assert {path: Run(path).model_file.stat().st_mtime_ns for path in before} == before
    assert table(folder) == table(undisturbed)
    assert read_csv(folder / "summary.csv") == read_csv(undisturbed / "summary.csv")


def test_a_cell_that_fails(home: Path) -> None:
    vary = ("--vary", "lr=1e30,0.05", "--seeds", "1", "--output", "failing")
    code, out, err = tser(home, "epochs1.toml", "--set", "method.name=ce", *vary)
    assert code == 1
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


def test_the_folder_of_another_ablation(home: Path, undisturbed: Path) -> None:
    before = sorted(undisturbed.rglob("*"))
    code, out, err = tser(home, "epochs1.toml", "--output", "whole")
    assert (code, out) == (2, "")
    assert "belongs to an ablation with other settings" in err
    assert "training.epochs: 4 -> 1" in err
    assert sorted(undisturbed.rglob("*")) == before


def test_a_dry_run_writes_nothing(home: Path) -> None:
    before = sorted(home.rglob("*"))
    code, out, err = tser(home, "epochs1.toml", "--vary", "T=1,2", "--seeds", "2", "--dry-run")
    assert code == 0, err
    assert out.splitlines()[:2] == ["timesteps=1, seed 0", "timesteps=2, seed 0"]
    assert "4 runs, 0 finished; about " in out
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
    monkeypatch.setattr("sys.argv", ["tser", "ablate", *arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert list(tmp_path.iterdir()) == []
