"""The operations of one network as the tools and papers of this field count them, side by side.

Each is what its authors' code, or the formula that they print, does with the same spikes; where
they differ from the exact count it is said why. All figures are means per image.

Sources: spikingjelly 2 (`op_counter`: SynOpCounter and MACCounter); NeuroBench 2.3
(`metrics/utils/layers/macs.py`); syops 0.0.5 (`syops/ops.py`); Spikformer (Zhou et al., ICLR 2023,
appendix); Spikingformer (`energy_consumption_calculation/`, `Nspks_max` 30 and 1 for calculations 1
and 2); SpikingResformer (`utils/utils.py`, SOPMonitor); Spike-Driven Transformer (Yao et al.,
NeurIPS 2023, table 1, as read in its issue 24).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from typing import Any

from torch import Tensor, nn

from tser_cli.energy.counter import first_tensor
from tser_cli.energy.counts import MATMUL, REAL, SIGNED, SPIKES, SUMS, Counts, LayerCounts, mean_of
from tser_cli.energy.joules import formula_operations, priced
from tser_cli.energy.prices import Profile
from tser_cli.energy.tally import find_kind

NORMS = (nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm, nn.GroupNorm)
AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
ACTIVATIONS = (nn.ReLU, nn.PReLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.GELU)
# By name: spikingjelly's neurons have moved from package to package, and may not be installed.
IF_NAMES, LIF_NAMES = ("IFNode", "MultiStepIFNode"), ("LIFNode", "MultiStepLIFNode")


@dataclass
class Auxiliary:
    """What syops counts beside convolutions and linear layers: accumulates and MACs of all calls.

    Its rules go by the class of the module: an element of a spike tensor costs its rate in
    accumulates, any other one a multiply-accumulate; a norm with weights costs two an element; a
    leaky neuron one of each.
    """

    acs: float = 0.0
    macs: float = 0.0

    def add(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Add what syops would for one call of a module; nothing for classes it does not know."""
        x, y = first_tensor(args), first_tensor(output)
        if x is None or y is None:
            return
        if isinstance(module, AVERAGES):
            self.macs += x.numel()
        elif isinstance(module, NORMS + MAXIMA + ACTIVATIONS):
            fed = y if isinstance(module, ACTIVATIONS) else x
            affine = isinstance(module, NORMS) and getattr(module, "affine", True)
            operations, rate = fed.numel() * (2 if affine else 1), _spike_rate(fed)
            if rate is None:
                self.macs += operations
            else:
                self.acs += operations * rate
        elif type(module).__name__ in IF_NAMES + LIF_NAMES:
            rate = _spike_rate(x)
            self.acs += x.numel() * (1.0 if rate is None else rate)
            self.macs += x.numel() if type(module).__name__ in LIF_NAMES else 0


def _spike_rate(x: Tensor) -> float | None:
    """Return the share of ones of a tensor of spikes, None of other values."""
    return float(x.double().mean()) if find_kind(x) in ("", SPIKES) else None


@dataclass(frozen=True)
class Attention:
    """Two products of one module: Q K^T and then V, or K^T V and then Q.

    `heads`, `tokens`, `width`: H, N and d, the width of one head. `rate_q`, `rate_k`, `rate_v`: the
    share of non-zero elements. In K^T V it can't be told which factor is K; the left one is taken.
    """

    layers: tuple[LayerCounts, LayerCounts]
    heads: int
    tokens: int
    width: int
    rate_q: float
    rate_k: float
    rate_v: float


def attentions(counts: Counts) -> Iterator[Attention]:
    """Yield the pairs of products, in the order in which they run, without products on their own.

    A pair is two products in a row of one module, of which the first has two factors of spikes and
    the second takes its result, [N, N] or [d, d], beside a factor of spikes.
    """
    taken = None
    for first, second in pairwise(x for x in counts.layers if x.layer.type == MATMUL):
        found = None if first is taken else _pair(first, second)
        if found is not None:
            taken = second
            yield found


def _pair(first: LayerCounts, second: LayerCounts) -> Attention | None:
    same = first.layer.name.partition("#")[0] == second.layer.name.partition("#")[0]
    one, two = first.layer.product, second.layer.product
    if not same or one is None or two is None or one[0] != two[0]:
        return None
    # After a softmax, say, no rates tell what the pair costs.
    if REAL in (operand.kind for operand in first.operands):
        return None
    left, right = (x.rate(first.executions) for x in first.operands)
    q_or_scores, v_or_state = (x.rate(second.executions) for x in second.operands)
    (heads, rows, inside, columns), (_, rows2, inside2, columns2) = one, two
    if rows == columns == inside2 == rows2:
        # [N, d] x [d, N], then [N, N] x [N, d].
        return Attention((first, second), heads, rows, inside, left, right, v_or_state)
    if inside2 == rows and columns2 == columns and rows2 == inside:
        # [d, N] x [N, d], then [N, d] x [d, d].
        return Attention((first, second), heads, inside, rows, q_or_scores, left, right)
    return None


@dataclass(frozen=True)
class Operations:
    """Multiply-accumulates and accumulates of one image, as somebody counts them.

    `narrow`: the accumulates among them whose sums 16 bits hold.
    """

    macs: float = 0.0
    acs: float = 0.0
    narrow: float = 0.0

    def __add__(self, other: Operations) -> Operations:
        narrow = self.narrow + other.narrow
        return Operations(self.macs + other.macs, self.acs + other.acs, narrow)


@dataclass(frozen=True)
class Convention:
    """How a layer is counted, and the products of a pair of attention where those are one.

    `layer` is asked for every layer that `pair` does not cover. `reasons`: what makes it differ.
    """

    layer: Callable[[LayerCounts, Counts], Operations]
    reasons: tuple[str, ...]
    pair: Callable[[Attention, Counts], Operations] | None = None


def rate_flop(layer: LayerCounts) -> float:
    """Firing rate x FLOP, over all steps."""
    size = layer.layer.neurons_in
    return mean_of(layer.nonzero_TI) / size * layer.layer.macs_formula


def exact(layer: LayerCounts, counts: Counts) -> Operations:
    """Return the count of this package: by value, without the padding."""
    return Operations(float(layer.step_macs.sum()), mean_of(layer.value_TI))


def formula(layer: LayerCounts, counts: Counts) -> Operations:
    """Firing rate x T x FLOP where spikes drive a layer, FLOP as often as it is computed else."""
    if not layer.layer.accumulates:
        return Operations(macs=float(layer.executions * layer.layer.macs_formula))
    return Operations(acs=float(formula_operations(layer).sum()))


def spikformer(layer: LayerCounts, counts: Counts) -> Operations:
    """Firing rate x T x FLOP of everything but the stem, whose FLOP count once an image."""
    if any(layer is stem for stem in counts.stem):
        return Operations(macs=float(layer.layer.macs_formula))
    # Real inputs too: the paper prices all blocks as spikes.
    return Operations(acs=rate_flop(layer))


def spikingjelly(layer: LayerCounts, counts: Counts) -> Operations:
    """Exact where a call met 0 and 1 alone; the whole call dense, with its padding, where not."""
    assert layer.binary_TI is not None, "counted with the details of calls"
    if not layer.operands:
        # Its counter asks whether a whole tensor is binary: one 2 in a batch bills all of it.
        dense_TI = (1 - layer.binary_TI) * layer.executed_T[:, None].clip(max=1)
        spikes_TI = layer.events_TI * layer.binary_TI * int(layer.layer.accumulates)
        return Operations(mean_of(dense_TI) * layer.layer.macs_formula, mean_of(spikes_TI))
    assert layer.layer.product is not None
    _, rows, _, columns = layer.layer.product
    left, right = layer.operands
    if left.kind == right.kind == SPIKES:
        return Operations(acs=mean_of(layer.value_TI))
    if left.kind == SPIKES:
        return Operations(acs=mean_of(left.nonzero_TI) * columns)
    if right.kind == SPIKES:
        return Operations(acs=mean_of(right.nonzero_TI) * rows)
    return Operations(macs=float(layer.executions * layer.layer.macs))


def neurobench(layer: LayerCounts, counts: Counts) -> Operations:
    """Non-zero inputs x non-zero weights; accumulates where inputs are -1, 0 and 1, MACs else."""
    shape = layer.layer.conv
    if layer.layer.type == MATMUL or (shape is not None and shape.transposed):
        return Operations()
    assert layer.effective_TI is not None, "counted with the details of weights"
    effective = mean_of(layer.effective_TI)
    if layer.layer.unfolded_kind in (SPIKES, SIGNED):
        return Operations(acs=effective)
    if layer.layer.unfolded_kind == REAL or layer.binary_TI is None:
        return Operations(macs=effective)
    spiking = mean_of(layer.effective_TI * layer.binary_TI)
    return Operations(effective - spiking, spiking)


def biases(layer: LayerCounts, once_a_call: bool) -> float:
    """Additions of biases of one computation; syops counts those of a linear layer once a call."""
    facts = layer.layer
    if not facts.bias_bytes:
        return 0.0
    if facts.conv is None and once_a_call:
        return facts.macs / facts.neurons_in * layer.calls / layer.executions
    return float(facts.outputs)


def syops(layer: LayerCounts, counts: Counts) -> Operations:
    """Firing rate x (FLOP + biases) where a call met 0 and 1 alone, FLOP + biases else."""
    # It hooks modules, and so never sees a product.
    matmul = layer.layer.type == MATMUL
    return Operations() if matmul else by_rate(layer, counts, once_a_call=True)


def by_rate(
    layer: LayerCounts, counts: Counts, once_a_call: bool = False, sums: bool = False
) -> Operations:
    """As syops: what is not 0 and 1 alone is dense.

    `sums`: whole numbers up to 30 are spikes too, and their mean is the rate. A product that
    belongs to no pair of attention counts as firing rate x FLOP.
    """
    if layer.layer.type == MATMUL:
        if not layer.layer.accumulates:
            return Operations(macs=float(layer.executions * layer.layer.macs))
        return Operations(acs=rate_flop(layer))
    facts, flop = layer.layer, float(layer.layer.macs_formula)
    if facts.conv is not None and facts.conv.transposed:
        # Kernel x in_channels x out_channels / groups x outputs, as if it were none.
        taps = prod(facts.conv.kernel) * facts.conv.in_channels // facts.conv.groups
        flop = float(taps * facts.outputs)
    flop += biases(layer, once_a_call)
    if facts.unfolded_kind == SPIKES or (facts.unfolded_kind == SUMS and sums):
        fed = layer.nonzero_TI if layer.total_TI is None else layer.total_TI
        return Operations(acs=mean_of(fed) / facts.neurons_in * flop)
    return Operations(macs=layer.executions * flop)


def spikingformer_pair(pair: Attention, counts: Counts) -> Operations:
    """T H N d^2 (min(r_k, r_v) + r_q)."""
    base = pair.layers[0].executions * pair.heads * pair.tokens * pair.width**2
    return Operations(acs=base * (min(pair.rate_k, pair.rate_v) + pair.rate_q))


def resformer(layer: LayerCounts, counts: Counts) -> Operations:
    """Exact by value; of a product the sum of the right factor x the rows of the left one."""
    if not layer.operands or layer.layer.product is None:
        return exact(layer, counts)
    _, rows, _, columns = layer.layer.product
    left, right = layer.operands
    if right.kind != REAL:
        return Operations(acs=mean_of(right.nonzero_TI) * rows)
    if left.kind != REAL:
        return Operations(acs=mean_of(left.nonzero_TI) * columns)
    return exact(layer, counts)


def spike_driven_pair(pair: Attention, counts: Counts) -> Operations:
    """T (r_q + r_k) N D, D the width of all heads."""
    base = pair.layers[0].executions * pair.tokens * pair.heads * pair.width
    return Operations(acs=base * (pair.rate_q + pair.rate_k))


PADDING, RATES = "padding counted", "attention by firing rates"
PADDED_MACS = "padding counted where dense"
ONE_FACTOR = "products with sums by their binary factor"
RIGHT_FACTOR = "products by their right factor"
EVENTS, DENSE = "sums of spikes counted once", "sums of spikes billed dense"
SCALED = "scaled spikes not folded into weights"
ONCE = "stem once an image"
BIASES, OTHERS = "biases", "norms, pools and neurons counted"
WEIGHTS, ZEROS = "zero weights left out", "zeros of real inputs left out"
NO_PRODUCTS, NO_TRANSPOSED = "matrix products left out", "transposed convolutions left out"
REAL_BY_RATE = "real inputs priced as spikes"

# In the order of the table; the exact count first, as the others are compared with it.
CONVENTIONS = {
    "exact": Convention(exact, ()),
    "formula": Convention(formula, (PADDING, EVENTS, RATES)),
    "spikingjelly": Convention(spikingjelly, (DENSE, SCALED, PADDED_MACS, ONE_FACTOR)),
    "neurobench": Convention(
        neurobench, (WEIGHTS, ZEROS, DENSE, SCALED, NO_PRODUCTS, NO_TRANSPOSED)
    ),
    "syops": Convention(syops, (PADDING, DENSE, SCALED, BIASES, OTHERS, NO_PRODUCTS)),
}
# Of papers on spiking transformers: they say nothing new of a network without products.
ATTENTION = {
    "spikformer": Convention(spikformer, (PADDING, EVENTS, ONCE, RATES, REAL_BY_RATE)),
    "spikingformer-1": Convention(
        partial(by_rate, sums=True), (PADDING, SCALED, BIASES, RATES), spikingformer_pair
    ),
    "spikingformer-2": Convention(
        by_rate, (PADDING, BIASES, DENSE, SCALED, RATES), spikingformer_pair
    ),
    "spikingresformer": Convention(resformer, (RIGHT_FACTOR,)),
    "spike-driven-transformer": Convention(
        spikformer, (PADDING, EVENTS, ONCE, RATES, REAL_BY_RATE), spike_driven_pair
    ),
}


def count_as(convention: Convention, counts: Counts) -> Operations:
    """Return the operations of a whole network in a convention."""
    pairs = list(attentions(counts)) if convention.pair else []
    covered = [layer for pair in pairs for layer in pair.layers]
    total = Operations()
    for layer in counts.layers:
        if not any(layer is other for other in covered):
            found = convention.layer(layer, counts)
            total += replace(found, narrow=found.acs * layer.layer.narrow)
    for pair in pairs:
        assert convention.pair is not None
        total += convention.pair(pair, counts)
    return total


@dataclass(frozen=True)
class AsCounted:
    """One convention's figures of one image; `differs_by`: why they are not the exact ones."""

    convention: str
    macs: float
    acs: float
    energy_pj: float
    ratio_to_exact: float | None
    differs_by: tuple[str, ...]

    def row(self) -> dict[str, object]:
        """Return the columns of the table of conventions."""
        return {**self.__dict__, "differs_by": "; ".join(self.differs_by)}


def compare(counts: Counts, profile: Profile, others: Auxiliary | None = None) -> list[AsCounted]:
    """Return every convention on the same counts, those of attention only where there are products.

    `others`: the operations that syops alone counts, of all images together.
    """
    chosen = dict(CONVENTIONS)
    if any(layer.layer.type == MATMUL for layer in counts.layers):
        chosen.update(ATTENTION)
    exact = count_as(chosen["exact"], counts)
    base: float = priced(exact.macs, exact.acs, profile, exact.narrow)
    compared = []
    for name, convention in chosen.items():
        found = count_as(convention, counts)
        if name == "syops" and others is not None:
            images = counts.images
            found += Operations(others.macs / images, others.acs / images)
        energy: float = priced(found.macs, found.acs, profile, found.narrow)
        # A reason may apply and yet change nothing: where the figures agree none is given.
        differs = found != exact
        reasons = tuple(r for r in convention.reasons if differs and APPLIES[r](counts))
        ratio = energy / base if base else None
        compared.append(AsCounted(name, found.macs, found.acs, energy, ratio, reasons))
    return compared


def matching(compared: Sequence[AsCounted], energy_pj: float) -> list[AsCounted]:
    """Return the conventions within 5 % of a figure, the nearest first."""
    # Papers print two or three digits, of an average over other images than these.
    near = [one for one in compared if abs(one.energy_pj - energy_pj) <= 0.05 * energy_pj]
    return sorted(near, key=lambda one: abs(one.energy_pj - energy_pj))


def _any(test: Callable[[LayerCounts], bool]) -> Callable[[Counts], bool]:
    return lambda counts: any(test(layer) for layer in counts.layers)


def _dense(layer: LayerCounts) -> bool:
    """Return whether some call met more than 0 and 1."""
    binary_TI = layer.binary_TI
    return binary_TI is not None and bool((binary_TI < layer.executed_T[:, None]).any())


def _zeros(layer: LayerCounts) -> bool:
    """Return whether operations on zeros, of weights or of real inputs, could be left out."""
    of_TI = layer.events_TI if layer.layer.accumulates else layer.step_macs[:, None]
    return layer.effective_TI is not None and bool((layer.effective_TI != of_TI).any())


def _padded(layer: LayerCounts) -> bool:
    return layer.layer.macs_formula != layer.layer.macs


APPLIES: dict[str, Callable[[Counts], bool]] = {
    PADDING: _any(lambda x: x.layer.conv is not None and _padded(x)),
    PADDED_MACS: _any(lambda x: _dense(x) and _padded(x)),
    ONE_FACTOR: _any(lambda x: {operand.kind for operand in x.operands} == {SPIKES, SUMS}),
    RIGHT_FACTOR: _any(lambda x: len(x.operands) == 2 and x.layer.accumulates),
    RATES: lambda counts: any(True for _ in attentions(counts)),
    EVENTS: _any(lambda x: bool((x.events_TI != x.value_TI).any())),
    SCALED: _any(lambda x: x.layer.scale != 1),
    DENSE: _any(lambda x: x.layer.input_kind == SUMS and not x.operands and _dense(x)),
    ONCE: lambda counts: any(layer.executions > 1 for layer in counts.stem),
    BIASES: _any(lambda x: x.layer.bias_bytes > 0),
    OTHERS: lambda counts: True,
    WEIGHTS: _any(lambda x: x.layer.accumulates and _zeros(x)),
    ZEROS: _any(lambda x: not x.layer.accumulates and _zeros(x)),
    NO_PRODUCTS: _any(lambda x: x.layer.type == MATMUL),
    NO_TRANSPOSED: _any(lambda x: x.layer.conv is not None and x.layer.conv.transposed),
    REAL_BY_RATE: lambda counts: any(
        not layer.layer.accumulates and not any(layer is stem for stem in counts.stem)
        for layer in counts.layers
    ),
}
