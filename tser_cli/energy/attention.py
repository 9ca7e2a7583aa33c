"""Spiking attention in a network: which matrix products belong together, and their firing rates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tser_cli.energy.counts import MATMUL, REAL, Counts, LayerCounts, Operand


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
    """Yield the pairs of products, in the order in which they run; products on their own are left
    out.

    A pair is two products in a row of one module, of which the first has two factors of spikes and
    the second takes its result, [N, N] or [d, d], beside a factor of spikes.
    """
    products = [layer for layer in counts.layers if layer.layer.type == MATMUL]
    at = 0
    while at + 1 < len(products):
        found = _pair(products[at], products[at + 1])
        if found is None:
            at += 1
        else:
            yield found
            at += 2


def _pair(first: LayerCounts, second: LayerCounts) -> Attention | None:
    same = first.layer.name.partition("#")[0] == second.layer.name.partition("#")[0]
    one, two = first.layer.product, second.layer.product
    if not same or one is None or two is None or one[0] != two[0]:
        return None
    if REAL in (operand.kind for operand in first.operands):
        return None
    left, right = (_rate(operand, first) for operand in first.operands)
    (heads, rows, inside, columns), (_, rows2, inside2, columns2) = one, two
    scores = rows * columns
    if rows == columns == inside2 and scores == rows2 * inside2:
        # [N, d] x [d, N], then [N, N] x [N, d].
        return Attention(
            (first, second), heads, rows, inside, left, right, _rate(second.operands[1], second)
        )
    if inside2 == rows and columns2 == columns and rows2 == inside:
        # [d, N] x [N, d], then [N, d] x [d, d].
        return Attention(
            (first, second), heads, inside, rows, _rate(second.operands[0], second), left, right
        )
    return None


def _rate(operand: Operand, layer: LayerCounts) -> float:
    executed = float(layer.executed_T.sum())
    return float(operand.nonzero_TI.sum(axis=0).mean()) / (operand.size * executed)
