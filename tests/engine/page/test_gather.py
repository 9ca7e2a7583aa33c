"""Reports of runs and ablations: values, what is missing, and folders of people who mean harm."""

from __future__ import annotations

import html
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tser_cli.base.errors import ConfigError, RunError, TserError
from tser_cli.energy.counts import Counts, LayerCounts, LayerFacts
from tser_cli.energy.prices import load_profile
from tser_cli.energy.table import Labels, energy_rows
from tser_cli.engine.page import files, gather, page
from tser_cli.engine.page.gather import ReportRequest, ReportResult, make_report
from tser_cli.engine.page.values import (
    AblationReport,
    ClassErrors,
    Confusion,
    Missing,
    RunReport,
)
from tser_cli.engine.runs import folder, networks, opened
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context
from tser_cli.models.base import Classifier
from tser_cli.report.comparison import Key, summarise
from tser_cli.report.csv_files import (
    ENERGY,
    STATISTICS,
    ablation_schema,
    by_cell,
    metrics_csv,
    per_timestep_csv,
    write_csv,
)
from tser_cli.report.figures import EnergyPoint
from tser_cli.report.predictions import PREDICTIONS, Predictions, write_predictions
from tser_cli.report.statistics import proportion_interval
from tser_cli.settings.config import Config

ALERT = "<script>alert(1)</script>"
LABELS = np.arange(11) % 3
AT_T = np.stack([np.where(LABELS == 2, 0, LABELS), LABELS], axis=1)
STAMP = "2025-01-01T00:00:00+00:00"
Written = Callable[[], Run]
Finished = Callable[..., Run]
MakeConfig = Callable[..., Config]


def write_tables(run: Run, final: np.ndarray = AT_T) -> None:
    """Tables as a finished student of two steps leaves them: of 11 images 8 and 11 are right."""
    rows = [
        {
            **{"timesteps": 2, "t": t, "images": 11, "correct_at_t": right},
            **{"correct_cumulative": right, "accuracy_at_t": right / 11},
            **{"accuracy_cumulative": right / 11, "loss_at_t": 0.5, "entropy_at_t": 0.1},
            **{"confidence_at_t": 0.9, "teacher_accuracy": 10 / 11},
        }
        for t, right in ((1, 8), (2, 11))
    ]
    per_timestep_csv(run.folder / "per_timestep.csv", rows, {"run": run.name})
    epoch = {"lr": 0.1, "loss": 2.0, "ce": 1.5, "train_accuracy": 0.5, "seconds": 1.0}
    metrics_csv(run.folder / "metrics.csv", [{"epoch": n, **epoch} for n in (1, 2)])
    layer = LayerFacts("conv1", "conv", "spikes", 6, 2, 100, 120, weight_bytes=4, bias_bytes=0)
    spikes_TI = np.array([[3], [1]])
    counted = LayerCounts(layer, 0, np.ones(2, np.int64), spikes_TI, 2 * spikes_TI, 2 * spikes_TI)
    profile = load_profile("horowitz-45nm-fp32")
    energies = energy_rows(
        Counts(2, 1, (counted,)), profile, Labels(run.name, "digits", "", "fp32")
    )
    write_csv(run.folder / "energy.csv", energies, ENERGY)
    sidecar = {"teacher": {"name": "resnet34", "energy_pj": 72.0}}
    (run.folder / "energy.json").write_text(json.dumps(sidecar))
    write_predictions(run.folder / PREDICTIONS, LABELS, AT_T, final)


@pytest.fixture
def drawn() -> None:
    """For a test whose page has its figures."""


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page has no figures, which take most of its time, but where a test takes `drawn`."""
    if "drawn" not in request.fixturenames:
        monkeypatch.setattr(page, "drawings_of", lambda page: iter(()))


@pytest.fixture
def written(tmp_path: Path, make_config: MakeConfig) -> Written:
    """A finished student of two steps that is tables alone, without a network."""

    def make() -> Run:
        run = folder.create(tmp_path / "runs", "student", make_config({"optimizer.lr": 0.03}))
        write_tables(run)
        result = {"energy_pj": 7.2, "energy_budget_pj": 8.0}
        run.update_status(state="finished", finished=STAMP, model="resnet20", result=result)
        return run

    return make


@pytest.fixture
def finished(
    written: Written,
    make_context: Callable[..., Context],
    wake: Callable[[Classifier], Classifier],
    monkeypatch: pytest.MonkeyPatch,
) -> Finished:
    """The same with a network of random weights, on the tiny data.

    `kind`: student or teacher; `classes`: what its model file calls the classes.
    """
    monkeypatch.setattr(opened, "prepare", make_context)

    def make(kind: str = "student", classes: tuple[str, ...] = ("a", "b", "c")) -> Run:
        run, spiking = written(), kind == "student"
        config = run.config()
        spec = make_context(config).dataset.spec
        model = wake(networks.build("resnet20", spec, config, spiking))
        named = replace(spec, classes=classes)
        digest = networks.write(run.model_file, model, "resnet20", named, config)
        run.update_status(kind=kind, sha256=digest)
        return run

    return make


def reported(*folders: Path, **request: Any) -> ReportResult:
    """A report from the files alone, beside the first folder."""
    values: dict[str, Any] = {"measure": False, "output": folders[0].parent / "report.html"}
    return make_report(ReportRequest(subjects=folders, **{**values, **request}))


def only(result: ReportResult) -> RunReport:
    (run,) = result.page.runs
    return run


def lost(run: RunReport | AblationReport) -> dict[str, str]:
    """The parts that are missing, and why."""
    parts = {name: getattr(run, name) for name in vars(run)}
    return {name: part.why for name, part in parts.items() if isinstance(part, Missing)}


@pytest.mark.usefixtures("drawn")
def test_what_was_measured_agrees_with_itself(finished: Finished) -> None:
    result = reported(finished().folder, measure=True)
    run = only(result)
    assert lost(run) == {} and result.missing == ()
    text = result.output.read_text(encoding="utf-8")
    assert len(text.encode()) == result.bytes
    assert text.count("data:image/png;base64,") == 11  # each of the 11 images, right or wrong
    assert not isinstance(run.gallery, Missing) and not isinstance(run.tradeoff, Missing)
    right = 11 - run.gallery.errors
    assert run.gallery.images == 11
    assert run.tradeoff.steps[-1].accuracy == pytest.approx(right / 11)
    assert all(picture.final.right is False for picture in run.gallery.wrong)
    confidences = [picture.final.confidence for picture in run.gallery.wrong]
    assert confidences == sorted(confidences, reverse=True)
    energies = [point.energy_pj for point in run.tradeoff.exits]
    assert energies == sorted(energies)
    assert all(energy_pj <= run.tradeoff.steps[-1].energy_pj for energy_pj in energies)
    assert [pair.name for pair in run.pairs] == [
        *("the ANN of the same shape", "that ANN, with memory traffic"),
        *("that ANN in 8-bit integers", "its teacher, resnet34"),
        *("2-bit ANN", "that ANN, memory by layer", "2-bit ANN, memory by layer"),
    ]
    assert [pair.in_range for pair in run.pairs] == [True] * 3 + [False] * 4
    assert " an image: " in run.verdict.energy


def test_the_assumptions_are_those_that_the_run_recorded(written: Written) -> None:
    run = written()
    case = {"snn_pj": 2.0, "ann_pj": 8.0}
    cases = {"same": case, "skipping": {**case, "ann_pj": 5.0, "skipped": 0.4}}
    sidecar = {"against_ann": {"assumptions": cases, "steps_pj": [1.0, 2.0]}}
    (run.folder / "energy.json").write_text(json.dumps(sidecar))
    found = only(reported(run.folder))
    assert [(pair.name, pair.ratio) for pair in found.pairs] == [
        ("the ANN of the same shape", 4.0),
        ("that ANN, skipping its zeros", 2.5),
    ]
    assert found.verdict.energy == (
        "2 pJ an image: cheaper than the same ANN in the same arithmetic, and by each other way to "
        "count"
    )


def test_a_teacher_has_no_energy_of_spikes(finished: Finished) -> None:
    run = finished("teacher")
    (run.folder / "energy.csv").unlink()
    result = reported(run.folder, measure=True)
    assert result.missing == ()
    assert "LayerFacts by layer" not in result.output.read_text(encoding="utf-8")


@pytest.mark.usefixtures("drawn")
def test_values_are_those_of_the_tables(written: Written) -> None:
    run = only(reported(written().folder))
    assert lost(run) == {"gallery": "the network was not run (--no-measure)"}
    assert not isinstance(run.accuracy, Missing) and not isinstance(run.energy, Missing)
    first = run.accuracy.steps[0]
    assert first.interval_at_t == proportion_interval(8, 11)
    assert (first.accuracy_at_t, first.loss, first.confidence) == (8 / 11, 0.5, 0.9)
    # (3 + 1) spikes x fan-out 2 x 0.9 pJ; 100 MACs of the ANN at 4.6 pJ
    assert run.energy.energy_pj == pytest.approx(7.2)
    assert [pair.other_pj for pair in run.pairs] == pytest.approx([460.0, 72.0])
    assert (run.facts.energy_pj, run.facts.energy_budget_pj) == (7.2, 8.0)
    assert not isinstance(run.tradeoff, Missing)
    assert [point.energy_pj for point in run.tradeoff.steps] == pytest.approx([5.4, 7.2])
    assert run.tradeoff.teacher == EnergyPoint("teacher", 72.0, 10 / 11)


def test_mistakes_are_counted_by_class_and_step() -> None:
    # class 2 is taken for 0 at the first step, and in the end for one of its three images
    final = AT_T.copy()
    final[2, 1] = 0
    answers = Predictions(*(array.astype(np.uint16) for array in (LABELS, AT_T, final)))
    found = files.mistakes(answers, ("cat", "dog"))
    assert found.classes == ("cat", "dog", "2")
    assert found.confusion_KK == ((4, 0, 0), (0, 4, 0), (1, 0, 2))
    last = found.by_class[2]
    assert last == ClassErrors("2", 3, (3, 0), 1, "cat")
    assert found.pairs == (Confusion("2", "cat", 1, 1 / 3),)
    assert found.largest == 1.0
    assert files.class_names(["a", "a", "b"], 4) == ["a (0)", "a (1)", "b", "3"]


def test_many_classes_have_a_table_of_the_worst(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MOST_LISTED_CLASSES", 1)
    monkeypatch.setattr(files, "MOST_DRAWN", 2)
    answers = Predictions(*(array.astype(np.uint16) for array in (LABELS, AT_T, AT_T[:, ::-1])))
    found = files.mistakes(answers, ())
    assert found.confusion_KK is None and found.left_out == 2
    assert [row.name for row in found.by_class] == ["2"]


def test_settings_that_are_not_the_recipe_s_are_listed(written: Written) -> None:
    run = only(reported(written().folder))
    assert not isinstance(run.settings, Missing)
    listed = {one.key: (one.value, one.default) for one in run.settings}
    assert listed["optimizer.lr"] == ("0.03", "0.05")
    assert "optimizer.momentum" not in listed


def test_the_commands_are_told_and_one_that_repeats_them(written: Written) -> None:
    run = written()
    run.update_environment(commands=[{"command": ["/x/tser", "distill", "--lr", "0.03"]}])
    told = only(reported(run.folder)).commands
    assert told == ("tser distill --lr 0.03", f"tser distill --recipe {run.folder} --resume never")


@pytest.mark.usefixtures("drawn")
def test_names_in_a_model_file_stay_text(finished: Finished) -> None:
    result = reported(finished(classes=(ALERT, "b", "c")).folder, measure=True)
    text = result.output.read_text(encoding="utf-8")
    assert ALERT not in text and "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    mistakes = only(result).mistakes
    assert not isinstance(mistakes, Missing) and mistakes.classes == (ALERT, "b", "c")


TABLE = "run,t,images,correct_at_t,correct_cumulative,teacher_accuracy\n"
PRICED = "layer,op,t,profile,firing_rate,sop_value,macs,energy_pj,ann_macs,ann_energy_pj\n"


@pytest.mark.parametrize(
    ("name", "content", "parts"),
    [
        ("per_timestep.csv", "", {"accuracy", "tradeoff"}),
        ("per_timestep.csv", f"{TABLE}x,1,5,6,6,0.5\n", {"accuracy", "tradeoff"}),
        ("per_timestep.csv", f"{TABLE}x,2,5,1,1,\nx,1,5,1,1,\n", {"accuracy", "tradeoff"}),
        ("per_timestep.csv", f"{TABLE}{ALERT},x,5,1,1,\n", {"accuracy", "tradeoff"}),
        ("metrics.csv", "loss\n1\n", {"curves"}),
        ("metrics.csv", f"epoch,loss\n1,{ALERT}\n", {"curves"}),
        ("energy.csv", PRICED, {"energy", "tradeoff"}),
        ("energy.csv", f"{PRICED}TOTAL,,all,p,0,0,0,-1,1,1\n", {"energy", "tradeoff"}),
        ("energy.csv", f"{PRICED}TOTAL,,soon,p,0,0,0,1,1,1\n", {"energy", "tradeoff"}),
        ("energy.json", '{"teacher": {"energy_pj": "much"}}', set()),
        ("energy.json", '{"against_ann": {"assumptions": {"same": {"snn_pj": "<b>"}}}}', set()),
        ("energy.json", '{"against_ann": {"assumptions": {"<b>": {}, "same": 1}}}', set()),
        ("early_exit.csv", f"criterion,threshold\nconfidence,{ALERT}\n", set()),
        (PREDICTIONS, b"PK\x03\x04 no archive", {"mistakes"}),
        ("config.toml", "[[[", {"settings"}),
        ("config.toml", f'["{ALERT}"]\nx = "{ALERT}"\n', set()),
        ("environment.json", "{", {"environment"}),
        ("environment.json", '{"teacher": {"model": ["<b>"]}, "commands": [1, {}, null]}', set()),
        ("environment.json", "[" * 100_000, {"environment"}),
    ],
)
def test_a_damaged_file_costs_its_own_part_alone(
    written: Written, name: str, content: str | bytes, parts: set[str]
) -> None:
    run = written()
    raw = content if isinstance(content, bytes) else content.encode()
    (run.folder / name).write_bytes(raw)
    result = reported(run.folder)
    assert lost(only(result)).keys() == parts | {"gallery"}
    assert ALERT not in result.output.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["metrics.csv", "environment.json", "config.toml", "energy.csv"])
def test_a_link_out_of_the_folder_is_not_followed(
    written: Written, tmp_path: Path, name: str
) -> None:
    run, secret = written(), tmp_path / "secret"
    secret.write_bytes((run.folder / name).read_bytes() + b"\n# the-password\n")
    (run.folder / name).unlink()
    (run.folder / name).symlink_to(secret)
    result = reported(run.folder)
    assert any(f"{name} is a link" in line for line in result.missing)
    assert "the-password" not in result.output.read_text(encoding="utf-8")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes with names")
def test_a_pipe_is_not_waited_for(written: Written) -> None:
    run = written()
    (run.folder / "metrics.csv").unlink()
    os.mkfifo(run.folder / "metrics.csv")
    assert lost(only(reported(run.folder))).keys() == {"curves", "gallery"}


def test_the_page_is_not_written_through_a_link(written: Written, tmp_path: Path) -> None:
    run, victim = written(), tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "page.html").symlink_to(victim)
    with pytest.raises(RunError, match="is a link"):
        reported(run.folder, output=tmp_path / "page.html")
    assert victim.read_text() == "mine"


def test_a_run_of_a_plug_in_is_shown_and_its_code_is_not_run(finished: Finished) -> None:
    run = finished()
    (run.folder / "code").mkdir()
    (run.folder / "code" / "evil.py").write_text("raise SystemExit('ran')")
    record = {"stated": "evil.py", "file": "code/evil.py", "module": "evil", "adds": ["method x"]}
    run.update_environment(plugins=[record])
    with (run.folder / "config.toml").open("a") as stream:
        stream.write('\n[more]\nplugins = ["code/evil.py"]\n')
    result = reported(run.folder, measure=True)
    assert "gallery" in lost(only(result))  # it can't be run without its plug-in
    assert "accuracy" not in lost(only(result))


@pytest.mark.parametrize("state", ["running", "stopped", "failed"])
def test_of_an_unfinished_run_what_there_is_is_shown(finished: Finished, state: str) -> None:
    run = finished()
    run.update_status(state=state, why="stopped by signal 15")
    for name in ("per_timestep.csv", "energy.csv", PREDICTIONS):
        (run.folder / name).unlink()
    result = reported(run.folder, measure=True)
    found = only(result)
    assert lost(found).keys() == {"accuracy", "energy", "tradeoff", "mistakes", "gallery"}
    assert f"This run is {state} (stopped by signal 15), not finished" in found.said[0]


def test_a_run_that_does_not_exist_is_told_with_the_nearest(written: Written) -> None:
    folder = written().folder
    wrong = folder.with_name(f"{folder.name}x")
    with pytest.raises(RunError, match=rf'is not a run folder.*did you mean "{folder.name}"'):
        reported(wrong, output=folder.parent / "page.html")
    assert not (folder.parent / "page.html").exists()
    with pytest.raises(RunError, match="there is no run"):
        reported(Path("9" * 400))  # no file system has such a name


def test_what_can_t_be_reported(
    written: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, another = written(), written()
    with pytest.raises(ConfigError, match=r"call it page\.html"):
        reported(run.folder, output=tmp_path / "page.pdf")
    with pytest.raises(ConfigError, match="13 runs are too many"):
        reported(*(tmp_path / str(n) for n in range(13)))
    (another.folder / "status.json").write_text("{")
    with pytest.raises(TserError, match="damaged"):
        reported(another.folder)
    monkeypatch.setattr(gather, "MOST_BYTES", 1000)
    with pytest.raises(ConfigError, match="name fewer runs"):
        reported(run.folder)
    assert not (run.folder.parent / "report.html").exists()


def test_by_default_the_newest_finished_student_is_reported(
    written: Written, tmp_path: Path
) -> None:
    run = written()
    request = ReportRequest(
        runs_dir=tmp_path / "runs", output=tmp_path / "page.html", measure=False
    )
    assert only(make_report(request)).name == run.name
    named = {"runs_dir": tmp_path / "runs", "output": tmp_path / "page.html"}
    for name in ("resnet20_T", "latest"):  # the beginning of its name
        assert only(reported(Path(name), **named)).name == run.name
    assert only(reported(run.folder, run.folder)).name == run.name  # named twice, it stands once


def test_runs_on_the_same_images_are_compared_image_by_image(written: Written) -> None:
    one, other = written(), written()
    final = AT_T.copy()
    final[:4, 1] = (final[:4, 1] + 1) % 3
    write_tables(other, final)
    ((_, pair),) = reported(one.folder, other.folder).page.same_images
    assert (pair.only_first, pair.only_other) == (4, 0)
    assert pair.p_value == pytest.approx(2 * 0.5**4)


def ablation_rows() -> list[dict[str, Any]]:
    """Two methods, five seeds; the second is 0.01, 0.02 ... worse."""
    return [
        {
            **{"method.name": method, "seed": seed, "state": "finished", "folder": "cells/x"},
            **{"accuracy": 0.9 - 0.01 * (seed + 1) * (method == ALERT), "energy_pj": 7e6},
            **{"accuracy_at_1": 0.8, "accuracy_at_2": 0.85, "teacher_accuracy": 0.95},
            **{"seconds": 60.0, "torch": "2.14", "settings": ALERT},
        }
        for method in ("kd", ALERT)
        for seed in range(5)
    ]


@pytest.fixture
def ablation(tmp_path: Path) -> Path:
    """The folder of a finished ablation over the method, one of which has a hostile name."""
    folder, axes = tmp_path / "ablation", ["method.name"]
    folder.mkdir()
    rows = ablation_rows()
    write_csv(folder / "ablation.csv", rows, ablation_schema(axes, 2))
    values: dict[Key, dict[int, float]] = {}
    for row in rows:
        values.setdefault((row["method.name"],), {})[row["seed"]] = row["accuracy"]
    summary = [cell.row() for cell in summarise(values, axes, {"method.name": "kd"}, "accuracy")]
    write_csv(folder / "summary.csv", summary, by_cell(axes, STATISTICS))
    return folder


@pytest.mark.usefixtures("drawn")
def test_an_ablation_is_shown_with_its_intervals(ablation: Path) -> None:
    result = reported(ablation)
    (found,) = result.page.ablations
    assert result.missing == () and found.axes == ("method",)
    assert not isinstance(found.cells, Missing)
    base, other = found.cells
    assert base.statistics.is_baseline
    assert list(other.statistics.settings.values()) == [ALERT]
    assert other.statistics.interval == pytest.approx(
        (-0.03 - 0.019632, -0.03 + 0.019632), abs=1e-5
    )  # t = 2.776
    assert found.drawings.keys() == {"per_timestep", "accuracy", "energy"}
    page = result.output.read_text(encoding="utf-8")
    assert f"{html.escape(ALERT)}: -3.00 points (-4.96 to -1.04), n = 5" in page
    assert ALERT not in result.output.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("summary.csv", ""),
        ("summary.csv", "a,b\n1,2\n"),
        ("summary.csv", "method.name,measure,baseline\nkd,accuracy,much\n"),
        ("ablation.csv", "method.name\nkd\n"),
        ("ablation.csv", f"method.name,seed,state,accuracy\nkd,0,finished,{ALERT}\n"),
    ],
)
def test_a_damaged_table_of_an_ablation_is_told(ablation: Path, name: str, content: str) -> None:
    (ablation / name).write_text(content)
    result = reported(ablation)
    assert lost(result.page.ablations[0]).keys() == {"cells"}
    assert ALERT not in result.output.read_text(encoding="utf-8")


def test_an_ablation_that_has_only_begun_is_told(ablation: Path) -> None:
    for name in files.TABLES:
        (ablation / name).unlink()
    (ablation / "plan.json").write_text("{}")
    (found,) = reported(ablation).page.ablations
    assert "there is no summary.csv" in lost(found)["cells"]


def test_unfinished_cells_are_counted(ablation: Path) -> None:
    rows = [
        {**row, "state": "failed" if row["seed"] > 2 else "finished", "events": "simulated from x"}
        for row in ablation_rows()
    ]
    write_csv(ablation / "ablation.csv", rows, ablation_schema(["method.name"], 2))
    (found,) = reported(ablation).page.ablations
    said = "simulated events: from x", "6 of 10 runs are finished (4 failed)"
    assert found.said == said
