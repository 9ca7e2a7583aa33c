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
from filelock import FileLock

from tser_cli.base.errors import ConfigError, Interrupted, RunError
from tser_cli.base.progress import Progress, Silent
from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.ablation import tsne
from tser_cli.engine.ablation.folder import AblationFolder, cell_folder, find_cell, hold
from tser_cli.engine.ablation.grid import Cell, Request
from tser_cli.engine.commands import ablate, train
from tser_cli.engine.commands.ablate import AblationResult, plan_ablation
from tser_cli.engine.runs import opened
from tser_cli.engine.runs.find import all_runs
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context, Options
from tser_cli.engine.runs.stop import StopRequest
from tser_cli.engine.training import settle
from tser_cli.engine.training.state import Row
from tser_cli.engine.training.task import Task
from tser_cli.report import ablation_figures, figures
from tser_cli.report.csv_files import PROVENANCE, read_csv
from tser_cli.report.predictions import PREDICTIONS, read_predictions
from tser_cli.settings.config import Config

DRAW_ALL = ablation_figures.draw_all
MakeConfig = Callable[..., Config]
MakeContext = Callable[..., Context]
Ask = Callable[..., Request]


class InProcess:
    """A launcher that runs cells here; `log` tells which, `broken` cells fail."""

    log: list[str]
    broken: tuple[str, ...]

    def __init__(self, folder: Path, jobs: int, stop: StopRequest) -> None:
        self.folder, self.stop = folder, stop

    def run(self, cell: Cell) -> str:
        if self.stop.requested:
            return "not started"
        InProcess.log.append(cell.title)
        if cell.title in self.broken:
            return "exit code 1: it broke"
        train.distill(cell.config, Options(cell_folder(cell, self.folder)))
        return ""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, make_context: MakeContext) -> None:
    """Tiny data everywhere, cells in this process, no t-SNE, no figures."""
    for module in (ablate, settle, opened):
        monkeypatch.setattr(module, "prepare", make_context)
    monkeypatch.setattr(ablate, "Launcher", InProcess)
    monkeypatch.setattr(tsne, "coordinates", lambda x: [[0.0, 1.0] for _ in x])
    monkeypatch.setattr(ablation_figures, "draw_all", lambda folder, names: [])
    unseen = SimpleNamespace(save=lambda path: [])
    monkeypatch.setattr(figures, "accuracy", lambda *args: unseen)
    monkeypatch.setattr(InProcess, "log", [], raising=False)
    monkeypatch.setattr(InProcess, "broken", (), raising=False)


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
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablation_figures, "draw_all", DRAW_ALL)
    request = ask(["method=ce,kd", "T=1,2"], 2, baseline="method=kd")
    result = run(request, place)
    rows = table(place)
    assert list(rows[0]) == [
        *("method.name", "model.timesteps", "seed", "state", "accuracy", "teacher_accuracy"),
        *("best_validation_accuracy", "accuracy_at_1", "accuracy_at_2", "accuracy_cumulative_1"),
        *("accuracy_cumulative_2", "energy_pj", "seconds", "folder", *PROVENANCE),
    ]
    assert len(rows) == len(request.cells) == 8
    for row, cell in zip(rows, request.cells, strict=True):
        ((made, _),) = all_runs(cell_folder(cell, place.folder), "student")
        assert made.status()["state"] == row["state"] == "finished"
        assert (row["method.name"], row["seed"]) == (cell.config.method.name, str(cell.seed))
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
    assert [(r["method.name"], r["model.timesteps"], r["n"], r["baseline"]) for r in summary] == [
        *(
            ("ce", "1", "2", "0"),
            ("ce", "2", "2", "0"),
            ("kd", "1", "2", "1"),
            ("kd", "2", "2", "1"),
        )
    ]
    for compared in summary[:2]:
        low, high = float(compared["two_way_low"]), float(compared["two_way_high"])
        assert low <= float(compared["difference_mean"]) <= high
        assert compared["resolved"] == compared["p_holm"] == ""  # two seeds
    assert {row["two_way_low"] for row in summary[2:]} == {""}
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


def test_an_ablation_of_failures_alone_still_writes_its_tables(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(InProcess, "broken", ("method=ce, seed 0",))
    monkeypatch.setattr(ablation_figures, "draw_all", DRAW_ALL)
    result = run(ask(["method=ce"]), place)
    assert len(result.failures) == 1
    assert [row["state"] for row in table(place)] == ["missing"]
    assert result.figures == ()
    assert [cell.n for cell in result.summary] == [0]


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
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[tuple[str, int], Any] = {}

    def probe(task: Task, at: Context, *rest: Any) -> list[Row]:
        key = (at.config.method.name, at.config.training.seed)
        begun[key] = weights_and_order(task, at)
        return whole(task, at, *rest)

    whole = train.training.train
    monkeypatch.setattr(train.training, "train", probe)
    methods = ["ce", "tser", "feature", "bkd", "seal"]
    run(ask([f"method={','.join(methods)}"], 2), place)
    assert begun.keys() == {(method, seed) for method in methods for seed in (0, 1)}
    for seed in (0, 1):
        assert all(begun[method, seed] == begun["ce", seed] for method in methods)
    weights, order, pixels = (set(map(str, part)) for part in zip(*begun.values(), strict=True))
    assert len(weights) == len(order) == len(pixels) == 2
    # of that, different trainings come
    cells = ask([f"method={','.join(methods)}"], 1).cells
    assert len({finished(cell, place).status()["sha256"] for cell in cells}) == len(methods)


def test_one_teacher_is_trained_once_and_kept(
    ask: Ask, place: AblationFolder, tmp_path: Path, make_config: MakeConfig
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
    cells = ask(["method=kd,ts"], 2, changes).cells
    used = [finished(cell, place).environment()["teacher"] for cell in cells]
    assert {teacher["source"] for teacher in used} == {str(trained.model_file.resolve())}
    assert {teacher["sha256"] for teacher in used} == {trained.status()["sha256"]}


def test_a_teacher_that_another_command_trains_is_waited_for(
    ask: Ask, place: AblationFolder, make_config: MakeConfig
) -> None:
    place.runs_dir.mkdir(parents=True)
    theirs = FileLock(place.runs_dir / ".teacher-digits-resnet20.lock")

    class Waits(Silent):
        """The other command comes to its end as soon as it is waited for."""

        def say(self, text: str) -> None:
            if "another process trains a resnet20 teacher of digits" in text:
                config = make_config({"training.epochs": 1})
                train.train_teacher(config, Options(place.runs_dir))
                theirs.release()

    theirs.acquire(timeout=0)
    request = ask(["method=kd"], 1, {"model.teacher": "resnet20"})
    run(request, place, Waits())
    ((trained, _),) = all_runs(place.runs_dir, "teacher")
    source = finished(request.cells[0], place).environment()["teacher"]["source"]
    assert source == str(trained.model_file.resolve())


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
    assert {row["teacher_accuracy"] for row in table(place)} == {""}


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


def test_validation_accuracy_is_the_best_epoch_s(ask: Ask, place: AblationFolder) -> None:
    changes = {"data.validation_fraction": 0.25, "training.epochs": 2}
    request = ask(["method=ce"], 2, changes, measure="best_validation_accuracy")
    run(request, place)
    for row, cell in zip(table(place), request.cells, strict=True):
        epochs = read_csv(finished(cell, place).folder / "metrics.csv")
        best = max(float(epoch["validation_accuracy"]) for epoch in epochs)
        assert float(row["best_validation_accuracy"]) == best
    (summary,) = read_csv(place.folder / "summary.csv")
    mean = sum(float(row["best_validation_accuracy"]) for row in table(place)) / 2
    assert summary["measure"] == "best_validation_accuracy"
    assert float(summary["accuracy_mean"]) == pytest.approx(mean, abs=1e-15)


def two_steps(ask: Ask, **more: Any) -> Request:
    held_out = {"model.timesteps": 2, "data.validation_fraction": 0.25}
    return ask(["method=ce,kd"], 2, held_out, **more)


def test_energies_are_compared_at_equal_accuracy(
    ask: Ask, place: AblationFolder, told: Any
) -> None:
    result = run(two_steps(ask), place)
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
    request = two_steps(ask, accuracy_margin=20.0)
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


def test_nothing_held_out_gives_a_frontier_alone(ask: Ask, place: AblationFolder) -> None:
    result = run(ask(["T=1,2"], 1), place)
    assert result.exits == ()
    assert not (place.folder / "early_exit.csv").exists()
    found = read_csv(place.folder / "frontier.csv")
    curves = {row["model.timesteps"] for row in found if row["point"] == "early_exit"}
    assert curves == {"2"}


def test_penultimate_features_are_embedded_once(
    ask: Ask, place: AblationFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def coordinates(features_NF: torch.Tensor) -> list[list[float]]:
        seen.append(tuple(features_NF.shape))
        return features_NF[:, :2].tolist()

    monkeypatch.setattr(tsne, "coordinates", coordinates)
    run(ask(["method=ce,kd"], 2), place)
    assert seen == [(11, 64)] * 3
    rows = read_csv(place.folder / "tsne.csv")
    assert [row["network"] for row in rows] == [
        *(["teacher"] * 11),
        *(["method=ce"] * 11),
        *(["method=kd"] * 11),
    ]
    labels = [str(image % 3) for image in range(11)]
    assert [row["label"] for row in rows] == labels * 3
    run(ask(["method=ce,kd"], 2), place)
    assert len(seen) == 3
