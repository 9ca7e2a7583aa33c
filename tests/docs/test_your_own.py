"""The examples of docs/your-own.md, run as they stand but for one epoch and few images."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path

import pytest

from tests.command import call
from tser_cli.base.files import read_json

PAGE = Path(__file__).parents[2] / "docs" / "your-own.md"

pytestmark = [
    pytest.mark.integration,
    pytest.mark.usefixtures("nothing_added", "few_digits"),
    pytest.mark.skipif(not PAGE.is_file(), reason="docs/ is only in a checkout"),
]


def blocks(heading: str) -> list[tuple[str, str]]:
    """The language and the text of each block of code below a heading, up to the next."""
    _, _, section = PAGE.read_text(encoding="utf-8").partition(f"{heading}\n")
    assert section, f"{PAGE} has no {heading}"
    section = re.split(r"^#", section, maxsplit=1, flags=re.M)[0]
    return re.findall(r"^```(\w+)\n(.*?)^```", section, flags=re.M | re.S)


def run(heading: str, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Run what is below a heading, in `folder`."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TSER_DATA_WORKERS", "0")
    found = blocks(heading)
    assert {language for language, _ in found} >= {"python", "console"}
    for language, text in found:
        if language == "python":
            few = text.replace(":1400", ":240").replace("1400:", "240:300")
            few = few.replace("zip(digits.images, ", "zip(digits.images[:240], ")
            exec(compile(few, heading, "exec"), {})
        if language != "console":
            continue
        for line in text.splitlines():
            program, *arguments = shlex.split(line.replace("--epochs 6", "--epochs 1"))
            assert (program, call(*arguments)) == ("tser", 0), line


def student(folder: Path) -> tuple[Path, dict[str, object]]:
    """The student's run folder and its settings of [data]."""
    (status,) = folder.glob("runs/student/*/*/status.json")
    assert read_json(status)["state"] == "finished"
    config = tomllib.loads((status.parent / "config.toml").read_text(encoding="utf-8"))
    return status.parent, config["data"]


def test_one_numpy_file(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("### One NumPy file", monkeypatch, tmp_path)
    run_folder, data = student(tmp_path)
    assert data["mean"] == pytest.approx([0.305], abs=0.01)
    assert read_json(run_folder / "status.json")["result"]["images"] == 60
    assert not (run_folder / "split.json").exists()


def test_a_method(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "240")
    run("## Your method", monkeypatch, tmp_path)
    run_folder, _ = student(tmp_path)
    assert "consistency" in run_folder.name
    header = (run_folder / "metrics.csv").read_text().splitlines()[0]
    assert "spread,rate" in header
    assert (run_folder / "code" / "consistency.py").is_file()
    assert "ts, steps drawn towards their mean, spikes charged for" in capsys.readouterr().out


def test_a_network(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("## Your network", monkeypatch, tmp_path)
    run_folder, _ = student(tmp_path)
    assert run_folder.name.startswith("mynet_T3")
    assert "module.conv2,conv,spikes,AC" in (tmp_path / "energy.csv").read_text()


def test_a_data_set(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("## Your data set", monkeypatch, tmp_path)
    run_folder, _ = student(tmp_path)
    assert run_folder.parent.name == "stripes"
    assert read_json(run_folder / "status.json")["result"]["images"] == 200
    # a teacher was found, not trained again
    assert len(list(tmp_path.glob("runs/teacher/stripes/*"))) == 1


def test_a_teacher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("## Your teacher", monkeypatch, tmp_path)
    run_folder, _ = student(tmp_path)
    settings = tomllib.loads((run_folder / "config.toml").read_text())["model"]
    assert settings["teacher"] == "theirs:build"
    assert settings["teacher_weights"] == str(tmp_path / "theirs.pt")
    assert not list(tmp_path.glob("runs/teacher/*/*"))


def test_a_folder_of_image_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("### A folder of image files", monkeypatch, tmp_path)
    run_folder, data = student(tmp_path)
    assert (data["size"], data["channels"]) == (8, 1)
    assert len(data["mean"]) == len(data["std"]) == 1  # type: ignore[arg-type]
    listed = read_json(run_folder / "split.json")["test_images"]
    assert len(listed) == read_json(run_folder / "status.json")["result"]["images"] == 48
    # a teacher was found, not trained again
    assert len(list(tmp_path.glob("runs/teacher/*/*"))) == 1
    # images that came move others: the run is not evaluated on what it may have learned from
    (tmp_path / listed[0].replace("digit-", "digits/digit-")).rename(tmp_path / "away.png")
    capsys.readouterr()
    assert call("evaluate") == 2
    assert "test images (split.json) would now be others" in capsys.readouterr().err
