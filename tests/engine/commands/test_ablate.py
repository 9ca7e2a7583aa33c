"""Ablations on tiny data, in one process: tables, pairing, teachers, failures."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.engine.conftest import make_config, make_context
from tests.engine.results import RESULT
from tser_cli.base.errors import ConfigError, Interrupted, RunError
from tser_cli.base.progress import Progress, Silent
from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.ablation import tsne
from tser_cli.engine.ablation.folder import AblationFolder, cell_folder, find_cell, hold
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.commands import ablate, train
from tser_cli.engine.commands.ablate import AblationResult, plan_ablation
from tser_cli.engine.runs import folder, opened
from tser_cli.engine.runs.find import all_runs
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training import settle
from tser_cli.engine.training.state import Row
from tser_cli.engine.training.task import Task
from tser_cli.report import ablation_figures, figures
from tser_cli.report.csv_files import ablation_schema, read_csv
from tser_cli.report.predictions import PREDICTIONS, read_predictions

DRAW_ALL = ablation_figures.draw_all
Ask = Callable[..., Request]


class InProcess:
    """A launcher that runs cells here; `log` tells which, `broken` cells fail.

    It trains them where it `trains`; else each is a finished run at once.
    """

    log: list[str]
    broken: tuple[str, ...]
    trains: bool
    teachers: list[str]

    def __init__(self, folder: Path, jobs: int, stop: StopRequest) -> None:
        self.folder, self.stop = folder, stop

    def run(self, cell: Cell) -> str:
        if self.stop.requested:
            return "not started"
        InProcess.log.append(cell.title)
        if cell.title in self.broken:
            return "exit code 1: it broke"
        InProcess.teachers.append(cell.config.model.teacher)
        home = cell_folder(cell, self.folder)
        if self.trains:
            train.distill(cell.config, Options(home))
        else:
            made = folder.create(home, "student", cell.config)
            made.update_status(state="finished", result=RESULT)
        return ""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny data everywhere, cells in this process, no t-SNE, no figures."""
    for module in (ablate, settle, opened):
        monkeypatch.setattr(module, "prepare", make_context)
    monkeypatch.setattr(ablate.launchers, "Launcher", InProcess)
    monkeypatch.setattr(tsne, "coordinates", lambda x: [[0.0, 1.0] for _ in x])
    monkeypatch.setattr(ablation_figures, "draw_all", lambda folder, names: [])
    unseen = SimpleNamespace(save=lambda path: [])
    monkeypatch.setattr(figures, "accuracy", lambda *args: unseen)
    monkeypatch.setattr(InProcess, "log", [], raising=False)
    monkeypatch.setattr(InProcess, "broken", (), raising=False)
    monkeypatch.setattr(InProcess, "trains", False, raising=False)
    monkeypatch.setattr(InProcess, "teachers", [], raising=False)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells are trained."""
    monkeypatch.setattr(InProcess, "trains", True)


def run(
    request: Request, place: AblationFolder, progress: Progress | None = None
) -> AblationResult:
    return ablate.ablate(request, place, progress or Silent())


def refuse(request: Request, place: AblationFolder, said: str) -> None:
    """Neither the ablation nor its dry run takes the request."""
    with pytest.raises(ConfigError, match=said):
        run(request, place)
    with pytest.raises(ConfigError, match=said):
        plan_ablation(request, place, Options(place.runs_dir))


def table(place: AblationFolder) -> list[dict[str, str]]:
    return read_csv(place.folder / "ablation.csv")


def finished(cell: Cell, place: AblationFolder) -> Run:
    run = find_cell(cell, place.folder)
    assert run is not None
    return run


def test_every_cell_is_an_ordinary_run_and_a_row(
    ask: Ask,
    place: AblationFolder,
    teacher_file: Path,
    trained: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablation_figures, "draw_all", DRAW_ALL)
    request = ask(["T=1,2"], 2, baseline="T=2")
    result = run(request, place)
    rows = table(place)
    assert list(rows[0]) == list(ablation_schema(["model.timesteps"], 2))
    assert all(0.0 < float(row["ece_at_1"]) < 1.0 for row in rows)
    assert (place.folder / "steps.csv").is_file() is result.of_steps is True
    assert len(rows) == len(request.cells) == 4
    for row, cell in zip(rows, request.cells, strict=True):
        ((made, _),) = all_runs(cell_folder(cell, place.folder), "student")
        assert made.status()["state"] == row["state"] == "finished"
        assert (row["model.timesteps"], row["seed"]) == (str(cell.key[0]), str(cell.seed))
        assert float(row["accuracy"]) == made.status()["result"]["accuracy"]
        steps = read_csv(made.folder / "per_timestep.csv")
        assert row["accuracy_at_1"] == steps[0]["accuracy_at_t"]
        last = steps[-1]["t"]
        assert row[f"accuracy_cumulative_{last}"] == steps[-1]["accuracy_cumulative"]
        assert float(row["accuracy"]) == float(steps[-1]["accuracy_cumulative"])
        assert (row["accuracy_at_2"] == "") == (last == "1")
        answers = read_predictions(made.folder / PREDICTIONS)
        assert answers is not None
        assert answers.right().mean() == float(row["accuracy"])
        at_1 = (answers.at_t_IT[:, 0] == answers.labels_I).mean()
        assert at_1 == float(row["accuracy_at_1"])
        energy = read_csv(made.folder / "energy.csv")
        layers = [e for e in energy if e["t"] == "all" and e["layer"] != "TOTAL"]
        assert float(row["energy_pj"]) == pytest.approx(sum(float(e["energy_pj"]) for e in layers))
        epochs = read_csv(made.folder / "metrics.csv")
        assert float(row["seconds"]) == pytest.approx(sum(float(e["seconds"]) for e in epochs))
        assert place.folder / row["folder"] == cell_folder(cell, place.folder)
        assert made.config().training.seed == cell.seed
    summary = read_csv(place.folder / "summary.csv")
    assert [(r["model.timesteps"], r["n"], r["baseline"]) for r in summary] == [
        *(("1", "2", "0"), ("2", "2", "1"))
    ]
    compared, baseline = summary
    low, high = float(compared["two_way_low"]), float(compared["two_way_high"])
    assert low <= float(compared["difference_mean"]) <= high
    assert compared["resolved"] == compared["p_holm"] == ""  # two seeds
    assert baseline["two_way_low"] == ""
    figures = {path.name for path in (place.folder / "figures").iterdir()}
    assert figures >= {"per_timestep.png", "accuracy.svg", "energy.png", "tsne.svg"}
    assert {path.name for path in result.figures} == figures
    assert (result.folder, result.request, result.failures) == (place.folder, request, ())
    for row, found in zip(summary, result.summary, strict=True):
        assert row.keys() == found.row().keys()
        assert float(row["accuracy_mean"]) == found.mean
        assert row["difference_mean"] == ("" if found.is_baseline else str(found.difference))
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")  # a command prints nothing
    assert json.loads(place.plan.read_text())["teachers"] == {
        f"digits, {teacher_file}, 0.0": {
            "file": str(teacher_file),
            "sha256": hashlib.sha256(teacher_file.read_bytes()).hexdigest(),
        }
    }
    # nothing was held out: there is a frontier alone
    assert result.exits == ()
    assert not (place.folder / "early_exit.csv").exists()
    found = read_csv(place.folder / "frontier.csv")
    curves = {row["model.timesteps"] for row in found if row["point"] == "early_exit"}
    assert curves == {"2"}


def test_more_seeds_and_values_join_an_ablation(ask: Ask, place: AblationFolder) -> None:
    run(ask(["method=ce"]), place)
    run(ask(["method=ce,kd"], 2, {"training.device": "auto"}), place)
    assert InProcess.log == [
        *("method=ce, seed 0", "method=kd, seed 0", "method=ce, seed 1", "method=kd, seed 1")
    ]
    assert [row["state"] for row in table(place)] == ["finished"] * 4
    # finished cells are never run again
    before = (place.folder / "ablation.csv").read_bytes()
    InProcess.log.clear()
    run(ask(["method=ce,kd"], 2, {"training.device": "auto"}), place)
    assert InProcess.log == []
    assert (place.folder / "ablation.csv").read_bytes() == before


def test_a_failed_cell_stops_no_other_and_is_told_at_the_end(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch, told: Any
) -> None:
    monkeypatch.setattr(InProcess, "broken", ("method=ce, seed 1",))
    monkeypatch.setattr(ablation_figures, "draw_all", DRAW_ALL)
    result = run(ask(["method=ce,kd"], 2), place, told)
    assert result.failures == ("method=ce, seed 1: exit code 1: it broke",)
    states = {(row["method.name"], row["seed"]): row["state"] for row in table(place)}
    assert states.pop(("ce", "1")) == "missing"
    assert set(states.values()) == {"finished"}
    assert [(cell.settings["method.name"], cell.n) for cell in result.summary] == [
        ("ce", 1),
        ("kd", 2),
    ]
    assert "4 runs, 0 finished before" in told.said
    assert any(text.endswith("method=ce, seed 1: exit code 1: it broke") for text in told.said)
    assert sum(text.endswith(": finished") for text in told.said) == 3
    monkeypatch.setattr(InProcess, "broken", ())
    InProcess.log.clear()
    assert run(ask(["method=ce,kd"], 2), place).failures == ()
    assert InProcess.log == ["method=ce, seed 1"]
    # of failures alone there are tables too
    monkeypatch.setattr(InProcess, "broken", ("method=tet, seed 0",))
    alone = run(ask(["method=tet"]), AblationFolder(place.folder / "alone", place.runs_dir))
    assert (len(alone.failures), alone.figures, [cell.n for cell in alone.summary]) == (1, (), [0])


def test_a_stop_lets_no_further_cell_begin(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: InProcess, cell: Cell) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return before(self, cell)

    before = InProcess.run
    monkeypatch.setattr(InProcess, "run", stopped)
    with pytest.raises(Interrupted) as stop:
        run(ask(["method=ce"], 3), place)
    assert stop.value.exit_code == 143
    assert len(InProcess.log) <= 1
    assert [row["seed"] for row in table(place)] == ["0", "1", "2"]


def weights_and_order(task: Task, at: Context) -> tuple[str, list[int], str]:
    """A digest of the initial weights; the first epoch's images, and a digest of their pixels."""
    weights, pixels = hashlib.sha256(), hashlib.sha256()
    for name, value in task.model.state_dict().items():
        weights.update(name.encode() + value.numpy().tobytes())
    order: list[int] = []
    for batch in build_train_loader(at.dataset, at.config).epoch(0):
        order += batch.indices_N.tolist()
        pixels.update(batch.images_NCHW.numpy().tobytes())
    return weights.hexdigest(), order, pixels.hexdigest()


def test_cells_of_one_seed_begin_alike(
    ask: Ask, place: AblationFolder, trained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[tuple[str, int], Any] = {}

    def probe(task: Task, at: Context, *rest: Any) -> list[Row]:
        begun[at.config.method.name, at.config.training.seed] = weights_and_order(task, at)
        return []

    monkeypatch.setattr(train.training, "train", probe)
    monkeypatch.setattr(train.training, "finish", lambda *rest: None)
    methods = ["ce", "tser", "feature", "bkd", "seal"]
    run(ask([f"method={','.join(methods)}"], 2), place)
    assert begun.keys() == {(method, seed) for method in methods for seed in (0, 1)}
    for seed in (0, 1):
        assert all(begun[method, seed] == begun["ce", seed] for method in methods)
    weights, order, pixels = (set(map(str, part)) for part in zip(*begun.values(), strict=True))
    assert len(weights) == len(order) == len(pixels) == 2


def test_one_teacher_is_trained_once_and_kept(
    ask: Ask, place: AblationFolder, tmp_path: Path
) -> None:
    recipe = tmp_path / "teacher.toml"
    recipe.write_text("[training]\nepochs = 1\nbatch_size = 12\n")
    changes = {"model.teacher": "resnet20", "model.teacher_recipe": str(recipe)}
    run(ask(["method=kd,ts"], 1, changes), place)
    ((trained, _),) = all_runs(place.runs_dir, "teacher")
    # a newer one is not taken
    newer = make_config({"training.epochs": 1})
    train.train_teacher(newer, Options(place.runs_dir))
    run(ask(["method=kd,ts"], 2, changes), place)
    assert InProcess.teachers == [str(trained.model_file.resolve())] * 4
    plan = json.loads(place.plan.read_text())
    (teacher,) = plan["teachers"].values()
    assert teacher["sha256"] == trained.status()["sha256"]


def test_a_teacher_that_changed_is_refused(
    ask: Ask, place: AblationFolder, teacher_file: Path
) -> None:
    run(ask(["method=kd"]), place)
    content = teacher_file.read_bytes()
    teacher_file.write_bytes(content[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"teacher\.safetensors, the teacher .* has changed"):
        run(ask(["method=kd"], 2), place)
    teacher_file.write_bytes(content)
    run(ask(["method=kd"], 2), place)


def test_methods_without_a_teacher_ask_for_none(ask: Ask, place: AblationFolder) -> None:
    run(ask(["method=ce,tet"], 1, {"model.teacher": "resnet20"}), place)
    assert all_runs(place.runs_dir, "teacher") == []


def test_the_folder_of_another_ablation_is_left_as_it_is(ask: Ask, place: AblationFolder) -> None:
    run(ask(["method=ce,kd"]), place)
    before = place.plan.read_bytes()
    refuse(ask(["T=1,2"]), place, "it varies method.name.*Choose another --output")
    refuse(ask(["method=kd"], 1, {"training.epochs": 2}), place, r"training\.epochs: 1 -> 2")
    assert place.plan.read_bytes() == before


def test_batches_that_cells_would_choose_are_refused(ask: Ask, place: AblationFolder) -> None:
    request = ask(["method=ce"], 1, {"training.batch_size": "auto"})
    refuse(request, place, "batches of different sizes")
    assert not place.plan.exists()


def test_a_folder_in_use(ask: Ask, place: AblationFolder) -> None:
    with hold(place), pytest.raises(RunError, match="in use by another tser ablate"):
        run(ask(["method=ce"]), place)
    run(ask(["method=ce"]), place)


def test_tables_that_can_t_be_written_let_no_further_cell_begin(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*anything: Any) -> None:
        raise RunError("the disk is full")

    began = threading.Event()

    def run_cell(self: InProcess, cell: Cell) -> str:
        if InProcess.log:
            began.wait(60)  # until the table has failed
        InProcess.log.append(cell.title)
        return ""

    monkeypatch.setattr(InProcess, "run", run_cell)
    monkeypatch.setattr(ablate, "write_tables", lambda *rest: (began.set(), full()))
    with pytest.raises(RunError, match="the disk is full"):
        run(ask(["method=ce"], 9), place)
    assert len(InProcess.log) <= 2


def test_an_unknown_teacher_is_refused_before_anything_is_trained(
    ask: Ask, place: AblationFolder
) -> None:
    request = ask(["method=kd"], 1, {"model.teacher": "resnet43"})
    refuse(request, place, 'did you mean "resnet34"')
    assert InProcess.log == []
    run(ask(["method=kd"]), place)  # the folder is still free for the right one


def test_energies_are_compared_at_equal_accuracy(
    ask: Ask, place: AblationFolder, trained: None, told: Any
) -> None:
    held_out = {"model.timesteps": 2, "data.validation_fraction": 0.25}
    result = run(ask(["method=ce,kd"], 2, held_out), place)
    rows = read_csv(place.folder / "early_exit.csv")
    assert [(row["method.name"], row["seed"]) for row in rows] == [
        *(("ce", "0"), ("kd", "0"), ("ce", "1"), ("kd", "1"))
    ]
    for row, of_run in zip(rows, table(place), strict=True):
        assert float(row["accuracy_full"]) == float(of_run["accuracy"])
        assert float(row["energy_full_pj"]) == pytest.approx(float(of_run["energy_pj"]), rel=1e-12)
        assert (row["chosen_on"], row["accuracy_margin"]) == ("validation", "0.005")
    assert [cell.energy.n + cell.missed for cell in result.exits] == [2, 2]
    assert len(read_csv(place.folder / "early_exit_summary.csv")) == 2
    points = {row["point"] for row in read_csv(place.folder / "frontier.csv")}
    assert points == {"all_steps", "early_exit", "ann", "ann_int8", "teacher"}
    # the margin may change later
    InProcess.log.clear()
    request = ask(["method=ce,kd"], 2, held_out, accuracy_margin=20.0)
    run(request, place)
    assert InProcess.log == []
    margins = {row["accuracy_margin"] for row in read_csv(place.folder / "early_exit.csv")}
    assert margins == {"0.2"}
    # a run whose energies are damaged is left out
    (finished(request.cells[1], place).folder / "energy.json").write_text("{}")
    result = run(request, place, told)
    assert [cell.n for cell in result.summary] == [2, 2]
    assert len(read_csv(place.folder / "early_exit.csv")) == 3
    (warning,) = told.warnings
    assert warning.startswith("method=kd, seed 0 is left out of early exit:")


def test_penultimate_features_are_embedded_once(
    ask: Ask, place: AblationFolder, trained: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def coordinates(features_NF: torch.Tensor) -> list[list[float]]:
        seen.append(tuple(features_NF.shape))
        return features_NF[:, :2].tolist()

    monkeypatch.setattr(tsne, "coordinates", coordinates)
    run(ask(["method=kd"], 2), place)
    assert seen == [(11, 64)] * 2
    rows = read_csv(place.folder / "tsne.csv")
    assert [row["network"] for row in rows] == ["teacher"] * 11 + ["method=kd"] * 11
    assert [row["label"] for row in rows] == [str(image % 3) for image in range(11)] * 2
    run(ask(["method=kd"], 2), place)
    assert len(seen) == 2
