"""Weights as integers of a few bits: training with them, and inference that sums in int32.

w = scale_o * integer, with one scale per output channel, integers from -m to m,
m = 2^(bits - 1) - 1 and scale_o = max |w_o| / m (Krishnamoorthi, 2018, arXiv 1806.08342). Gradients
pass the rounding as if it were not there (straight-through; Bengio et al., 2013, arXiv 1308.3432).
A norm behind a convolution multiplies the scale of each channel and leaves the integers as they
are, so that training with quantised weights sees what inference with folded norms computes.

Inference multiplies uint8 spikes by int8 weights. On x86 CPUs oneDNN's int8 convolutions do it
(VNNI instructions where the CPU has them); elsewhere float32 convolutions of the same integers,
whose sums stay below 2^24 and are therefore exact. A sum times its channel's scale, plus the folded
bias, is the membrane input in fp32.
"""

from __future__ import annotations

import copy
from functools import lru_cache

import torch
from spikingjelly.activation_based import layer
from torch import Tensor, nn
from torch.nn import functional as F

from tser_cli.base.errors import ConfigError
from tser_cli.models.base import Classifier
from tser_cli.models.savings import convolutions_with_norm
from tser_cli.settings.config import FLOAT_BITS

EDGE_BITS = 8  # of what reads the image and of what gives the logits, whatever the rest has


def quantise(model: Classifier, bits: int) -> Classifier:
    """Turn every convolution and linear layer of `model` into its quantised kind, in place.

    32 bits leave it as it is. Parameters and their names stay. The first convolution and the last
    linear layer keep 8 bits where `bits` is less: what they read or give is not spikes. Raises
    ConfigError for weights in other layers, which would stay floats and be charged as integers.
    """
    if bits == FLOAT_BITS:
        return model
    for name, module in model.named_modules():
        known = type(module) in (*QUANTISED, *QUANTISED.values())
        if not known and any(weight.ndim > 1 for weight in module.parameters(recurse=False)):
            raise ConfigError(
                f"model.weight_bits: {name or 'the network'} ({type(module).__name__}) has weights "
                "that can't be rounded; only those of Conv1d, Conv2d and Linear can. Use 32"
            )
    chosen = [module for module in model.modules() if type(module) in QUANTISED]
    for module in chosen:
        edge = module is chosen[0] or module is chosen[-1]
        # the class alone: parameters, hooks and the optimizer's references stay
        module.__class__ = QUANTISED[type(module)]
        assert isinstance(module, RoundedLayer)
        module.bits = max(bits, EDGE_BITS) if edge else bits
    return model


class QuantisedConv2d(nn.Conv2d):
    """A convolution that rounds its weights at every call; the parameter stays a float."""

    bits: int
    weight_bytes = 1  # as they are stored for inference, those of 4 bits too

    def forward(self, input: Tensor) -> Tensor:
        weight = quantised(self.weight, self.bits)
        result: Tensor = self._conv_forward(input, weight, self.bias)
        return result


class QuantisedConv1d(nn.Conv1d):
    """The same in one dimension: over the tokens of a transformer."""

    bits: int
    weight_bytes = 1

    def forward(self, input: Tensor) -> Tensor:
        weight = quantised(self.weight, self.bits)
        result: Tensor = self._conv_forward(input, weight, self.bias)
        return result


class QuantisedLinear(nn.Linear):
    """A linear layer that rounds its weights at every call; the parameter stays a float."""

    bits: int
    weight_bytes = 1

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, quantised(self.weight, self.bits), self.bias)


class QuantisedStepConv2d(layer.Conv2d, QuantisedConv2d):  # type: ignore[misc]
    """spikingjelly's, which folds time and then computes as its second base does."""


class QuantisedStepConv1d(layer.Conv1d, QuantisedConv1d):  # type: ignore[misc]
    """The same in one dimension."""


class QuantisedStepLinear(layer.Linear, QuantisedLinear):  # type: ignore[misc]
    """The same of a linear layer."""


RoundedLayer = QuantisedConv1d | QuantisedConv2d | QuantisedLinear
QUANTISED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: QuantisedConv1d,
    nn.Conv2d: QuantisedConv2d,
    nn.Linear: QuantisedLinear,
    layer.Conv1d: QuantisedStepConv1d,
    layer.Conv2d: QuantisedStepConv2d,
    layer.Linear: QuantisedStepLinear,
}


@torch.no_grad()
def round_weights_(model: Classifier) -> None:
    """Replace the weights of quantised layers by rounded ones, with the scale of least error.

    For weights that were not trained quantised. Rounding them again changes nothing: the largest
    integer is met in every channel.
    """
    for module in model.modules():
        if isinstance(module, RoundedLayer):
            scale_O = best_scale(module.weight, module.bits)
            rounded = integers_of(module.weight, scale_O, module.bits)
            module.weight.copy_(rounded * _by_channel(scale_O, module.weight))


def scale_of(weight: Tensor, bits: int) -> Tensor:
    """[O, ...] -> [O]: the largest magnitude of each output channel becomes the largest integer.

    In float32 whatever the weights are in, so that a float64 copy of a network has the same
    integers. A channel of zeros has scale 1.
    """
    largest_O = weight.detach().float().abs().flatten(1).amax(1)
    return torch.where(largest_O > 0, largest_O / _largest(bits), torch.ones_like(largest_O))


def integers_of(weight: Tensor, scale_O: Tensor, bits: int) -> Tensor:
    """Return the nearest integers of `weight` in units of `scale_O`, clipped, in float32."""
    limit = _largest(bits)
    units = weight.detach().float() / _by_channel(scale_O, weight)
    integers: Tensor = units.round().clamp(-limit, limit)
    return integers


def quantised(weight: Tensor, bits: int) -> Tensor:
    """`weight` rounded to its integers; its gradient is that of the result."""
    scale_O = scale_of(weight, bits)
    integers = integers_of(weight, scale_O, bits).to(weight.dtype)
    # multiplied in the weight's own type: a float64 copy of a network then has no float32 in it
    rounded = integers * _by_channel(scale_O, weight).to(weight.dtype)
    # the value is the rounded one, the gradient that of the weight: straight-through
    return weight + (rounded - weight).detach() if weight.requires_grad else rounded


CLIPS = tuple(1.0 - 0.02 * step for step in range(26))  # of the largest weight, down to a half


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


def _largest(bits: int) -> int:
    """2^(bits-1) - 1: the range is symmetric, without the most negative integer."""
    return (1 << (bits - 1)) - 1


def integer(model: Classifier) -> Classifier:
    """Return a copy of a network with quantised weights that computes with integers, in eval mode.

    Linear layers, whose input is mostly an average, stay as they are. A network with floating-point
    weights is returned itself, as is one that does not say what feeds its layers.
    """
    if not any(isinstance(module, QuantisedConv2d) for module in model.modules()):
        return model
    kinds = model.input_kinds()
    if kinds is None or not model.norms_follow:
        return model
    result = copy.deepcopy(model).eval()
    names = {module: name for name, module in result.named_modules()}
    # The first reads an image, or counts of events up to 255: where a CPU adds two products in 16
    # bits, two of them with weights of 127 would be too large, in silence.
    first = next(module for module in result.modules() if isinstance(module, nn.Conv2d))
    for parent, name, norm_name in convolutions_with_norm(result):
        convolution, norm = getattr(parent, name), getattr(parent, norm_name)
        # others keep their rounded floats
        served = convolution.padding_mode == "zeros" and not isinstance(convolution.padding, str)
        served = served and norm.affine and norm.running_var is not None
        if isinstance(convolution, QuantisedConv2d) and served:
            reads_integers = kinds[names[convolution]] != "real" and convolution is not first
            setattr(parent, name, IntegerConv2d(convolution, norm, reads_integers))
            setattr(parent, norm_name, nn.Identity())
    return result


class IntegerConv2d(nn.Conv2d):
    """A quantised convolution with its norm folded into scale and bias; for inference alone.

    `reads_integers`: its input is spikes, or sums of them below 256. An image, and counts of
    events, are convolved in fp32.
    """

    weight_bytes = 1
    integers: Tensor
    scale_O: Tensor
    bias: nn.Parameter

    def __init__(self, source: QuantisedConv2d, norm: nn.BatchNorm2d, reads_integers: bool) -> None:
        super().__init__(
            source.in_channels,
            source.out_channels,
            (source.kernel_size[0], source.kernel_size[1]),
            (source.stride[0], source.stride[1]),
            _padding(source),
            (source.dilation[0], source.dilation[1]),
            source.groups,
        )
        scale_O = scale_of(source.weight, source.bits)
        integers = integers_of(source.weight.detach(), scale_O, source.bits)
        # a norm in eval mode computes factor x + shift
        assert norm.running_mean is not None and norm.running_var is not None
        factor_O = norm.weight.detach() / torch.sqrt(norm.running_var + norm.eps)
        shift_O = norm.bias.detach() - norm.running_mean * factor_O
        bias_O = shift_O if source.bias is None else shift_O + source.bias * factor_O
        self.reads_integers, self.bits = reads_integers, source.bits
        self.register_buffer("integers", integers.to(torch.int8))
        self.register_buffer("scale_O", scale_O * factor_O)
        weight = integers * (scale_O * factor_O).view(-1, 1, 1, 1)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias_O.detach().clone(), requires_grad=False)
        self._packed: Tensor | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self.reads_integers:
            return super().forward(input)
        if input.device.type == "cpu" and kernels_serve():
            if self._packed is None:
                self._packed = _packed(self.integers, self.scale_O, self)
            return _convolved(input, self._packed, self.scale_O, self.bias, self)
        return self.accumulated(input) * self.scale_O.view(-1, 1, 1) + self.bias.view(-1, 1, 1)

    def accumulated(self, spikes: Tensor) -> Tensor:
        """Return the integer sums, as exact float32 numbers: the reference of the fast kernels."""
        sizes = (self.stride, _padding(self), self.dilation, self.groups)
        return F.conv2d(spikes.float(), self.integers.float(), None, *sizes)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    assert not isinstance(layer.padding, str)
    return layer.padding[0], layer.padding[1]


def has_integer_layers(model: nn.Module) -> bool:
    """Return whether some convolution of `model` computes with integers."""
    return any(isinstance(module, IntegerConv2d) for module in model.modules())


# 16 images of 32 x 32: with ResNet-18 and T = 4, 8 to 32 were equally fast, 64 a third slower
PIXELS = 16 * 32 * 32


def batch_size(height: int, width: int) -> int:
    """Return how many images a batch should have, so that it stays in the caches between layers.

    int8 convolutions are so fast that beyond it the time goes into moving fp32 membrane inputs.
    """
    return max(4, PIXELS // (height * width))


@lru_cache(maxsize=1)
def kernels_serve() -> bool:
    """Return whether oneDNN's int8 convolution is here and gives exact sums on this machine."""
    convolution = nn.Conv2d(4, 8, 3, padding=1)
    draw = torch.Generator().manual_seed(0)
    integers = torch.randint(-127, 128, (8, 4, 3, 3), generator=draw).to(torch.int8)
    spikes = torch.randint(0, 2, (1, 4, 5, 5), generator=draw).float()
    ones_O, zeros_O = torch.ones(8), torch.zeros(8)
    try:
        packed = _packed(integers, ones_O, convolution)
        sums = _convolved(spikes, packed, ones_O, zeros_O, convolution)
    except (AttributeError, RuntimeError):  # no such operator in this build, or for this CPU
        return False
    return torch.equal(sums, F.conv2d(spikes, integers.float(), padding=1))


def _packed(integers: Tensor, scale_O: Tensor, layer: nn.Conv2d) -> Tensor:
    """Weights in the order that oneDNN's kernel wants."""
    sizes = (layer.stride, layer.padding, layer.dilation, layer.groups)
    # once a layer, at its first batch: each call would reorder the weights anew
    packed: Tensor = torch.ops.onednn.qconv_prepack(integers, scale_O, 1.0, 0, *sizes, None)
    return packed


def _convolved(
    spikes: Tensor, packed: Tensor, scale_O: Tensor, bias_O: Tensor, layer: nn.Conv2d
) -> Tensor:
    """scale_O * (integers * spikes) + bias_O, as float32."""
    result: Tensor = torch.ops.onednn.qconv2d_pointwise(
        spikes.to(torch.uint8),
        *(1.0, 0),  # scale and zero point of the spikes
        packed,
        scale_O,
        torch.zeros(len(scale_O), dtype=torch.int32),
        bias_O,
        *(layer.stride, layer.padding, layer.dilation, layer.groups),
        *(1.0, 0, torch.float32),  # of the result
        *("none", [], ""),  # nothing is applied to it
    )
    return result
