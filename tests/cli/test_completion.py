"""Completion of names in the shell, those of plug-ins among them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = """
from tser_cli.settings.registry import add_dataset, add_model

@add_model("mynet")
def build(build): return build

@add_dataset("mydata")
def load(config): return config
"""


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("tser distill --plugin names_to_complete --student my", "mynet"),
        ("tser distill --plugin names_to_complete --teacher my", "mynet"),
        ("tser distill --plugin names_to_complete --dataset my", "mydata"),
        ("tser train-teacher --plugin names_to_complete my", "mynet"),
        ("tser ablate --plugin names_to_complete --teacher my", "mynet"),
        ("tser distill --plugin no_such_plug_in --method ts", "tsd"),
        ("tser distill --method dk", "dkd"),
    ],
)
def test_names_are_completed(tmp_path: Path, line: str, found: str) -> None:
    (tmp_path / "names_to_complete.py").write_text(PLUGIN)
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1)}
    done = subprocess.run(
        [
            sys.executable,
            "-P",
            "-c",
            "import sys; sys.argv[0] = 'tser'; from tser_cli.cli.app import main; main()",
        ],
        env={**os.environ, **asked, "_TSER_COMPLETE": "complete_bash"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert found in done.stdout.split(), done.stderr
