"""Doing less gives the same: the stem once, blocks computed again, norms folded, products."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tser_cli.models import savings
from tser_cli.models.base import Classifier, build_model
from tser_cli.models.integers import quantise
from tser_cli.models.savings import SMALL, as_of_copies, folded, keeping, whole_numbers
from tser_cli.settings.config import NeuronConfig, PerformanceConfig

SHAPE = (6, 3, 8, 8)
STUDENTS = ("resnet20", "vgg11", "sew_resnet20")


def make(name: str, spiking: bool = True) -> Classifier:
    torch.manual_seed(5)
    neuron = NeuronConfig() if spiking else None
    return build_model(name, channels=3, height=8, width=8, num_classes=4, neuron=neuron)


def after_a_step(model: Classifier, timesteps: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits of a training pass; the gradients and running statistics that it leaves."""
    torch.manual_seed(1)
    logits: Tensor = model.train()(torch.randn(SHAPE), timesteps=timesteps)
    logits.square().mean().backward()
    left = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return logits, {**left, **dict(model.named_buffers())}


@pytest.mark.parametrize("timesteps", [1, 3])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_stem_once_keeps_the_running_statistics_of_t_copies(
    timesteps: int, momentum: float | None
) -> None:
    once, plain = make("resnet20"), make("resnet20")
    plain.stem_once = False
    for model in (once, plain):
        model.stem_norm().momentum = momentum
    for _ in range(2):
        logits, left = after_a_step(once, timesteps)
        expected, expected_left = after_a_step(plain, timesteps)
    torch.testing.assert_close(logits, expected)
    assert left.keys() == expected_left.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, expected_left[name], rtol=1e-4, atol=1e-6, msg=name)
    # so small an effect would drown in the tolerance above if the factor were left out
    variance, wanted = once.stem_norm().running_var, plain.stem_norm().running_var
    torch.testing.assert_close(variance, wanted, rtol=3e-7, atol=0.0)


def test_the_running_variance_of_copies_by_hand() -> None:
    norm = nn.BatchNorm1d(1, momentum=0.5)
    with as_of_copies(norm, 3):
        norm(torch.tensor([[1.0], [3.0]]))
    # biased variance 1 over six values: 6 / 5; half of it and half of the initial 1
    assert norm.running_var.item() == pytest.approx(0.5 * 1.0 + 0.5 * 6 / 5)


@pytest.mark.parametrize("name", STUDENTS)
def test_blocks_computed_again_change_no_bit_and_are_not_kept(name: str) -> None:
    plain, saving = make(name), make(name)
    saving.save_memory = True
    weights = sum(p.numel() * p.element_size() for p in plain.parameters())
    for _ in range(2):
        all_kept, left = kept_by_a_step(plain, spikes_in_bytes=False)
        kept, same = kept_by_a_step(saving, spikes_in_bytes=False)
    assert left.keys() == same.keys()
    assert all(torch.equal(left[name], same[name]) for name in left)
    assert kept - weights < 0.5 * (all_kept - weights)


def kept_by_a_step(model: Classifier, **performance: bool) -> tuple[int, dict[str, Tensor]]:
    """Bytes that backward needs; the gradients and running statistics of a training pass."""
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()

    with keeping(PerformanceConfig(**performance), note):
        images = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
        logits = model.train()(images, timesteps=4)
        kept = sum(sizes.values())
    logits.square().mean().backward()
    left = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return kept, {**left, **dict(model.named_buffers())}


@pytest.mark.parametrize("name", ["resnet19", "resnet20", "resnet50", "vgg11"])
def test_a_folded_network_computes_the_same(name: str) -> None:
    model = make(name, spiking=False).double()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        model.train()(torch.randn(SHAPE).double())
        model.eval()
        before = copy.deepcopy(model.state_dict())
        light = folded(model)
        images = torch.randn(SHAPE).double()
        torch.testing.assert_close(light(images), model(images), rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in light.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", STUDENTS)
def test_spikes_kept_in_bytes_give_the_same_bits(name: str) -> None:
    small, left = kept_by_a_step(make(name))
    plain, expected = kept_by_a_step(make(name), spikes_in_bytes=False)
    assert left.keys() == expected.keys()
    for key, value in left.items():
        assert torch.equal(value, expected[key]), key
    assert small < plain


@pytest.mark.parametrize("compile", ["off", "on"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_of_marked_tensors(compile: str, dtype: torch.dtype) -> None:
    kept: list[Tensor] = []
    weights = torch.ones(3, dtype=dtype, requires_grad=True)
    spikes = whole_numbers(torch.tensor([0.0, 1.0, 9.0], dtype=dtype))
    with keeping(PerformanceConfig.model_validate({"compile": compile}), kept.append):
        product = weights * spikes + weights * spikes  # both keep them: once will do
    product.sum().backward()
    assert weights.grad.tolist() == [0.0, 2.0, 18.0]
    small = [tensor for tensor in kept if tensor.dtype == torch.int8]
    assert len(small) == (2 if compile == "off" else 0)
    assert all(tensor is getattr(spikes, SMALL) for tensor in small)


# kernel, stride, padding, rows, columns, and whether the output is one pixel
MAPS = [
    (3, 1, 1, 1, 1, True),
    (3, 2, 1, 2, 2, True),
    (3, 2, 1, 1, 2, True),
    (1, 2, 0, 2, 2, True),
    (3, 1, 0, 3, 3, True),
    (7, 2, 3, 2, 1, True),
    (3, 4, 1, 4, 3, True),
    (3, 1, 1, 2, 2, False),
    (3, 1, 1, 1, 2, False),
    (3, 2, 1, 3, 3, False),
]


def pair(layer: nn.Conv2d) -> tuple[nn.Conv2d, nn.Conv2d]:
    """`layer` with products, and as it was."""
    plain = copy.deepcopy(layer)
    savings.use_products(layer)
    return layer, plain


def results(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    y: Tensor = layer(x)
    weights = torch.linspace(-1.0, 2.0, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()  # type: ignore[no-untyped-call]
    return (y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "rows", "columns", "single"), MAPS)
def test_a_product_gives_what_the_convolution_gives(
    kernel: int, stride: int, padding: int, rows: int, columns: int, single: bool, bias: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 4, kernel, stride, padding, bias=bias).double()
    product, plain = pair(layer)
    x = torch.randn(5, 3, rows, columns, dtype=torch.float64)
    with mock.patch.object(savings, "_product", wraps=savings._product) as made:
        found = results(product, x)
    assert made.called == single
    expected = results(plain, x)
    assert len(found) == len(expected) == (4 if bias else 3)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "case", ["eval", "no_grad", "frozen", "groups", "dilation", "circular", "no batch"]
)
def test_only_plain_convolutions_in_training_are_products(case: str) -> None:
    groups, dilation = (2 if case == "groups" else 1), (2 if case == "dilation" else 1)
    layer = nn.Conv2d(4, 4, 3, 2, dilation, dilation, groups)
    layer.padding_mode = "circular" if case == "circular" else "zeros"
    layer.train(case != "eval").requires_grad_(case != "frozen")
    product, plain = pair(layer)
    x = torch.randn(4, 1, 1) if case == "no batch" else torch.randn(2, 4, 2, 2)
    with (
        mock.patch.object(savings, "_product") as made,
        torch.set_grad_enabled(case != "no_grad"),
    ):
        assert torch.equal(product(x), plain(x))
    assert not made.called


def test_a_copy_computes_with_weights_of_its_own() -> None:
    layer, plain = pair(nn.Conv2d(8, 2, 3, padding=1).to(memory_format=torch.channels_last))
    copied, x = copy.deepcopy(layer), torch.ones(1, 8, 1, 1)
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(results(copied, x)[0], plain(x).detach())
    assert layer.weight.grad is None
    # gradients lie in memory as their weights do
    assert copied.weight.grad.stride() == copied.weight.stride()


def test_a_student_learns_the_same() -> None:
    model = quantise(make("resnet18"), 8)
    plain = copy.deepcopy(model)
    savings.use_products(model)
    with mock.patch.object(savings, "_product", wraps=savings._product) as made:
        logits, left = after_a_step(model, 2)
    assert made.call_count == 5
    expected, expected_left = after_a_step(plain, 2)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    assert left.keys() == expected_left.keys()
    for name, one in left.items():
        torch.testing.assert_close(one, expected_left[name], rtol=1e-3, atol=1e-5, msg=name)
