"""Ablations on tiny data, in one process: tables, pairing, teachers, what is refused."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.config import Config
from tser_cli.data.loaders import build_train_loader
from tser_cli.engine.ablation import folder as ablation_plan
from tser_cli.engine.ablation import tsne
from tser_cli.engine.ablation.cell_folder import cell_folder, find_cell
from tser_cli.engine.ablation.folder import Place, show_plan
from tser_cli.engine.ablation.grid import Cell, Request, make_request
from tser_cli.engine.commands import ablate, dry_run
from tser_cli.engine.commands import distill as run
from tser_cli.engine.runs import finished_run, model_files
from tser_cli.engine.runs.run_folder import Run, all_runs
from tser_cli.engine.runtime.context import Context, Options
from tser_cli.engine.runtime.stop import StopRequest
from tser_cli.engine.training.task import Task
from tser_cli.errors import CheckpointError, ConfigError, Interrupted, RunError, TrainingError
from tser_cli.recipe import Layer
from tser_cli.report import ablation_plots, plots
from tser_cli.report.csv_files import read_csv

DRAW_ALL = ablation_plots.draw_all
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
        run.distill(cell.config, Options(cell_folder(cell, self.folder)))
        return ""


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch, make_context: MakeContext) -> None:
    """Tiny data everywhere, cells in this process, no t-SNE, no figures."""
    for module in (run, ablate, ablation_plan, dry_run, finished_run):
        monkeypatch.setattr(module, "prepare", make_context)
    monkeypatch.setattr(ablate, "Launcher", InProcess)
    monkeypatch.setattr(tsne, "coordinates", lambda x: [[0.0, 1.0] for _ in x])
    monkeypatch.setattr(ablation_plots, "draw_all", lambda folder: [])
    monkeypatch.setattr(plots, "plot_per_timestep", lambda *args: None)
    monkeypatch.setattr(InProcess, "log", [], raising=False)
    monkeypatch.setattr(InProcess, "broken", (), raising=False)


@pytest.fixture
def teacher(tmp_path: Path, make_config: MakeConfig, make_context: MakeContext) -> Path:
    """A model file of an untrained teacher."""
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "teacher.safetensors"
    model = model_files.build("resnet20", spec, make_config(), spiking=False)
    model_files.write(path, model, model_files.describe("resnet20", spec, make_config(), False))
    return path


@pytest.fixture
def ask(make_config: MakeConfig, teacher: Path) -> Ask:
    """`ask(["method=ce,kd"], 2, {"training.epochs": 2})`: a request on the tiny settings."""

    def request(
        vary: list[str], seeds: int = 1, changes: dict[str, Any] | None = None, **section: Any
    ) -> Request:
        values = make_config({"model.timesteps": 1, "training.epochs": 1}).model_dump(mode="json")
        flat = {f"{s}.{k}": v for s, entries in values.items() for k, v in entries.items()}
        stated = {k: v for k, v in flat.items() if not k.startswith("method.")}
        layer = Layer("tests", {**stated, "model.teacher": str(teacher), **(changes or {})})
        return make_request([layer], {"vary": vary, "seeds": seeds, **section})

    return request


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "ablation", tmp_path / "runs")


def table(place: Place) -> list[dict[str, str]]:
    return read_csv(place.folder / "ablation.csv")


def finished(cell: Cell, place: Place) -> Run:
    run = find_cell(cell, place.folder)
    assert run is not None
    return run


def test_every_cell_is_an_ordinary_run_and_a_row(
    ask: Ask,
    place: Place,
    teacher: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(ablation_plots, "draw_all", DRAW_ALL)
    request = ask(["method=ce,kd", "T=1,2"], 2, baseline="method=kd")
    ablate.ablate(request, place)
    rows = table(place)
    assert list(rows[0]) == [
        *("method.name", "model.timesteps", "seed", "state", "accuracy", "teacher_accuracy"),
        *("validation_accuracy", "accuracy_at_1", "accuracy_at_2", "accuracy_cumulative_1"),
        *("accuracy_cumulative_2", "energy_pj", "seconds", "folder"),
    ]
    assert len(rows) == len(request.cells) == 8
    for row, cell in zip(rows, request.cells, strict=True):
        (made,) = all_runs(cell_folder(cell, place.folder), "student")
        assert made.status()["state"] == row["state"] == "finished"
        assert (row["method.name"], row["seed"]) == (cell.config.method.name, str(cell.seed))
        assert float(row["accuracy"]) == made.status()["accuracy"]
        steps = read_csv(made.folder / "per_timestep.csv")
        assert row["accuracy_at_1"] == steps[0]["accuracy_at_t"]
        last = steps[-1]["t"]
        assert row[f"accuracy_cumulative_{last}"] == steps[-1]["accuracy_cumulative"]
        assert float(row["accuracy"]) == float(steps[-1]["accuracy_cumulative"])
        assert (row["accuracy_at_2"] == "") == (last == "1")
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
    figures = {path.name for path in (place.folder / "figures").iterdir()}
    assert figures >= {"per_timestep.png", "accuracy.svg", "energy.png", "tsne.svg"}
    shown = capsys.readouterr().out
    assert "ablation: accuracy" in shown
    assert f"written: {place.folder / 'summary.csv'}" in shown
    assert json.loads(place.plan.read_text())["teachers"] == {
        f"digits, {teacher}, 0.0": {
            "file": str(teacher),
            "sha256": hashlib.sha256(teacher.read_bytes()).hexdigest(),
        }
    }


def test_finished_cells_are_never_run_again(ask: Ask, place: Place) -> None:
    ablate.ablate(ask(["method=ce,kd"], 2), place)
    before = (place.folder / "ablation.csv").read_bytes()
    InProcess.log.clear()
    ablate.ablate(ask(["method=ce,kd"], 2), place)
    assert InProcess.log == []
    assert (place.folder / "ablation.csv").read_bytes() == before


def test_more_seeds_and_values_join_an_ablation(ask: Ask, place: Place) -> None:
    ablate.ablate(ask(["method=ce"]), place)
    ablate.ablate(ask(["method=ce,kd"], 2, {"training.device": "auto"}), place)
    assert InProcess.log == [
        *("method=ce, seed 0", "method=kd, seed 0", "method=ce, seed 1", "method=kd, seed 1")
    ]
    assert [row["state"] for row in table(place)] == ["finished"] * 4


def test_a_failed_cell_stops_no_other_and_is_told_at_the_end(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(InProcess, "broken", ("method=ce, seed 1",))
    with pytest.raises(TrainingError) as error:
        ablate.ablate(ask(["method=ce,kd"], 2), place)
    assert error.value.exit_code == 1
    assert str(error.value).startswith("1 of 4 runs failed; the same command tries them again:")
    assert "method=ce, seed 1: exit code 1: it broke" in str(error.value)
    states = {(row["method.name"], row["seed"]): row["state"] for row in table(place)}
    assert states.pop(("ce", "1")) == "missing"
    assert set(states.values()) == {"finished"}
    shown = capsys.readouterr()
    assert "ablation: accuracy" in shown.out
    assert "method=ce, seed 1: exit code 1" in shown.err
    monkeypatch.setattr(InProcess, "broken", ())
    InProcess.log.clear()
    ablate.ablate(ask(["method=ce,kd"], 2), place)
    assert InProcess.log == ["method=ce, seed 1"]


def test_an_ablation_of_failures_alone_still_writes_its_tables(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(InProcess, "broken", ("method=ce, seed 0",))
    with pytest.raises(TrainingError, match="1 of 1"):
        ablate.ablate(ask(["method=ce"]), place)
    assert [row["state"] for row in table(place)] == ["missing"]
    assert "figures" not in capsys.readouterr().out


def test_a_stop_lets_no_further_cell_begin(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(self: InProcess, cell: Cell) -> str:
        os.kill(os.getpid(), signal.SIGTERM)
        return before(self, cell)

    before = InProcess.run
    monkeypatch.setattr(InProcess, "run", stopped)
    with pytest.raises(Interrupted) as stop:
        ablate.ablate(ask(["method=ce"], 3), place)
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
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: dict[tuple[str, int], Any] = {}

    def probe(task: Task, at: Context, *rest: Any) -> None:
        key = (at.config.method.name, at.config.training.seed)
        begun[key] = weights_and_order(task, at)
        train(task, at, *rest)

    train = run.train
    monkeypatch.setattr(run, "train", probe)
    methods = ["ce", "tser", "feature", "bkd", "seal"]
    ablate.ablate(ask([f"method={','.join(methods)}"], 2), place)
    assert begun.keys() == {(method, seed) for method in methods for seed in (0, 1)}
    for seed in (0, 1):
        assert all(begun[method, seed] == begun["ce", seed] for method in methods)
    weights, order, pixels = (set(map(str, part)) for part in zip(*begun.values(), strict=True))
    assert len(weights) == len(order) == len(pixels) == 2
    # of that, different trainings come
    cells = ask([f"method={','.join(methods)}"], 1).cells
    assert len({finished(cell, place).status()["sha256"] for cell in cells}) == len(methods)


def test_one_teacher_is_trained_once_and_kept(
    ask: Ask, place: Place, tmp_path: Path, make_config: MakeConfig
) -> None:
    recipe = tmp_path / "teacher.toml"
    recipe.write_text("[training]\nepochs = 1\nbatch_size = 12\n")
    changes = {"model.teacher": "resnet20", "model.teacher_recipe": str(recipe)}
    ablate.ablate(ask(["method=kd,ts"], 1, changes), place)
    (trained,) = all_runs(place.own_runs, "teacher")
    assert not place.runs_dir.exists()
    # a newer one elsewhere is not taken
    newer = make_config({"training.epochs": 1})
    run.train_teacher(newer, Options(place.runs_dir))
    ablate.ablate(ask(["method=kd,ts"], 2, changes), place)
    cells = ask(["method=kd,ts"], 2, changes).cells
    used = [finished(cell, place).environment()["teacher"] for cell in cells]
    assert {teacher["source"] for teacher in used} == {str(trained.model_file.resolve())}
    assert {teacher["sha256"] for teacher in used} == {trained.status()["sha256"]}


def test_a_teacher_under_the_runs_folder_is_taken(
    ask: Ask, place: Place, make_config: MakeConfig
) -> None:
    made = run.train_teacher(make_config({"training.epochs": 1}), Options(place.runs_dir))
    request = ask(["method=kd"], 1, {"model.teacher": "resnet20"})
    ablate.ablate(request, place)
    assert finished(request.cells[0], place).environment()["teacher"]["source"] == str(
        made.model_file.resolve()
    )
    assert not place.own_runs.exists()


def test_a_teacher_that_changed_is_refused(ask: Ask, place: Place, teacher: Path) -> None:
    ablate.ablate(ask(["method=kd"]), place)
    content = teacher.read_bytes()
    teacher.write_bytes(content[:-1] + b"x")
    with pytest.raises(ConfigError, match=r"teacher\.safetensors, the teacher .* has changed"):
        ablate.ablate(ask(["method=kd"], 2), place)
    teacher.write_bytes(content)
    ablate.ablate(ask(["method=kd"], 2), place)


def test_methods_without_a_teacher_ask_for_none(ask: Ask, place: Place) -> None:
    ablate.ablate(ask(["method=ce,tet"], 1, {"model.teacher": "resnet20"}), place)
    assert not place.own_runs.exists()
    assert {row["teacher_accuracy"] for row in table(place)} == {""}


@pytest.mark.parametrize(
    ("vary", "changes", "said"),
    [
        (["T=1,2"], {}, "it varies method.name"),
        (["method=ce"], {"optimizer.lr": 0.5}, r"optimizer\.lr: 0\.1 -> 0\.5"),
        (["method=kd"], {"method.kd_weight": 2.0}, r"method\.kd_weight: 1\.0 -> 2\.0"),
        (["method=kd"], {"training.epochs": 2}, r"training\.epochs: 1 -> 2"),
    ],
)
def test_the_folder_of_another_ablation(
    ask: Ask, place: Place, vary: list[str], changes: dict[str, Any], said: str
) -> None:
    ablate.ablate(ask(["method=ce,kd"]), place)
    before = place.plan.read_bytes()
    for verb in (ablate.ablate, show_plan):
        with pytest.raises(ConfigError, match=said) as error:
            verb(ask(vary, 1, changes), place)
        assert "choose another --output" in str(error.value).lower()
    assert place.plan.read_bytes() == before


def test_batches_that_cells_would_choose_are_refused(ask: Ask, place: Place) -> None:
    for verb in (ablate.ablate, show_plan):
        with pytest.raises(ConfigError, match="batches of different sizes"):
            verb(ask(["method=ce"], 1, {"training.batch_size": "auto"}), place)
    assert not place.plan.exists()


def test_a_plan_that_can_t_be_read(ask: Ask, place: Place) -> None:
    place.folder.mkdir()
    place.plan.write_text("{")
    with pytest.raises(ConfigError, match=r"plan\.json can't be read"):
        ablate.ablate(ask(["method=ce"]), place)


def test_a_folder_in_use(ask: Ask, place: Place) -> None:
    with ablate.hold(place), pytest.raises(RunError, match="in use by another tser ablate"):
        ablate.ablate(ask(["method=ce"]), place)
    ablate.ablate(ask(["method=ce"]), place)


def test_a_dry_run_tells_and_writes_nothing(
    ask: Ask, place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"model.teacher": "resnet20"}
    before = sorted(tmp_path.rglob("*"))
    show_plan(ask(["method=ce,kd"], 2, changes), place)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        *("method=ce, seed 0", "method=kd, seed 0", "method=ce, seed 1", "method=kd, seed 1")
    ]
    assert lines[4] == "a resnet20 is trained first, 10 epochs"
    assert lines[5].startswith("4 runs, 0 finished; about ")
    assert sorted(tmp_path.rglob("*")) == before
    assert InProcess.log == []


def test_a_dry_run_of_a_begun_ablation(
    ask: Ask, place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    ablate.ablate(ask(["method=ce,kd"]), place)
    before = {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")}
    capsys.readouterr()
    show_plan(ask(["method=ce,kd"], 2), place)
    shown = capsys.readouterr().out
    assert "method=kd, seed 0: finished\n" in shown
    assert "method=kd, seed 1\n" in shown
    assert "4 runs, 2 finished" in shown
    assert "trained first" not in shown
    assert {path: path.stat().st_mtime_ns for path in place.folder.rglob("*")} == before


def test_the_estimate_counts_each_cell(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def seconds(config: Config, options: Options) -> float:
        asked.append((config.method.name, config.training.epochs))
        return 100.0 * config.training.epochs

    monkeypatch.setattr(dry_run, "training_seconds", seconds)
    show_plan(ask(["method=ce,kd", "epochs=1,2", "ce_weight=1,2"], 2), place)
    assert sorted(asked) == [("ce", 1), ("ce", 2), ("kd", 1), ("kd", 2)]
    assert "16 runs, 0 finished; about 40 min" in capsys.readouterr().out  # 8 x 100 s + 8 x 200 s


def test_the_estimate_counts_the_cells_side_by_side(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads: list[int] = []

    def seconds(config: Config, options: Options) -> float:
        threads.append(torch.get_num_threads())
        return 600.0

    monkeypatch.setattr(dry_run, "training_seconds", seconds)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    before = torch.get_num_threads()
    request = ask(["method=ce,kd,ts"])
    told = []
    for jobs, address in ((None, None), (2, None), (2, "auto"), (None, "auto")):
        show_plan(request, Place(place.folder, place.runs_dir, jobs, address))
        told.append(capsys.readouterr().out.splitlines()[-1].removeprefix("3 runs, 0 finished; "))
    assert [text.removesuffix(", measured on a few real steps") for text in told] == [
        "about 30 min of training, one after the other",
        "about 20 min of training, 2 side by side",
        "about 20 min of training, 2 at a time on machines like this one",
        "about 30 min of training, 1 at a time on machines like this one, "
        "less by as many as the cluster has room for",
    ]
    assert set(threads) == {3}
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("durations", "jobs", "end"),
    [([], 1, 0), ([1, 2, 3], 1, 6), ([1, 2, 3], 2, 4), ([3, 2, 1], 2, 3), ([1, 2], 9, 2)],
)
def test_when_the_last_of_several_is_done(durations: list[float], jobs: int, end: float) -> None:
    assert ablation_plan.makespan(durations, jobs) == end


def test_tables_that_can_t_be_written_let_no_further_cell_begin(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch
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
        ablate.ablate(ask(["method=ce"], 9), place)
    assert len(InProcess.log) <= 2


def test_an_unknown_teacher_is_refused_before_anything_is_trained(ask: Ask, place: Place) -> None:
    for verb in (ablate.ablate, show_plan):
        with pytest.raises(ConfigError, match='did you mean "resnet34"'):
            verb(ask(["method=kd"], 1, {"model.teacher": "resnet43"}), place)
    assert InProcess.log == []
    ablate.ablate(ask(["method=kd"]), place)  # the folder is still free for the right one


def test_a_teacher_that_does_not_fit_is_refused_before_anything_is_trained(
    ask: Ask, place: Place, make_config: MakeConfig, make_context: MakeContext, tmp_path: Path
) -> None:
    spec, path = make_context(make_config()).dataset.spec, tmp_path / "snn.safetensors"
    model = model_files.build("resnet20", spec, make_config(), spiking=True)
    model_files.write(path, model, model_files.describe("resnet20", spec, make_config(), True))
    with pytest.raises(CheckpointError, match="is a spiking network"):
        ablate.ablate(ask(["method=kd"], 1, {"model.teacher": str(path)}), place)
    ablate.ablate(ask(["method=kd"]), place)


def test_validation_accuracy_is_the_best_epoch_s(ask: Ask, place: Place) -> None:
    changes = {"data.validation_fraction": 0.25, "training.epochs": 2}
    request = ask(["method=ce"], 2, changes, measure="validation_accuracy")
    ablate.ablate(request, place)
    for row, cell in zip(table(place), request.cells, strict=True):
        epochs = read_csv(finished(cell, place).folder / "metrics.csv")
        best = max(float(epoch["validation_accuracy"]) for epoch in epochs)
        assert float(row["validation_accuracy"]) == best
    (summary,) = read_csv(place.folder / "summary.csv")
    mean = sum(float(row["validation_accuracy"]) for row in table(place)) / 2
    assert (summary["measure"], float(summary["accuracy_mean"])) == ("validation_accuracy", mean)


def test_penultimate_features_are_embedded_once(
    ask: Ask, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def coordinates(features_NF: torch.Tensor) -> list[list[float]]:
        seen.append(tuple(features_NF.shape))
        return features_NF[:, :2].tolist()

    monkeypatch.setattr(tsne, "coordinates", coordinates)
    ablate.ablate(ask(["method=ce,kd"], 2), place)
    assert seen == [(11, 64)] * 3
    rows = read_csv(place.folder / "tsne.csv")
    assert [row["network"] for row in rows] == [
        *(["teacher"] * 11),
        *(["method=ce"] * 11),
        *(["method=kd"] * 11),
    ]
    labels = [str(image % 3) for image in range(11)]
    assert [row["label"] for row in rows] == labels * 3
    ablate.ablate(ask(["method=ce,kd"], 2), place)
    assert len(seen) == 3
