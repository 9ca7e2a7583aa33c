"""`tser list` and `tser methods`: all that can be named, plug-ins' names among it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tser_cli.energy.prices import PROFILES
from tser_cli.report import lists
from tser_cli.settings import recipe, registry

PLUGIN = """
from tser_cli.settings.registry import add_dataset, add_model

@add_model("mynet", spiking_only=True)
def build(how):
    raise RuntimeError("a list builds nothing")

@add_dataset("mydata", own_images=True)
def load(config):
    raise RuntimeError("a list loads nothing")
"""


def tser(*words: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tser_cli", *words]
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.parametrize(
    ("what", "known"),
    [
        ("methods", registry.METHODS),
        ("models", registry.MODELS),
        ("datasets", registry.DATASETS),
        ("recipes", recipe.available()),
    ],
)
def test_all_names_are_listed(what: str, known: list[str]) -> None:
    assert [row["name"] for row in lists.ROWS[what]()] == list(known)


def test_what_a_list_says() -> None:
    every = [*(make() for make in lists.ROWS.values()), lists.profiles(PROFILES.values())]
    rows = {row["name"]: row for rows in every for row in rows}
    assert rows["sew_resnet18"]["as"] == "SNN"
    assert rows["vgg11"]["as"] == "ANN, SNN"
    assert rows["npz"]["images"] == "your own, in --data-dir"
    assert rows["cifar10"]["student recipe"] == "cifar10/resnet18_tser"
    assert (rows["loihi"]["MAC pJ"], rows["loihi"]["AC pJ"]) == (23.6, 23.6)
    assert rows["dkd"]["weights"]["entropy_weight"] == 0.0
    assert rows["fashion-mnist/resnet20_teacher"]["about"].startswith("A small teacher for a CPU.")
    assert not any("command:" in row["about"] for row in lists.recipes())


def test_profiles_are_listed() -> None:
    rows = json.loads(tser("list", "profiles", "--json").stdout)
    assert [row["name"] for row in rows] == list(PROFILES)


def test_names_of_plug_ins_are_listed(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(PLUGIN)
    models = tser("list", "models", "--plugin", "mine.py", folder=tmp_path)
    assert [line.split() for line in models.stdout.splitlines()][-2] == ["mynet", "SNN", "mine"]
    datasets = tser("list", "datasets", "--plugin", "mine.py", "--json", folder=tmp_path)
    found = {row["name"]: row for row in json.loads(datasets.stdout)}
    assert found["mydata"]["images"] == "your own, in --data-dir"
    assert found["mydata"]["from"] == "mine"
    assert "mynet" not in tser("list", "models", folder=tmp_path).stdout


def test_a_list_that_is_none() -> None:
    done = tser("list", "modls")
    assert (done.returncode, done.stdout) == (2, "")
    assert 'unknown list "modls" (did you mean "models"?). Known: datasets, methods' in done.stderr


def test_methods_go_on_working() -> None:
    assert tser("methods").stdout == tser("list", "methods").stdout
    rows = json.loads(tser("methods", "--json").stdout)
    assert [row["name"] for row in rows] == list(registry.METHODS)
