"""Counting the operations of a finished run again, on tiny data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tser_cli.base.errors import ConfigError, TserError
from tser_cli.engine.commands.energy import measure_energy
from tser_cli.engine.commands.evaluate import evaluate_run
from tser_cli.engine.runs import folder, networks, opened
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import Context
from tser_cli.engine.runs.weights import load_model
from tser_cli.models.base import Classifier
from tser_cli.report.csv_files import ENERGY, PER_IMAGE, read_csv
from tser_cli.settings.config import Config
from tser_cli.settings.options import EnergyRequest, EvaluateRequest


@pytest.fixture
def student(
    tmp_path: Path,
    make_config: Callable[..., Config],
    make_context: Callable[..., Context],
    wake: Callable[[Classifier], Classifier],
    teacher_file: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """A finished run of two steps whose network is random, with a teacher."""
    monkeypatch.setattr(opened, "prepare", make_context)
    config = make_config()
    run, spec = folder.create(tmp_path, "student", config), make_context(config).dataset.spec
    model = wake(networks.build("resnet20", spec, config, spiking=True))
    networks.write(run.model_file, model, "resnet20", spec, config)
    digest = load_model(teacher_file)[2]
    run.update_environment(
        teacher={"model": "resnet20", "source": str(teacher_file), "sha256": digest}
    )
    run.update_status(state="finished", finished="2025-01-01T00:00:00+00:00")
    return run


def test_the_result_is_what_the_files_say(
    student: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, per_image = tmp_path / "report.csv", tmp_path / "images.csv"
    request = EnergyRequest(output=output, run=student.folder, per_image=per_image, figures=True)
    result = measure_energy(request)
    assert result.name == student.name
    assert result.written == tuple(
        tmp_path / name
        for name in (
            *("report.csv", "report.json", "images.csv"),
            *("report_by_layer.png", "report_by_layer.svg"),
            *("report_accuracy.png", "report_accuracy.svg"),
        )
    )
    assert all(path.stat().st_size for path in result.written)
    rows = read_csv(output)
    assert tuple(rows[0]) == tuple(ENERGY)
    assert [row["layer"] for row in rows] == [row["layer"] for row in result.rows]
    assert [float(row["energy_pj"]) for row in rows] == [row["energy_pj"] for row in result.rows]
    assert {row["images"] for row in rows} == {"11"}
    assert json.loads((tmp_path / "report.json").read_text()) == result.document
    assert result.document["teacher"]["name"] == "resnet20"
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")  # a command prints nothing
    # each image is right as often as evaluation says
    for step in evaluate_run(EvaluateRequest(run=student.folder)).rows:
        of_step = [row for row in read_csv(per_image) if row["t"] == str(step["t"])]
        assert len(of_step) == 11
        assert sum(int(row["correct_at_t"]) for row in of_step) == step["correct_at_t"]
        right = sum(int(row["correct_cumulative"]) for row in of_step)
        assert right == step["correct_cumulative"]


def test_only_what_was_asked_for_is_written(student: Run, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    shown = measure_energy(EnergyRequest(run=student.folder))
    assert shown.written == ()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    plain = measure_energy(EnergyRequest(output=tmp_path / "report.csv", run=student.folder))
    assert plain.written == (tmp_path / "report.csv", tmp_path / "report.json")
    assert set(tmp_path.rglob("*")) - before.keys() == set(plain.written)
    assert plain.rows == shown.rows
    with pytest.raises(ConfigError, match="--figures, --long: say where the table goes"):
        EnergyRequest(run=student.folder, figures=True, long=True)


def test_images_are_spread_over_the_test_set(student: Run, tmp_path: Path) -> None:
    per_image = tmp_path / "images.csv"
    request = EnergyRequest(
        output=tmp_path / "report.csv", run=student.folder, images=4, per_image=per_image
    )
    result = measure_energy(request)
    assert per_image in result.written
    rows = read_csv(per_image)
    assert tuple(rows[0]) == tuple(PER_IMAGE)
    assert [(row["image"], row["t"]) for row in rows] == [
        (str(image), str(t)) for image in (0, 2, 5, 8) for t in (1, 2)
    ]
    assert [row["label"] for row in rows[::2]] == [str(image % 3) for image in (0, 2, 5, 8)]
    assert {row["images"] for row in read_csv(tmp_path / "report.csv")} == {"4"}
    spent = [float(row["energy_pj"]) for row in rows if row["t"] == "2"]
    assert sum(spent) / 4 == pytest.approx(result.document["totals"]["energy_pj"], rel=1e-12)


def test_a_teacher_that_is_gone_costs_what_it_cost(
    student: Run, tmp_path: Path, teacher_file: Path, told: Any
) -> None:
    def measured(name: str) -> dict[str, Any]:
        request = EnergyRequest(output=tmp_path / name, run=student.folder, progress=told)
        return measure_energy(request).document

    before = measured("before.csv")
    assert told.warnings == []
    teacher_file.unlink()
    after = measured("after.csv")
    assert after["teacher"] == before["teacher"]
    # but how many zeros it computed with is not known without its weights
    del before["against_ann"]["assumptions"]["skipping"]
    assert after["against_ann"] == before["against_ann"]
    (warning,) = told.warnings
    assert "an untrained resnet20 serve" in warning


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("report.json", r"the table is a CSV file; call it report\.csv"),
        ("latest", r"this is where the table goes, as report\.csv; a run is --run .*latest"),
        ("images.csv", "must have different names"),
        ("/", "this is where the table goes, as report.csv; a run is --run /"),
    ],
)
def test_names_that_do_not_fit_are_refused_before_the_work(
    student: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, said: str
) -> None:
    monkeypatch.setattr(opened, "prepare", lambda *rest: pytest.fail("it was opened"))
    request = EnergyRequest(
        output=tmp_path / output, run=student.folder, per_image=tmp_path / "images.csv"
    )
    with pytest.raises(TserError, match=said):
        measure_energy(request)
