"""The environment and the arguments, checked before any work."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.cli import app
from tser_cli.cli.surroundings import (
    BACKENDS,
    BLOCK_MS,
    SPINS,
    check_arguments,
    check_environment,
    forget_odd_width,
    wait_briefly,
)

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: it must be a whole number"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is set without WORLD_SIZE, RANK"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1: it must be a whole number"),
        ({**TORCHRUN, "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"TERMINAL_WIDTH": "wide"}, "TERMINAL_WIDTH=wide: it must be a number"),
        ({"MPLBACKEND": "bogus"}, "MPLBACKEND=bogus is no backend of matplotlib"),
    ],
)
def test_variables_that_no_command_can_work_with(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    said: str,
) -> None:
    with pytest.raises(ConfigError, match=said):
        check_environment(changes)
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tser", "methods"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


@pytest.mark.parametrize(
    "environment", [{}, TORCHRUN, {"WORLD_SIZE": "1"}, {"RANK": ""}, {"MPLBACKEND": "Agg"}]
)
def test_variables_that_commands_work_with(environment: dict[str, str]) -> None:
    check_environment(environment)


@pytest.mark.parametrize(
    ("columns", "kept"), [("0", False), ("20", False), ("x", False), ("99999", False), ("80", True)]
)
def test_widths_that_no_text_fits_are_forgotten(columns: str, kept: bool) -> None:
    environment = {"COLUMNS": columns}
    forget_odd_width(environment)
    assert ("COLUMNS" in environment) == kept


@pytest.mark.parametrize(
    ("stated", "added"),
    [
        ({}, {"GOMP_SPINCOUNT": SPINS, "KMP_BLOCKTIME": BLOCK_MS}),
        ({"OMP_WAIT_POLICY": "active"}, {}),
        ({"GOMP_SPINCOUNT": "5"}, {"KMP_BLOCKTIME": BLOCK_MS}),
        ({"KMP_BLOCKTIME": "infinite"}, {"GOMP_SPINCOUNT": SPINS}),
        ({"KMP_LIBRARY": "turnaround"}, {"GOMP_SPINCOUNT": SPINS}),
    ],
)
def test_threads_wait_briefly_unless_the_user_says_how(
    stated: dict[str, str], added: dict[str, str]
) -> None:
    environment = dict(stated)
    wait_briefly(environment)
    assert environment == {**stated, **added}


@pytest.mark.skipif(sys.platform != "linux", reason="torch has GNU's OpenMP on Linux alone")
def test_torch_s_threads_hear_of_it() -> None:
    program = (
        "import sys\n"
        "from tser_cli.cli import app\n"
        "sys.argv = ['tser', '--version']\n"
        "try: app.main()\n"
        "except SystemExit: import torch\n"
    )
    waiting = ("GOMP_", "KMP_", "OMP_WAIT_POLICY")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(waiting)}
    environment["OMP_DISPLAY_ENV"] = "verbose"
    told = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    ).stderr
    assert f"GOMP_SPINCOUNT = '{SPINS}'" in told or "OPENMP DISPLAY" not in told.upper()


def test_the_backends_are_matplotlib_s() -> None:
    from matplotlib.backends.registry import backend_registry

    assert set(map(str.lower, backend_registry.list_builtin())) <= BACKENDS


def test_an_argument_too_long_to_be_a_value() -> None:
    with pytest.raises(ConfigError, match=r"argument 2 .* has 100,000 characters") as told:
        check_arguments(["tser", "distill", "x" * 100_000])
    assert len(str(told.value)) < 200
    check_arguments(["tser", "distill", "--vary", "lr=" + ",".join(["0.1"] * 1000)])
