"""Weights as integers of a few bits: one symmetric scale per output channel.

w = scale_o * integer, with integers from -m to m, m = 2^(bits - 1) - 1, scale_o = max |w_o| / m.
A norm behind a convolution multiplies the scale of each channel and leaves the integers as they
are, so that training with quantised weights sees what inference with folded norms computes.
Gradients pass the rounding as if it were not there (straight-through; Bengio et al., 2013, arXiv
1308.3432). Symmetric weights per channel: Krishnamoorthi, 2018, arXiv 1806.08342.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.config import FLOAT_BITS
from tser_cli.errors import ConfigError
from tser_cli.models.base import Classifier

EDGE_BITS = 8  # of what reads the image and of what gives the logits, whatever the rest has
CLIPS = tuple(1.0 - 0.02 * step for step in range(26))  # of the largest weight, down to a half


def largest_integer(bits: int) -> int:
    """2^(bits-1) - 1: the range is symmetric, without the most negative integer."""
    return (1 << (bits - 1)) - 1


def scale_of(weight: Tensor, bits: int) -> Tensor:
    """[O, ...] -> [O]: the largest magnitude of each output channel becomes the largest integer.

    In float32 whatever the weights are in, so that a float64 copy of a network has the same
    integers. A channel of zeros has scale 1.
    """
    largest_O = weight.detach().float().abs().flatten(1).amax(1)
    return torch.where(largest_O > 0, largest_O / largest_integer(bits), torch.ones_like(largest_O))


def integers_of(weight: Tensor, scale_O: Tensor, bits: int) -> Tensor:
    """Return the nearest integers of `weight` in units of `scale_O`, clipped to the range, in
    float32.
    """
    limit = largest_integer(bits)
    units = weight.detach().float() / _by_channel(scale_O, weight)
    integers: Tensor = units.round().clamp(-limit, limit)
    return integers


def quantised(weight: Tensor, bits: int) -> Tensor:
    """`weight` rounded to its integers; its gradient is that of the result."""
    scale_O = scale_of(weight, bits)
    integers = integers_of(weight, scale_O, bits).to(weight.dtype)
    rounded = integers * _by_channel(scale_O, weight).to(weight.dtype)
    return weight + (rounded - weight).detach() if weight.requires_grad else rounded


def best_scale(weight: Tensor, bits: int) -> Tensor:
    """[O]: the scale of least squared error among those that clip up to half of the range."""
    widest_O = scale_of(weight, bits)
    best_O, least_O = widest_O, torch.full_like(widest_O, torch.inf)
    for clip in CLIPS:
        scale_O = widest_O * clip
        rounded = integers_of(weight, scale_O, bits) * _by_channel(scale_O, weight)
        error_O = (rounded - weight).square().flatten(1).sum(1)
        best_O = torch.where(error_O < least_O, scale_O, best_O)
        least_O = torch.minimum(error_O, least_O)
    return best_O


def _by_channel(values_O: Tensor, weight: Tensor) -> Tensor:
    """[O] in a shape that multiplies [O, ...]."""
    return values_O.view(-1, *(1 for _ in weight.shape[1:]))


class QuantisedConv2d(nn.Conv2d):
    """A convolution that rounds its weights at every call; the parameter stays a float."""

    bits: int
    weight_bytes = 1  # as they are stored for inference, those of 4 bits too

    def forward(self, input: Tensor) -> Tensor:
        weight = quantised(self.weight, self.bits)
        result: Tensor = self._conv_forward(input, weight, self.bias)
        return result


class QuantisedLinear(nn.Linear):
    """A linear layer that rounds its weights at every call; the parameter stays a float."""

    bits: int
    weight_bytes = 1  # as they are stored for inference, those of 4 bits too

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, quantised(self.weight, self.bits), self.bias)


QUANTISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: QuantisedConv2d,
    nn.Linear: QuantisedLinear,
}


def quantise(model: Classifier, bits: int) -> Classifier:
    """Turn every convolution and linear layer of `model` into its quantised kind, in place.

    32 bits leave it as it is. Parameters and their names stay. The first convolution and the last
    linear layer keep 8 bits where `bits` is less: what they read or give is not spikes. Raises
    ConfigError for weights in other layers, which would stay floats and be charged as integers.
    """
    if bits == FLOAT_BITS:
        return model
    _check_layers(model)
    layers = [module for module in model.modules() if type(module) in QUANTISED]
    for layer in layers:
        edge = layer is layers[0] or layer is layers[-1]
        # the class alone: parameters, hooks and the optimizer's references stay
        layer.__class__ = QUANTISED[type(layer)]
        assert isinstance(layer, QuantisedConv2d | QuantisedLinear)
        layer.bits = max(bits, EDGE_BITS) if edge else bits
    return model


def _check_layers(model: Classifier) -> None:
    for name, module in model.named_modules():
        if type(module) in (*QUANTISED, *QUANTISED.values()):
            continue
        if any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
            raise ConfigError(
                f"model.weight_bits: {name or 'the network'} ({type(module).__name__}) has weights "
                "that can't be rounded; only those of nn.Conv2d and nn.Linear can. Use 32"
            )


@torch.no_grad()
def round_weights_(model: Classifier) -> None:
    """Replace the weights of quantised layers by rounded ones, with the scale of least error.

    For weights that were not trained quantised. Rounding them again changes nothing: the largest
    integer is met in every channel.
    """
    for layer in model.modules():
        if isinstance(layer, QuantisedConv2d | QuantisedLinear):
            scale_O = best_scale(layer.weight, layer.bits)
            rounded = integers_of(layer.weight, scale_O, layer.bits)
            layer.weight.copy_(rounded * _by_channel(scale_O, layer.weight))
