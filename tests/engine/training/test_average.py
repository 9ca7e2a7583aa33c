"""The moving average of the weights: by hand, kept by a checkpoint, and what a run keeps of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.training.conftest import Job, assert_same, weights
from tser_cli.base.progress import Silent
from tser_cli.engine.runs.checkpoints import load_latest
from tser_cli.engine.training.average import WeightAverage
from tser_cli.engine.training.loop import fit

DECAY = 0.4
EMA = {"training.ema_decay": DECAY, "augment.mixup": 0.5, "augment.cutmix": 0.5}


class Watcher(Silent):
    """Keeps the weights after each step."""

    def __init__(self) -> None:
        self.work: Any = None
        self.seen: list[dict[str, Tensor]] = []

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.seen.append(weights(self.work))


def test_a_run_keeps_the_average_and_its_last_checkpoint_the_last_weights(job: Job) -> None:
    watcher, validated = Watcher(), list[dict[str, Tensor]]()

    def validate() -> float:
        validated.append(weights(work))
        return 0.5  # the first of equals is the best

    # an average of steps and not of their parts, and of the floats that are rounded
    changes = EMA | {"training.accumulate": 2, "model.weight_bits": 8}
    work = watcher.work = job("student", changes, watcher, validate=validate)
    expected, averages = weights(work), []
    fit(work)
    for number, seen in enumerate(watcher.seen, start=1):
        decay = min(DECAY, (1 + number) / (10 + number))
        for name, own in seen.items():
            if own.is_floating_point():
                expected[name] = decay * expected[name] + (1 - decay) * own
            else:
                expected[name] = own
        averages.append(dict(expected))
    assert len(averages) == 6
    torch.testing.assert_close(dict(weights(work)), averages[2])  # the best epoch's, of three steps
    torch.testing.assert_close(dict(validated[1]), averages[5])
    state = load_latest(work.run.checkpoints, pytest.fail)
    assert_same(state["model"], watcher.seen[5])
    torch.testing.assert_close(dict(state["average"]), averages[5])


def test_averaging_changes_no_step_and_the_average_is_kept(job: Job) -> None:
    plain, averaged = (
        job("teacher", folder="plain"),
        job("teacher", EMA | {"augment.mixup": 0.0, "augment.cutmix": 0.0}, folder="ema"),
    )
    rows = [fit(work) for work in (plain, averaged)]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    state = load_latest(averaged.run.checkpoints, pytest.fail)
    assert_same(state["model"], weights(plain))
    assert_same(state["average"], dict(weights(averaged)))


def test_what_changes_in_use_is_the_averages_and_tied_weights_come_back() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one = nn.BatchNorm1d(2), nn.Linear(2, 2)
            self.other = self.one

    net = Tied()
    average = WeightAverage(net, 0.9)
    first = {name: value.clone() for name, value in net.state_dict().items()}
    for parameter in net.parameters():
        nn.init.constant_(parameter, 3.0)
    last = {name: value.clone() for name, value in net.state_dict().items()}
    with average.in_use():
        assert_same(dict(net.state_dict()), first)
        assert net.norm.running_mean is not None
        net.norm.running_mean += 1.0
    assert_same(dict(net.state_dict()), last)
    assert average.state["norm.running_mean"].tolist() == [1.0, 1.0]
    assert torch.equal(average.state["other.weight"], first["one.weight"])
