"""What a setting may be, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tser_cli import config
from tser_cli.config import Config
from tser_cli.errors import ConfigError
from tser_cli.recipe import Layer, resolve


def with_value(key: str, value: Any) -> Config:
    return Config().updated({key: value})


def test_the_paper_s_neuron_is_the_default() -> None:
    assert Config().neuron.model_dump() == {
        "name": "lif",
        "tau": 2.0,
        "decay_input": False,
        "threshold": 1.0,
        "reset": "hard",
        "reset_value": 0.0,
        "detach_reset": False,
        "surrogate": "sigmoid",
        "surrogate_alpha": 4.0,
        "backend": "auto",
    }


def test_keys_that_others_rely_on() -> None:
    assert config.keys().keys() >= {
        *("data.name", "data.dir", "data.validation_fraction"),
        *("model.teacher", "model.student", "model.timesteps", "neuron.tau"),
        *("method.name", "method.temperature", "method.ce_weight", "method.kd_weight"),
        *("method.entropy_weight", "optimizer.lr", "schedule.name"),
        *("training.epochs", "training.batch_size", "training.seed"),
    }
    assert config.keys()["model.timesteps"] == 2


def test_keys_cover_every_setting() -> None:
    sections = Config().model_dump()
    assert len(config.keys()) == sum(len(values) for values in sections.values())


def test_a_config_does_not_change() -> None:
    with pytest.raises(ValidationError):
        Config().training.epochs = 3  # type: ignore[misc]


def test_updated_is_a_copy() -> None:
    before = Config()
    after = before.updated({"training.epochs": 3, "optimizer.lr": 0.5})
    assert (after.training.epochs, after.optimizer.lr) == (3, 0.5)
    assert before == Config()
    assert after.updated({"training.epochs": 10, "optimizer.lr": 0.1}) == before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.name", "digitz"),
        ("data.validation_fraction", 1.0),
        ("data.validation_fraction", -0.1),
        ("data.workers", -2),
        ("model.student", "resnet81"),
        ("model.timesteps", 0),
        ("model.timesteps", "two"),
        ("model.timesteps", 2.5),
        ("neuron.tau", 1.0),
        ("neuron.threshold", 0.0),
        ("neuron.reset", "soft reset"),
        ("method.name", "tsre"),
        ("method.temperature", 0.0),
        ("method.ce_weight", -1.0),
        ("optimizer.lr", 0.0),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")),
        ("optimizer.momentum", 1.0),
        ("schedule.name", "cosin"),
        ("schedule.milestones", [0.0]),
        ("training.epochs", 0),
        ("training.epochs", 2**63),
        ("training.epochs", True),
        ("training.seed", -1),
        ("training.seed", 2**32),
        ("method.entropy_weight", False),
        ("training.device", "gpu"),
        ("training.device", "cuda:"),
        ("training.device", "mps"),
        ("training.precision", "fp8"),
        ("training.label_smoothing", 1.0),
        ("training.checkpoint_every", "0min"),
        ("training.checkpoint_every", "5 minutes"),
        ("training.checkpoint_every", "9" * 5000 + "min"),
        ("augment.cutout", -1),
        ("training.unheard_of", 1),
    ],
    ids=lambda value: str(value)[:30],
)
def test_bad_values_are_refused(key: str, value: Any) -> None:
    with pytest.raises(ValidationError) as error:
        with_value(key, value)
    assert error.value.errors()[0]["loc"][:2] == tuple(key.split("."))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("training.device", "cuda:3"),
        ("training.checkpoint_every", "1epoch"),
        ("training.checkpoint_every", "2epochs"),
        ("training.checkpoint_every", "200steps"),
        ("training.seed", 2**32 - 1),
        ("method.entropy_weight", -0.5),
        ("data.workers", 0),
        ("augment.flip", True),
        ("data.name", "imagefolder"),
    ],
)
def test_good_values_are_kept(key: str, value: Any) -> None:
    section, name = key.split(".")
    assert getattr(getattr(with_value(key, value), section), name) == value


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValidationError, match="nesterov needs a momentum"):
        Config().updated({"optimizer.nesterov": True, "optimizer.momentum": 0.0})
    assert with_value("optimizer.nesterov", True).optimizer.nesterov


def test_an_unknown_name_brings_the_nearest() -> None:
    with pytest.raises(ValidationError, match=r'unknown data set "digitz" \(did you mean "digits"'):
        with_value("data.name", "digitz")


@given(st.sampled_from(sorted(config.keys())), st.none() | st.booleans() | st.binary())
def test_no_number_comes_from_what_is_none(key: str, value: Any) -> None:
    """Whatever the type of a value, a number stays a number."""
    default = config.keys()[key]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return
    try:
        section, name = key.split(".")
        kept = getattr(getattr(with_value(key, value), section), name)
    except (ValidationError, UnicodeDecodeError):
        return
    assert isinstance(value, bytes) and float(value) == kept


@pytest.mark.parametrize("size", ["many", "-4", -1, True, 2.5])
def test_what_is_no_batch_size(size: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        resolve([Layer("tests", {"training.batch_size": size})])
