"""Events from their files to a student, and what is measured of it: through the whole house."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from tests.data.event_formats import atis_bytes, some_events
from tests.engine.conftest import Told
from tests.engine.training.conftest import timeless
from tser_cli.base.errors import ConfigError, Interrupted
from tser_cli.base.files import read_json
from tser_cli.base.progress import Silent
from tser_cli.data.base import TensorSource
from tser_cli.energy.prices import load_profile
from tser_cli.engine.commands.evaluate import evaluate_run
from tser_cli.engine.commands.export import export
from tser_cli.engine.commands.library import distill
from tser_cli.engine.commands.predict import Prediction, Unread, predict
from tser_cli.engine.commands.quantize import quantize
from tser_cli.engine.evaluation.early_exit import stops_of
from tser_cli.engine.page.gather import make_report
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import open_finished
from tser_cli.engine.runs.record import RunResult
from tser_cli.engine.runs.weights import load_model
from tser_cli.report.csv_files import read_csv
from tser_cli.report.predictions import read_predictions
from tser_cli.report.words import energy_sentences
from tser_cli.settings.options import EvaluateRequest
from tser_cli.settings.wing_options import (
    ExportRequest,
    PredictRequest,
    QuantizeRequest,
    ReportRequest,
)


class Signalled(Silent):
    """Sends this process SIGTERM at a step."""

    def __init__(self, step: int) -> None:
        self.left = step

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGTERM)


SETTINGS = {
    "training.device": "cpu",
    "training.batch_size": 4,
    "training.epochs": 1,
    "training.tensorboard": False,
    "data.frames": 2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a small n-mnist, `events`, and the recipe of a short teacher."""
    folder = tmp_path_factory.mktemp("events")
    for part, count in (("Train", 5), ("Test", 3)):
        for label in range(2):
            (folder / "events" / part / str(label)).mkdir(parents=True)
            for number in range(count):
                seed, last = 10 * label + number, 200_000 + 50_000 * number
                made = atis_bytes(some_events(900, 34, 17 * (label + 1), seed, last))
                (folder / f"events/{part}/{label}/{part}{number}.bin").write_bytes(made)
    (folder / "events" / "simulated.json").write_text('{"from": "noise"}')
    (folder / "teacher.toml").write_text("[training]\nepochs = 1\nbatch_size = 4\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        yield folder


def distilled(place: Path, runs: str = "runs", progress: Any = None, **changes: Any) -> RunResult:
    settings = {
        **SETTINGS,
        "model.stem": "large",
        "model.teacher_recipe": str(place / "teacher.toml"),
        **changes,
    }
    asked = {"data_dir": str(place / "events"), "runs_dir": place / runs, "settings": settings}
    told = {"progress": progress} if progress else {}
    return distill("resnet20", "resnet20", dataset="n-mnist", **asked, **told)


@pytest.fixture(scope="module")
def student(place: Path) -> RunResult:
    return distilled(place)


def test_the_frames_are_the_time_steps(place: Path, student: RunResult) -> None:
    run = Run(student.folder)
    config = run.config()
    assert (config.data.frames, config.model.timesteps, student.timesteps) == (2, 2, 2)
    assert student.teacher_accuracy is not None and student.images == 6
    assert run.status()["data"]["convention"] == "Train/ and Test/"
    _, metadata, _ = load_model(next((place / "runs/teacher").glob("*/*/model.safetensors")))
    assert '"frames": 2' in metadata["tser"]


def test_a_trained_network_is_evaluated_on_other_frames(place: Path, student: RunResult) -> None:
    before = read_csv(student.folder / "per_timestep.csv")
    asked = {"run": student.folder, "settings": {"training.device": "cpu"}}
    again = evaluate_run(EvaluateRequest(**asked))
    assert [row["correct_at_t"] for row in again.rows] == [int(r["correct_at_t"]) for r in before]
    three = evaluate_run(EvaluateRequest(**asked, timesteps="3"))
    assert three.table == student.folder / "per_timestep_test_T3.csv" and len(three.rows) == 3
    opened = open_finished(Run(student.folder), {"data.frames": 3}, Told())
    assert opened.context.dataset.spec.sample_shape == (3, 2, 34, 34)
    assert opened.config.model.timesteps == 3


def test_early_exit_says_how_much_of_the_events_was_seen(place: Path, student: RunResult) -> None:
    def exits(**settings: str) -> list[dict[str, Any]]:
        asked = {"run": student.folder, "early_exit": "1,0.0001,0.56"}
        of = {"training.device": "cpu", **settings}
        return evaluate_run(EvaluateRequest(**asked, settings=of)).early_exit_rows

    rows = never, at_once, _ = exits()
    lasting = [200.0, 250.0, 300.0] * 2  # as `place` made the test samples
    assert at_once["latency_full_ms"] == never["latency_ms"] == pytest.approx(sum(lasting) / 6)
    assert at_once["latency_ms"] == pytest.approx(sum(lasting) / 12)
    kept = read_predictions(student.folder / "predictions.npz")
    assert kept is not None and kept.steps is not None and kept.steps.milliseconds_I is not None
    assert kept.steps.milliseconds_I.tolist() == lasting
    stops = stops_of(kept, load_profile("horowitz-45nm-fp32"))
    for row in rows:
        assert stops.latency(row["threshold"]) == pytest.approx(row["latency_ms"])
    assert {row["latency_ms"] for row in exits(**{"data.frames_by": "number"})} == {None}


def test_files_of_events_are_classified_like_the_test_samples(
    place: Path, student: RunResult, tmp_path: Path
) -> None:
    of = some_events(900, 34, 17, 1, 250_000)  # the second test sample
    np.savez(tmp_path / "of.npz", **of._asdict())
    np.savez(tmp_path / "large.npz", **some_events(9, 99, 99)._asdict())
    (tmp_path / "notes.txt").write_text("")
    told = Told()
    named = (str(place / "events" / "Test"), str(tmp_path))
    asked = {"run": student.folder, "settings": {"training.device": "cpu"}, "progress": told}
    found = predict(PredictRequest(images=named, **asked)).answers
    assert told.warnings == ["files left out: 1 .txt. Only .bin, .aedat, .npz, .npy are read"]
    kept = read_predictions(student.folder / "predictions.npz")
    assert kept is not None and kept.steps is not None
    answered = [one for one in found if isinstance(one, Prediction)]
    sure = [one.confidence for one in answered]
    assert np.allclose(sure[:6], kept.steps.confidence_IT, atol=1e-6)
    assert [one.name for one in answered[:6]] == [str(k) for k in kept.cumulative_IT[:, -1]]
    large, same = found[6:]
    assert isinstance(large, Unread) and "outside the sensor of 34 x 34" in large.error
    assert isinstance(same, Prediction) and same.confidence == pytest.approx(sure[1])


def test_files_are_no_frames_of_another_making(
    place: Path, student: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*of: Any) -> Any:
        found = open_finished(*of)
        data = found.context.dataset
        assert isinstance(data.test, TensorSource)
        plain = replace(data, test=TensorSource(data.test.images_MCHW, data.test.labels))
        return replace(found, context=replace(found.context, dataset=plain))

    monkeypatch.setattr("tser_cli.engine.commands.predict.open_finished", opened)
    asked = {"run": student.folder, "settings": {"training.device": "cpu"}}
    with pytest.raises(ConfigError, match="trained on frames that were made elsewhere"):
        predict(PredictRequest(images=(str(place / "events" / "Test"),), **asked))


@pytest.mark.slow
def test_a_page_shows_frames(student: RunResult, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    request = ReportRequest(
        subjects=(student.folder,), output=page, settings={"training.device": "cpu"}
    )
    assert make_report(request).missing == ()
    text = page.read_text()
    assert "resnet20 on n-mnist, simulated events: from noise, T = 2" in text
    assert text.count('<img class="frames"') == 6 and "red became brighter" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"method.name": "kd_feature", "augment.flip": True},
        pytest.param({}, marks=pytest.mark.slow, id="logits-kept"),
    ],
)
def test_a_stopped_run_ends_in_the_same_bits(
    place: Path, student: RunResult, changes: dict[str, Any]
) -> None:
    (teacher,) = (place / "runs/teacher").glob("*/*/model.safetensors")
    changes = {**changes, "model.teacher": str(teacher), "training.epochs": 2}
    whole = distilled(place, "whole", **changes)
    with pytest.raises(Interrupted):
        distilled(place, "parts", Signalled(3), **changes)
    parts = distilled(place, "parts", **changes)
    hashes = [Run(result.folder).status()["sha256"] for result in (whole, parts)]
    assert hashes[0] == hashes[1]
    rows = [timeless(read_csv(result.folder / "metrics.csv")) for result in (whole, parts)]
    assert rows[0] == rows[1]


def test_the_stem_adds_what_it_is_fed_with(place: Path, student: RunResult) -> None:
    rows = read_csv(student.folder / "energy.csv")
    stem = [row for row in rows if row["layer"] == "conv1"]
    assert {(row["input_kind"], row["op"], row["macs"]) for row in stem} == {("sums", "AC", "0.0")}
    opened = open_finished(Run(student.folder), {}, Told())
    conv, test = opened.loaded.model.get_submodule("conv1"), opened.context.dataset.test
    frames_NTCHW = torch.stack([test.image(place) for place in range(len(test))]).double()
    ones = torch.ones_like(conv.weight, dtype=torch.float64)
    for column, fed in (("sop_value", frames_NTCHW), ("sop_events", frames_NTCHW.sign())):
        mean_T = [
            float(F.conv2d(fed[:, t], ones, None, conv.stride, conv.padding).sum()) / len(test)
            for t in range(2)
        ]
        assert [float(row[column]) for row in stem] == pytest.approx([*mean_T, sum(mean_T)])
    total = rows[-1]
    assert float(total["ann_frames_macs"]) == 2 * float(total["ann_macs"]) > 0
    document = read_json(student.folder / "energy.json")
    assert document["stem"]["layers"] == []
    assert set(document["against_ann"]["assumptions"]) == {
        *("same", "frames", "skipping", "memory", "int8")
    }
    told = " ".join(energy_sentences(document))
    assert "on the mean frame, which the table shows" in told and "stem" not in told


def test_an_export_says_what_it_is_fed_with(
    place: Path, student: RunResult, tmp_path: Path
) -> None:
    asked = {"run": student.folder, "verify": False, "images": 2}
    exported = export(ExportRequest(**asked, names=(tmp_path / "student.safetensors",)))
    assert exported.card is not None
    said = "Input: float [N, 2, 34, 34] at each of 2 time steps, counts: how often each pixel"
    assert said in exported.card.read_text()
    with safe_open(exported.path, framework="np") as file:
        facts = file.metadata()
    assert "(data.frames_by = time)" in facts["input"] and facts["normalisation"].startswith("none")
    assert "mean" not in facts and facts["input_shape"] == "[2, 34, 34]"


def test_integer_weights_are_calibrated_and_counted_on_frames(
    place: Path, student: RunResult
) -> None:
    settings = {"training.device": "cpu"}
    asked = {"run": student.folder, "runs_dir": place / "runs", "settings": settings, "images": 4}
    made = quantize(QuantizeRequest(**asked)).result
    rows = read_csv(made.folder / "energy.csv")
    stem = [row for row in rows if row["layer"] == "conv1"][-1]
    assert (stem["input_kind"], stem["profile"]) == ("sums", "horowitz-45nm-int8")
    before = [row for row in read_csv(student.folder / "energy.csv") if row["layer"] == "conv1"][-1]
    assert float(stem["sop_value"]) == float(before["sop_value"]) > float(stem["sop_events"])
    # sums of counts need 32 bits
    assert float(stem["energy_pj"]) == pytest.approx(0.1 * float(stem["sop_value"]))
