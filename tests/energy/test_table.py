"""energy.csv and its sidecar, from a network that was really counted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tser_cli.energy.counter import counting
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import energy_up_to
from tser_cli.energy.prices import Profile, load_profile
from tser_cli.energy.table import Labels, energy_rows, sidecar
from tser_cli.report.csv_files import ENERGY

LABELS = Labels(run="a-run", dataset="digits", model_hash="c0ffee", dtype="float32")
FP32 = load_profile("horowitz-45nm-fp32")
SUMMED = (
    *("neurons_in", "nonzero_in", "sop_events", "sop_value", "macs", "sop_formula"),
    *("neuron_updates", "energy_pj", "energy_formula_pj"),
)


def count(model: Any, images_NCHW: Tensor, timesteps: int) -> Counts:
    with torch.no_grad(), counting(model, model.input_kinds()) as counter:
        model(images_NCHW, timesteps=timesteps)
    return counter.counts()


@pytest.fixture
def counts(small_sew: nn.Module, exact_images: Callable[[int], Tensor]) -> Counts:
    """Five images at three steps."""
    return count(small_sew, exact_images(5), 3)


def pick(rows: list[dict[str, Any]], layer: str, t: int | str) -> dict[str, Any]:
    found = [row for row in rows if row["layer"] == layer and row["t"] == t]
    assert len(found) == 1
    return found[0]


def test_columns_and_rows(counts: Counts) -> None:
    rows = energy_rows(counts, FP32, LABELS)
    assert " ".join(ENERGY) == (
        "run dataset profile layer type input_kind op t timesteps images neurons_in nonzero_in "
        "firing_rate sop_events sop_value macs sop_formula neuron_updates energy_pj "
        "energy_formula_pj ann_macs ann_energy_pj ratio_snn_ann ann_frames_macs "
        "ann_frames_energy_pj"
    )
    assert all(row.keys() == ENERGY.keys() for row in rows)
    expected = [
        (layer, t)
        for layer in ("stem", "conv2", "conv3", "fc", "head", "TOTAL")
        for t in (1, 2, 3, "all")
    ]
    assert [(row["layer"], row["t"]) for row in rows] == expected
    described = {row["layer"]: (row["type"], row["input_kind"], row["op"]) for row in rows}
    assert described == {
        "stem": ("conv", "real", "MAC"),
        "conv2": ("conv", "spikes", "AC"),
        "conv3": ("conv", "sums", "AC"),
        "fc": ("linear", "real", "MAC"),
        "head": ("linear", "spikes", "AC"),
        "TOTAL": ("total", "", ""),
    }
    # numpy's numbers would not go into the sidecar's JSON.
    assert {type(value) for row in rows for value in row.values()} <= {str, int, float, type(None)}
    first = rows[0]
    assert (first["run"], first["dataset"], first["profile"]) == ("a-run", "digits", FP32.name)
    assert (first["timesteps"], first["images"]) == (3, 5)


def test_a_row_of_accumulates(counts: Counts) -> None:
    layer = counts.layers[2]
    row = pick(energy_rows(counts, FP32, LABELS), "conv3", 2)
    assert row["sop_events"] == layer.events_TI[1].sum() / 5
    assert row["sop_value"] == layer.value_TI[1].sum() / 5 > row["sop_events"]
    assert row["nonzero_in"] == layer.nonzero_TI[1].sum() / 5
    assert row["neurons_in"] == 4 * 7 * 6
    assert row["firing_rate"] == pytest.approx(row["nonzero_in"] / (4 * 7 * 6))
    assert row["macs"] == 0
    assert row["energy_pj"] == pytest.approx(row["sop_value"] * 0.9)
    flop = (6 * 4 * 2) * (4 * 3 * 2)
    assert row["sop_formula"] == pytest.approx(row["firing_rate"] * flop)
    assert row["energy_formula_pj"] == pytest.approx(row["sop_formula"] * 0.9)
    assert row["ann_macs"] == layer.layer.macs < flop
    assert row["ann_energy_pj"] == pytest.approx(layer.layer.macs * 4.6)
    assert row["ratio_snn_ann"] == pytest.approx(row["energy_pj"] / row["ann_energy_pj"])
    assert row["neuron_updates"] == 6 * 4 * 2


def test_a_stem_computed_once_has_its_cost_at_the_first_step(counts: Counts) -> None:
    rows = energy_rows(counts, FP32, LABELS)
    at = {t: pick(rows, "stem", t) for t in (1, 2, 3, "all")}
    macs = counts.layers[0].layer.macs
    assert [at[t]["macs"] for t in at] == [macs, 0, 0, macs]
    assert [at[t]["ratio_snn_ann"] for t in at] == [1, 0, 0, 1]
    assert [at[t]["firing_rate"] for t in (2, 3)] == [0, 0]
    assert at[1]["energy_formula_pj"] == pytest.approx(4 * 7 * 6 * 2 * 9 * 4.6)
    assert at[2]["neuron_updates"] == 4 * 7 * 6


def test_totals_add_up(counts: Counts) -> None:
    rows = energy_rows(counts, FP32, LABELS)
    for column in SUMMED:
        for t in (1, 2, 3, "all"):
            of_layers = [r[column] for r in rows if r["t"] == t and r["layer"] != "TOTAL"]
            assert pick(rows, "TOTAL", t)[column] == pytest.approx(sum(of_layers))
        for layer in ("stem", "conv3", "TOTAL"):
            steps = [pick(rows, layer, t)[column] for t in (1, 2, 3)]
            assert pick(rows, layer, "all")[column] == pytest.approx(sum(steps))
    ann = [pick(rows, layer.layer.name, 1)["ann_macs"] for layer in counts.layers]
    total = pick(rows, "TOTAL", "all")
    assert pick(rows, "TOTAL", 2)["ann_macs"] == total["ann_macs"] == sum(ann)
    assert total["energy_pj"] == pytest.approx(energy_up_to(counts, FP32)[-1].mean())


def test_neuron_updates_are_in_no_energy(counts: Counts) -> None:
    changed = Profile(**{**FP32.model_dump(), "neuron_update_pj": 1e6})
    plain, costly = (energy_rows(counts, p, LABELS) for p in (FP32, changed))
    assert [row["energy_pj"] for row in plain] == [row["energy_pj"] for row in costly]
    updates = pick(plain, "TOTAL", "all")["neuron_updates"]
    assert updates == 3 * (2 * 4 * 7 * 6 + 6 * 4 * 2 + 8)
    assert sidecar(counts, FP32, LABELS)["totals"]["neuron_update_energy_pj"] is None
    told = sidecar(counts, changed, LABELS)["totals"]["neuron_update_energy_pj"]
    assert told == pytest.approx(updates * 1e6)


def test_the_sidecar_is_json_and_says_what_was_assumed(counts: Counts) -> None:
    document = sidecar(counts, FP32, LABELS)
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["profile"]["source"].startswith("Horowitz")
    assert document["profile"]["mac_pj"] == 4.6
    assert "45 nm" in document["profile"]["technology"]
    assert (document["model_hash"], document["dtype"]) == ("c0ffee", "float32")
    assert (document["images"], document["timesteps"]) == (5, 3)
    assert document["teacher"] is None and document["memory"] is None
    assert any("padding" in note for note in document["notes"])
    row = pick(energy_rows(counts, FP32, LABELS), "TOTAL", "all")
    shared = document["totals"].keys() & row.keys()
    assert len(shared) == 10
    assert {n: document["totals"][n] for n in shared} == pytest.approx({n: row[n] for n in shared})


def test_the_stem_is_reported_both_ways(
    small_sew: nn.Module, exact_images: Callable[[int], Tensor]
) -> None:
    images_NCHW = exact_images(4)
    once = sidecar(count(small_sew, images_NCHW, 3), FP32, LABELS)
    small_sew.stem_once = False
    counted = count(small_sew, images_NCHW, 3)
    assert counted.stem[0].executed_T.tolist() == [1, 1, 1]
    per_step = sidecar(counted, FP32, LABELS)
    assert once["stem"]["policy"] == "once"
    assert per_step["stem"]["policy"] == "per_step"
    assert once["stem"]["layers"] == per_step["stem"]["layers"] == ["stem"]
    for kept in ("stem_energy_once_pj", "total_energy_once_pj", "total_energy_per_step_pj"):
        assert once["stem"][kept] == pytest.approx(per_step["stem"][kept])
    assert once["totals"]["energy_pj"] == pytest.approx(once["stem"]["total_energy_once_pj"])
    headline = per_step["totals"]["energy_pj"]
    assert headline == pytest.approx(once["stem"]["total_energy_per_step_pj"])
    assert headline > once["totals"]["energy_pj"]


def test_the_ratio_to_a_teacher(counts: Counts, small_sew: nn.Module) -> None:
    teacher = nn.Sequential(nn.Conv2d(2, 8, 1), nn.Flatten(), nn.Linear(8 * 7 * 6, 3))
    with torch.no_grad(), counting(teacher, {"0": "real", "2": "real"}) as counter:
        teacher(torch.randn(1, 2, 7, 6))
    beside: Any = {"teacher": counter.counts(), "teacher_name": "wide", "memory": True}
    document = sidecar(counts, FP32, LABELS, **beside)
    macs = 2 * 8 * 7 * 6 + 8 * 7 * 6 * 3
    assert document["teacher"]["name"] == "wide"
    assert document["teacher"]["macs"] == macs
    assert document["teacher"]["energy_pj"] == pytest.approx(macs * 4.6)
    ratio = document["totals"]["energy_pj"] / (macs * 4.6)
    assert document["teacher"]["ratio_snn_teacher"] == pytest.approx(ratio)
    assert document["memory"]["teacher"]["weight_read_bytes"] == macs * 4
    assert document["totals"] == sidecar(counts, FP32, LABELS)["totals"]


def test_an_input_of_ones_costs_as_many_operations_as_the_ann() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2))
    with torch.no_grad(), counting(model, {"0": "spikes"}) as counter:
        model(torch.ones(2, 3, 5, 5))
    row = energy_rows(counter.counts(), FP32, LABELS)[0]
    assert row["sop_value"] == row["ann_macs"] == 3 * 4 * 49
    assert row["firing_rate"] == 1
    assert row["sop_formula"] == 3 * 4 * 81
    assert row["ratio_snn_ann"] == pytest.approx(0.9 / 4.6)
