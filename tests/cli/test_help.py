"""Help is quick: no --help imports torch or anything else that is heavy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

PROBE = """
import json, sys
sys.argv = ["tser", *json.loads(sys.argv[1])]
from tser_cli.cli.app import main
try:
    main()
except SystemExit as stop:
    code = stop.code
heavy = {"torch", "torchvision", "spikingjelly", "pandas", "matplotlib", "sklearn", "accelerate"}
heavy |= {"numpy", "tensorboard", "safetensors"}
print("\\n" + json.dumps([code, sorted(heavy & set(sys.modules))]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        ["train-teacher", "--help"],
        ["distill", "--help"],
        ["evaluate", "--help"],
        ["energy", "--help"],
    ],
)
def test_help_is_light(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(arguments)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout.splitlines()[-1]) == [0, []]
    assert "tser" in done.stdout
