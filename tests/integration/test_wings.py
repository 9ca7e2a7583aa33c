"""A wing can be taken off: a copy of the package without any of them distils and measures."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tser_cli
from tests.test_house import WINGS
from tser_cli.settings.recipe import recipes_dir

PACKAGE = Path(tser_cli.__file__).parent
VERBS_OF_WINGS = {
    *("ablate", "audit", "compare", "doctor", "export", "predict", "quantize", "report", "runs"),
}
VERBS_OF_THE_TRUNK = {"train-teacher", "distill", "evaluate", "energy"}
# In one process, which imports torch once.
COMMANDS = """
import json, re, sys
from contextlib import redirect_stdout
from io import StringIO
from tser_cli.cli import app

def call(*words):
    sys.argv, said = ["tser", *words], StringIO()
    with redirect_stdout(said):
        try:
            app.main()
        except SystemExit as stop:
            assert not stop.code, (words, stop.code)
    return said.getvalue()

small = ("--dataset", "npz", "--data-dir", "few.npz", "--epochs", "1", "--batch-size", "20")
call("train-teacher", "resnet20", *small)
call("distill", "--teacher", "resnet20", "--student", "resnet20", "-T", "1", *small)
seen = {"evaluate": call("evaluate"), "energy": call("energy", "report.csv")}
verbs = re.findall("^\\W ([a-z][a-z-]*)  ", call("--help"), re.MULTILINE)
print(json.dumps({**seen, "verbs": verbs}))
"""


@pytest.mark.integration
def test_without_its_wings_the_trunk_distils_and_measures(tmp_path: Path) -> None:
    shutil.copytree(PACKAGE, tmp_path / "tser_cli")
    if not (tmp_path / "tser_cli" / "recipes").is_dir():
        shutil.copytree(recipes_dir(), tmp_path / "recipes")
    draw = np.random.default_rng(0)
    images, labels = draw.integers(0, 256, (40, 8, 8), np.uint8), np.arange(40) % 2
    few = {"train_images": images, "train_labels": labels}
    np.savez(tmp_path / "few.npz", **few, test_images=images[:20], test_labels=labels[:20])
    for wing in WINGS:
        path = tmp_path / "tser_cli" / wing
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert "test images right" in seen["evaluate"]
    assert "an image" in seen["energy"]
    assert (tmp_path / "report.csv").stat().st_size > 100
    assert set(seen["verbs"]) >= VERBS_OF_THE_TRUNK
    assert set(seen["verbs"]) & VERBS_OF_WINGS == set()
