"""`tser ablate` with real processes: stopped, killed, failing, side by side, and refused."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.command import Invoke
from tser_cli.data.base import load_dataset
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.find import all_runs
from tser_cli.engine.runs.folder import Run
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import Config, DataConfig

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("nothing_added")]

RECIPE = """
plugins = ["{folder}/waits.py"]
[data]
name = "npz"
dir = "{folder}/few.npz"
[model]
teacher = "{folder}/teacher.safetensors"
student = "resnet20"
timesteps = 1
[optimizer]
lr = 0.05
[training]
epochs = 3
batch_size = 20
device = "cpu"
checkpoint_every = "1epoch"
tensorboard = false
[ablation]
vary = ["method=ce,waits"]
seeds = 1
baseline = "method=ce"
"""
# Cross entropy, which says at its fifth step, in the second epoch, that it waits, until it may go.
WAITS = """
import os, time
from pathlib import Path
from tser_cli.losses.base import Supervised, mean_cross_entropy
from tser_cli.settings.registry import add_method

HERE, steps = Path({folder!r}), []

class Settings(Supervised):
    summary = "an example"
    name: str = "waits"

@add_method(Settings)
def loss(outputs, settings):
    steps.append(1)
    if len(steps) == 5 and not (HERE / "go").exists():
        (HERE / "part").write_text(str(os.getpid()))
        (HERE / "part").rename(HERE / "waiting")
        while not (HERE / "go").exists():
            time.sleep(0.01)
    return {{"loss": mean_cross_entropy(outputs, settings)}}
"""
PATIENCE = 900.0  # a loaded machine is slow, and that is no fault


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe of few images, and a teacher that has learnt nothing: it has to be the same."""
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (80, 8, 8), np.uint8), np.arange(80) % 3
    parts = {"train": slice(60), "test": slice(60, 80)}
    arrays = {f"{part}_images": images[at] for part, at in parts.items()}
    arrays |= {f"{part}_labels": labels[at] for part, at in parts.items()}
    np.savez(tmp_path / "few.npz", **arrays)  # type: ignore[arg-type]
    config = Config()
    spec = load_dataset(DataConfig(name="npz", dir=str(tmp_path / "few.npz"))).spec
    model = networks.build("resnet20", spec, config, spiking=False)
    networks.write(tmp_path / "teacher.safetensors", model, "resnet20", spec, config)
    (tmp_path / "recipe.toml").write_text(RECIPE.format(folder=tmp_path))
    (tmp_path / "waits.py").write_text(WAITS.format(folder=str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the cells, which say how many they had
    return tmp_path


def table(folder: Path) -> list[dict[str, str]]:
    """ablation.csv without what the clock wrote."""
    rows = read_csv(folder / "ablation.csv")
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def cell_runs(folder: Path) -> list[Run]:
    return [run for cell in (folder / "cells").glob("*") for run, _ in all_runs(cell, "student")]


def states(folder: Path) -> list[str]:
    return [str(run.status().get("state")) for run in cell_runs(folder)]


def wait_until(condition: Callable[[], bool], missed: Callable[[], str]) -> None:
    latest = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < latest, missed()
        time.sleep(0.02)


def alive(pid: int, folder: Path) -> bool:
    """Whether a process works in the folder: a number may be another process's by now."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X") and str(folder) in command


def kill_in_the_second_cell(home: Path, *arguments: str) -> None:
    """kill -9 of an ablation in the middle of a cell, which ends with it."""
    command = [sys.executable, "-m", "tser_cli", "ablate", *arguments]
    said = home / "said"
    with said.open("w") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream)
    try:
        waiting = home / "waiting"
        wait_until(lambda: waiting.exists() or process.poll() is not None, said.read_text)
        assert process.poll() is None, said.read_text()
        cell = int(waiting.read_text())
        assert alive(cell, home)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: not alive(cell, home), lambda: "a killed ablation's cell lives on")


def check_whole(folder: Path, out: str) -> None:
    """An ablation of two cells, both finished."""
    assert f"{folder.name}: accuracy" in out
    rows = table(folder)
    assert [(row["method.name"], row["seed"], row["state"]) for row in rows] == [
        ("ce", "0", "finished"),
        ("waits", "0", "finished"),
    ]
    assert states(folder) == ["finished"] * 2
    summary = read_csv(folder / "summary.csv")
    assert [(row["n"], row["pairs"]) for row in summary] == [("1", "0"), ("1", "1")]
    networks_drawn = {row["network"] for row in read_csv(folder / "tsne.csv")}
    assert networks_drawn == {"teacher", "method=ce", "method=waits"}


@pytest.mark.timeout(3 * PATIENCE)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed parent's cells live on")
@pytest.mark.parametrize(
    "beside",
    [
        pytest.param(False, marks=pytest.mark.dear),
        pytest.param(True, marks=pytest.mark.slow),
    ],
)
def test_killed_and_repeated_gives_the_tables_of_an_undisturbed_ablation(
    home: Path, tser: Invoke, beside: bool
) -> None:
    """`beside`: an undisturbed one is made as well, and the tables are compared."""
    folder, command = home / "parts", ("recipe.toml", "--output", "parts", "--runs-dir", "runs")
    kill_in_the_second_cell(home, *command)

    (done,) = [run for run in cell_runs(folder) if run.status()["state"] == "finished"]
    before = done.model_file.stat().st_mtime_ns
    (home / "go").touch()
    code, out, err = tser("ablate", *command)
    assert code == 0, err
    assert "2 runs, 1 finished before" in err
    check_whole(folder, out)  # one run a cell
    assert done.model_file.stat().st_mtime_ns == before

    if not beside:
        return
    code, out, err = tser("ablate", "recipe.toml", "--jobs", "2", "--output", "whole")
    assert code == 0, err
    assert "2 of 2" in err
    check_whole(home / "whole", out)
    assert table(folder) == table(home / "whole")
    for name in ("summary.csv", "tsne.csv"):
        assert (folder / name).read_bytes() == (home / "whole" / name).read_bytes()


@pytest.mark.timeout(2 * PATIENCE)
def test_a_cell_that_fails_and_then_the_folder_of_another_ablation(
    home: Path, tser: Invoke
) -> None:
    vary = ("--set", "method.name=ce", "--seeds", "1", "--vary", "lr=1e30")
    command = ("ablate", "recipe.toml", *vary, "--output", "failing")
    code, out, err = tser(*command, "--epochs", "1")
    assert code == 1
    assert "failing: accuracy" in out
    assert "error: 1 of 1 runs failed" in err
    assert "lr=1e+30, seed 0: exit code 1: " in err
    assert "not finite" in err
    assert "Traceback" not in err
    (row,) = table(home / "failing")
    assert (row["optimizer.lr"], row["state"]) == ("1e+30", "failed")

    before = sorted((home / "failing").rglob("*"))
    code, out, err = tser(*command, "--epochs", "2")
    assert (code, out) == (2, "")
    assert "belongs to an ablation with other settings" in err
    assert "training.epochs: 1 -> 2" in err
    assert sorted((home / "failing").rglob("*")) == before


def test_a_dry_run_writes_nothing(
    home: Path, tser: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # of the plug-in
    before = sorted(home.rglob("*"))
    command = ("recipe.toml", "--vary", "T=1,2", "--seeds", "2", "--jobs", "2", "--dry-run")
    code, out, _ = tser("ablate", *command, "--set", "method.name=ce")
    assert code == 0
    assert out.splitlines()[:2] == ["timesteps=1, seed 0", "timesteps=2, seed 0"]
    assert "4 runs, 0 finished; about " in out
    assert "2 side by side" in out
    assert sorted(home.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--vary", "methd=ce"), 'did you mean "method"'),
        (("no/such/recipe",), "no recipe"),
        (("ablations/digits_rivals", "--address", "there"), "write auto or HOST:PORT"),
    ],
)
def test_bad_input(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tser: Invoke,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = tser("ablate", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert said in err
    assert list(tmp_path.iterdir()) == []
