"""Matrix products between two tensors of a network, counted exactly.

A product is written as in an einsum: each factor has a letter an axis, and a letter that both share
and the output lacks is contracted. Each of the products a * b that the sum runs over is an
operation where spikes say so:

- both factors are spikes (or sums of them): a * b accumulates, the sum of A B by value;
- one is: its non-zeros (its sum, by value) x the elements of the other that each of them meets;
- neither: multiply-accumulates, all of them.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import TserError
from tser_cli.energy.counter import FindKind, Shape
from tser_cli.energy.counts import (
    MATMUL,
    RANK,
    REAL,
    SPIKES,
    SUMS,
    Fed,
    LayerFacts,
    LayerRecord,
    Place,
    Tally,
)
from tser_cli.energy.tally import EXACT


@dataclass(frozen=True)
class Factor:
    """One factor: its tensor, None where it is never formed, a letter an axis, and its sizes."""

    tensor: Tensor | None
    letters: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """Two factors, left first, and the letters of their product."""

    factors: tuple[Factor, Factor]
    output: str

    def sizes(self) -> dict[str, int]:
        """Return the size of every letter."""
        return {
            letter: size
            for factor in self.factors
            for letter, size in zip(factor.letters, factor.sizes, strict=True)
        }


def factor(tensor: Tensor, letters: str) -> Factor:
    """Return the factor of a tensor; a sparse one is made dense, and counts alike."""
    return Factor(dense(tensor), letters, tuple(tensor.shape))


def dense(x: Tensor) -> Tensor:
    """Return a tensor that is stored in full, itself where it is."""
    return x if x.layout == torch.strided else x.to_dense()


def matmul_product(left: Tensor, right: Tensor) -> Product:
    """Return the product of `torch.matmul`: leading axes align from the right and broadcast."""
    ends = ("y" if left.dim() == 1 else "xy", "y" if right.dim() == 1 else "yz")
    spare = iter(string.ascii_uppercase)
    names = []
    for tensor, end in zip((left, right), ends, strict=True):
        lead = tensor.dim() - len(end)
        letters = [chr(ord("a") + lead - 1 - i) for i in range(lead)]
        # A broadcast axis is not the other factor's: it has a letter of its own.
        other = right if tensor is left else left
        for i in range(lead):
            at = i - tensor.dim()
            if tensor.shape[at] == 1 and other.dim() >= -at and other.shape[at] != 1:
                letters[i] = next(spare)
        names.append("".join(letters) + end)
    output = "".join(dict.fromkeys(letter for name in names for letter in name if letter != "y"))
    return Product((factor(left, names[0]), factor(right, names[1])), output)


def einsum_product(equation: str, *operands: Tensor) -> Product | Iterator[Product]:
    """Return the product of `torch.einsum` with two operands. Raises TserError for more."""
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    if len(operands) == 1:
        return iter(())  # a sum or a transposition: nothing is multiplied
    inputs, arrow, output = equation.replace(" ", "").partition("->")
    names = inputs.split(",")
    if len(operands) != 2 or len(names) != 2:
        raise TserError(
            f'einsum "{equation}" with {len(operands)} operands can\'t be counted: the order of '
            "its products is not known; write it as products of two"
        )
    if not arrow:
        letters = inputs.replace(",", "").replace(".", "")
        output = "..." + "".join(sorted(c for c in letters if letters.count(c) == 1))
    # One letter for each axis that the dots stand for, aligned from the right as torch does.
    spare = "".join(letter for letter in string.ascii_letters if letter not in inputs)
    hidden = [
        tensor.dim() - len(name.replace("...", "")) if "..." in name else 0
        for name, tensor in zip(names, operands, strict=True)
    ]
    dots = spare[: max(hidden)]
    names = [
        name.replace("...", dots[len(dots) - n :]) for name, n in zip(names, hidden, strict=True)
    ]
    if any(len(set(name)) < len(name) for name in names):
        raise TserError(f'einsum "{equation}" takes a diagonal, and can\'t be counted')
    factors = (factor(operands[0], names[0]), factor(operands[1], names[1]))
    return Product(factors, output.replace("...", dots))


def attention_products(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Iterator[Product]:
    """Yield the two products of `F.scaled_dot_product_attention`."""
    # Entries that a mask takes out are computed, and counted, all the same.
    yield matmul_product(query, key.transpose(-1, -2))
    sizes = (*query.shape[:-1], key.shape[-2])
    # The softmax in between makes the second's left factor real; the fused kernel never forms it.
    whole = matmul_product(torch.empty(sizes, device="meta"), value)
    left, right = whole.factors
    yield Product((replace(left, tensor=None), right), whole.output)


def _two(left: Tensor, right: Tensor, *args: Any, **kwargs: Any) -> Product:
    return matmul_product(left, right)


def _second_and_third(added: Any, left: Tensor, right: Tensor, **kwargs: Any) -> Product:
    return matmul_product(left, right)


PRODUCTS: dict[Any, Callable[..., Product | Iterator[Product]]] = {
    **dict.fromkeys((torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul), _two),
    **dict.fromkeys((torch.mm, Tensor.mm, torch.bmm, Tensor.bmm), _two),
    **dict.fromkeys((torch.mv, Tensor.mv, torch.dot, Tensor.dot, torch.vdot), _two),
    **dict.fromkeys((torch.sparse.mm, torch.smm, Tensor.smm, torch.hspmm, torch._int_mm), _two),
    **dict.fromkeys((torch.sparse.addmm, torch.sspaddmm, Tensor.sspaddmm), _second_and_third),
    Tensor.__rmatmul__: lambda right, left: matmul_product(left, right),
    **dict.fromkeys((torch.addmm, Tensor.addmm, Tensor.addmm_), _second_and_third),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_), _second_and_third),
    **dict.fromkeys((torch.addmv, Tensor.addmv, Tensor.addmv_), _second_and_third),
    torch.einsum: einsum_product,
    F.scaled_dot_product_attention: attention_products,
}
"""The functions of torch that multiply matrices, and how their arguments are read."""


@dataclass(frozen=True)
class ProductCall:
    """A call of a matrix product; `weight`: the factor that is a parameter of the network."""

    name: str
    product: Product
    weight: Tensor | None = None
    type: str = MATMUL

    def shapes(self) -> tuple[Shape, ...]:
        return tuple(part.sizes for part in self.product.factors)

    def described(self, name: str, place: Place, find: FindKind) -> LayerRecord:
        rows = self.rows(place)
        inner = next(axes for axes in place.axes if axes).inner
        sizes = {c: size for c, size in self.product.sizes().items() if c not in rows}
        per_row = [
            inner * prod(sizes[c] for c in part.letters if c in sizes)
            for part in self.product.factors
        ]
        macs = prod(sizes.values()) * inner
        left, right = (set(part.letters) for part in self.product.factors)
        out = set(self.product.output)
        # H, M, K, P: how often [M, K] x [K, P] is computed for one image and step.
        groups = (left & right & out, left - right, (left & right) - out, right - left)
        heads, *shape = (prod(sizes.get(c, 1) for c in group) for group in groups)
        facts = LayerFacts(
            name=name,
            type=MATMUL,
            input_kind="",
            neurons_in=sum(per_row),  # those that drive it, once all has run
            outputs=prod(sizes[c] for c in self.product.output if c in sizes) * inner,
            macs=macs,
            macs_formula=macs,
            weight_bytes=0 if self.weight is None else self.weight.element_size(),
            bias_bytes=0,
            parameters=0 if self.weight is None else self.weight.numel(),
            product=(heads * inner, shape[0], shape[1], shape[2]),
        )
        return LayerRecord(facts, operand_kinds=("", ""), operand_sizes=tuple(per_row))

    def tallied(
        self, record: LayerRecord, place: Place, find: FindKind, detailed: bool
    ) -> tuple[Tally, Fed]:
        found = self._fed(place, find)
        # A scale folds into the other factor where that is a weight; else it may be other spikes.
        foldable = None in place.axes
        kinds = [SPIKES if foldable and fed.scale else fed.kind or SPIKES for fed in found]
        fed = [one._replace(kind=kind) for one, kind in zip(found, kinds, strict=True)]
        counted, operands = tally_product(self.product, self.rows(place), fed)
        # As with layers, one call of real values makes the factor real.
        pairs = zip(record.operand_kinds, kinds, strict=True)
        record.operand_kinds = tuple(max(pair, key=RANK.__getitem__) for pair in pairs)
        leading = next(axes for axes in place.axes if axes)
        shape = (leading.steps(place.timesteps), place.images, -1)
        call = Tally(
            place,
            counted.reshape(3, *shape).sum(-1),
            any(fed.kind in ("", SPIKES) for fed in found),
            operands=operands.reshape(2, *shape).sum(-1),
        )
        # Sums drive a product where there are some, else spikes; real values where nothing does.
        drives = [fed.kind for fed in found if fed.kind != REAL]
        kind = max(drives, key=RANK.__getitem__, default=REAL)
        return call, Fed(kind, sum(fed.scale for fed in found) if foldable else 0.0)

    def rows(self, place: Place) -> str:
        """Return the letters of time and batch. Raises TserError where images are multiplied."""
        batches, times = set(), set()
        for found, part in zip(place.axes, self.product.factors, strict=True):
            if found is not None:
                batches.add(part.letters[found.batch])
                times |= {part.letters[found.time]} if found.time is not None else set()
        if len(batches) > 1 or len(times) > 1 or not batches | times <= set(self.product.output):
            raise TserError(
                f"{self.name} multiplies images or time steps with each other, so that its "
                "operations can't be counted by image"
            )
        return "".join(times) + "".join(batches)

    def _fed(self, place: Place, find: FindKind) -> list[Fed]:
        # A weight is no spike, even where all of its values happen to be 0 and 1, or integers. A
        # view of it, or a buffer, shows by having no images.
        return [
            Fed(REAL)
            if part.tensor is None or part.tensor is self.weight or axes is None
            else find(i, part.tensor)
            for i, (part, axes) in enumerate(zip(self.product.factors, place.axes, strict=True))
        ]


def tally_product(product: Product, rows: str, fed: Sequence[Fed]) -> tuple[Tensor, Tensor]:
    """Count a product: ([3, *rows] non-zeros, events and value, [2, *rows] non-zeros by factor).

    `rows`: the letters of time and batch, in that order; `fed`: what the factors are. Values of
    factors that spikes do not drive are 0, and not among the non-zeros of the first result.
    """
    sizes = product.sizes()
    shape = tuple(sizes[letter] for letter in rows)
    device = next(x.device for part in product.factors if (x := part.tensor) is not None)
    # All that is asked for follows from these sums, each one pass over its factor.
    names = kept(product, rows)
    used: list[Tensor] = []
    values: list[Tensor] = []
    for part, keep, one in zip(product.factors, names, fed, strict=True):
        if part.tensor is None:  # all of its elements, as a softmax gives no zeros
            inside = prod(sizes[c] for c in part.letters if c not in keep)
            used.append(torch.full([sizes[c] for c in keep], inside, device=device))
        else:
            used.append(reduced(_ones(part.tensor, one), part.letters, keep, 1))
        if part.tensor is None or one.kind == REAL or _plain(one):
            values.append(used[-1])
        else:
            most = max(one.most, -one.least)
            values.append(reduced(part.tensor.abs(), part.letters, keep, most))
    pairs = zip(used, names, strict=True)
    nonzero = [_by_row(x, letters, rows, shape) for x, letters in pairs]
    driving = [i for i in range(2) if fed[i].kind != REAL]
    if not driving:
        zeros = torch.zeros_like(nonzero[0])
        return torch.stack((nonzero[0] + nonzero[1], zeros, zeros)), torch.stack(nonzero)
    if len(driving) == 2:
        events, value = (_met(two, names, rows).round().long() for two in (used, values))
    else:
        i = driving[0]
        part, other = product.factors[i], product.factors[1 - i]
        each = meets(part, other, rows)
        events = nonzero[i] * each
        value = _by_row(values[i], names[i], rows, shape) * each
    together = torch.stack([nonzero[i] for i in driving]).sum(0)
    return torch.stack((together, events, value)), torch.stack(nonzero)


def meets(part: Factor, other: Factor, rows: str) -> int:
    """Return how many elements of the other factor, in its row, an element of a factor meets."""
    sizes = zip(other.letters, other.sizes, strict=True)
    return prod(size for letter, size in sizes if letter not in part.letters + rows)


def kept(product: Product, rows: str) -> list[str]:
    """Return the axes that are left of each factor when those that the other lacks are summed."""
    left, right = (set(part.letters) for part in product.factors)
    shared = (left & right) | set(rows)
    return ["".join(c for c in part.letters if c in shared) for part in product.factors]


def _plain(fed: Fed) -> bool:
    """Return whether a factor is 0 and 1 alone, and not 0 and a c that folds into a weight."""
    return fed.kind == SPIKES and fed.scale in (0, 1)


def _ones(x: Tensor, fed: Fed) -> Tensor:
    """Return 1 where a factor is not 0, in as few passes as what it is fed with allows."""
    if _plain(fed):
        return x
    return x.clamp(max=1) if fed.kind == SUMS and fed.least >= 0 else x.ne(0).float()


def reduced(x: Tensor, letters: str, keep: str, most: float) -> Tensor:
    """Sum a factor of numbers from 0 to `most` over all axes but `keep`; whole ones exactly."""
    away = [i for i, letter in enumerate(letters) if letter not in keep]
    if not away:
        return x
    # In float32, several times as fast, where no sum can pass 2^24; below 2^53 in float64.
    small = most == int(min(most, EXACT)) and most * prod(x.shape[i] for i in away) < EXACT
    return x.sum(away, dtype=torch.float32 if small else torch.float64)


def _met(factors: Sequence[Tensor], names: Sequence[str], rows: str) -> Tensor:
    """Return the sum of all products by row, of factors of which `names` are left."""
    # Sums are whole numbers below 2^53, exact in float64 whatever the order.
    doubles = [x.double() for x in factors]
    total: Tensor = torch.einsum(f"{','.join(names)}->{rows}", *doubles)
    return total


def paired(product: Product, rows: str, change: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the sum of |a * b| over a product of two factors of spikes, with `change` of each."""
    names, sums = kept(product, rows), []
    # An axis that the other factor lacks is summed first: then no product is ever formed.
    for part, keep in zip(product.factors, names, strict=True):
        assert part.tensor is not None, "a factor that is never formed is real"
        sums.append(reduced(change(part.tensor), part.letters, keep, inf))
    return _met(sums, names, rows)


def _by_row(x: Tensor, letters: str, rows: str, shape: tuple[int, ...]) -> Tensor:
    """Return the sum of a factor over all axes but the rows'; one without rows is each row's."""
    away = [i for i, c in enumerate(letters) if c not in rows]
    total = x.sum(away, dtype=torch.float64) if away else x.double()
    mine = [c for c in letters if c in rows]
    order = [c for c in rows if c in mine]
    total = total.permute([mine.index(c) for c in order])
    index = tuple(slice(None) if c in mine else None for c in rows)
    return total[index].expand(shape).round().long()
