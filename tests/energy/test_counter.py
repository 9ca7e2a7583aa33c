"""Whole networks against brute force, for every layer, step and image; and what must not matter."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spikingjelly.activation_based.op_counter import DispatchCounterMode, SynOpCounter
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.energy.foreign import assert_same
from tser_cli.base.errors import TserError
from tser_cli.energy.counter import counting
from tser_cli.energy.counts import Counts
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.integers import quantise
from tser_cli.settings.config import NeuronConfig

Lively = Callable[..., Classifier]
BruteForce = Callable[[nn.Module, Tensor], Tensor]


def check_against_brute_force(
    model: Any, counts: Counts, inputs: dict[str, list[Tensor]], brute: BruteForce
) -> None:
    assert [layer.layer.name for layer in counts.layers] == list(inputs)
    for layer in counts.layers:
        x = torch.cat([part.unflatten(0, (-1, counts.images)) for part in inputs[layer.layer.name]])
        steps = x.shape[0]
        folded = x.flatten(0, 1)
        module = model.get_submodule(layer.layer.name)
        nonzero = folded.flatten(1).count_nonzero(1).view(steps, -1)
        assert layer.executed_T.tolist() == [1] * steps + [0] * (counts.timesteps - steps)
        assert layer.nonzero_TI[:steps].tolist() == nonzero.tolist()
        assert layer.layer.macs == brute(module, torch.ones_like(folded[:1])).item()
        assert layer.layer.neurons_in == folded[0].numel()
        if not layer.layer.accumulates:
            continue
        assert nonzero.all(), "a layer that no spike reaches would prove nothing"
        events, value = brute(module, folded != 0), brute(module, folded)
        assert layer.events_TI.tolist() == events.view(steps, -1).tolist()
        assert layer.value_TI.tolist() == value.view(steps, -1).tolist()


@pytest.mark.parametrize(
    ("name", "neuron"),
    [
        ("resnet18", NeuronConfig()),
        ("sew_resnet18", NeuronConfig()),
        ("resnet19", NeuronConfig(reset="soft")),
        ("vgg11", NeuronConfig(name="if")),
    ],
    ids=["resnet18", "sew_resnet18", "resnet19", "vgg11"],
)
@torch.no_grad()
def test_a_network_equals_brute_force(
    lively: Lively, spy: Any, brute_force: BruteForce, name: str, neuron: NeuronConfig
) -> None:
    model = lively(name, neuron)
    images_NCHW = torch.randn(2, 3, 8, 8)
    with counting(model, model.input_kinds()) as counter, spy(model) as inputs:
        model(images_NCHW, timesteps=3)
    counts = counter.counts()
    check_against_brute_force(model, counts, inputs, brute_force)
    assert [layer.layer.name for layer in counts.stem] == list(inputs)[:1]
    assert counts.stem_once
    if name == "sew_resnet18":
        sums = [layer for layer in counts.layers if layer.layer.input_kind == "sums"]
        assert any((layer.value_TI > layer.events_TI).all() for layer in sums)


@torch.no_grad()
@pytest.mark.parametrize("network", ["large stem and pool", "groups, dilation and strides"])
def test_other_geometries_equal_brute_force(
    lively: Lively,
    small_sew: nn.Module,
    exact_images: Any,
    spy: Any,
    brute_force: BruteForce,
    network: str,
) -> None:
    model: Any = small_sew
    images_NCHW = exact_images(5)
    if network == "large stem and pool":
        model = lively("sew_resnet18", stem="large", height=37, width=33)
        images_NCHW = torch.randn(2, 3, 37, 33)
    with counting(model, model.input_kinds()) as counter, spy(model) as inputs:
        model(images_NCHW, timesteps=4)
    check_against_brute_force(model, counter.counts(), inputs, brute_force)


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "stem", "bits"),
    [("sew_resnet20", "large", 8), ("resnet20", "medium", 32), ("vgg11", "small", 32)],
)
def test_a_stem_that_reads_counts_of_events_adds_them(
    lively: Lively, spy: Any, brute_force: BruteForce, name: str, stem: str, bits: int
) -> None:
    size = {"channels": 2, "height": 19, "width": 16}
    model = quantise(lively(name, stem=stem, **size), bits)
    model.fed_counts = True
    frames_NTCHW = torch.randint(0, 4, (2, 3, 2, 19, 16)).float() * (
        torch.rand(2, 3, 2, 19, 16) > 0.5
    )
    frames_NTCHW[0, 1, 1, 3, 3] = 255
    with counting(model, model.input_kinds()) as counter, spy(model) as inputs:
        model(frames_NTCHW, timesteps=3)
    counts = counter.counts()
    check_against_brute_force(model, counts, inputs, brute_force)
    first = counts.layers[0]
    assert (first.layer.input_kind, first.executed_T.tolist()) == ("sums", [1, 1, 1])
    assert (first.value_TI > first.events_TI).all() and not first.step_macs.any()
    assert counts.stem == () and not first.layer.narrow
    events, value = (operations_of(model, frames_NTCHW, of) for of in (torch.sign, torch.abs))
    assert (first.events_TI.tolist(), first.value_TI.tolist()) == (events, value)


def operations_of(model: Any, frames_NTCHW: Tensor, of: Callable[[Tensor], Tensor]) -> Any:
    """Accumulates of the stem, [T, N], without a convolution: event by event, tap by tap."""
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    (kernel, _), (stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
    height, width = frames_NTCHW.shape[-2:]
    outputs = [(size + 2 * padding - kernel) // stride + 1 for size in (height, width)]
    found = torch.zeros(frames_NTCHW.shape[1], len(frames_NTCHW), dtype=torch.int64)
    for n, t, c, y, x in frames_NTCHW.nonzero().tolist():
        readers = [
            sum(0 <= at + padding - stride * o < kernel for o in range(out))
            for at, out in zip((y, x), outputs, strict=True)
        ]
        count = int(of(frames_NTCHW[n, t, c, y, x]))
        found[t, n] += count * readers[0] * readers[1] * conv.out_channels
    return found.tolist()


def test_a_network_in_bfloat16_autocast_equals_brute_force(
    lively: Lively, spy: Any, brute_force: BruteForce
) -> None:
    model = lively("sew_resnet18")
    images_NCHW = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)
    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16),
        counting(model, model.input_kinds()) as counter,
        spy(model) as inputs,
    ):
        model(images_NCHW, timesteps=2)
    check_against_brute_force(model, counter.counts(), inputs, brute_force)
    assert any(part[0].dtype == torch.bfloat16 for part in inputs.values())


@torch.no_grad()
def test_neuron_updates_are_counted_with_the_layer_before(lively: Lively) -> None:
    model = lively("sew_resnet18")
    with counting(model, model.input_kinds()) as counter:
        model(torch.randn(2, 3, 8, 8), timesteps=3)
    updates = {layer.layer.name: layer.neuron_updates for layer in counter.counts().layers}
    assert updates["conv1"] == updates["layer1.1.conv2"] == 64 * 8 * 8
    assert updates["layer2.0.downsample.0"] == updates["layer2.0.conv1"] == 128 * 4 * 4
    assert updates["fc"] == 0
    # The stem's, four layers a stage, and one more on each of three shortcuts.
    stages = [64 * 8 * 8, 128 * 4 * 4, 256 * 2 * 2, 512]
    assert sum(updates.values()) == stages[0] + 4 * sum(stages) + sum(stages[1:])


def gathered(model: Any, images_NCHW: Tensor, timesteps: int, sizes: list[int]) -> Counts:
    with counting(model, model.input_kinds()) as counter:
        for part in images_NCHW.split(sizes):
            model(part, timesteps=timesteps)
    return counter.counts()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=10)
@given(cuts=st.sets(st.integers(1, 8)), timesteps=st.integers(1, 4))
@torch.no_grad()
def test_counts_do_not_depend_on_the_batch_split(
    small_sew: nn.Module, exact_images: Any, cuts: set[int], timesteps: int
) -> None:
    images_NCHW = exact_images(9)
    sizes = [b - a for a, b in itertools.pairwise([0, *sorted(cuts), 9])]
    whole = gathered(small_sew, images_NCHW, timesteps, [9])
    assert_same(gathered(small_sew, images_NCHW, timesteps, sizes), whole)


@torch.no_grad()
def test_counts_do_not_depend_on_layout_or_mode(small_sew: nn.Module, exact_images: Any) -> None:
    images_NCHW = exact_images(4)
    plain = gathered(small_sew, images_NCHW, 3, [4])
    with torch.inference_mode():
        assert_same(gathered(small_sew, images_NCHW, 3, [4]), plain)
    with torch.enable_grad():
        assert_same(gathered(small_sew, images_NCHW, 3, [4]), plain)
    small_sew.to(memory_format=torch.channels_last)
    images_NCHW = images_NCHW.contiguous(memory_format=torch.channels_last)
    assert_same(gathered(small_sew, images_NCHW, 3, [4]), plain)


@torch.no_grad()
def test_a_compiled_network_is_counted(small_sew: nn.Module, exact_images: Any) -> None:
    images_NCHW = exact_images(3)
    plain = gathered(small_sew, images_NCHW, 2, [3])
    compiled: Any = torch.compile(small_sew, backend="eager")
    compiled(images_NCHW, timesteps=2)
    with counting(compiled, small_sew.input_kinds()) as counter:
        compiled(images_NCHW, timesteps=2)
    assert_same(counter.counts(), plain)


@torch.no_grad()
def test_steps_of_a_shorter_run_are_those_of_a_longer_one(
    small_sew: nn.Module, exact_images: Any
) -> None:
    images_NCHW = exact_images(3)
    short, long = (gathered(small_sew, images_NCHW, steps, [3]) for steps in (2, 5))
    for one, other in zip(short.layers, long.layers, strict=True):
        assert np.array_equal(one.value_TI, other.value_TI[:2])


@torch.no_grad()
def test_an_ann_is_dense_and_its_layers_are_those_of_the_snn(lively: Lively) -> None:
    model = build_model("resnet20", channels=3, height=8, width=8, num_classes=10)
    with counting(model, model.input_kinds()) as counter:
        model(torch.randn(2, 3, 8, 8))
    ann = counter.counts()
    snn = lively("resnet20")
    with counting(snn, snn.input_kinds()) as counter:
        snn(torch.randn(2, 3, 8, 8), timesteps=2)
    twin = counter.counts()
    assert [c.layer.macs for c in ann.layers] == [c.layer.macs for c in twin.layers]
    assert all(c.step_macs.tolist() == [c.layer.macs] for c in ann.layers)
    assert not any(c.value_TI.any() or c.neuron_updates for c in ann.layers)


@torch.no_grad()
def test_spikingjelly_counts_the_same_on_a_binary_network(lively: Lively) -> None:
    model = lively("resnet20")
    theirs = SynOpCounter()
    with DispatchCounterMode([theirs]), counting(model, model.input_kinds()) as counter:
        model(torch.randn(2, 3, 8, 8), timesteps=3)
    by_scope = theirs.get_counts()
    counts = counter.counts()
    for layer in counts.layers:
        expected = sum(by_scope[f"ResNet.{layer.layer.name}"].values())
        assert int(layer.value_TI.sum()) == expected
    assert sum(int(layer.value_TI.sum()) for layer in counts.layers) == theirs.get_total() > 0


class NoReading(TorchDispatchMode):
    """Fails on whatever makes the host wait for a value on the device."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        assert func.name() not in {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"}
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_nothing_is_read_from_the_device_while_the_network_runs(
    small_sew: nn.Module, exact_images: Any
) -> None:
    images_NCHW = exact_images(3)
    with counting(small_sew, small_sew.input_kinds()) as counter:
        small_sew(images_NCHW, timesteps=2)
        with NoReading():
            small_sew(images_NCHW, timesteps=2)
    assert counter.counts().images == 6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@torch.inference_mode()
def test_counts_on_a_gpu_are_those_on_the_cpu(
    small_sew: nn.Module, exact_images: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    images_NCHW = exact_images(6)
    expected = gathered(small_sew, images_NCHW, 3, [6])
    small_sew.cuda()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    assert_same(gathered(small_sew, images_NCHW.cuda(), 3, [4, 2]), expected)


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules())


def test_hooks_are_taken_off_after_an_exception_too(
    small_sew: nn.Module, exact_images: Any
) -> None:
    with counting(small_sew, small_sew.input_kinds()):
        assert hooks(small_sew) == 10
    assert hooks(small_sew) == 0
    counted = counting(small_sew, small_sew.input_kinds())
    with pytest.raises(RuntimeError, match="channels"), counted:
        small_sew(exact_images(2)[:, :1], timesteps=2)
    assert hooks(small_sew) == 0


@torch.no_grad()
@pytest.mark.parametrize(
    ("layer", "kind"), [("conv3", "spikes"), ("fc", "spikes"), ("fc", "sums"), ("stem", "sums")]
)
def test_a_layer_fed_with_other_data_than_declared_is_named(
    small_sew: nn.Module, exact_images: Any, layer: str, kind: str
) -> None:
    kinds = {**small_sew.input_kinds(), layer: kind}
    with counting(small_sew, kinds) as counter:
        small_sew(exact_images(4), timesteps=3)
    with pytest.raises(TserError, match=rf"layer {layer} .*{kind}"):
        counter.counts()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv2": "spikse"}, r'conv2.*did you mean "spikes"'),
        ({"conv2": None}, "layer conv2"),
        ({"conv9": "spikes"}, "called conv9"),
    ],
)
def test_declared_kinds_that_do_not_fit_are_errors(
    small_sew: nn.Module, change: dict[str, Any], message: str
) -> None:
    kinds = {k: v for k, v in {**small_sew.input_kinds(), **change}.items() if v is not None}
    with pytest.raises(TserError, match=message), counting(small_sew, kinds):
        pass


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="reflect"), "layer 0 .*reflect"),
        (nn.ConvTranspose2d(1, 1, 3), "layer 0 .*ConvTranspose2d"),
        (nn.ReLU(), "nothing to count"),
    ],
)
def test_a_network_that_cannot_be_counted_is_refused(layer: nn.Module, message: str) -> None:
    kinds = {"0": "real"} if isinstance(layer, nn.Conv2d) else {}
    with pytest.raises(TserError, match=message), counting(nn.Sequential(layer), kinds):
        pass


def interrupted(model: Any, images_NCHW: Tensor) -> None:
    model.act3.register_forward_pre_hook(lambda *_: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        model(images_NCHW, timesteps=2)


@torch.no_grad()
@pytest.mark.parametrize(
    ("before", "then", "message"),
    [
        (False, lambda model, x: None, "nothing to count"),
        (False, lambda model, x: model.stem(x), "stem ran outside a call"),
        (True, lambda model, x: model(x, timesteps=3), "3 time steps follows one of 2"),
        (True, lambda model, x: model(x[..., 1:], timesteps=2), "stem met an input of"),
        (True, lambda model, x: model.stem(x), "stem ran outside a call of the network, or twice"),
        (True, interrupted, "fc ran 0 times in a batch, not 1"),
    ],
)
def test_what_would_be_counted_wrongly_is_an_error(
    small_sew: nn.Module,
    exact_images: Any,
    before: bool,
    then: Callable[[Any, Tensor], Any],
    message: str,
) -> None:
    images_NCHW, counted = exact_images(3), counting(small_sew, small_sew.input_kinds())
    with pytest.raises(TserError, match=message), counted as counter:
        if before:
            small_sew(images_NCHW, timesteps=2)
        then(small_sew, images_NCHW)
        counter.counts()


@torch.no_grad()
def test_a_batch_that_is_no_multiple_of_the_images_is_an_error() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x: Tensor, timesteps: int) -> Tensor:
            y: Tensor = self.fc(x.repeat(timesteps + 1, 1))
            return y

    model = Odd()
    with pytest.raises(TserError, match="fc saw a batch of 9"), counting(model, {"fc": "real"}):
        model(torch.zeros(3, 2), timesteps=2)


def test_what_is_kept_of_a_batch_is_no_tensor_of_its_own(lively: Lively) -> None:
    model = lively("resnet20")
    images = torch.rand(3, 3, 8, 8)
    kinds = model.input_kinds()
    assert kinds is not None

    def tensors() -> int:
        return sum(issubclass(type(value), Tensor) for value in gc.get_objects())

    def tensors_after(batches: int) -> tuple[int, Counts]:
        before = tensors()
        with torch.no_grad(), counting(model, kinds, detailed=True) as counter:
            for _ in range(batches):
                model(images, timesteps=2)
            return tensors() - before, counter.counts()

    (few, once), (many, counts) = tensors_after(1), tensors_after(30)
    # thousands of small tensors between the maps would keep the maps' memory apart
    assert many == few
    for layer, same in zip(counts.layers, once.layers, strict=True):
        assert layer.value_TI.tolist() == np.tile(same.value_TI, 30).tolist()
    for spikes, of_one in zip(counts.neurons, once.neurons, strict=True):
        assert spikes.spikes_TI is not None and of_one.spikes_TI is not None
        assert spikes.spikes_TI.tolist() == np.tile(of_one.spikes_TI, 30).tolist()
