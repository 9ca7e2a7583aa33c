"""`tser energy` and early exit on a finished run, through the command line."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits

from tests.command import Invoke, call
from tser_cli.report.csv_files import ENERGY

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("energy")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student of few digits and one epoch, with such a teacher."""
    folder = tmp_path_factory.mktemp("energy")
    digits = load_digits()
    pixels, labels = (15 * digits.images).astype(np.uint8), digits.target
    few = {"train_images": pixels[:160], "train_labels": labels[:160]}
    np.savez(folder / "few.npz", **few, test_images=pixels[160:200], test_labels=labels[160:200])
    (folder / "one.toml").write_text(
        f'[data]\nname = "npz"\ndir = "{folder}/few.npz"\n[optimizer]\nlr = 0.02\n'
        "[training]\nepochs = 1\nbatch_size = 40\ntensorboard = false\n"
    )
    arguments = [
        *("--recipe", folder / "one.toml", "--runs-dir", folder / "runs"),
        *("--teacher", "resnet20", "--student", "resnet20", "-T", "3"),
        *("--set", f"model.teacher_recipe={folder / 'one.toml'}"),
    ]
    assert call("distill", *arguments) == 0
    (found,) = (folder / "runs" / "student" / "npz").iterdir()
    return found


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


def test_distill_leaves_an_energy_table(run: Path) -> None:
    rows = read(run / "energy.csv")
    assert list(rows[0]) == list(ENERGY)
    assert rows[-1]["layer"] == "TOTAL"
    assert rows[-1]["t"] == "all"
    assert rows[-1]["images"] == "40"
    document = json.loads((run / "energy.json").read_text())
    assert document["model_hash"] == json.loads((run / "status.json").read_text())["sha256"]
    assert document["teacher"]["name"] == "resnet20"


def test_report_totals_add_up(run: Path, tser: Invoke, tmp_path: Path) -> None:
    output = tmp_path / "report.csv"
    output.write_text("an older file\n")
    code, out, _ = tser("energy", str(output), "--run", str(run), "--batch-size", "7", "--figures")
    assert code == 0
    assert "an image" in " ".join(out.split())
    assert "ISSCC 2014; not measured on a chip that ran networks" in " ".join(out.split())
    rows = read(output)
    assert rows == [{**row} for row in read(run / "energy.csv")]
    sums: dict[str, float] = defaultdict(float)
    for row in rows:
        if row["layer"] != "TOTAL":
            sums[row["t"]] += float(row["energy_pj"])
    for row in rows:
        if row["layer"] == "TOTAL":
            assert float(row["energy_pj"]) == pytest.approx(sums[row["t"]], rel=1e-12)
    for name in ("report.json", "report_by_layer.png", "report_accuracy.png"):
        assert (tmp_path / name).stat().st_size > 100


@pytest.mark.parametrize("form", ["--long", "--wide"])
def test_a_table_whose_columns_can_be_summed(
    run: Path, tser: Invoke, tmp_path: Path, form: str
) -> None:
    output = tmp_path / "report.csv"
    assert tser("energy", str(output), "--run", str(run), form)[0] == 0
    total = read(run / "energy.csv")[-1]
    for column in ("energy_pj", "sop_value", "macs"):
        summed = sum(float(row[column]) for row in read(output))
        assert summed == pytest.approx(float(total[column]), rel=1e-12)


def test_per_image_agrees_with_the_totals(run: Path, tser: Invoke, tmp_path: Path) -> None:
    table, images = tmp_path / "report.csv", tmp_path / "images.csv"
    code, _, _ = tser(
        *("energy", str(table), "--run", str(run), "--per-image", str(images)),
        *("--images", "25", "--profile", "horowitz-45nm-int8", "--assume-int8"),
    )
    assert code == 0
    rows = [row for row in read(images) if row["t"] == "3"]
    assert len(rows) == 25
    mean = sum(float(row["energy_pj"]) for row in rows) / 25
    assert mean == pytest.approx(float(read(table)[-1]["energy_pj"]), rel=1e-12)
    assert read(table)[-1]["profile"] == "horowitz-45nm-int8"


def test_evaluate_with_early_exit(run: Path, tser: Invoke) -> None:
    code, out, _ = tser("evaluate", "--run", str(run), "--early-exit", "0.2,0.9")
    assert code == 0
    assert "early exit" in out
    rows = read(run / "early_exit.csv")
    assert [row["threshold"] for row in rows] == ["0.2", "0.9"]
    assert float(rows[0]["energy_pj"]) <= float(rows[1]["energy_pj"])
    assert float(rows[1]["energy_full_pj"]) == pytest.approx(
        float(read(run / "energy.csv")[-1]["energy_pj"]), rel=1e-12
    )


@pytest.mark.parametrize(("kept", "code"), [(True, 0), (False, 4)])
def test_evaluate_with_an_energy_budget(
    run: Path, tser: Invoke, monkeypatch: pytest.MonkeyPatch, kept: bool, code: int
) -> None:
    # The choice itself is tested in evaluation/: here all images stop at the first step, or none.
    threshold = 0.0 if kept else math.inf
    monkeypatch.setattr("tser_cli.engine.evaluation.early_exit.keep_budget", lambda *_: threshold)
    whole = float(read(run / "energy.csv")[-1]["energy_pj"])
    budget = f"{0.9 * whole:.0f}pJ"
    found, out, err = tser("evaluate", "--run", str(run), "--energy-budget", budget)
    assert found == code
    (row,) = read(run / "early_exit.csv")
    assert (row["kept"], row["chosen_on"]) == (str(int(kept)), "train")
    assert ("kept; " if kept else "11 % over; ") in out
    assert "the run held no images out" in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--profile", "horowitz-45nm"), "unknown cost profile"),
        (("--run", "nowhere"), "there is no run"),
        (("--runs-dir", "empty"), "no finished student"),
    ],
)
def test_bad_requests_write_nothing(
    tser: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = tser("energy", "report.csv", *arguments)
    assert code == 2
    assert said in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_model_file(run: Path, tser: Invoke, tmp_path: Path, damage: str) -> None:
    model = run / "model.safetensors"
    content = model.read_bytes()
    try:
        model.unlink() if damage == "missing" else model.write_bytes(content[:-7])
        code, _, err = tser("energy", str(tmp_path / "report.csv"), "--run", str(run))
    finally:
        model.write_bytes(content)
    assert code == 2
    assert "model.safetensors" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("energy", "report.csv", "--device", "banana"), "use auto, cpu, cuda or cuda:N"),
        (("evaluate", "--precision", "fp8"), "training.precision"),
        (("evaluate", "--output", "file/x.csv"), "can't be written"),
        (("energy", "file/report.csv"), "can't be written"),
        (("evaluate", "--timesteps", "0"), "--timesteps"),
        (("evaluate", "--early-exit", "2"), "--early-exit"),
        (("evaluate", "--energy-budget", "3"), '--energy-budget: "3" is no energy'),
        (("evaluate", "--energy-budget", "1pJ"), "the first time step alone costs"),
        (("energy", "report.json"), "call it report.csv"),
        (("energy", "report.csv", "--long", "--wide"), "--long and --wide"),
        (("energy", "report.csv", "--per-image", "report.csv"), "different names"),
        (("energy", "folder.csv"), "is a folder"),
    ],
)
def test_bad_requests_about_a_run(
    run: Path,
    tser: Invoke,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.csv").mkdir()
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    code, out, err = tser(*arguments, "--run", str(run))
    assert code == 2
    assert out == ""
    assert said in err
    assert "Traceback" not in err
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder.csv"}
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_variables_reach_a_measurement(
    run: Path, tser: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TSER_TRAINING_DEVICE", "banana")
    code, _, err = tser("energy", str(tmp_path / "report.csv"), "--run", str(run))
    assert code == 2
    assert "TSER_" in err
    monkeypatch.setenv("TSER_TRAINING_DEVICE", "cpu")
    monkeypatch.setenv("TSER_TRAINING_EPOCHS", "7")  # no business of a finished run
    assert tser("energy", str(tmp_path / "report.csv"), "--run", str(run))[0] == 0


def test_some_images_are_spread_over_all(run: Path, tser: Invoke, tmp_path: Path) -> None:
    images = tmp_path / "images.csv"
    tser(
        *("energy", str(tmp_path / "report.csv"), "--run", str(run), "--images", "4"),
        *("--per-image", str(images)),
    )
    assert [row["image"] for row in read(images) if row["t"] == "1"] == ["0", "10", "20", "30"]


def test_conventions_and_the_rival_of_a_run_and_its_audit(
    run: Path, tser: Invoke, tmp_path: Path
) -> None:
    plain, table = tmp_path / "plain.csv", tmp_path / "report.csv"
    assert tser("energy", str(plain), "--run", str(run), "--images", "8")[0] == 0
    beyond = ("--conventions", "--fair-rival")
    code, out, _ = tser("energy", str(table), "--run", str(run), "--images", "8", *beyond)
    assert code == 0
    assert table.read_bytes() == plain.read_bytes()
    compared = {row["convention"]: row for row in read(tmp_path / "report_conventions.csv")}
    total = read(table)[-1]
    # The second, detailed count of any network's operations says the same as the first.
    assert float(compared["exact"]["energy_pj"]) == pytest.approx(float(total["energy_pj"]))
    assert float(compared["formula"]["energy_pj"]) == pytest.approx(
        float(total["energy_formula_pj"])
    )
    assert "activations of 2 bits" in out
    document = json.loads((tmp_path / "report.json").read_text())
    assert document["fair_rival"]["timesteps"] == 3
    _, out, _ = tser("audit", "--run", str(run), "--json")
    found = json.loads(out)["found"]["findings"]
    # One epoch leaves whole layers silent, which the audit says; nothing else is wrong with it.
    assert {one["check"] for one in found if one["severity"] == "finding"} <= {"firing"}
