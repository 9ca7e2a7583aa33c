"""The table of conventions, why each differs from the exact count, and which one made a figure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tser_cli.energy import conventions as c
from tser_cli.energy.attention import attentions
from tser_cli.energy.auxiliary import Auxiliary
from tser_cli.energy.counts import CONV, MATMUL, REAL, SPIKES, SUMS, Counts, LayerCounts
from tser_cli.energy.profiles import Profile

NEAR = 0.05
"""How far a figure may be from a convention's that is taken to have made it."""


@dataclass(frozen=True)
class Compared:
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


def compare(counts: Counts, profile: Profile, others: Auxiliary | None = None) -> list[Compared]:
    """Return every convention on the same counts, those of attention only where there are products.

    `others`: the operations that syops alone counts, of all images together.
    """
    chosen = dict(c.CONVENTIONS)
    if any(layer.layer.type == MATMUL for layer in counts.layers):
        chosen.update(c.ATTENTION)
    exact = c.count_as(chosen["exact"], counts)
    base = c.energy_of(exact, profile)
    compared = []
    for name, convention in chosen.items():
        found = c.count_as(convention, counts)
        if name == "syops" and others is not None:
            images = counts.images
            found += c.Operations(others.macs / images, others.acs / images)
        energy = c.energy_of(found, profile)
        differs = found != exact
        reasons = tuple(r for r in convention.reasons if differs and APPLIES[r](counts))
        ratio = energy / base if base else None
        compared.append(Compared(name, found.macs, found.acs, energy, ratio, reasons))
    return compared


def matching(compared: Sequence[Compared], energy_pj: float) -> list[Compared]:
    """Return the conventions within 5 % of a figure, the nearest first."""
    near = [one for one in compared if abs(one.energy_pj - energy_pj) <= NEAR * energy_pj]
    return sorted(near, key=lambda one: abs(one.energy_pj - energy_pj))


def _any(test: Callable[[LayerCounts], bool]) -> Callable[[Counts], bool]:
    return lambda counts: any(test(layer) for layer in counts.layers)


def _zero_weights(layer: LayerCounts) -> bool:
    if layer.effective_TI is None or not layer.layer.accumulates:
        return False
    return bool((layer.effective_TI != layer.events_TI).any())


def _zeros(layer: LayerCounts) -> bool:
    if layer.effective_TI is None or layer.layer.input_kind != REAL:
        return False
    return bool((layer.effective_TI < layer.step_macs[:, None]).any())


def _dense(layer: LayerCounts) -> bool:
    if layer.layer.input_kind != SUMS or layer.binary_TI is None or layer.operands:
        return False
    return bool((layer.binary_TI < layer.executed_T[:, None]).any())


def _padded_dense(layer: LayerCounts) -> bool:
    dense = layer.binary_TI is not None and bool(
        (layer.binary_TI < layer.executed_T[:, None]).any()
    )
    return dense and layer.layer.macs_formula != layer.layer.macs


def _stem_again(counts: Counts) -> bool:
    return any(c.executions(layer) > 1 for layer in counts.stem)


def _real_inside(counts: Counts) -> bool:
    stem = [id(layer) for layer in counts.stem]
    return any(not x.layer.accumulates and id(x) not in stem for x in counts.layers)


def _transposed(layer: LayerCounts) -> bool:
    return layer.layer.conv is not None and layer.layer.conv.transposed


APPLIES: dict[str, Callable[[Counts], bool]] = {
    c.PADDING: _any(lambda x: x.layer.type == CONV and x.layer.macs_formula != x.layer.macs),
    c.PADDED_MACS: _any(_padded_dense),
    c.ONE_FACTOR: _any(lambda x: {operand.kind for operand in x.operands} == {SPIKES, SUMS}),
    c.RIGHT_FACTOR: _any(lambda x: len(x.operands) == 2 and x.layer.accumulates),
    c.RATES: lambda counts: any(True for _ in attentions(counts)),
    c.EVENTS: _any(lambda x: bool((x.events_TI != x.value_TI).any())),
    c.DENSE: _any(_dense),
    c.ONCE: _stem_again,
    c.BIASES: _any(lambda x: x.layer.bias_bytes > 0),
    c.OTHERS: lambda counts: True,
    c.WEIGHTS: _any(_zero_weights),
    c.ZEROS: _any(_zeros),
    c.NO_PRODUCTS: _any(lambda x: x.layer.type == MATMUL),
    c.NO_TRANSPOSED: _any(_transposed),
    c.REAL_BY_RATE: _real_inside,
}
