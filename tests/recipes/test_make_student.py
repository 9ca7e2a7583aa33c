"""The script that packages a student, on a student that it has packaged: nothing may change."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from tser_cli.engine.runs import students
from tser_cli.settings.recipe import recipes_dir

NAME = next(name for name in students.available() if name.startswith("digits/"))


@pytest.mark.slow
def test_a_packaged_student_is_packaged_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = importlib.util.spec_from_file_location("make", recipes_dir() / "make_student.py")
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    monkeypatch.setattr(script, "RECIPES", tmp_path)
    # its teacher is not here: accuracies and energies are its own
    monkeypatch.setattr(script.teachers, "read_run_teacher", lambda run, spec: None)
    before = students.packaged(NAME).folder
    script.main([str(before), NAME, "--chosen", "It was there."])
    made = tmp_path / "digits" / "students" / NAME.split("/")[1]
    assert {path.name for path in made.iterdir()} == {path.name for path in before.iterdir()}
    for name in ("model.safetensors", "config.toml", "environment.json"):
        assert (made / name).read_bytes() == (before / name).read_bytes(), name
    was, now = (json.loads((place / "status.json").read_text()) for place in (before, made))
    same = ("accuracy", "images", "energy_pj", "best_validation_accuracy", "seconds")
    assert [now["result"][key] for key in same] == [was["result"][key] for key in same]
    assert now["sha256"] == was["sha256"]
    assert "It was there. No test image selected anything." in (made / "README.md").read_text()
