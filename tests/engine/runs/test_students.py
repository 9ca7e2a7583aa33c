"""Packaged students: they load, are what their cards say, and are found by name as runs are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.command import Invoke
from tests.engine.conftest import SPEC
from tser_cli.base.errors import CheckpointError, RunError
from tser_cli.engine.runs import find, networks, students
from tser_cli.engine.runs.record import read_record
from tser_cli.models.base import parameter_count
from tser_cli.settings import recipe

DIGITS = next(name for name in students.available() if name.startswith("digits/"))
LARGEST = 1_000_000
NEEDS = {"fashion-mnist": Path("/usr/share/datasets/fashion-mnist")}


@pytest.mark.parametrize("name", students.available())
def test_a_student_is_what_its_card_and_the_list_say(name: str) -> None:
    run = students.packaged(name)
    content = run.model_file.read_bytes()
    assert len(content) <= LARGEST
    stored = load_file(run.model_file)
    assert {value.dtype for value in stored.values()} <= {torch.float16, torch.int64}
    loaded = networks.read_of_run(run, SPEC)  # held to the SHA-256 of status.json
    # in single precision, and not a bit of a weight is lost or gained
    read = loaded.model.state_dict()
    assert {value.dtype for value in read.values()} <= {torch.float32, torch.int64}
    assert all(torch.equal(read[key], value.to(read[key])) for key, value in stored.items())
    record, card = read_record(run), (run.folder / "README.md").read_text(encoding="utf-8")
    assert record.state == "finished" and record.result is not None
    (row,) = (row for row in students.rows() if row["name"] == name)
    assert row["size"] == len(content)
    assert row["parameters"] == parameter_count(loaded.model)
    assert (row["accuracy"], row["energy_pj"]) == (record.accuracy, record.energy_pj)
    right = record.result.per_timestep[-1]["correct_cumulative"]
    assert f"{100 * right / record.result.images:.2f} % ({right:,} of" in card
    assert loaded.sha256 in card and f"{len(content):,} bytes" in card
    assert record.settings["data.validation_fraction"] > 0
    # nothing of the machine that it was made on
    texts = [path.read_text() for path in run.folder.iterdir() if path.suffix != ".safetensors"]
    own = ("/root", "/home", "/tmp", '"host"')
    assert not [word for word in own for text in texts if word in text]


def measured(name: str, tser: Invoke, folder: Path) -> None:
    """Hold `tser energy` and `tser evaluate` by name to the card: the same images, all right."""
    source = students.packaged(name)
    before = {path: path.stat().st_mtime_ns for path in source.folder.iterdir()}
    runs_dir = folder / "runs"
    code, _, said = tser(
        "energy", folder / "report.csv", "--run", name, "--runs-dir", runs_dir, "--device", "cpu"
    )
    dataset, student = name.split("/")
    copy = runs_dir / "student" / dataset / f"packaged_{student}"
    assert (code, said) == (0, f"packaged student {name}, copied to {copy}\n")
    record = read_record(source)
    document = json.loads((folder / "report.json").read_text())
    assert document["totals"]["energy_pj"] == pytest.approx(record.energy_pj, rel=1e-9)
    arguments = ("evaluate", name, "--runs-dir", runs_dir, "--device", "cpu", "--json")
    rows = json.loads(tser(*arguments)[1])["rows"]
    assert record.result is not None
    assert [row["correct_cumulative"] for row in rows] == [
        row["correct_cumulative"] for row in record.result.per_timestep
    ]
    assert find.find_run(Path(copy.name), runs_dir).folder == copy  # from now on a run like others
    # the package may be read-only, and belongs to all
    assert {path: path.stat().st_mtime_ns for path in source.folder.iterdir()} == before


def test_the_digits_student_does_what_its_card_says(tser: Invoke, tmp_path: Path) -> None:
    measured(DIGITS, tser, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in students.available() if name != DIGITS])
def test_the_others_do_too_where_their_images_are(tser: Invoke, tmp_path: Path, name: str) -> None:
    place = NEEDS.get(name.split("/")[0])
    if place is None or not place.is_dir():
        pytest.skip("its images are not here")
    measured(name, tser, tmp_path)


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A copy of the packaged digits student that can be changed, the only one there is."""
    folder = tmp_path / "recipes"
    dataset, student = DIGITS.split("/")
    place = folder / dataset / "students" / student
    shutil.copytree(students.packaged(DIGITS).folder, place)
    monkeypatch.setattr(recipe, "recipes_dir", lambda: folder)
    return place


@pytest.mark.parametrize("cut", [slice(-1), slice(8), slice(0)])
def test_damaged_weights_are_refused_and_not_copied(
    recipes: Path, tmp_path: Path, cut: slice
) -> None:
    path = recipes / "model.safetensors"
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(CheckpointError, match=r"SHA-256 is not .*Install tser-cli again"):
        find.find_run(Path(DIGITS), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_copy_is_kept_and_one_of_another_version_is_told(
    recipes: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = find.find_run(Path(DIGITS), tmp_path)
    assert recipe.available() == []  # its settings are no recipe
    status = json.loads((recipes / "status.json").read_text())
    (recipes / "status.json").write_text(json.dumps({**status, "sha256": "0" * 64}))
    assert find.find_run(Path(DIGITS), tmp_path) == copy
    assert "another version of the packaged" in caplog.text


def test_a_run_of_yours_is_never_taken_for_a_packaged_student(tmp_path: Path) -> None:
    student = DIGITS.split("/")[1]
    own = tmp_path / "student" / "digits" / f"{student}_T2_tser_s0"
    own.mkdir(parents=True)
    (own / "status.json").write_text('{"state": "finished"}')
    find.find_run(Path(DIGITS), tmp_path)
    assert find.find_run(Path(student), tmp_path).folder == own
    assert find.run_or_name(DIGITS, tmp_path).endswith(f"packaged_{student}")
    assert find.run_or_name(DIGITS, tmp_path, "teacher") == DIGITS


@pytest.mark.parametrize("named", [f"{DIGITS}x", "cifar10/nothing", "nothing"])
def test_a_name_that_neither_a_run_nor_a_student_has(tmp_path: Path, named: str) -> None:
    with pytest.raises(RunError, match="tser list students") as error:
        find.find_run(Path(named), tmp_path)
    assert ("did you mean" in str(error.value)) is named.startswith(DIGITS)
    assert list(tmp_path.iterdir()) == []
