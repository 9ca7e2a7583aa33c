"""Whether a network can teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from tser_cli.base.errors import CheckpointError, ConfigError
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.networks import Loaded
from tser_cli.engine.runs.teachers import as_ann, check_architecture, fitting_teacher
from tser_cli.settings.config import Config

Network = Callable[..., Loaded]


@pytest.fixture
def network(spec: DataSpec, make_config: Callable[..., Config]) -> Network:
    """`network(spiking, made_for, classes)`: as it was read from the file x.pt."""

    def make(
        spiking: bool = False, made_for: DataSpec = spec, classes: tuple[str, ...] = ()
    ) -> Loaded:
        model = networks.build("resnet20", made_for, make_config(), spiking)
        return Loaded(model, "resnet20", "x.pt", "", classes)

    return make


def test_a_spiking_network_is_no_teacher(network: Network, spec: DataSpec) -> None:
    ann, snn = network(), network(spiking=True)
    assert as_ann(ann) is ann
    for check in (as_ann, lambda loaded: fitting_teacher(loaded, spec)):
        with pytest.raises(CheckpointError, match=r"x\.pt is a spiking network; a teacher is an"):
            check(snn)


def test_a_teacher_of_other_images_is_refused_as_the_teacher(
    network: Network, spec: DataSpec
) -> None:
    other = network(made_for=replace(spec, channels=3, mean=(0.5,) * 3, std=(0.3,) * 3))
    with pytest.raises(CheckpointError, match=r"^the teacher x\.pt takes 3 input channels"):
        fitting_teacher(other, spec)


@pytest.mark.parametrize("classes", [(), ("a", "b", "c")])
def test_classes_that_are_the_same_or_not_said(
    network: Network, spec: DataSpec, classes: tuple[str, ...]
) -> None:
    loaded = network(classes=classes)
    assert fitting_teacher(loaded, spec) is loaded


@pytest.mark.parametrize("classes", [("d", "e", "f"), ("b", "a", "c")])
def test_as_many_classes_that_are_others_or_in_another_order(
    network: Network, spec: DataSpec, classes: tuple[str, ...]
) -> None:
    said = rf"x\.pt was trained to tell apart {', '.join(classes)} .*of digits are a, b, c"
    with pytest.raises(CheckpointError, match=said):
        fitting_teacher(network(classes=classes), spec)


def test_a_function_is_no_architecture() -> None:
    with pytest.raises(ConfigError, match="theirs:build: a function's network teaches in tser dis"):
        check_architecture("theirs:build")
