"""What a command is started with, and errors: one message on standard error, no traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.command import Invoke
from tser_cli.base.errors import ConfigError
from tser_cli.cli import app
from tser_cli.cli.app import BLOCK_MS, SPINS

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"WORLD_SIZE": "abc"}, "WORLD_SIZE=abc: it must be a whole number"),
        ({"LOCAL_RANK": "0"}, "LOCAL_RANK is set without WORLD_SIZE, RANK"),
        ({**TORCHRUN, "RANK": "-1"}, "RANK=-1: it must be a whole number"),
        ({**TORCHRUN, "RANK": "2"}, "RANK=2 is not below WORLD_SIZE=2"),
        ({"TERMINAL_WIDTH": "wide"}, "TERMINAL_WIDTH=wide: it must be a number"),
    ],
)
def test_variables_that_no_command_can_work_with(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, str],
    said: str,
) -> None:
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["tser", "list", "models"])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said}")


def test_variables_that_commands_work_with() -> None:
    for environment in ({}, TORCHRUN, {"WORLD_SIZE": "1"}, {"RANK": ""}):
        app.check_environment(environment)


def test_variables_that_would_only_disturb_are_dropped() -> None:
    for columns in ("0", "20", "x", "99999", "80"):
        environment = {"COLUMNS": columns, "MPLBACKEND": "bogus"}
        app.prepare_environment(environment)
        assert ("COLUMNS" in environment) == (columns == "80")
        assert "MPLBACKEND" not in environment


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
    app.wait_briefly(environment)
    assert environment == {**stated, **added}


@pytest.mark.slow
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


def test_train_is_two_commands() -> None:
    with pytest.raises(ConfigError, match=r"tser train-teacher .* tser distill"):
        app.check_arguments(["tser", "train"])


def test_an_argument_too_long_to_be_a_value() -> None:
    with pytest.raises(ConfigError, match=r"argument 2 .* has 100,000 characters") as told:
        app.check_arguments(["tser", "distill", "x" * 100_000])
    assert len(str(told.value)) < 200
    app.check_arguments(["tser", "distill", "--vary", "lr=" + ",".join(["0.1"] * 1000)])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("distill", "--student", "rsnet18"), 'did you mean "resnet18"'),
        (("distill", "--teacher", "sew_resnet18"), "no ANN form"),
        (("train-teacher", "resnet43"), 'did you mean "resnet34"'),
        (("train-teacher", "some/path"), "no such run folder or model file"),
        (("distill", "--dataset", "digit"), 'did you mean "digits"'),
        (("distill", "--set", "optimizer.lrr=1"), 'did you mean "optimizer.lr"'),
        (("distill", "-T", "0"), "model.timesteps = 0"),
        (("distill", "--resume", "must", "--method", "ce"), "no unfinished student run"),
        (("distill", "--energy-budget", "1pJ"), "that an image costs without a single spike"),
        (("distill", "--energy-budget", "1J", "--dry-run"), "of the ANN of the same shape"),
        (("distill", "--set", "augment.cutout=8"), "augment.cutout = 8 can hide all of an image"),
        (("distill", "--device", "gpu"), "use auto, cpu, cuda or cuda:N"),
        (("distill", "--precision", "fp16", "--device", "cpu"), "fp16 needs a GPU"),
        (("distill", "--dataset", "imagefolder", "--data-dir", "nowhere"), "nowhere"),
        (("evaluate",), "no finished student"),
        (("ablate", "--vary", "method=ce", "--resume", "must", "--runs-dir", "x" * 300), "is none"),
        (("report", "runs/nothing", "--output", "x.html"), "is not a run folder"),
        (("evaluate", "--split", "tests"), "test, validation, train"),
    ],
)
def test_one_clear_message(tser: Invoke, arguments: tuple[str, ...], said: str) -> None:
    code, out, err = tser(*arguments)
    assert code == 2
    assert out == ""
    assert said in err
    assert err.startswith("error: ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "line", ["distill -T two", "distill --no-such-flag", "distil", "evaluate extra"]
)
def test_usage_errors(tser: Invoke, line: str) -> None:
    code, _, err = tser(*line.split())
    assert code == 2
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu(tser: Invoke) -> None:
    code, _, err = tser("distill", "--device", "cuda")
    assert code == 2
    assert "--device cpu" in err


def saved() -> bytes:
    stream = io.BytesIO()
    torch.save({"w": torch.zeros(100)}, stream)
    return stream.getvalue()


@pytest.mark.parametrize("content", [saved()[:200], saved()], ids=["cut", "foreign"])
def test_a_teacher_file_that_is_none(tser: Invoke, tmp_path: Path, content: bytes) -> None:
    # files that act where they are unpickled: see tests/faults
    (tmp_path / "teacher.pt").write_bytes(content)
    code, _, err = tser("distill", "--teacher", "teacher.pt")
    assert code == 2
    assert "teacher.pt" in err
    assert {path.name for path in tmp_path.iterdir()} == {"teacher.pt"}


def test_a_runs_folder_that_is_a_file(tser: Invoke, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    code, _, err = tser("distill", "--method", "ce", "--epochs", "1", "--student", "resnet20")
    assert code == 2
    assert "can't be written" in err
    assert "Choose another place" in err


def test_a_worker_that_was_lost_is_one_message(
    tser: Invoke, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose() -> None:  # as torch's signal handler does, wherever the command is
        raise RuntimeError("DataLoader worker (pid 71) is killed by signal: Killed. ")

    monkeypatch.setattr(app, "check_arguments", lambda arguments: lose())
    code, out, said = tser("list", "models")
    assert (code, out) == (1, "")
    killed = "DataLoader worker (pid 71) is killed by signal: Killed."
    assert said.strip() == f"error: a data loader worker was lost: {killed}"


def test_memory_that_ran_out_is_one_message(tser: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    def too_much() -> None:
        torch.empty(2**60, dtype=torch.uint8)

    monkeypatch.setattr(app, "check_arguments", lambda arguments: too_much())
    code, out, said = tser("list", "models")
    assert (code, out) == (1, "")
    assert said.startswith("error: out of memory: 1152921504606846976 bytes more were asked for. ")
