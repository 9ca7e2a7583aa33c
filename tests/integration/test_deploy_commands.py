"""`tser export`, `tser quantize` and `tser predict` on a student of digits, by the command line."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.command import Invoke, call
from tser_cli.data.builtin import digits
from tser_cli.export import formats, verify
from tser_cli.settings.config import DataConfig

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("deploy")]

RECIPE = """
[training]
epochs = {epochs}
batch_size = 96
tensorboard = false
[optimizer]
lr = 0.05
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder with a student of a few epochs, and its teacher of one."""
    folder = tmp_path_factory.mktemp("deploy")
    for name, epochs in (("teacher", 1), ("student", 2)):
        (folder / f"{name}.toml").write_text(RECIPE.format(epochs=epochs))
    arguments = [
        *("--recipe", folder / "student.toml", "--runs-dir", folder / "runs"),
        *("--teacher", "resnet20", "--student", "resnet20", "-T", "3"),
        *("--set", f"model.teacher_recipe={folder / 'teacher.toml'}"),
    ]
    assert call("distill", *arguments) == 0
    return folder / "runs"


@pytest.fixture(scope="module")
def student(runs: Path) -> Path:
    (found,) = (runs / "student" / "digits").glob("resnet20_T3_tser_s0_*")
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four test images of digits as files, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "sub").mkdir()
    test = digits(DataConfig()).test
    for index, name in enumerate(("a.png", "b.png", "c.png", "sub/d.png")):
        Image.fromarray(test.image(index)[0].numpy()).save(folder / name)
    return folder


@pytest.mark.parametrize(
    ("format_name", "processes"),
    [
        ("onnx", True),
        ("safetensors", False),
        ("nir", False),  # the imports of its programs take long
        pytest.param("safetensors", True, marks=pytest.mark.slow),
        pytest.param("nir", True, marks=pytest.mark.slow),
    ],
)
def test_export_writes_a_file_its_checks_and_a_card(
    tser: Invoke,
    runs: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    format_name: str,
    processes: bool,
) -> None:
    if not processes:
        request.getfixturevalue("in_process")
    path = tmp_path / "out" / f"student.{format_name}"
    code, out, err = tser(
        *("export", path, "--runs-dir", runs, "--images", 4),
    )
    assert code == 0, err
    assert str(path) in out
    document = json.loads((path.parent / f"{path.name}.verified.json").read_text())
    assert document["verified"] is True
    libraries = [check["library"] for check in document["checks"]]
    assert libraries == [target.library for target in verify.TARGETS[format_name]]
    assert all(check["holds"] and check["images"] == 4 for check in document["checks"])
    card = (path.parent / f"{path.name}.md").read_text()
    assert "# resnet20 on digits" in card
    assert "| 3 | " in card
    assert "horowitz-45nm-fp32" in card
    # of the verdict, of the energy, and of the same operations in floating point
    units = re.findall(r" (\S?J) an image", card)
    assert (len(units), len(set(units))) == (3, 1)


def test_without_the_check_it_is_recorded_that_there_was_none(
    tser: Invoke, runs: Path, tmp_path: Path
) -> None:
    path = tmp_path / "student.onnx"
    (tmp_path / "README.md").write_text("mine")
    code, out, _ = tser(
        *("export", "--format", "onnx", "--output", path, "--runs-dir", runs, "--no-verify")
    )
    assert code == 0
    assert "not verified" in out
    document = json.loads((tmp_path / "student.onnx.verified.json").read_text())
    assert (document["verified"], document["why_not"]) == (False, "--no-verify")
    assert (tmp_path / "README.md").read_text() == "mine"
    assert "Not checked" in (tmp_path / "student.onnx.md").read_text()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("format_name", ["onnx", "safetensors", "nir"])
def test_a_run_whose_name_is_no_utf_8(
    tser: Invoke, student: Path, tmp_path: Path, format_name: str
) -> None:
    run, path = tmp_path / "x\udcff", tmp_path / f"model.{format_name}"
    shutil.copytree(student, run)
    code, _, said = tser("export", run, path, "--no-verify")
    assert code == 0, said
    assert b"udcff" in path.read_bytes()  # as an escape


def test_a_file_that_fails_its_check_is_not_written(
    tser: Invoke, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a time step of another length is another leak in the reader
    monkeypatch.setattr(formats, "DT", 1.5e-4)
    monkeypatch.setitem(verify.TARGETS, "nir", verify.TARGETS["nir"][:1])
    path = tmp_path / "student.nir"
    code, out, _ = tser("export", "--format", "nir", "--output", path, "--runs-dir", runs)
    assert code == 4
    assert "was not written" in out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("export x", "x: give --format, one of nir, onnx, safetensors"),
        ("export", "name a file, and before it or by --run a run"),
        ("export a b x.onnx", "name a file, and before it or by --run a run"),
        ("export a x.onnx --run b", "name a file, and before it or by --run a run"),
        ("evaluate latest --run latest", "latest and --run latest: name one run"),
        ("predict latest", "latest is a run: name images after it"),
        ("export --output x --format onx", 'unknown format "onx"'),
        ("export --output x --format nir --stateful", "--stateful belongs to --format onnx"),
        ("export --output x --format onnx --images 0", "at least one image"),
        ("export --output x --format onnx --run nowhere", "nowhere"),
        ("export --output . --format onnx", "is a folder"),
        ("export --output x --format onnx --potentials integer", "tser quantize"),
        ("predict --threshold 1.5 x.png", "--threshold 1.5"),
        ("predict student.onnx x.png", "student.onnx: this is an ONNX file; tser writes ONNX and"),
        ("predict --run student.nir x.png", "this is a NIR file; tser writes NIR and does not"),
        ("evaluate --run student.nir", "this is a NIR file; tser writes NIR and does not read it"),
        ("predict nowhere also-nowhere", "nowhere: there is no such file or folder"),
        ("quantize --bits 3", "--bits 3: weights can have 8 or 4 bits"),
        ("quantize --images 1", "calibration needs at least two images"),
    ],
)
def test_bad_input_is_told_in_one_message(
    tser: Invoke,
    runs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = tser(*arguments.split(), "--runs-dir", runs)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_told_with_the_pip_line(
    tser: Invoke, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "student.nir"
    asked = ("export", "--format", "nir", "--output", path, "--runs-dir", runs)
    for missing, offered in (("nir", False), ("snntorch", True)):
        monkeypatch.setattr(
            verify, "_version", lambda name, gone=missing: None if name == gone else "1"
        )
        monkeypatch.setitem(sys.modules, missing, None)
        code, _, err = tser(*asked)
        assert code == 2
        assert "pip install 'tser-cli[nir]'" in err
        assert ("--no-verify" in err) is offered
        monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "snntorch", None)
    assert tser(*asked, "--no-verify")[0] == 0 and path.exists()


def test_an_unfinished_run_and_a_teacher_are_refused(
    tser: Invoke, runs: Path, tmp_path: Path
) -> None:
    (teacher,) = (runs / "teacher" / "digits").iterdir()
    code, _, err = tser("export", "--format", "onnx", "--output", tmp_path / "x", "--run", teacher)
    assert code == 2
    assert "is an ANN" in err
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "status.json").write_text('{"state": "running", "kind": "student"}')
    (unfinished / "config.toml").write_text("")
    code, _, err = tser(
        "export", "--format", "onnx", "--output", tmp_path / "x", "--run", unfinished
    )
    assert code == 2
    assert "running, not finished" in err


def test_predict_answers_each_image(tser: Invoke, runs: Path, pictures: Path) -> None:
    answers = json.loads(tser("predict", pictures, "--runs-dir", runs, "--json")[1])
    assert [Path(answer["image"]).name for answer in answers] == [f"{n}.png" for n in "abcd"]
    for answer in answers:
        assert len(answer["confidence"]) == 3 and answer["name"] in "0123456789"
        assert 1 <= answer["stop_t"] <= 3
        assert answer["sop_value"] > 0 and answer["macs"] > 0


def test_the_run_comes_first_or_by_its_flag(
    tser: Invoke, runs: Path, student: Path, pictures: Path, tmp_path: Path
) -> None:
    teacher = next((runs / "teacher" / "digits").iterdir())
    shared, page = ("--runs-dir", runs), tmp_path / "page.html"
    pages = ("--output", page, "--no-measure", *shared)
    for named in ((teacher.name,), ("--run", teacher)):
        assert json.loads(tser("evaluate", *named, *shared, "--json")[1])["name"] == teacher.name
        assert tser("report", *named, *pages)[0] == 0
        assert teacher.name in page.read_text()
        assert "is a teacher" in tser("quantize", *named, *shared)[2]
        assert teacher.name in tser("audit", *named, *shared, "--json")[1]
    picture, said = pictures / "a.png", []
    for words in ((student, picture), (student.name[:19], picture), (picture, "--run", student)):
        said.append(tser("predict", *words, *shared)[1])
    assert said[0] == said[1] == said[2] != ""
    # one step alone: a teacher's
    one = tser("predict", teacher.name, picture, *shared, "--json")[1]
    assert len(json.loads(one)[0]["confidence"]) == 1


def test_predict_names_what_it_can_t_read_and_goes_on(
    tser: Invoke, runs: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    names = f"{pictures / 'a.png'}\n{broken}\n\n{pictures / 'b.png'}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(names))
    table = tmp_path / "predictions.csv"
    code, out, err = tser("predict", "-", "--runs-dir", runs, "--output", table)
    assert code == 1
    assert "broken.png can't be read" in err
    assert out.count("confidence") == 2
    with table.open() as stream:
        rows = list(csv.DictReader(stream))
    assert [bool(row["error"]) for row in rows] == [False, True, False]
    assert rows[1]["class"] == ""
    assert float(rows[0]["confidence_3"]) > 0


def test_an_image_s_operations_are_those_of_the_whole_test_set_in_the_mean(
    tser: Invoke, runs: Path, student: Path, tmp_path: Path
) -> None:
    test = digits(DataConfig()).test
    for index in range(len(test)):
        Image.fromarray(test.image(index)[0].numpy()).save(tmp_path / f"{index:03}.png")
    answers = json.loads(tser("predict", tmp_path, "--runs-dir", runs, "--json")[1])
    totals = json.loads((student / "energy.json").read_text())["totals"]
    assert np.mean([answer["sop_value"] for answer in answers]) == pytest.approx(
        totals["sop_value"], rel=1e-4
    )
    assert answers[0]["macs"] == totals["macs"]


@pytest.fixture(scope="module")
def quantised(runs: Path, student: Path) -> Path:
    """The student with weights of 8 bits: a run of its own."""
    assert call("quantize", "--run", student, "--runs-dir", runs) == 0
    (found,) = (runs / "student" / "digits").glob("resnet20_T3_tser_w8_s0_*")
    return found


@pytest.mark.parametrize("taught", [True, False])
def test_quantize_does_without_a_teacher_that_can_t_be_read_or_never_was(
    tser: Invoke, student: Path, tmp_path: Path, taught: bool
) -> None:
    parent = shutil.copytree(student, tmp_path / "parent")
    environment = json.loads((parent / "environment.json").read_text())
    environment["teacher"]["model"] = "theirs:build"
    if not taught:
        del environment["teacher"]
    (parent / "environment.json").write_text(json.dumps(environment))
    code, _, err = tser("quantize", "--run", parent, "--runs-dir", tmp_path / "runs")
    assert code == 0, err
    assert ("the teacher's accuracy and energy are left out" in err) is taught
    assert ("theirs:build, code that a run never" in err) is taught
    (made,) = (tmp_path / "runs" / "student" / "digits").iterdir()
    found = json.loads((made / "environment.json").read_text())
    assert found.get("teacher") == environment.get("teacher")
    assert json.loads((made / "status.json").read_text())["result"]["teacher_accuracy"] is None


def test_each_export_keeps_its_card(
    tser: Invoke, runs: Path, student: Path, tmp_path: Path
) -> None:
    path, shared = tmp_path / "a.safetensors", ("--runs-dir", runs, "--no-verify")
    # the run by name before the file, by its flag, and the file by its own
    for named in ((student.name, path), (path, "--run", student), (student, "--output", path)):
        assert tser("export", *named, *shared)[0] == 0
        assert "`a.safetensors` (safetensors) holds" in (tmp_path / f"{path.name}.md").read_text()
    assert tser("export", tmp_path / "b", "--format", "safetensors", *shared)[0] == 0
    names = [f"{name}{end}" for name in (path.name, "b") for end in ("", ".md", ".verified.json")]
    assert {found.name for found in tmp_path.iterdir()} == set(names)


def damage(path: Path, how: str) -> None:
    path.unlink(missing_ok=True)
    if how == "folder":
        path.mkdir()
    elif how == "pipe":
        os.mkfifo(path)
    elif how != "gone":
        path.write_text(how)


@pytest.mark.parametrize(
    ("name", "how", "said"),
    [
        ("energy.json", "[", "energy.json can't be read"),
        ("energy.json", "pipe", "energy.json can't be read: it is no regular file"),
        ("energy.json", '{"profile": {"name": "x"}, "totals": {}}', "energy.json is damaged"),
        ("energy.json", "gone", ""),
        ("per_timestep.csv", "folder", ""),
        ("out/x.safetensors.md", "folder", "x.safetensors.md is no model card of x.safetensors"),
        ("out/x.safetensors.md", "mine", "which would go there: move it"),
        ("out/x.safetensors.verified.json", "folder", "verified.json"),
    ],
)
def test_an_export_is_whole_or_nothing(
    tser: Invoke, student: Path, tmp_path: Path, name: str, how: str, said: str
) -> None:
    run = shutil.copytree(student, tmp_path / "run")
    (run / "out").mkdir()
    damage(run / name, how)
    there = {path.name for path in (run / "out").iterdir()}
    path = run / "out" / "x.safetensors"
    shared = ("--run", run, "--format", "safetensors", "--output", path, "--no-verify")
    code, _, err = tser("export", *shared)
    made = {found.name for found in (run / "out").iterdir()} - there
    if said:
        assert (code, made) == (2, set()), err
        assert said in err
        return
    assert code == 0, err
    card = f"{path.name}.md"
    assert made == {path.name, f"{path.name}.verified.json", card}
    text = (run / "out" / card).read_text()
    assert ("## Energy\n\nNot measured" in text) is (name == "energy.json")
    assert "Not measured: the run recorded no result" not in text


def test_quantize_makes_a_run_that_names_its_parent(student: Path, quantised: Path) -> None:
    environment = json.loads((quantised / "environment.json").read_text())
    assert environment["parent"]["run"] == str(student.resolve())
    before = json.loads((student / "status.json").read_text())
    assert environment["parent"]["sha256"] == before["sha256"]
    status = json.loads((quantised / "status.json").read_text())
    assert status["state"] == "finished"
    result, old = status["result"], before["result"]
    assert result["teacher_accuracy"] == old["teacher_accuracy"]
    # on 360 images of a student of two epochs, a few answers change
    assert abs(result["accuracy"] - old["accuracy"]) < 0.1
    energy = json.loads((quantised / "energy.json").read_text())
    assert energy["profile"]["name"] == "horowitz-45nm-int8"


@pytest.mark.usefixtures("in_process")
def test_a_quantised_student_is_evaluated_exported_and_quantised_no_further(
    tser: Invoke, quantised: Path, tmp_path: Path
) -> None:
    before = (quantised / "per_timestep.csv").read_text()
    code, out, err = tser("evaluate", "--run", quantised, "--device", "cpu")
    assert (code, (quantised / "per_timestep.csv").read_text()) == (0, before), err
    path = tmp_path / "student.onnx"
    code, out, err = tser("export", "--run", quantised, "--format", "onnx", "--output", path)
    assert code == 0, out + err
    assert "in 32-bit floating point" in (tmp_path / "student.onnx.md").read_text()
    table = tmp_path / "energy.csv"
    code, out, err = tser("energy", table, "--run", quantised)
    assert code == 0, err
    assert "The same operations in 32-bit floating point: " in out
    assert json.loads(table.with_suffix(".json").read_text()) == {
        **json.loads((quantised / "energy.json").read_text()),
        "run": quantised.name,
    }
    assert tser("evaluate", "--run", quantised, "--early-exit", "0.9", "--device", "cpu")[0] == 0
    assert "horowitz-45nm-int8" in (quantised / "early_exit.csv").read_text()
    code, _, err = tser("quantize", "--run", quantised, "--bits", 4)
    assert code == 2
    assert "8 bits already" in err


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("stateful", [(), ("--stateful",)])
def test_integer_potentials_are_exported_and_their_difference_is_told(
    tser: Invoke, quantised: Path, tmp_path: Path, stateful: tuple[str, ...]
) -> None:
    path = tmp_path / "student.onnx"
    asked = ("export", "--run", quantised, "--format", "onnx", "--output", path)
    code, out, err = tser(*asked, "--potentials", "integer", *stateful)
    assert code == 0, out + err
    assert "integer potentials: against the student's own potentials, " in out
    document = json.loads((tmp_path / "student.onnx.verified.json").read_text())
    assert document["potentials"] == "integer"
    assert document["checks"][0]["differing_spikes"] == 0
    found = document["against_float_potentials"]
    assert found["images"] == 16
    # one near the threshold changes all that follows in its image
    assert found["differing"] <= 0.02 * found["values"]
    assert found["predictions_differing"] == 0
    card = (tmp_path / "student.onnx.md").read_text()
    assert "they are not the student's own numbers. Against" in card
    assert ">> rounds down" in card


def test_a_student_is_trained_with_integer_weights(tser: Invoke, runs: Path) -> None:
    code, _, err = tser(
        *("distill", "--recipe", runs.parent / "teacher.toml", "--runs-dir", runs),
        *("--teacher", "resnet20", "--student", "resnet20", "-T", "1"),
        *("--set", "model.weight_bits=4"),
    )
    assert code == 0, err
    assert len(list((runs / "student" / "digits").glob("resnet20_T1_tser_w4_s0_*"))) == 1


LOADED = """
import sys
from tser_cli.cli import app

for argv, never in {commands!r}:
    sys.argv = ["tser", *argv]
    try:
        app.main()
    except SystemExit as stop:
        assert stop.code in (None, 0, 4), argv  # 4: the audit found something
    assert not never & sys.modules.keys(), (argv, never & sys.modules.keys())
"""


def test_commands_load_no_more_than_they_use(student: Path, pictures: Path, tmp_path: Path) -> None:
    # each takes half a second to a second: torch's compiler and its algebra, tables, figures
    slow = {"torch._dynamo", "sympy", "pandas", "matplotlib"}
    run, runs = ["--run", str(student)], ["--runs-dir", str(student.parents[2])]
    commands = [
        (["list", "models"], slow | {"torch"}),
        (["runs", *runs], slow | {"torch"}),
        (["predict", *run, str(pictures / "a.png")], slow),
        (["audit", *run], slow),
        (["evaluate", *run, "--output", str(tmp_path / "evaluated.csv")], slow),
        (["energy", str(tmp_path / "energy.csv"), *run], slow),
    ]
    program = [sys.executable, "-c", LOADED.format(commands=commands)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
