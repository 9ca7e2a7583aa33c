"""Convolutions to one pixel, as matrix products in training."""

from __future__ import annotations

import copy
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from tser_cli.models import savings
from tser_cli.models.base import build_model
from tser_cli.models.integers import quantise
from tser_cli.models.savings import use_products
from tser_cli.settings.config import NeuronConfig

# kernel, stride, padding, rows, columns, and whether the output is one pixel
SHAPES = [
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
    use_products(layer)
    return layer, plain


def results(layer: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Output, and gradients of the input and of the parameters."""
    x = x.clone().requires_grad_()
    y: Tensor = layer(x)
    weights = torch.linspace(-1.0, 2.0, y.numel(), dtype=y.dtype).view(y.shape)
    (y * weights).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    return (y.detach(), x.grad, *(p.grad for p in layer.parameters() if p.grad is not None))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "rows", "columns", "single"), SHAPES)
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


def test_gradients_lie_in_memory_as_their_weights_do() -> None:
    layer = nn.Conv2d(8, 4, 3, padding=1).to(memory_format=torch.channels_last)
    use_products(layer)
    results(layer, torch.randn(2, 8, 1, 1))
    assert layer.weight.grad is not None
    assert layer.weight.grad.stride() == layer.weight.stride()


@pytest.mark.parametrize("case", ["eval", "no_grad", "frozen", "groups", "dilation", "circular"])
def test_only_plain_convolutions_in_training_are_products(case: str) -> None:
    groups, dilation = (2 if case == "groups" else 1), (2 if case == "dilation" else 1)
    layer = nn.Conv2d(4, 4, 3, 2, dilation, dilation, groups)
    layer.padding_mode = "circular" if case == "circular" else "zeros"
    layer.train(case != "eval").requires_grad_(case != "frozen")
    product, plain = pair(layer)
    x = torch.randn(2, 4, 2, 2)
    with (
        mock.patch.object(savings, "_product") as made,
        torch.set_grad_enabled(case != "no_grad"),
    ):
        assert torch.equal(product(x), plain(x))
    assert not made.called


def test_an_image_without_a_batch_is_convolved() -> None:
    product, plain = pair(nn.Conv2d(4, 4, 3, padding=1))
    x = torch.randn(4, 1, 1)
    assert torch.equal(product(x), plain(x))


def test_a_copy_computes_with_weights_of_its_own() -> None:
    layer, plain = pair(nn.Conv2d(2, 2, 3, padding=1))
    copied, x = copy.deepcopy(layer), torch.ones(1, 2, 1, 1)
    nn.init.zeros_(layer.weight)
    torch.testing.assert_close(results(copied, x)[0], plain(x).detach())
    assert copied.weight.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize("bits", [32, 8])
def test_a_student_learns_the_same(bits: int) -> None:
    torch.manual_seed(3)
    model = build_model(
        "resnet18", channels=1, height=8, width=8, num_classes=4, neuron=NeuronConfig()
    )
    model = quantise(model, bits)
    plain = copy.deepcopy(model)
    use_products(model)
    images = torch.randn(6, 1, 8, 8)
    with mock.patch.object(savings, "_product", wraps=savings._product) as made:
        logits = model.train()(images, timesteps=2)
        logits.square().mean().backward()
    assert made.call_count == 5
    expected = plain.train()(images, timesteps=2)
    expected.square().mean().backward()
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
