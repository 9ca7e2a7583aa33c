"""The functions for Python on networks and data loaders of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError
from tser_cli.engine.commands.library import distill_networks, evaluate_network, own_config
from tser_cli.models.neurons import SpikingNeuron
from tser_cli.report.csv_files import read_csv
from tser_cli.settings.config import NeuronConfig

CLASSES, IMAGES = 3, 24
ONE_EPOCH = {"training.epochs": 1, "training.tensorboard": False}


def loader(classes: int = CLASSES, **changes: Any) -> list[tuple[Tensor, Tensor]]:
    """Two batches of random images of 4 x 4 and their labels, some of them replaced."""
    draw = torch.Generator().manual_seed(0)
    images, labels = torch.rand(IMAGES, 1, 4, 4, generator=draw), torch.arange(IMAGES) % classes
    given = {"images": images, "labels": labels, **changes}
    return list(zip(given["images"].split(12), given["labels"].split(12), strict=True))


class Student(nn.Module):
    """A spiking network that leaves what its neurons keep to others."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(16, 8), nn.Linear(8, classes)
        self.neuron: nn.Module = neuron.LIFNode(tau=4.0, step_mode="m")

    def forward(self, images: Tensor, timesteps: int) -> Tensor:
        current = self.first(images.flatten(1)).expand(timesteps, -1, -1)
        return self.head(self.neuron(4 * current))  # type: ignore[no-any-return]


class Declared(Student):
    """One with a neuron of ours, which says what feeds its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = SpikingNeuron(NeuronConfig())

    def forward(self, images: Tensor, timesteps: int) -> Tensor:
        current = self.first(images.flatten(1)).repeat(timesteps, 1)
        logits = self.head(self.neuron(4 * current, timesteps))
        return logits.view(timesteps, len(images), -1)  # type: ignore[no-any-return]

    def input_kinds(self) -> dict[str, str]:
        return {"first": "real", "head": "spikes"}


class Keeping(nn.Module):
    """A neuron of nobody's library, which has no method that resets it."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.detached = detached
        self.v: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.v = self.v + x.mean(0) * 1e-3
        return x + torch.relu(self.v.detach() if self.detached else self.v - self.v.detach())


class OfOneStep(nn.Linear):
    def __init__(self) -> None:
        super().__init__(16, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1))


def test_states_of_a_known_library_are_reset_before_each_batch() -> None:
    student = Student()
    found = [evaluate_network(student, loader(), 4).rows() for _ in range(3)]
    assert found[0] == found[1] == found[2]
    # by hand, each batch on a new state
    right = 0
    for images, labels in loader():
        student.neuron.reset()  # type: ignore[operator]
        right += int((student(images, 4).mean(0).argmax(-1) == labels).sum())
    assert found[0][-1]["correct_cumulative"] == right
    # what it keeps has a gradient again
    student.train()(loader()[0][0], 4).sum().backward()


def test_a_student_of_a_known_library_is_trained(tmp_path: Path) -> None:
    student, teacher = Student(), OfOneStep()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    made = distill_networks(
        teacher, student, loader(), loader(), settings=ONE_EPOCH, runs_dir=tmp_path
    )
    assert made.energy_pj is None
    assert not torch.equal(student.first.weight, before["first.weight"])
    again = evaluate_network(student, loader(), 2)
    assert again.accuracy == made.accuracy


@pytest.mark.parametrize("detached", [True, False])
def test_a_state_that_nobody_resets(tmp_path: Path, detached: bool) -> None:
    student = Student()
    student.neuron = Keeping(detached)
    said = "other logits the second time" if detached else "graph of an earlier call, which is used"
    with pytest.raises(ConfigError, match=rf"the student \(Student\) .*{said}"):
        distill_networks(OfOneStep(), student, loader(), loader(), runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("teacher", "student", "train", "said"),
    [
        (
            OfOneStep(),
            OfOneStep(),
            {},
            r"student \(OfOneStep\) can't be called as student\(images, ti",
        ),
        (Student(), OfOneStep(), {}, r"student \(OfOneStep\) can't be .* are they swapped\?"),
        (Student(), Student(), {}, r"the teacher \(Student\) can't be called as teacher\(images\)"),
        (nn.Flatten(0), Student(), {}, r"the teacher \(Flatten\) gave \(32,\); it must return"),
        (
            OfOneStep(),
            Student(5),
            {},
            "the student gives 5 logits an image, the teacher 3: both must",
        ),
        (
            OfOneStep(),
            Student(),
            {"classes": 4},
            "labels from 0 to 3: the student gives 3 logits an",
        ),
        (
            OfOneStep(),
            Student(),
            {"labels": torch.rand(24)},
            "a class's number .* not torch.float32",
        ),
        (OfOneStep(), Student(), {"labels": torch.eye(24).long()}, r"not torch.int64 \(12, 24\)"),
        (OfOneStep(), Student(), {"labels": torch.arange(24) - 1}, "labels from -1 to 10"),
        (
            OfOneStep(),
            Student(),
            {"images": torch.rand(24, 1, 5, 5)},
            r"the student \(Student\) fails on 2 images: RuntimeError: mat1",
        ),
    ],
)
def test_networks_that_do_not_fit_are_named_before_there_is_a_run(
    tmp_path: Path, teacher: nn.Module, student: nn.Module, train: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        distill_networks(teacher, student, loader(**train), loader(), runs_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_labels_of_the_test_images_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="labels from 0 to 3: the student gives 3"):
        evaluate_network(Student(), loader(4), 2)
    frozen = Student().requires_grad_(False)
    assert evaluate_network(frozen, loader(labels=(torch.arange(24) % 3).int()), 2).images == 24
    with pytest.raises(ConfigError, match="a data loader gives no batch"):
        evaluate_network(Student(), [], 2)


def test_settings_of_energy_count_price_and_bound(tmp_path: Path) -> None:
    def distilled(**settings: Any) -> Any:
        torch.manual_seed(0)
        given = {**ONE_EPOCH, **{f"energy.{name}": value for name, value in settings.items()}}
        return distill_networks(
            OfOneStep(), Declared(), loader(), loader(), settings=given, runs_dir=tmp_path
        )

    made = distilled(profile="horowitz-45nm-fp16")
    (total,) = [
        row
        for row in read_csv(made.folder / "energy.csv")
        if (row["layer"], row["t"]) == ("TOTAL", "all")
    ]
    # 16 x 8 products once, and 3 accumulates a spike
    assert (float(total["macs"]), float(total["sop_value"]) % (3 / IMAGES)) == (128, 0.0)
    assert made.energy_pj == pytest.approx(float(total["energy_pj"]))
    assert (made.energy_budget_pj, made.energy_budget_kept) == (None, None)
    bounded = distilled(budget="98%")
    assert bounded.energy_budget_pj == pytest.approx(0.98 * bounded.ann_energy_pj)
    assert bounded.energy_budget_kept is (bounded.energy_pj <= bounded.energy_budget_pj)
    assert float(read_csv(bounded.folder / "metrics.csv")[0]["energy_pj"]) > 0
    # one that does not say what feeds its layers
    given = {**ONE_EPOCH, "energy.budget": "98%"}
    found = distill_networks(
        OfOneStep(), Student(), loader(), loader(), settings=given, runs_dir=tmp_path
    )
    assert found.energy_budget_pj == pytest.approx(0.98 * found.ann_energy_pj)
    assert found.energy_budget_kept is (found.energy_pj <= found.energy_budget_pj)
    with pytest.raises(ConfigError, match="the weights have 32 bits"):
        own_config(2, "tser", {"energy.profile": "horowitz-45nm-int8"})
    with pytest.raises(ConfigError, match=r"^model\.stem: your own networks and data loaders"):
        own_config(2, "tser", {"model.stem": "small"})
