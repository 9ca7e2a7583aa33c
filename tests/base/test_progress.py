"""Progress that nobody hears."""

from __future__ import annotations

import pytest
import torch

from tser_cli.base.progress import Silent


def test_silence_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    silent = Silent()
    silent.begin(1, 1, 0)
    silent.step(8, {"loss": torch.tensor(1.0)})
    silent.epoch({"epoch": 2, "loss": 1.23456, "validation_accuracy": None})
    silent.say("x")
    silent.warn("x")
    silent.end()
    assert capsys.readouterr() == ("", "")
