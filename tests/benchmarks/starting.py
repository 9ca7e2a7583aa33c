"""From the start of the command: its help, its first step, the first command as a whole."""

from __future__ import annotations

import tempfile

from tests.benchmarks.timing import Ratio, alternate, command, ratio, seconds

FIRST_STEP = """
import os, sys
from tser_cli.cli.app import wait_briefly
wait_briefly(os.environ)
import tser_cli.cli.app as app
import tser_cli.engine.training.loop as train
step = train.train_step
def first(*arguments):
    step(*arguments)
    os._exit(0)
train.train_step = first
sys.argv = ["tser", "distill", "--resume", "never", "--runs-dir", sys.argv[1]]
app.main()
"""
EMPTY_APP = """
import typer
app = typer.Typer()
app.command()(lambda: None)
app()
"""


def main_job(rounds: int) -> Ratio:
    """Seconds of `tser distill` as README has it, its teacher among them."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["distill", "--teacher", "resnet34", "--student", "resnet18", "-T", "2"]
        job = command("-m", "tser_cli", *words, "--resume", "never", "--runs-dir", folder)
        return Ratio.of([seconds(job)])


def help_over(less: tuple[str, ...], rounds: int) -> Ratio:
    """`tser --help` against what Python is told to do instead."""
    works = {"help": command("-m", "tser_cli", "--help"), "less": command(*less)}
    spent = alternate(works, rounds)
    return ratio(spent["help"], spent["less"])


def first_step_over_torch(rounds: int) -> Ratio:
    """`tser distill` on digits, from the process's start through its first step."""
    with tempfile.TemporaryDirectory() as folder:
        works = {
            "first step": command("-c", FIRST_STEP, folder),
            "import torch": command("-c", "import torch"),
        }
        spent = alternate(works, rounds)
    return ratio(spent["first step"], spent["import torch"])
