"""What a setting may be, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tser_cli.base.errors import ConfigError
from tser_cli.settings import config, registry
from tser_cli.settings.config import Config, keys_where, policies
from tser_cli.settings.fields import Policy, flatten, split
from tser_cli.settings.names import full_key, short_name
from tser_cli.settings.recipe import Layer, resolve


def test_keys_cover_every_setting() -> None:
    for name in registry.METHODS:
        of_method = Config().updated({"method.name": name}).flat()
        assert config.keys(name, "resnet18").keys() == of_method.keys() <= config.keys().keys()
    every = {key for name in registry.METHODS for key in config.keys(name)}
    assert config.keys().keys() == every
    for name in registry.MODELS:
        of_network = Config().updated({"model.student": name}).flat().keys()
        unstated = {key for key in every if key.startswith("neuron.")} - of_network
        assert config.keys("tser", name).keys() - unstated == of_network


def test_another_method_comes_with_its_own_weights() -> None:
    tsd = Config().updated({"method.name": "tsd", "method.beta": 0.25})
    assert (tsd.method.temperature, tsd.method.alpha, tsd.method.beta) == (3.0, 0.2, 0.25)
    assert tsd.updated({"method.name": "tsd"}) == tsd
    kd = tsd.updated({"method.name": "kd", "training.epochs": 3})
    assert kd.method == registry.METHODS["kd"].settings()
    assert kd.method != tsd.updated({"method.name": "ts"}).method


def test_what_a_method_does_not_read_is_an_error() -> None:
    with pytest.raises(ValidationError) as error:
        Config().updated({"method.name": "ce", "method.temperature": 2.0})
    assert error.value.errors()[0]["loc"] == ("method", "temperature")


def test_the_methods_that_read_a_weight() -> None:
    assert config.readers("method.lam") == ["tet"]
    assert set(config.readers("method.entropy_weight")) == registry.METHODS.keys()
    said = "method.alpha: kd does not read it; it is read by tsd, seal, dkd"
    assert config.unread("method.alpha", "kd", "resnet18") == said


def test_added_terms_show_in_the_method_s_name() -> None:
    for name, weight, label in (("kd", 0, "kd"), ("ce", -0.1, "ce+entropy"), ("tser", 0.2, "tser")):
        changes = {"method.name": name, "method.entropy_weight": weight}
        assert config.method_label(Config().updated(changes)) == label
    rate = {"method.name": "tser", "method.rate_weight": 0.5}
    assert config.method_label(Config().updated(rate)) == "tser+rate"
    both = Config().updated({**rate, "method.name": "kd", "method.entropy_weight": 0.1})
    assert config.method_label(both) == "kd+entropy+rate"
    assert config.method_label(both, {"method.rate_weight"}) == "kd+entropy"


def test_a_training_with_an_energy_budget_has_an_end() -> None:
    endless = Config().updated({"schedule.name": "constant"})
    assert endless.policy("training.epochs").resume
    held = endless.updated({"energy.budget": "4uJ"})
    assert held.has_energy_budget and not endless.has_energy_budget
    assert not held.policy("training.epochs").resume
    assert held.policy("energy.budget").results
    assert short_name("energy.budget") == "energy_budget"
    assert full_key("energy_budget") == "energy.budget"


def test_updated_is_a_copy() -> None:
    with pytest.raises(ValidationError):
        Config().training.epochs = 3  # type: ignore[misc]
    before = Config()
    after = before.updated({"training.epochs": 3, "optimizer.lr": 0.5})
    assert (after.training.epochs, after.optimizer.lr) == (3, 0.5)
    assert before == Config()
    assert after.updated({"training.epochs": 10, "optimizer.lr": 0.1}) == before


NAN, INFINITE = float("nan"), float("inf")
BAD: dict[str, list[Any]] = {
    "data.name": ["digitz"],
    "data.validation_fraction": [1.0, -0.1],
    "data.workers": [-2],
    "model.student": ["resnet81"],
    "model.timesteps": [0, "two", 2.5],
    "neuron.tau": [1.0],
    "neuron.threshold": [0.0],
    "neuron.reset": ["soft reset"],
    "method.name": ["tsre"],
    "method.temperature": [0.0],
    "method.ce_weight": [-1.0],
    "method.entropy_weight": [False],
    "method.label_smoothing": [1.0],
    "optimizer.lr": [0.0, NAN, INFINITE],
    "optimizer.momentum": [1.0],
    "schedule.name": ["cosin"],
    "schedule.milestones": [[0.0]],
    "training.epochs": [0, 2**63, True],
    "training.seed": [-1, 2**32],
    "training.device": ["gpu", "cuda:", "mps"],
    "training.precision": ["fp8"],
    "training.checkpoint_every": ["0min", "5 minutes", "9" * 5000 + "min"],
    "training.ema_decay": [1.0, -0.1],
    "augment.cutout": [-1],
    "augment.mixup": [1e-300, 1001.0, -0.5, INFINITE],
    "augment.mix_probability": [0.0],
    "augment.randaugment_magnitude": [31],
    "performance.compile": ["auto"],
    "training.unheard_of": [1],
}


@pytest.mark.parametrize("key", BAD)
def test_bad_values_are_refused(key: str) -> None:
    for value in BAD[key]:
        with pytest.raises(ValidationError) as error:
            Config().updated({key: value})
        assert error.value.errors()[0]["loc"][:2] == tuple(key.split("."))


def test_one_policy_of_augmentation_at_most() -> None:
    with pytest.raises(ValidationError, match="choose one of them"):
        Config().updated({"augment.autoaugment": "cifar10", "augment.randaugment_ops": 1})


def test_good_values_are_kept() -> None:
    good = {"training.device": "cuda:3", "training.seed": 2**32 - 1, "method.entropy_weight": -0.5}
    # nesterov without momentum is an error: see test_recipe
    good |= {"data.workers": 0, "optimizer.nesterov": True, "data.name": "imagefolder"}
    for every in ("1epoch", "2epochs", "200steps"):
        changes = {**good, "training.checkpoint_every": every}
        assert changes.items() <= Config().updated(changes).flat().items()


@given(st.sampled_from(sorted(config.keys())), st.none() | st.booleans() | st.binary())
def test_no_number_comes_from_what_is_none(key: str, value: Any) -> None:
    """Whatever the type of a value, a number stays a number."""
    default = config.keys()[key]
    if isinstance(default, bool) or not isinstance(default, int | float):
        return
    try:
        section, name = key.split(".")
        kept = getattr(getattr(Config().updated({key: value}), section), name)
    except (ValidationError, UnicodeDecodeError):
        return
    assert isinstance(value, bytes) and float(value) == kept


@pytest.mark.parametrize("size", ["many", "-4", -1, True, 2.5])
def test_what_is_no_batch_size(size: Any) -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        resolve([Layer("tests", {"training.batch_size": size})])


def test_flat_and_split_are_inverse() -> None:
    flat = Config().flat()
    assert flat["data.name"] == "digits" and flat["schedule.milestones"] == []
    assert Config.model_validate(split(flat)) == Config()
    assert flatten(split(flat)) == flat


def test_every_setting_has_a_policy() -> None:
    assert policies().keys() == Config().flat().keys()
    assert Config().policy("optimizer.lr") == Policy()
    endless = Config().updated({"schedule.name": "constant"})
    assert endless.policy("training.epochs") == Policy(resume=True)
    assert Config().policy("training.epochs") == Policy()


def test_what_changes_no_result_may_change_on_resume() -> None:
    free = keys_where(lambda policy: not policy.results)
    assert free == {
        *("data.dir", "data.workers", "training.device", "training.eval_batch_size"),
        *("training.checkpoint_every", "training.tensorboard", "plugins"),
        "performance.spikes_in_bytes",
    }
    may_change = keys_where(lambda policy: policy.resume)
    assert may_change == free | {"training.epochs", "training.accumulate"}
    with pytest.raises(AssertionError):
        Policy(results=False)


def test_what_counts_when_a_finished_run_is_measured() -> None:
    assert keys_where(lambda policy: policy.measuring) == {
        *("data.dir", "data.workers", "training.device", "training.precision"),
        *("training.eval_batch_size", "performance.spikes_in_bytes"),
    }


def test_results_depend_on_the_folder_where_the_images_are_the_user_s_own() -> None:
    for name, counts in (("digits", False), ("imagenet", False), ("imagefolder", True)):
        at = Config().updated({"data.name": name, "data.dir": "/images"})
        assert ("data.dir" in at.result_settings()) is counts
        assert at.policy("data.dir").resume is not counts
        assert at.policy("data.dir").measuring and at.policy("data.dir").teacher
    assert Config().result_settings().keys() == {
        key for key, policy in policies().items() if policy.results
    }


def test_a_short_name_leads_back_to_its_key() -> None:
    for key in sorted(config.keys()):
        assert full_key(short_name(key)) == full_key(key) == key
    assert full_key("T") == "model.timesteps"


def test_short_names() -> None:
    known = {"method.name": "method", "data.name": "dataset", "model.timesteps": "timesteps"}
    known |= {"method.entropy_weight": "entropy_weight", "schedule.name": "schedule"}
    whole = {key: key for key in ("neuron.tau", "method.no_such_weight")}
    for key, short in (known | whole).items():
        assert short_name(key) == short


def test_names_that_are_refused() -> None:
    with pytest.raises(ConfigError, match=r'"tau" may mean method\.temperature or neuron\.tau'):
        full_key("tau")
    for name, near in (("entropy_wieght", "entropy_weight"), ("neuron.taw", "neuron.tau")):
        with pytest.raises(ConfigError, match=rf'key "{name}" \(did you mean "{near}"\?\)'):
            full_key(name)
