"""The facts and the counts of one call of a layer or matrix product, wherever its steps are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from tser_cli.energy.axes import Axes
from tser_cli.energy.counts import REAL, SIGNED, SPIKES, SUMS
from tser_cli.energy.effective import effective_operations
from tser_cli.energy.geometry import Geometry, shape_geometry, vectors_geometry
from tser_cli.energy.intercept import Operation
from tser_cli.energy.products import Product, dense, tally_product
from tser_cli.energy.records import Entry, Record
from tser_cli.energy.tally import TOO_LARGE, fault, fault_message, magnitude, tally
from tser_cli.errors import TserError

FindKind = Callable[[int, Tensor], str]
OperandAxes = tuple[Axes | None, ...]


@dataclass(frozen=True)
class Batch:
    """The batch that a call belongs to: its number, its size, and the call's place in time."""

    number: int
    images: int
    timesteps: int
    step: int | None
    detailed: bool


def count_layer(
    record: Record, met: Operation, axes: Axes, batch: Batch, find: FindKind
) -> tuple[Entry, str]:
    """Count a convolution or linear layer; the call, and what it was fed with ("" for zeros)."""
    assert met.x is not None and met.weight is not None
    rows = axes.rows(met.x.detach(), batch.timesteps)
    x, geometry = as_map(rows, met, axes.inner)
    kind = find(0, x)
    x = magnitude(x, kind)
    if not record.macs:
        _describe(record, met, geometry, axes.inner)
    as_kind = kind if kind in (SUMS, REAL) else SPIKES
    counted = tally(x, as_kind, geometry.fan_out_P.to(x.device))
    if kind == SUMS and int(fault(x, SUMS)) == TOO_LARGE:
        raise TserError(fault_message(record.name, SUMS, TOO_LARGE))
    shape = (axes.steps(tuple(met.x.shape), batch.timesteps), batch.images, -1)
    entry = Entry(batch.number, counted.view(3, *shape).sum(-1), batch.step, kind in ("", SPIKES))
    if batch.detailed:
        _add_details(entry, x, kind, effective_operations(x, met, counted, kind, geometry), shape)
    return entry, kind


def _add_details(
    entry: Entry, x: Tensor, kind: str, effective_B: Tensor, shape: tuple[int, ...]
) -> None:
    entry.effective = effective_B.view(shape).sum(-1)
    if kind == SUMS:
        total_B = x.flatten(1).sum(1, dtype=torch.float64).round().long()
        entry.total = total_B.view(shape).sum(-1)
    else:
        entry.total = entry.tally[0]


def as_map(rows: Tensor, met: Operation, inner: int) -> tuple[Tensor, Geometry]:
    """Return the rows as `tally` takes them, and the geometry of one: [B, C, P, 1] or [B,
    features].
    """
    if met.conv is not None:
        maps = rows.flatten(0, 1) if inner > 1 else rows
        x = maps if maps.dim() == 4 else maps.flatten(2).unsqueeze(-1)
        return x, shape_geometry(met.conv, tuple(maps.shape[2:]))
    assert met.weight is not None
    outputs, features = met.weight.shape
    vectors = rows.reshape(len(rows), -1)
    return vectors, vectors_geometry(features, outputs, vectors.shape[1] // features)


def _describe(record: Record, met: Operation, geometry: Geometry, inner: int) -> None:
    assert met.weight is not None
    # A linear layer's rows have their inner vectors with them, a convolution's maps are apart.
    times = inner if met.conv is not None else 1
    record.neurons_in, record.outputs = geometry.neurons_in * times, geometry.outputs * times
    record.macs, record.macs_formula = geometry.macs * times, geometry.macs_formula * times
    record.weight_bytes = met.weight.element_size()
    record.bias_bytes = 0 if met.bias is None else met.bias.element_size()
    record.parameters = met.weight.numel() + (0 if met.bias is None else met.bias.numel())
    record.conv = met.conv


def count_product(
    record: Record, met: Operation, axes: OperandAxes, batch: Batch, find: FindKind
) -> tuple[Entry, str]:
    """Count a matrix product; the call, and what drives it ("" for nothing but zeros)."""
    product = met.product
    assert product is not None
    left, right = (
        REAL if part.tensor is None or part.tensor is met.weight else find(i, part.tensor)
        for i, part in enumerate(product.factors)
    )
    kinds = (left or SPIKES, right or SPIKES)
    letters = row_letters(met, axes)
    counted, operands = tally_product(product, letters, kinds)
    leading = next(found for found in axes if found)
    if not record.macs:
        _describe_product(record, met, letters, kinds, leading.inner)
    _note_operands(record, kinds)
    shape = (batch.timesteps if leading.all_steps else 1, batch.images, -1)
    entry = Entry(
        batch.number,
        counted.reshape(3, *shape).sum(-1),
        batch.step,
        SPIKES in kinds,
        operands=operands.reshape(2, *shape).sum(-1),
    )
    return entry, _driving(left, right)


def _driving(left: str, right: str) -> str:
    """Return what drives a product: sums where there are some, else spikes, real where nothing
    does.
    """
    found = {kind for kind in (left, right) if kind != REAL}
    if not found:
        return REAL
    return next((kind for kind in (SUMS, SIGNED, SPIKES) if kind in found), "")


def row_letters(met: Operation, axes: OperandAxes) -> str:
    """Return the letters of time and batch.

    Raises TserError where a product goes over the images.
    """
    assert met.product is not None
    batches, times = set(), set()
    for found, part in zip(axes, met.product.factors, strict=True):
        if found is not None:
            batches.add(part.letters[found.batch])
            times |= {part.letters[found.time]} if found.time is not None else set()
    if len(batches) > 1 or len(times) > 1 or not batches | times <= set(met.product.output):
        raise TserError(
            f"{met.layer} multiplies images or time steps with each other, so that its operations "
            "can't be told apart by image"
        )
    return "".join(times) + "".join(batches)


def _describe_product(
    record: Record, met: Operation, letters: str, kinds: tuple[str, str], inner: int
) -> None:
    product = met.product
    assert product is not None
    sizes, macs = product.sizes(), dense(product, letters) * inner
    per_row = [
        prod(size for c, size in zip(part.letters, part.sizes, strict=True) if c not in letters)
        * inner
        for part in product.factors
    ]
    driving = [size for size, kind in zip(per_row, kinds, strict=True) if kind != REAL]
    record.neurons_in = sum(driving or per_row)
    record.outputs = prod(sizes[c] for c in product.output if c not in letters) * inner
    record.macs = record.macs_formula = macs
    if met.weight is not None:
        record.weight_bytes, record.parameters = met.weight.element_size(), met.weight.numel()
    record.operand_sizes = (per_row[0], per_row[1])
    record.product = _heads(product, letters, inner)


def _heads(product: Product, letters: str, inner: int) -> tuple[int, int, int, int]:
    """H, M, K, P: how often [M, K] x [K, P] is computed for one image and step."""
    sizes = {c: size for c, size in product.sizes().items() if c not in letters}
    left, right, out = (
        set(n) for n in (product.left.letters, product.right.letters, product.output)
    )
    groups = (left & right & out, left - right, (left & right) - out, right - left)
    heads, rows, inside, columns = (prod(sizes.get(c, 1) for c in group) for group in groups)
    return heads * inner, rows, inside, columns


def _note_operands(record: Record, kinds: tuple[str, str]) -> None:
    if record.operand_kinds is None:
        record.operand_kinds = kinds
    else:
        rank = (SPIKES, SIGNED, SUMS, REAL)
        pairs = zip(record.operand_kinds, kinds, strict=True)
        worst = [max(pair, key=rank.index) for pair in pairs]
        record.operand_kinds = (worst[0], worst[1])
