"""MS-ResNet and the spiking transformers beside the classes of spikingjelly that they are."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tser_cli.base.errors import ConfigError
from tser_cli.engine.evaluation.early_exit import Stepper
from tser_cli.models import zoo
from tser_cli.models.base import Classifier, FeatureTap, aligned, stage_shapes
from tser_cli.models.integers import quantise, quantised
from tser_cli.settings import recipe, registry
from tser_cli.settings.config import Config, NeuronConfig, OwnSizes
from tser_cli.settings.recipe import Layer, resolve

Build = Callable[..., Classifier]
TINY = ("ms_resnet_tiny", "spikformer_tiny", "sdt_tiny", "qkformer_tiny", "maxformer_tiny")
MORE: dict[str, dict[str, Any]] = {
    "ms_resnet_tiny": {"stem_kernel_size": 3, "stem_stride": 1},
    "spikformer_tiny": {"img_size_h": 8, "img_size_w": 8},
    "maxformer_tiny": {"cifar": True},
}
T = 3


def lively(model: Classifier) -> Classifier:
    """Give the norms statistics at which every layer spikes, in float64."""
    for norm in model.double().modules():
        if isinstance(norm, _BatchNorm):
            nn.init.uniform_(norm.bias, 0.6, 1.4)
            nn.init.uniform_(norm.weight, 0.8, 1.2)
    with torch.no_grad():
        model.train()(images(8), 2)
    return model.eval()


def images(count: int) -> Tensor:
    return torch.randn(count, 1, 8, 8, dtype=torch.float64)


def the_class(model: Classifier, name: str, **neurons: Any) -> nn.Module:
    """Build the class itself by hand; weights go there and back."""
    theirs = next(c for c in type(model).__mro__ if c.__module__.startswith("spikingjelly"))
    settings = registry.MODELS[name].settings()
    assert isinstance(settings, OwnSizes)
    sizes = {**settings.sizes(), **MORE.get(name, {})}
    made: nn.Module = theirs(T=T, in_channels=1, num_classes=10, **sizes, **neurons)
    made.double().load_state_dict(model.state_dict())
    model.load_state_dict(made.state_dict())
    return made


def mean_of(logits: Tensor) -> Tensor:
    """Average over time what the class may have averaged already."""
    return logits.mean(0) if logits.dim() == 3 else logits


@pytest.mark.parametrize("name", TINY)
def test_the_mean_of_the_logits_is_what_the_class_gives(build: Build, name: str) -> None:
    model = lively(build(name))
    theirs, x = the_class(model, name), images(4)
    for training in (False, True):
        ours, expected = model.train(training)(x, T), mean_of(theirs.train(training)(x))
        functional.reset_net(theirs)
        assert ours.shape == (T, 4, 10)
        assert expected.std() > 0.01
        assert torch.allclose(ours.mean(0), expected, rtol=0, atol=1e-12)
    # The stem ran once: gradients and running statistics are those of T equal steps all the same.
    for loss in (ours.mean(0), expected):
        loss.square().sum().backward()  # type: ignore[no-untyped-call]
    wanted = dict(theirs.named_parameters())
    for key, weight in model.named_parameters():
        assert weight.grad is not None, key
        assert torch.allclose(weight.grad, wanted[key].grad, rtol=1e-9, atol=1e-12), key
    for key, value in theirs.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, rtol=1e-12), key
    # No state is left: the next pass is the first one again, and T is an argument of the call.
    assert torch.equal(model.eval()(x, 5)[:2], model(x, 2))


@pytest.mark.parametrize("name", TINY)
def test_single_steps_give_the_same_and_images_can_leave(build: Build, name: str) -> None:
    model, x = lively(build(name)), images(4)
    with torch.no_grad():
        whole = model(x, T)
        with Stepper(model) as stepper:
            stepper.start(x)
            assert torch.allclose(stepper.step(), whole[0], atol=1e-12)
            stepper.keep(torch.tensor([3, 1]))
            assert torch.allclose(stepper.step(), whole[1, [3, 1]], atol=1e-12)
        assert torch.equal(model(x, T), whole)
        # Frames differ from step to step, and give what they give the class.
        frames_NTCHW = torch.stack([images(4) for _ in range(T)], 1)
        expected = mean_of(the_class(model, name).eval()(frames_NTCHW.transpose(0, 1)))
        assert torch.allclose(model(frames_NTCHW, T).mean(0), expected, atol=1e-12)
        model.stem_once = False
        assert torch.allclose(model(x, T), whole, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "maps"),
    [
        ("ms_resnet_tiny", [(32, 4, 4), (64, 2, 2), (128, 1, 1)]),
        ("spikformer_tiny", [(64, 2, 2)]),
        ("sdt_tiny", [(96, 2, 2)] * 2),
        ("qkformer_tiny", [(32, 2, 2), (64, 1, 1), (128, 1, 1)]),
        ("maxformer_tiny", [(16, 8, 8), (32, 4, 4), (64, 2, 2)]),
    ],
)
def test_stages_are_maps_with_time_folded(
    build: Build, name: str, maps: list[tuple[int, int, int]]
) -> None:
    model = build(name)
    tap = FeatureTap(model)
    assert stage_shapes(model, tap, (1, 8, 8)) == maps
    model(torch.randn(2, 1, 8, 8), T)
    stages = tap.take()
    assert [len(stage) for stage in stages] == [T * 2] * len(maps)
    # Beside a teacher of three stages with larger maps: the last ones, at the smaller size.
    sizes = aligned(maps, [(16, 8, 8), (32, 4, 4), (64, 2, 2)])
    assert sizes == [shape[1:] for shape in maps]
    assert aligned(maps, [(64, 1, 1)]) == [(1, 1)]
    tap.reduce([(1, 1)])
    model(torch.randn(2, 1, 8, 8), T)
    assert [stage.shape[1:] for stage in tap.take()] == [(maps[-1][0], 1, 1)]


@pytest.mark.parametrize(
    ("name", "million"),
    [("ms_resnet18", 11.18), ("spikformer", 9.31), ("sdt", 10.23), ("maxformer", 6.57)],
)
def test_the_papers_sizes_are_the_defaults(build: Build, name: str, million: float) -> None:
    with torch.device("meta"):
        model = build(name, channels=3, height=32, width=32)
    count = sum(weight.numel() for weight in model.parameters())
    assert round(count / 1e6, 2) == million


def neurons_of(model: Classifier) -> set[tuple[float, float, bool]]:
    nodes = [m.node for m in model.modules() if isinstance(m, zoo.LibraryNeuron)]
    return {(round(n.tau, 3), n.v_threshold, n.decay_input) for n in nodes}


def test_neurons_are_the_papers_but_for_what_is_stated(build: Build) -> None:
    assert neurons_of(build("ms_resnet_tiny")) == {(1.333, 0.5, False)}
    assert neurons_of(build("qkformer_tiny")) == {(2.0, 1.0, True), (2.0, 0.5, True)}
    stated = NeuronConfig(tau=1.5, reset="soft", surrogate="atan")
    model = build("qkformer_tiny", neuron=stated)
    assert neurons_of(model) == {(1.5, 1.0, True), (1.5, 0.5, True)}
    (note,) = model.notes()
    assert "16 layers of LIF, tau 1.5, input decays, threshold 1, soft reset, ATan 4" in note
    assert "3 layers of LIF, tau 1.5, input decays, threshold 0.5, soft reset, det" in note
    for wrong in ({"threshold": 0.7}, {"name": "plif"}, {"surrogate_alpha": 2.0}):
        with pytest.raises(ConfigError, match=f"neuron.{next(iter(wrong))}: the network has"):
            build("qkformer_tiny", neuron=NeuronConfig(**wrong))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("student", "stated", "message"),
    [
        (
            "qkformer",
            {"patch_size": 4},
            "does not have it; it has model.embed_dims, model.depths, ",
        ),
        ("resnet18", {"embed_dims": 64}, "resnet18 does not have it; it has no sizes to set"),
        ("sdt", {"embed_dim": 64}, r'unknown key "model.embed_dim" \(did you mean "model.embed_d'),
        ("sdt", {"embed_dims": 100}, "100 is not divisible by 8: try 96"),
        ("spikformer", {"num_heads": 5}, "5 heads can't share 384 channels alike.* 1, 2, 3, 4, 6"),
        ("spikformer", {"patch_size": 8}, "patch_size = 8: Input should be 4 or 16"),
        ("qkformer", {"depths": [1, 2]}, "model.depths = "),
        ("maxformer", {"stem": "small"}, "a transformer has patches and no stem"),
    ],
)
def test_sizes_that_a_network_can_t_have(student: str, stated: Any, message: str) -> None:
    values = {"model.student": student, **{f"model.{key}": of for key, of in stated.items()}}
    with pytest.raises(ConfigError, match=message):
        resolve([Layer("here", values)])


def test_patches_that_do_not_fit_the_images(build: Build) -> None:
    message = "model.patch_size = 16 does not divide images of 8 x 8; 4 does"
    of_16 = resolve([Layer("", {"model.student": "spikformer", "model.patch_size": 16})]).model
    with pytest.raises(ConfigError, match=message):
        build("spikformer", settings=of_16)
    with pytest.raises(ConfigError, match="divide images of 9 x 8; nor does the other"):
        build("spikformer", height=9)
    deep = resolve([Layer("", {"model.student": "sdt", "model.pooling_stat": "1111"})]).model
    with pytest.raises(ConfigError, match=r"tokens of 16 x 16 .* of 8 x 8; at most 3 fit.* 0111"):
        build("sdt", settings=deep)


def test_a_run_keeps_the_sizes_and_of_the_neurons_what_was_stated(tmp_path: Path) -> None:
    stated = {"model.student": "sdt_tiny", "model.embed_dims": 64, "neuron.tau": 1.5}
    config = resolve([Layer("here", stated)])
    assert config.flat().items() >= {**stated, "model.pooling_stat": "0011"}.items()
    assert [key for key in config.flat() if key.startswith("neuron.")] == ["neuron.tau"]
    again = Config.model_validate(config.model_dump(mode="json"))
    assert again.neuron.model_fields_set == {"tau"}
    assert again.flat() == config.flat()
    other = config.updated({"model.student": "resnet20"})
    assert (other.neuron, other.flat()["neuron.tau"]) == (NeuronConfig(), 2.0)


def test_a_recipe_s_sizes_and_neurons_are_for_its_student(tmp_path: Path) -> None:
    base = Layer("recipe r", {"model.student": "resnet18", "neuron.tau": 3.0}, is_recipe=True)
    named = Layer("command line", {"model.student": "sdt_tiny"})
    assert resolve([base, named]).neuron.model_fields_set == set()
    assert recipe.left_out([base, named]) == [
        "recipe r: neuron.tau = 3.0: resnet18's, left out for sdt_tiny"
    ]
    # a run states every size: of its own network's defaults there is nothing to say
    kept = resolve([Layer("here", {"model.student": "sdt_tiny", "model.depths": 3})]).flat()
    run = Layer("run s", kept, is_recipe=True)
    assert recipe.left_out([run, Layer("command line", {"model.student": "resnet20"})]) == [
        "run s: model.depths = 3: sdt_tiny's, left out for resnet20"
    ]
    above = Layer("command line", {"model.student": "sdt_tiny", "neuron.tau": 1.5})
    assert resolve([base, above]).neuron.model_fields_set == {"tau"}
    assert resolve([base, Layer("", {"model.student": "resnet20"})]).neuron.tau == 3.0


def test_such_a_student_brings_a_recipe_above_the_data_set_s() -> None:
    named = [Layer("command line", {"model.student": "sdt_tiny", "data.name": "mnist"})]
    assert recipe.defaults("student", named) == ["fashion-mnist/resnet18_tser", "students/tiny"]
    assert recipe.defaults("teacher", named) == ["fashion-mnist/resnet34_teacher"]


@pytest.mark.parametrize("name", TINY)
def test_all_layers_compute_with_rounded_weights(build: Build, name: str) -> None:
    model, x = lively(build(name)), images(2)
    by_hand, layers = copy.deepcopy(model), (nn.Conv1d, nn.Conv2d, nn.Linear)
    for layer in by_hand.modules():
        if isinstance(layer, layers):
            layer.weight.data = quantised(layer.weight.detach(), 8)
    names = model.state_dict().keys()
    with torch.no_grad():
        assert torch.equal(quantise(model, 8)(x, T), by_hand(x, T))
    bits = {layer.bits for layer in model.modules() if isinstance(layer, layers)}
    assert bits == {8}
    assert model.state_dict().keys() == names


@pytest.mark.parametrize("name", TINY)
def test_neurons_are_computed_by_our_code_where_it_gives_the_same(build: Build, name: str) -> None:
    ours = lively(build(name))
    theirs = build(name, neuron=NeuronConfig(backend="spikingjelly")).double().eval()
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad():
        assert torch.equal(ours(images_NCHW := images(4), T), theirs(images_NCHW, T))
    served = {m._fused is not None for m in ours.modules() if isinstance(m, zoo.LibraryNeuron)}
    assert served == {name != "ms_resnet_tiny"}
