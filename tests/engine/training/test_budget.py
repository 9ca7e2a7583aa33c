"""Training to an energy budget: the controller by itself, and in trainings."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.conftest import make_config, make_context
from tests.engine.training.conftest import (
    Job,
    StopsAt,
    assert_same,
    task_of,
    timeless,
    weights,
)
from tser_cli.base.errors import ConfigError, Interrupted, TserError
from tser_cli.base.progress import Silent
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.checkpoints import load_latest
from tser_cli.engine.runs.runtime import seed_everything
from tser_cli.engine.training.budget import (
    ANNEALED,
    CALIBRATIONS,
    FREE,
    MARGIN,
    BudgetController,
    EnergyBudget,
    EnergyControl,
    profile_of,
    settle_budget,
)
from tser_cli.engine.training.loop import fit
from tser_cli.engine.training.run import measure_eval_energy
from tser_cli.engine.training.state import TrainingJob
from tser_cli.engine.training.task import Task, distillation
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.settings.config import NeuronConfig

STEPS = 600


class Plant:
    """A stand-in for a network: its energy goes towards free / (1 + multiplier / scale), noisily.

    `memory`: steps that it takes; `drift`: what the free energy becomes by the end, as a factor.
    """

    def __init__(
        self, free_pj: float, scale: float, memory: float, drift: float = 1.0, noise: float = 0.02
    ) -> None:
        self.free_pj, self.scale, self.memory = free_pj, scale, memory
        self.drift, self.noise = drift, noise
        self.energy_pj, self.draw = free_pj, random.Random(3)

    def step(self, multiplier: float, share: float) -> float:
        """The energy of one batch in training mode."""
        free = self.free_pj * self.drift**share
        self.energy_pj += (free / (1 + multiplier / self.scale) - self.energy_pj) / self.memory
        return self.energy_pj * (1 + self.draw.uniform(-self.noise, self.noise))


def driven(
    controller: BudgetController, plant: Plant, loss: float = 3.0, eval_ratio: float = 1.0
) -> list[float]:
    """The multipliers of a whole training."""
    multipliers = []
    while controller.done < controller.steps:
        multipliers.append(controller.multiplier)
        energy_pj = plant.step(controller.multiplier, controller.done / controller.steps)
        charge = controller.multiplier * energy_pj / controller.budget_pj
        controller.update(energy_pj, loss + charge)
        if controller.calibration_due:
            controller.calibrate(eval_ratio * plant.energy_pj)
    return multipliers


@pytest.mark.parametrize(
    ("share", "loss", "drift"), [(0.75, 0.3, 0.9), (0.25, 10.0, 0.9), (0.25, 0.3, 1.1)]
)
def test_a_budget_that_can_be_kept_is_kept_within_2_percent(
    share: float, loss: float, drift: float
) -> None:
    plant = Plant(800.0, scale=0.3 * loss, memory=20, drift=drift)
    controller = BudgetController(share * 800.0, STEPS)
    driven(controller, plant, loss)
    assert controller.budget_pj * 0.96 < plant.energy_pj <= controller.budget_pj


@pytest.mark.parametrize("ratio", [0.9, 1.1])
def test_what_is_kept_is_the_energy_in_eval_mode(ratio: float) -> None:
    plant, controller = Plant(800.0, scale=1.0, memory=20), BudgetController(400.0, STEPS)
    driven(controller, plant, eval_ratio=ratio)
    assert controller.ratio == pytest.approx(ratio, rel=0.03)
    assert 0.96 * 400.0 < ratio * plant.energy_pj <= 400.0


def test_a_loose_budget_has_no_weight_at_all() -> None:
    plant, controller = Plant(800.0, scale=1.0, memory=20), BudgetController(1000.0, STEPS)
    assert set(driven(controller, plant)) == {0.0}
    for steps in (1, 2, 3, 7):  # few steps are no trouble
        driven(BudgetController(400.0, steps), Plant(800.0, scale=1.0, memory=2))


def test_the_free_energy_is_measured_first_and_the_target_falls_in_equal_ratios() -> None:
    controller = BudgetController(200.0, 1000)
    targets = []
    for _ in range(1000):
        assert (controller.multiplier == 0.0) or controller.done >= round(FREE * 1000)
        controller.update(800.0, 2.0)
        targets.append(controller.target_pj)
    aim = 200.0 * (1 - MARGIN)
    assert controller.free_pj == pytest.approx(800.0)
    assert controller.free_loss == pytest.approx(2.0)
    middle = round(1000 * (FREE + ANNEALED) / 2)
    assert targets[middle - 1] == pytest.approx(math.sqrt(800.0 * aim), rel=0.01)
    assert targets[round(ANNEALED * 1000) - 1 :] == [pytest.approx(aim)] * (
        1001 - round(ANNEALED * 1000)
    )
    assert all(a >= b for a, b in itertools.pairwise(targets))


def test_all_processes_follow_the_energy_of_all_their_images() -> None:
    """Of several real processes: tests/faults/test_processes.py, in its long form."""

    class OfTwo:
        def sum(self, values: Tensor) -> Tensor:  # the other one: 30 images of 100 pJ, loss 1
            return values + torch.tensor([30 * 100.0, 30 * 1.0, 30])

    control = EnergyControl(BudgetController(200.0, 1000), lambda: 0.0)
    values = {"energy_pj": torch.tensor(500.0), "loss": torch.tensor(3.0)}
    control.follow(values, 10, OfTwo())  # type: ignore[arg-type]
    assert (control.controller.mean_pj, control.controller.free_loss) == (200.0, 1.5)


def test_it_is_calibrated_at_shares_of_the_training() -> None:
    controller, due = BudgetController(200.0, 1000), []
    for step in range(1, 1001):
        controller.update(100.0, 1.0)
        if controller.calibration_due:
            due.append(step)
    assert due == [round(1000 * share) for share in CALIBRATIONS]


def test_its_state_continues_to_the_same_bits() -> None:
    whole, plant = BudgetController(300.0, STEPS), Plant(800.0, scale=1.0, memory=20)
    energies = []
    while whole.done < STEPS:
        energies.append(plant.step(whole.multiplier, 0.0))
        whole.update(energies[-1], 2.0)
    first = BudgetController(300.0, STEPS)
    for energy_pj in energies[:200]:
        first.update(energy_pj, 2.0)
    second = BudgetController(**vars(first))
    assert second == first == replace(first)
    for energy_pj in energies[200:]:
        second.update(energy_pj, 2.0)
    assert second == whole


Train = Callable[..., tuple[TrainingJob, list[dict[str, Any]]]]
TIGHT = "4%"  # an untrained resnet20 costs about 8 % of its ANN


class Toy(Classifier):
    """Two convolutions with a norm, and a head that reads an average: MACs at both ends."""

    spiking = True

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32)
        self.act1, self.act2 = SpikingNeuron(NeuronConfig()), SpikingNeuron(NeuronConfig())
        self.fc = nn.Linear(32, 3)

    def stem(self, images_NCHW: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv1(images_NCHW))
        return y

    def stem_norm(self) -> nn.Module:
        return self.bn1

    def body(self, x: Tensor, timesteps: int) -> Tensor:
        x = self.act2(self.bn2(self.conv2(self.act1(x, timesteps))), timesteps)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits

    def input_kinds(self) -> dict[str, str]:
        return {"conv1": "real", "conv2": "spikes", "fc": "real"}


# By hand: 22 = 2 + 6 * 3 + 2 taps reach an axis of eight, 11 = 2 + 3 * 3 at a stride of 2.
STEM, HEAD = 22 * 22 * 8, 32 * 3
ANN = STEM + 11 * 11 * 8 * 32 + HEAD


@pytest.fixture
def train(job: Job) -> Train:
    """`train(changes, folder, progress)`: a seeded training held to its budget, if any."""

    def run(
        changes: dict[str, Any], folder: str, progress: Silent | None = None, **parts: Any
    ) -> tuple[TrainingJob, list[dict[str, Any]]]:
        seed_everything(0, False)
        work = job("student", changes, progress, folder, **parts)
        steps = work.loader.steps_per_epoch * work.config.training.epochs
        if work.task.budget is not None:
            measure = measure_eval_energy(work.task, make_context(work.config))
            work.control = EnergyControl(BudgetController(work.task.budget.pj, steps), measure)
        return work, fit(work)

    return run


@pytest.fixture
def toy() -> Callable[..., Task]:
    """`toy("4uJ")`: the task of the toy network with a budget."""

    def make(budget: str, **changes: Any) -> Task:
        torch.manual_seed(3)
        config = make_config(TOY | {"energy.budget": budget, **changes})
        return distillation(Toy(), None, config, (1, 8, 8))

    return make


TOY = {
    "method.name": "ce",
    "augment.crop_padding": 0,
    "augment.flip": False,
    "training.checkpoint_every": "999epochs",
}


def test_a_training_keeps_its_budget_and_uses_it(train: Train, toy: Callable[..., Task]) -> None:
    longer = {"training.epochs": 90, "optimizer.lr": 0.05, "energy.profile": "loihi"}
    work, _ = train(TOY | longer, "free", task=toy("none", **longer))
    priced = toy("100%", **longer)
    priced.model.load_state_dict(work.task.model.state_dict())
    free_pj = measure_eval_energy(priced, make_context(work.config))()
    budget = f"{0.6 * free_pj}pJ"
    held = TOY | longer | {"energy.budget": budget}
    work, rows = train(held, "held", task=toy(budget, **longer))
    # the last bits, and so a few spikes, depend on the threads
    assert 0.96 * 0.6 < work.control.measure() / free_pj <= 0.6
    assert rows[-1]["energy_multiplier"] >= 0.0
    assert rows[-1]["energy_budget_pj"] < rows[0]["energy_budget_pj"]


def test_a_loose_budget_leaves_every_bit_as_it_is(train: Train) -> None:
    work, rows = train({}, "free")
    held, held_rows = train({"energy.budget": "100%"}, "held")
    assert_same(weights(work), weights(held))
    energy = ("energy_pj", "energy_budget_pj", "energy_multiplier")
    assert timeless(held_rows, *energy) == timeless(rows)
    assert [row["energy_multiplier"] for row in held_rows] == [0.0, 0.0]
    assert all(row["energy_pj"] > 0 for row in held_rows)


@pytest.mark.slow
def test_a_resumed_run_ends_in_the_same_bits(train: Train) -> None:
    changes = {"energy.budget": TIGHT, "training.epochs": 3}
    whole, rows = train(changes, "whole")
    assert any(row["energy_multiplier"] > 0 for row in rows)
    with pytest.raises(Interrupted):
        train(changes, "parts", StopsAt(5))
    resumed, resumed_rows = train(changes, "parts")
    assert_same(weights(whole), weights(resumed))
    assert timeless(rows) == timeless(resumed_rows)
    states = [load_latest(work.run.checkpoints, pytest.fail) for work in (whole, resumed)]
    assert states[0]["energy_control"] == states[1]["energy_control"]
    assert states[0]["energy_control"] == vars(whole.control.controller)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.student": "sew_resnet20", "performance.save_memory": True},
        {"performance.stem_once": False},
    ],
)
def test_what_saves_memory_or_time_changes_no_energy(changes: dict[str, Any]) -> None:
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    found = []
    for more in ({}, changes):
        student = changes.get("model.student", "resnet20")
        task = task_of({"energy.budget": TIGHT, "model.student": student, **more})
        terms = task.step(images, labels, multiplier=3.0).terms
        terms["loss"].backward()
        accumulates = terms["energy_pj"] - task.budget.macs * task.budget.profile.mac_pj
        found.append((accumulates, task.model.get_parameter("conv1.weight").grad))
    assert found[0][0].item() == pytest.approx(found[1][0].item(), rel=1e-9)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"training.accumulate": 2, "model.weight_bits": 8},
        {"training.precision": "bf16", "performance.save_memory": True},
        {"method.name": "kd_feature", "model.student": "sew_resnet20"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_it_goes_with_everything(train: Train, changes: dict[str, Any]) -> None:
    _, rows = train({"energy.budget": TIGHT, "training.epochs": 3, **changes}, "")
    assert rows[-1]["energy_pj"] < rows[0]["energy_pj"]
    assert max(row["energy_multiplier"] for row in rows) > 0


def test_the_multiplier_weighs_energy_by_the_budget_and_parts_of_a_batch_change_none() -> None:
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 3
    task = task_of({"energy.budget": TIGHT})
    task.model.eval()
    free, held = (task.step(images, labels, multiplier=weight).terms for weight in (0.0, 2.0))
    assert held["energy_pj"].item() == free["energy_pj"].item() > 0
    expected = free["loss"].item() + 2.0 * free["energy_pj"].item() / task.budget.pj
    assert held["loss"].item() == pytest.approx(expected, rel=1e-6)
    parts = [task.step(images[i : i + 3], labels[i : i + 3]).terms["energy_pj"] for i in (0, 3)]
    assert free["energy_pj"].item() == pytest.approx(sum(p.item() for p in parts) / 2, rel=1e-12)


def test_an_epoch_over_the_budget_is_not_the_best(job: Job) -> None:
    scores, energies = iter([0.9, 0.8, 0.5]), iter([500.0, 250.0])
    seen: list[dict[str, Tensor]] = []

    def validate() -> float:
        seen.append(weights(work))
        return next(scores)

    changes = {"energy.budget": TIGHT, "training.epochs": 3}
    work = job("student", changes, validate=validate)
    work.control = EnergyControl(BudgetController(300.0, 10_000), lambda: next(energies))
    rows = fit(work)
    assert [row["validation_accuracy"] for row in rows] == [0.9, 0.8, 0.5]
    assert_same(weights(work), seen[1])


def test_a_budget_is_an_energy_or_a_share_of_the_ann(toy: Callable[..., Task]) -> None:
    ann_pj = ANN * 4.6
    for text, expected in (("30nJ", 30e3), ("40%", 0.4 * ann_pj), ("100%", ann_pj)):
        budget = toy(text).budget
        assert budget.pj == pytest.approx(expected, rel=1e-12)
        # the head is computed at both steps
        assert budget.macs == STEM + 2 * HEAD


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("1nJ", r"1 nJ is not more than the 18.7 nJ that an image costs without a single spike"),
        ("1%", r"is not more than the 18.7 nJ .* \(17.8 nJ of it in the stem, profile horowitz-"),
        ("1mJ", r"1 mJ is more than the 161 nJ of the ANN of the same shape"),
    ],
)
def test_a_budget_out_of_reach_is_refused(toy: Callable[..., Task], text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"^energy.budget = {text}: .*{said}"):
        toy(text)


@pytest.mark.parametrize(("name", "macs"), [("sew_resnet20", 3 * 64 * 4), ("sdt_tiny", 0)])
def test_of_frames_the_share_is_of_the_ann_on_their_mean(name: str, macs: int) -> None:
    shape = (3, 2, 8, 8)  # three steps
    sizes = dict(zip(("channels", "height", "width"), shape[1:], strict=True))
    model = build_model(name, num_classes=4, neuron=NeuronConfig(), **sizes)
    model.fed_counts = True

    def settled(text: str) -> EnergyBudget:
        config = make_config({"energy.budget": text, "model.timesteps": 3})
        return settle_budget(config, networks.counts_at_random(model, shape, 3))

    mean = settled("100%")
    # nothing but a head that reads an average costs energy without a spike
    assert mean.macs == macs
    assert settled(f"{2.9 * mean.pj}pJ").pj == pytest.approx(2.9 * mean.pj)
    with pytest.raises(ConfigError, match="of the ANN of the same shape on each frame"):
        settled(f"{3.1 * mean.pj}pJ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("-4uJ", r"energy\.budget = .* is no energy; write"),
        (
            "101%",
            r"energy\.budget = '101%': 101%: a share of the ANN's energy is above 0 %, at most",
        ),
    ],
)
def test_what_is_no_budget_is_refused_with_the_settings(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config({"energy.budget": text})


def test_what_a_budget_does_not_go_with_is_refused(
    toy: Callable[..., Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"does not go with performance\.compile"):
        toy("50%", **{"performance.compile": "on"})
    monkeypatch.setattr(Toy, "input_kinds", lambda self: None)
    monkeypatch.setattr(networks, "BY_TRIAL", "tser_cli.no_such_wing:count")
    with pytest.raises(TserError, match="does not say what feeds its layers"):
        toy("50%")


def test_the_profile_is_that_of_the_weights_or_the_one_asked_for(tmp_path: Path) -> None:
    assert profile_of(make_config()).name == "horowitz-45nm-fp32"
    assert profile_of(make_config({"model.weight_bits": 8})).name == "horowitz-45nm-int8"
    assert profile_of(make_config({"energy.profile": "loihi"})).name == "loihi"
    with pytest.raises(ConfigError, match="the weights have 32 bits"):
        profile_of(make_config({"energy.profile": "horowitz-45nm-int8"}))
    free = tmp_path / "free.toml"
    free.write_text('name="x"\nmac_pj=1.0\nac_pj=0.0\nsource="s"\ntechnology="t"\n')
    with pytest.raises(ConfigError, match="ac_pj: Input should be greater than 0"):
        profile_of(make_config({"energy.profile": str(free)}))
