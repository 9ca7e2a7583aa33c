"""A loss or a gradient that is not a number, in the middle of a run."""

from __future__ import annotations

import pytest

from tests.faults.bench import Bench


def steps_saved(bench: Bench) -> list[str]:
    return sorted(path.name for path in bench.checkpoints.glob("step-*"))


@pytest.mark.parametrize("what", ["gradient", pytest.param("loss", marks=pytest.mark.long)])
def test_the_run_ends_before_the_step_is_taken(bench: Bench, what: str) -> None:
    job = bench.run("train-teacher", code=1, faults=[{"nan": what, "step": 14}])
    (line,) = [line for line in job.messages.splitlines() if line.startswith("error:")]
    assert "not finite at epoch 2, step 5" in line
    assert ("loss = nan, ce = nan" if what == "loss" else "layer2.0.conv1.weight") in line
    assert str(bench.checkpoints) in line
    assert "Traceback" not in job.messages
    assert steps_saved(bench) == ["step-000000009.pt", "step-000000012.pt"]
    status = bench.status()
    assert (status["state"], status["resumable"]) == ("failed", False)
    # the same steps would fail again: the command begins a new run
    again = bench.start("train-teacher", faults=[{"at": "step", "number": 1, "do": "SIGKILL"}])
    again.wait()
    assert "run folder:" in again.messages
