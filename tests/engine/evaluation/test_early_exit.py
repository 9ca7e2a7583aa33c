"""Early exit: it stops where the full pass says, and its threshold is chosen."""

from __future__ import annotations

import copy
import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tser_cli.base.errors import ConfigError
from tser_cli.base.progress import Silent
from tser_cli.data.base import Dataset, DataSpec, TensorSource
from tser_cli.energy.prices import load_profile
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.evaluation.early_exit import (
    ALWAYS,
    NEVER,
    Exits,
    Rule,
    Stepper,
    Stops,
    keep_budget,
    offline_exits,
    parse_thresholds,
    reach_accuracy,
    rows_to_keep,
    run_exits,
)
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, evaluate_split
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.opened import Context, FinishedRun
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.integers import IntegerConv2d, quantise
from tser_cli.report.csv_files import early_exit_schema
from tser_cli.settings.config import Config, NeuronConfig

IMAGES, STEPS, CLASSES = 37, 4, 4
PROFILE = load_profile("horowitz-45nm-fp32")


def network(**neuron: object) -> Classifier:
    settings = NeuronConfig.model_validate(neuron)
    sizes = {"channels": 1, "height": 8, "width": 8, "num_classes": CLASSES}
    return build_model("resnet20", neuron=settings, **sizes)


def settled(network: Classifier) -> Classifier:
    """The network with running statistics under which its neurons spike, in eval mode."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # a plain mean over few batches
    for _ in range(3):
        network(torch.randn(32, 1, 8, 8), timesteps=2)
    return network.eval()


@pytest.fixture(scope="module")
def model() -> Classifier:
    """A spiking network whose answers differ from image to image and step to step."""
    torch.manual_seed(1)
    made = network()
    for module in made.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=4.0)
    return settled(made)


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
def full(model: Classifier, context: Context) -> Evaluation:
    """The counted pass over all images."""
    return evaluate_split(model, context, "test", STEPS, count=True)


@pytest.fixture(scope="module")
def answers(full: Evaluation) -> Answers:
    return full.answers


@pytest.mark.parametrize(
    "rule", [Rule("confidence", c) for c in (0.3, 0.5, 0.8, 1.0)] + [Rule("entropy", 0.9)]
)
def test_stepwise_equals_offline_image_for_image(
    model: Classifier, context: Context, answers: Answers, rule: Rule
) -> None:
    stepwise = run_exits(model, context, "test", STEPS, rule)
    offline = offline_exits(answers, rule)
    assert torch.equal(stepwise.step_I, offline.step_I)
    assert torch.equal(stepwise.correct_I, offline.correct_I)
    assert len(offline.step_I.unique()) > 1 or rule != Rule("confidence", 0.8)


def test_the_split_that_is_asked_for_is_run(model: Classifier, context: Context) -> None:
    some = context.config.updated({"data.validation_fraction": 0.25})
    changed = replace(context, config=some)
    rule = Rule("confidence", 0.8)
    counted = {
        split: len(run_exits(model, changed, split, STEPS, rule).step_I)
        for split in ("train", "validation", "test")
    }
    assert counted["test"] == IMAGES
    assert counted["train"] + counted["validation"] == IMAGES
    assert 0 < counted["validation"] < counted["train"]


def test_offline_exits_by_hand(answers: Answers) -> None:
    confidence = torch.tensor([[0.9, 0.5, 0.2], [0.1, 0.8, 0.3], [0.9, 0.9, 0.4]])
    right = torch.tensor([[True, True, True], [False, False, True], [False, True, False]])
    made = replace(
        answers,
        correct_cumulative_TI=right,
        confidence_cumulative_TI=confidence,
        entropy_cumulative_TI=1 - confidence,
    )
    exits = offline_exits(made, Rule("confidence", 0.8))
    assert exits.step_I.tolist() == [1, 2, 3]
    assert exits.correct_I.tolist() == [True, False, False]
    exits = offline_exits(made, Rule("entropy", 0.5))
    assert exits.step_I.tolist() == [1, 1, 3]
    assert exits.correct_I.tolist() == [True, True, False]


def test_row_takes_energy_from_the_integers_and_says_for_what_a_threshold_was_chosen(
    full: Evaluation,
) -> None:
    rule = Rule("confidence", 0.8, "validation", 1e3)
    exits = Exits(torch.arange(IMAGES) % STEPS + 1, torch.ones(IMAGES, dtype=torch.bool))
    row = early_exit.row(rule, exits, full, PROFILE)
    spent = whole = 0.0
    for image in range(IMAGES):
        for layer in full.counts.layers:
            cost_T = 4.6 * layer.step_macs + 0.9 * layer.value_TI[:, image]
            spent += float(cost_T[: image % STEPS + 1].sum())
            whole += float(cost_T.sum())
    assert row["energy_pj"] == pytest.approx(spent / IMAGES, rel=1e-12)
    assert row["energy_full_pj"] == pytest.approx(whole / IMAGES, rel=1e-12)
    assert row["mean_steps"] == np.mean([image % STEPS + 1 for image in range(IMAGES)])
    assert sum(row[f"share_exit_{t}"] for t in range(1, STEPS + 1)) == pytest.approx(1.0)
    assert row["accuracy"] == 1.0
    assert row["accuracy_full"] == full.accuracy
    assert (row["chosen_on"], row["budget_pj"], row["kept"]) == ("validation", 1e3, 0)
    just = replace(rule, budget_pj=row["energy_pj"])
    assert early_exit.row(just, exits, full, PROFILE)["kept"] == 1


def test_images_that_are_treated_otherwise_than_in_the_full_pass_are_counted(
    full: Evaluation, answers: Answers
) -> None:
    rule = Rule("confidence", 0.8)
    offline = offline_exits(answers, rule)
    assert early_exit.row(rule, offline, full, PROFILE)["differing_images"] == 0
    step_I, correct_I = offline.step_I.clone(), offline.correct_I.clone()
    step_I[3] = step_I[3] % STEPS + 1
    correct_I[[3, 5]] = ~correct_I[[3, 5]]
    assert early_exit.row(rule, Exits(step_I, correct_I), full, PROFILE)["differing_images"] == 2


def test_images_that_left_are_not_computed(model: Classifier, context: Context) -> None:
    seen = []
    handle = model.get_submodule("layer3").register_forward_pre_hook(
        lambda module, args: seen.append(len(args[0]))
    )
    exits = run_exits(model, context, "test", STEPS, Rule("confidence", 0.8))
    handle.remove()
    expected = []
    for steps in exits.step_I.split(10):
        eighth = 2 if len(steps) == 10 else 1  # rounded up
        open_ = [int((steps >= t).sum()) for t in range(1, STEPS + 1)]
        expected += [min(math.ceil(n / eighth) * eighth, len(steps)) for n in open_ if n]
    assert seen == expected
    assert sum(seen) < 0.8 * STEPS * IMAGES
    never = run_exits(model, context, "test", STEPS, Rule("confidence", math.inf))
    assert never.step_I.unique().tolist() == [STEPS]


def test_integer_weights_are_computed_with_integers_as_in_the_full_pass(
    model: Classifier, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    quantised, calls = quantise(copy.deepcopy(model), 8), list[int]()
    answers = evaluate_split(quantised, context, "test", STEPS, count=True).answers
    forward = IntegerConv2d.forward
    monkeypatch.setattr(
        IntegerConv2d, "forward", lambda self, x: calls.append(len(x)) or forward(self, x)
    )
    rule = Rule("confidence", 0.8)
    stepwise = run_exits(quantised, context, "test", STEPS, rule)
    assert calls and answers is not None
    offline = offline_exits(answers, rule)
    assert torch.equal(stepwise.step_I, offline.step_I)
    assert torch.equal(stepwise.correct_I, offline.correct_I)


def test_batches_shrink_by_eighths() -> None:
    rows = torch.tensor([False, True, True, False, True] + [False] * 11)
    kept = rows_to_keep(rows, batch=16)
    assert kept.tolist()[:3] == [1, 2, 4] and len(kept) == 4
    assert rows_to_keep(rows, batch=8).tolist() == [1, 2, 4]
    assert len(rows_to_keep(rows[:5], batch=100)) == 5


def test_the_table_and_a_warning_of_images_that_stop_elsewhere(
    model: Classifier, context: Context, full: Evaluation, tmp_path: Path, told: Any
) -> None:
    loaded = Loaded(model, "resnet20", "x", "0")
    opened = FinishedRun(Run(tmp_path), replace(context, progress=told), loaded)
    rules = [Rule("confidence", 0.5), Rule("entropy", 0.5)]
    path = tmp_path / "early_exit.csv"
    found = early_exit.early_exit(opened, rules, full, "test", path, PROFILE)
    with path.open() as stream:
        rows = list(csv.DictReader(stream))
    assert rows[0].keys() == early_exit_schema(STEPS).keys()
    assert [row["criterion"] for row in rows] == ["confidence", "entropy"]
    assert {row["differing_images"] for row in rows} == {"0"} and not told.warnings
    for row, written in zip(found, rows, strict=True):
        as_text = {name: "" if value is None else str(value) for name, value in row.items()}
        assert as_text == written
        assert written["chosen_on"] == written["budget_pj"] == written["kept"] == ""
    ones = torch.ones(STEPS, IMAGES, dtype=torch.float64)
    sure = replace(full, answers=replace(full.answers, confidence_cumulative_TI=ones))
    rules = [Rule("confidence", 0.8)]
    (row,) = early_exit.early_exit(opened, rules, sure, "test", path, PROFILE)
    assert row["differing_images"] > 0
    (warning,) = told.warnings
    assert warning.startswith(f"confidence 0.8: {row['differing_images']} images stop elsewhere")


@pytest.mark.parametrize(
    ("text", "criterion", "said"),
    [
        *((text, "confidence", "--early-exit") for text in ("", "0.8,,0.9", "-1", "2", "nan", "0")),
        ("low", "entropy", '--early-exit-entropy: "low" is no threshold'),
        ("1e999", "entropy", "--early-exit-entropy 1e999: it must be finite"),
        (",".join(["0.5"] * 20_000), "confidence", ".*20,000 thresholds; at most 1,000 are"),
    ],
    ids=range(9),
)
def test_bad_thresholds(text: str, criterion: str, said: str) -> None:
    flag = "--early-exit-entropy" if criterion == "entropy" else "--early-exit"
    with pytest.raises(ConfigError, match=f"^{said}"):
        parse_thresholds(text, criterion, flag)


def test_thresholds() -> None:
    assert parse_thresholds("0.8, .9", "confidence", "--early-exit") == [
        Rule("confidence", 0.8),
        Rule("confidence", 0.9),
    ]
    assert parse_thresholds("1.5", "entropy", "--early-exit-entropy") == [Rule("entropy", 1.5)]


# Three images at two steps; the first is sure and right at once, the third sure and wrong.
BY_HAND = Stops(
    np.array([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]]),
    np.array([[0.9, 0.4, 0.8], [0.9, 0.7, 0.6]]),
    np.array([[2.0, 2.0, 2.0], [3.0, 4.0, 5.0]]),
)


def drawn(images: int = 400, steps: int = 4, seed: int = 0) -> Stops:
    """Random images; a later step costs more."""
    generator = np.random.default_rng(seed)
    confidence = generator.choice(np.linspace(0.1, 1.0, 50), (steps, images))
    right = (generator.random((steps, images)) < 0.8).astype(float)
    return Stops(right, confidence, generator.integers(1, 9, (steps, images)).cumsum(0) * 1.0)


def one_by_one(stops: Stops, threshold: float) -> tuple[float, float, float]:
    """Accuracy, mean and deviation of the energy, image by image."""
    right, energy = [], []
    for image in range(stops.images):
        sure = [t for t in range(len(stops.right_TI)) if stops.confidence_TI[t, image] >= threshold]
        step = (sure or [len(stops.right_TI) - 1])[0]
        right.append(stops.right_TI[step, image])
        energy.append(stops.energy_TI[step, image])
    return float(np.mean(right)), float(np.mean(energy)), float(np.std(energy, ddof=1))


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_all_thresholds_at_once_are_each_one_by_itself(steps: int) -> None:
    stops = drawn(60, steps)
    thresholds = np.concatenate([stops.thresholds(), [0.33, 0.777]])
    found = zip(
        stops.accuracy(thresholds),
        stops.energy(thresholds),
        stops.deviation(thresholds),
        strict=True,
    )
    for threshold, (accuracy, energy, deviation) in zip(thresholds, found, strict=True):
        wanted = one_by_one(stops, threshold)
        assert (accuracy, energy, deviation) == pytest.approx(wanted, abs=1e-9)


def test_by_hand() -> None:
    assert BY_HAND.thresholds().tolist() == [ALWAYS, 0.4, 0.8, 0.9, NEVER]
    thresholds = np.array([0.0, 0.5, 0.85, NEVER])
    assert BY_HAND.energy(thresholds) * 3 == pytest.approx([6.0, 8.0, 11.0, 12.0])
    assert BY_HAND.accuracy(thresholds) * 3 == pytest.approx([1.0, 2.0, 3.0, 3.0])


def test_an_accuracy_is_reached_with_the_least_energy() -> None:
    assert reach_accuracy(BY_HAND, 1.0) == 0.9
    assert reach_accuracy(BY_HAND, 2 / 3) == 0.8
    assert reach_accuracy(BY_HAND, 0.4) == 0.8  # one of three is 0.33
    assert reach_accuracy(BY_HAND, 1 / 3) == ALWAYS
    never_right = Stops(0 * BY_HAND.right_TI, BY_HAND.confidence_TI, BY_HAND.energy_TI)
    assert reach_accuracy(never_right, 0.1) is None


def test_a_budget_is_kept_with_room_for_chance() -> None:
    stops = drawn(400)
    mean, deviation = (f(np.array([0.8]))[0] for f in (stops.energy, stops.deviation))
    error = 1.644854 * deviation * math.sqrt(1 / 400 + 1 / 100)
    threshold = keep_budget(stops, mean + 1.0001 * error, 100)
    tried = stops.thresholds()
    assert stops.energy(np.array([threshold]))[0] == pytest.approx(mean)
    assert keep_budget(stops, mean + 0.9999 * error, 100) == tried[tried < threshold].max()
    assert keep_budget(stops, mean + 1.0001 * error, 10_000) > threshold


def test_a_budget_kept_so_is_kept_on_other_images_nineteen_times_in_twenty() -> None:
    kept = 0
    for seed in range(200):
        ours, others = drawn(300, seed=2 * seed), drawn(300, seed=2 * seed + 1)
        threshold = keep_budget(ours, 10.0, 300)
        kept += bool(others.energy(np.array([threshold]))[0] <= 10.0)
    assert 180 <= kept <= 200


def test_budgets_at_the_ends() -> None:
    stops = drawn()
    assert keep_budget(stops, 1e6, 100) == NEVER
    # where the first step leaves no room every image stops there
    assert keep_budget(stops, stops.energy_TI[0].mean(), 100) == ALWAYS
    with pytest.raises(ConfigError, match="first time step alone costs 2 pJ an image, more than 1"):
        keep_budget(BY_HAND, 1.9, 100)


@pytest.mark.parametrize(
    "neuron", [{}, {"name": "if", "reset": "soft"}, {"name": "plif", "tau": 3.0}, {"bf16": True}]
)
@torch.inference_mode()
def test_steps_equal_one_call(neuron: dict[str, object]) -> None:
    half = neuron.pop("bf16", False)
    model = settled(network(**neuron))
    images = torch.randn(5, 1, 8, 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        whole_TNK = model(images, timesteps=4)
        assert whole_TNK.std() > 0
        with Stepper(model) as stepper:
            stepper.start(images)
            for t in range(4):
                error = (stepper.step() - whole_TNK[t]).abs().max()
                assert error <= (0 if half else 1e-5)
        assert torch.equal(model(images, timesteps=4), whole_TNK)


@torch.inference_mode()
def test_images_that_stay_continue_as_if_alone() -> None:
    model = settled(network())
    images = torch.randn(6, 1, 8, 8)
    whole_TNK = model(images, timesteps=3)
    mask = torch.tensor([True, False, True, True, False, False])
    with Stepper(model) as stepper:
        stepper.start(images)
        stepper.step()
        stepper.keep(mask)
        second = stepper.step()
        assert second.shape == (3, 4)
        assert torch.allclose(second, whole_TNK[1][mask], atol=1e-6)
        stepper.start(images[:2])
        assert torch.allclose(stepper.step(), whole_TNK[0][:2], atol=1e-6)
