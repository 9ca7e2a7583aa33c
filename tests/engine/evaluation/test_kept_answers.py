"""What a run keeps of each image's answers says what early exit would do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tser_cli.data.base import DataSpec
from tser_cli.energy.joules import energy_up_to
from tser_cli.energy.prices import load_profile
from tser_cli.engine.evaluation.early_exit import Rule, offline_exits, stops_of
from tser_cli.engine.evaluation.evaluate import answered, evaluate_split, keep_answers
from tser_cli.engine.runs import folder, networks
from tser_cli.engine.runs.opened import Context
from tser_cli.models.base import Classifier
from tser_cli.report.predictions import HELD_OUT, PREDICTIONS, Predictions, read_predictions
from tser_cli.settings.config import Config

MakeConfig = Callable[..., Config]
PROFILE = load_profile("horowitz-45nm-fp32")


@pytest.fixture
def student(
    spec: DataSpec, make_config: MakeConfig, wake: Callable[[Classifier], Classifier]
) -> Classifier:
    """A network whose neurons spike."""
    return wake(networks.build("resnet20", spec, make_config(), spiking=True))


def kept(folder: Path, name: str) -> Predictions | None:
    return read_predictions(folder / name)


def test_the_file_says_what_the_pass_found(
    tmp_path: Path,
    student: Classifier,
    make_config: MakeConfig,
    make_context: Callable[..., Context],
) -> None:
    config = make_config({"data.validation_fraction": 0.25})
    context, run = make_context(config), folder.create(tmp_path, "student", config)
    full = evaluate_split(student, context, "test", 3, count=True)
    keep_answers(run, student, context, full)
    found = kept(run.folder, PREDICTIONS)
    assert found is not None and full.counts is not None and full.answers is not None
    stops = stops_of(found, PROFILE)
    assert stops.energy_TI == pytest.approx(energy_up_to(full.counts, PROFILE))
    for threshold in (0.2, 0.4, 0.6, 1.0):
        exits = offline_exits(full.answers, Rule("confidence", threshold))
        accuracy = stops.accuracy(np.array([threshold]))[0]
        assert accuracy == pytest.approx(float(exits.correct_I.double().mean()))
        spent = torch.from_numpy(stops.energy_TI).gather(0, (exits.step_I - 1)[None]).mean()
        assert stops.energy(np.array([threshold]))[0] == pytest.approx(float(spent))
    held_out = kept(run.folder, HELD_OUT)
    assert held_out is not None and held_out.steps is not None
    assert len(held_out.labels_I) == 6
    own = evaluate_split(student, context, "validation", 3)
    assert held_out.right().sum() == own.correct_cumulative[-1]


def test_without_held_out_images_there_is_one_file(
    tmp_path: Path,
    student: Classifier,
    make_config: MakeConfig,
    make_context: Callable[..., Context],
) -> None:
    context = make_context(make_config())
    run = folder.create(tmp_path, "student", context.config)
    keep_answers(run, student, context, evaluate_split(student, context, "test", 2, count=True))
    assert kept(run.folder, PREDICTIONS) is not None
    assert kept(run.folder, HELD_OUT) is None


def test_a_network_that_can_t_stop_keeps_its_classes_alone(
    student: Classifier, make_config: MakeConfig, make_context: Callable[..., Context]
) -> None:
    full = evaluate_split(student, make_context(make_config()), "test", 2, count=True)
    assert answered(full, can_stop=False).steps is None
