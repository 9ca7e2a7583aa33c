"""A loss or a gradient that is not finite stops the training before it moves a weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import NonFiniteError
from tser_cli.base.progress import Silent
from tser_cli.engine.runs.checkpoints import load_latest
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.state import TrainingJob
from tser_cli.losses.base import Outputs, Terms
from tser_cli.settings.config import Config, MethodSettings

MakeFit = Callable[..., TrainingJob]
MakeConfig = Callable[..., Config]


class StepCount(Silent):
    """Counts the steps that came to their end."""

    steps = 0

    def step(self, images: int, values: dict[str, Any]) -> None:
        self.steps += 1


def parameters(work: TrainingJob) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in work.task.model.named_parameters()}


def assert_unmoved(work: TrainingJob, before: dict[str, Tensor]) -> None:
    for name, value in parameters(work).items():
        assert torch.equal(value, before[name]), name


def no_warning(text: str) -> None:
    raise AssertionError(text)


class Poisoned:
    """Cross entropy that is NaN from the given call on."""

    def __init__(self, call: int, value: float = math.nan) -> None:
        self.left, self.value = call, value

    def __call__(self, outputs: Outputs, settings: MethodSettings) -> Terms:
        self.left -= 1
        loss = F.cross_entropy(outputs.logits_TNK.mean(0), outputs.labels_N)
        bad = loss * self.value if self.left <= 0 else loss
        return {"loss": bad, "ce": loss, "kd": bad}


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_names_step_and_terms(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, value: float
) -> None:
    config = make_config({"training.checkpoint_every": "2steps"})
    work = make_fit("student", config, tmp_path, StepCount())
    work.task.method = Poisoned(6, value)
    with pytest.raises(NonFiniteError, match=rf"epoch 2, step 3: loss = {value}, ce = \d") as error:
        fit(work)
    assert f"kd = {value}" in str(error.value)
    assert str(work.run.checkpoints) in str(error.value)
    state = load_latest(work.run.checkpoints, no_warning)
    assert state is not None
    assert (state["epoch"], state["step"]) == (1, 1)
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values())
    assert work.progress.steps == 5  # type: ignore[attr-defined]


def test_the_weights_stay_when_the_loss_is_nan(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    work = make_fit("teacher", make_config(), tmp_path)
    work.task.method = Poisoned(1)
    before = parameters(work)
    with pytest.raises(NonFiniteError, match="epoch 1, step 1"):
        fit(work)
    assert_unmoved(work, before)
    assert load_latest(work.run.checkpoints, no_warning) is None


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_names_its_layer(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path, value: float
) -> None:
    work = make_fit("student", make_config(), tmp_path)
    before = parameters(work)
    parameter = work.task.model.get_parameter("layer2.0.conv1.weight")
    parameter.register_hook(lambda gradient: gradient * value)
    with pytest.raises(NonFiniteError, match=r"gradients of layer2\.0\.conv1\.weight\. Try"):
        fit(work)
    assert_unmoved(work, before)


def test_a_loss_alone_that_is_not_finite_blames_no_layer(
    make_fit: MakeFit, make_config: MakeConfig, tmp_path: Path
) -> None:
    def method(outputs: Outputs, settings: MethodSettings) -> Terms:
        loss = F.cross_entropy(outputs.logits_TNK.mean(0), outputs.labels_N)
        return {"loss": loss + math.inf}

    work = make_fit("teacher", make_config(), tmp_path)
    work.task.method = method
    with pytest.raises(NonFiniteError, match="the gradients here are finite"):
        fit(work)
