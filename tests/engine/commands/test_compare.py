"""Runs side by side."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tser_cli.base.errors import ConfigError, RunError
from tser_cli.engine.commands import compare
from tser_cli.engine.commands.compare import ComparedRuns
from tser_cli.engine.runs import folder
from tser_cli.engine.runs.folder import Run
from tser_cli.report.predictions import PREDICTIONS, write_predictions
from tser_cli.settings.config import Config
from tser_cli.settings.wing_options import CompareRequest

MakeConfig = Callable[..., Config]


def compare_runs(runs: list[Path], runs_dir: Path) -> ComparedRuns:
    return compare.compare_runs(CompareRequest(tuple(runs), runs_dir))


@pytest.fixture
def make(tmp_path: Path, make_config: MakeConfig) -> Callable[..., Path]:
    """`make(accuracy, settings)`: the folder of a finished student that was right so often."""

    def finished(accuracy: float = 0.5, state: str = "finished", **settings: Any) -> Path:
        run = folder.create(tmp_path, "student", make_config(settings))
        result = {"accuracy": accuracy, "images": 100, "teacher": "resnet34"}
        run.update_status(state=state, **({"result": result} if state == "finished" else {}))
        return run.folder

    return finished


def test_settings_and_surroundings(make: Callable[..., Path], tmp_path: Path) -> None:
    first, second = make(), make(0.7, **{"optimizer.lr": 0.3})
    Run(second).update_environment(threads=64, packages={"torch": "0.1"})
    found = compare_runs([first, second], tmp_path)
    assert found.settings == (("optimizer.lr", (0.1, 0.3)),)
    surroundings = dict(found.surroundings)
    assert surroundings["threads"][1] == 64
    assert surroundings["packages.torch"][1] == "0.1"
    assert found.cells == ()


def test_a_run_of_before_a_setting_has_its_default(
    make: Callable[..., Path], tmp_path: Path
) -> None:
    first, second = make(), make()
    text = (second / "config.toml").read_text()
    (second / "config.toml").write_text(text.replace("weight_bits = 32\n", ""))
    assert "weight_bits" in text
    assert compare_runs([first, second], tmp_path).settings == ()


def test_intervals_by_wilson_and_the_difference(make: Callable[..., Path], tmp_path: Path) -> None:
    first, other = compare_runs([make(0.5), make(0.6)], tmp_path).figures
    # Wilson for 50 of 100: 0.5 -+ 1.96 sqrt(0.25 / 100 + 1.96^2 / 40000) / (1 + 1.96^2 / 100)
    assert (first.low, first.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert (first.difference, other.difference) == (None, pytest.approx(0.1))
    assert other.p_value is None  # no predictions


def test_mcnemar_on_the_same_images(make: Callable[..., Path], tmp_path: Path) -> None:
    labels = np.zeros(10, int)
    folders = [make(), make()]
    # the second alone is right on 3 images, the first alone on none: p = 2 * (1/2)^3
    for run, wrong in zip(folders, (4, 1), strict=True):
        answers = np.where(np.arange(10) < wrong, 1, 0)[:, None]
        write_predictions(run / PREDICTIONS, labels, answers, answers)
    assert compare_runs(folders, tmp_path).figures[1].p_value == pytest.approx(0.25)
    zeros = np.zeros((11, 1), int)  # other images are not paired
    write_predictions(folders[1] / PREDICTIONS, zeros[:, 0], zeros, zeros)
    assert compare_runs(folders, tmp_path).figures[1].p_value is None


def test_damaged_predictions_cost_the_test_alone(make: Callable[..., Path], tmp_path: Path) -> None:
    folders = [make(0.5), make(0.6)]
    (folders[1] / PREDICTIONS).write_bytes(b"PK")
    other = compare_runs(folders, tmp_path).figures[1]
    assert other.difference == pytest.approx(0.1)
    assert "predictions.npz is damaged" in other.trouble


def test_seeds_are_taken_together(make: Callable[..., Path], tmp_path: Path) -> None:
    differences = [0.01, 0.02, 0.03]
    base = [make(0.5 + 0.1 * s, **{"training.seed": s, "method.name": "kd"}) for s in range(3)]
    others = [make(0.5 + 0.1 * s + d, **{"training.seed": s}) for s, d in enumerate(differences)]
    found = compare_runs([*base, *others], tmp_path)
    assert "method.name" in found.axes and "training.seed" not in found.axes
    first, other = found.cells
    assert (first.settings["method.name"], first.n, first.is_baseline) == ("kd", 3, True)
    assert first.mean == pytest.approx(0.6)
    assert (other.settings["method.name"], other.pairs) == ("tser", 3)
    assert other.difference == pytest.approx(0.02)
    # mean -+ t(2, 97.5 %) s / sqrt(3) = 0.02 -+ 4.3027 * 0.01 / sqrt(3)
    assert other.interval is not None and other.interval[0] == pytest.approx(
        0.02 - 0.024841, abs=1e-5
    )
    assert other.resolved is None  # three pairs allow no verdict


def test_each_seed_may_have_a_teacher_of_its_own(make: Callable[..., Path], tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    folders = [
        make(0.5, **{"training.seed": seed, "model.teacher": str(tmp_path / name)})
        for seed, name in enumerate("ab")
    ]
    found = compare_runs(folders, tmp_path)
    assert [name for name, _ in found.settings] == ["model.teacher", "training.seed"]
    (cell,) = found.cells
    assert (cell.n, cell.mean) == (2, pytest.approx(0.5))


def test_an_unfinished_run_shows_what_there_is(make: Callable[..., Path], tmp_path: Path) -> None:
    found = compare_runs([make(), make(state="stopped", **{"optimizer.lr": 0.3})], tmp_path)
    assert found.figures[1].state == "stopped"
    assert found.figures[1].difference is None
    assert found.settings == (("optimizer.lr", (0.1, 0.3)),)
    damaged = make()
    (damaged / "status.json").write_text("{")
    other = compare_runs([make(), damaged], tmp_path).figures[1]
    assert (other.state, other.low) == ("damaged", None)


def test_one_run_is_nothing_to_compare(make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make()
    with pytest.raises(ConfigError, match="at least two different runs"):
        compare_runs([folder, folder], tmp_path)
    with pytest.raises(RunError, match="no run"):
        compare_runs([folder, Path("nothing")], tmp_path)
