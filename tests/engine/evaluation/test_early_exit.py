"""Early exit: the stepwise run stops each image where the full pass says it ought to."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from tser_cli.config import Config, NeuronConfig
from tser_cli.data.base import Dataset, DataSpec, TensorSource
from tser_cli.energy import load_profile
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.evaluation.early_exit import (
    Exits,
    Rule,
    offline_exits,
    parse_thresholds,
    run_exits,
)
from tser_cli.engine.evaluation.operation_counts import Measured, measure
from tser_cli.engine.runs.finished_run import Opened
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.runtime.processes import make_runtime
from tser_cli.errors import ConfigError
from tser_cli.models import Classifier, build_model
from tser_cli.report.csv_files import early_exit_schema
from tser_cli.report.progress import Silent

IMAGES, STEPS, CLASSES = 37, 4, 4


@pytest.fixture(scope="module")
def model() -> Classifier:
    """A spiking network whose answers differ from image to image and step to step."""
    torch.manual_seed(1)
    network = build_model(
        "resnet20", channels=1, height=8, width=8, num_classes=CLASSES, neuron=NeuronConfig()
    )
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=4.0)
    network.train()
    for _ in range(20):  # running statistics under which the neurons spike
        network(torch.randn(32, 1, 8, 8), timesteps=2)
    return network.eval()


@pytest.fixture(scope="module")
def context() -> Context:
    """Random images in batches of 10 on a CPU."""
    config = Config.model_validate({"training": {"eval_batch_size": 10, "device": "cpu"}})
    generator = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (IMAGES, 1, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.randint(0, CLASSES, (IMAGES,), generator=generator)
    spec = DataSpec("digits", 1, 8, 8, tuple("abcd"), (0.5,), (0.25,))
    source = TensorSource(images, labels)
    return Context(config, Dataset(spec, source, source), make_runtime(config.training), Silent())


@pytest.fixture(scope="module")
def measured(model: Classifier, context: Context) -> Measured:
    return measure(model, context, STEPS)


@pytest.mark.parametrize(
    "rule", [Rule("confidence", c) for c in (0.3, 0.5, 0.8, 1.0)] + [Rule("entropy", 0.9)]
)
def test_stepwise_equals_offline_image_for_image(
    model: Classifier, context: Context, measured: Measured, rule: Rule
) -> None:
    stepwise, offline = run_exits(model, context, STEPS, rule), offline_exits(measured, rule)
    assert torch.equal(stepwise.step_I, offline.step_I)
    assert torch.equal(stepwise.correct_I, offline.correct_I)


def test_thresholds_spread_the_images(measured: Measured) -> None:
    steps = offline_exits(measured, Rule("confidence", 0.8)).step_I
    assert len(steps.unique()) > 1  # else the tests above would prove little


def test_offline_exits_by_hand() -> None:
    confidence = torch.tensor([[0.9, 0.5, 0.2], [0.1, 0.8, 0.3], [0.9, 0.9, 0.4]])
    right = torch.tensor([[True, True, True], [False, False, True], [False, True, False]])
    zeros = torch.zeros(3)
    made = Measured(None, zeros, zeros, right, right, confidence, 1 - confidence)  # type: ignore[arg-type]
    exits = offline_exits(made, Rule("confidence", 0.8))
    assert exits.step_I.tolist() == [1, 2, 3]
    assert exits.correct_I.tolist() == [True, False, False]


def test_row_takes_energy_from_the_integers(measured: Measured) -> None:
    profile = load_profile("horowitz-45nm-fp32")
    exits = Exits(torch.arange(IMAGES) % STEPS + 1, torch.ones(IMAGES, dtype=torch.bool))
    row = early_exit.row(Rule("confidence", 0.5), exits, exits, measured, profile)
    spent = 0.0
    for image in range(IMAGES):
        last = image % STEPS
        for layer in measured.counts.layers:
            macs = int(layer.step_macs[: last + 1].sum())
            spent += 4.6 * macs + 0.9 * int(layer.value_TI[: last + 1, image].sum())
    assert row["energy_pj"] == pytest.approx(spent / IMAGES, rel=1e-12)
    assert row["mean_steps"] == np.mean([image % STEPS + 1 for image in range(IMAGES)])
    assert sum(row[f"share_exit_{t}"] for t in range(1, STEPS + 1)) == pytest.approx(1.0)
    assert row["accuracy"] == 1.0
    assert row["differing_images"] == 0


def test_images_that_left_are_not_computed(model: Classifier, context: Context) -> None:
    seen = []
    handle = model.get_submodule("layer3").register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    try:
        exits = run_exits(model, context, STEPS, Rule("confidence", 0.8))
    finally:
        handle.remove()
    assert sum(seen) == int(exits.step_I.sum())


def test_the_table(model: Classifier, context: Context, tmp_path: Path) -> None:
    opened = Opened(Run(tmp_path), context, Loaded(model, "resnet20", "x", "0"))
    rules = [Rule("confidence", 0.5), Rule("entropy", 0.5)]
    profile = load_profile("horowitz-45nm-fp32")
    early_exit.early_exit(opened, rules, STEPS, tmp_path / "early_exit.csv", profile)
    with (tmp_path / "early_exit.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0].keys() == early_exit_schema(STEPS).keys()
    assert [row["criterion"] for row in rows] == ["confidence", "entropy"]
    assert {row["differing_images"] for row in rows} == {"0"}


@pytest.mark.parametrize("text", ["", "a", "0.8,,0.9", "-1", "2", "nan", "0"])
def test_bad_thresholds(text: str) -> None:
    with pytest.raises(ConfigError, match="early-exit"):
        parse_thresholds(text, "confidence")


def test_thresholds() -> None:
    assert parse_thresholds("0.8, .9", "confidence") == [
        Rule("confidence", 0.8),
        Rule("confidence", 0.9),
    ]
    assert parse_thresholds("1.5", "entropy") == [Rule("entropy", 1.5)]
