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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import TserError
from tser_cli.energy.counts import REAL


@dataclass(frozen=True)
class Factor:
    """One factor: its tensor, None where it is never formed, a letter an axis, and its sizes."""

    tensor: Tensor | None
    letters: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Product:
    """Two factors and the letters of their product."""

    left: Factor
    right: Factor
    output: str

    @property
    def factors(self) -> tuple[Factor, Factor]:
        """Both factors, left first."""
        return self.left, self.right

    def sizes(self) -> dict[str, int]:
        """Return the size of every letter."""
        return {
            letter: size
            for factor in self.factors
            for letter, size in zip(factor.letters, factor.sizes, strict=True)
        }


def factor(tensor: Tensor, letters: str) -> Factor:
    """Return the factor of a tensor."""
    return Factor(tensor, letters, tuple(tensor.shape))


def matmul_product(left: Tensor, right: Tensor) -> Product:
    """Return the product of `torch.matmul`: leading axes are aligned from the right and
    broadcast.
    """
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
    return Product(factor(left, names[0]), factor(right, names[1]), output)


def einsum_product(equation: str, *operands: Tensor) -> Product:
    """Return the product of `torch.einsum` with two operands.

    Raises TserError for other equations.
    """
    if len(operands) == 1 and isinstance(operands[0], list | tuple):
        operands = tuple(operands[0])
    equation = equation.replace(" ", "")
    inputs, arrow, output = equation.partition("->")
    names = inputs.split(",")
    if len(operands) != 2 or len(names) != 2:
        raise TserError(
            f'einsum "{equation}" with {len(operands)} operands can\'t be counted: the order of '
            "its products is not known; write it as products of two"
        )
    if "." in equation:
        names, output = _without_ellipsis(names, output if arrow else None, operands)
        arrow = "->"
    if not arrow:
        every = "".join(names)
        output = "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    if any(len(set(name)) < len(name) for name in names):
        raise TserError(f'einsum "{equation}" takes a diagonal, and can\'t be counted')
    return Product(factor(operands[0], names[0]), factor(operands[1], names[1]), output)


def _without_ellipsis(
    names: list[str], output: str | None, operands: tuple[Tensor, ...]
) -> tuple[list[str], str]:
    spare = [letter for letter in string.ascii_letters if letter not in "".join(names)]
    hidden = [
        tensor.dim() - len(name.replace("...", "")) if "..." in name else 0
        for name, tensor in zip(names, operands, strict=True)
    ]
    axes = "".join(spare[: max(hidden)])
    full = [
        name.replace("...", axes[len(axes) - count :])
        for name, count in zip(names, hidden, strict=True)
    ]
    if output is not None:
        return full, output.replace("...", axes)
    every = "".join(names).replace(".", "")
    rest = "".join(sorted(letter for letter in set(every) if every.count(letter) == 1))
    return full, axes + rest


def attention_products(
    query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any
) -> Iterator[Product]:
    """Yield the two products of `F.scaled_dot_product_attention`; softmax makes the second's left
    real.

    Entries that a mask takes out are computed, and counted, all the same.
    """
    yield matmul_product(query, key.transpose(-1, -2))
    sizes = (*query.shape[:-1], key.shape[-2])
    whole = matmul_product(torch.empty(sizes, device="meta"), value)
    yield Product(Factor(None, whole.left.letters, sizes), whole.right, whole.output)


def _second_and_third(unused: Any, left: Tensor, right: Tensor, **kwargs: Any) -> Product:
    return matmul_product(left, right)


def _two(left: Tensor, right: Tensor, **kwargs: Any) -> Product:
    return matmul_product(left, right)


def _reversed(right: Tensor, left: Tensor, **kwargs: Any) -> Product:
    return matmul_product(left, right)


PRODUCTS: dict[Any, Callable[..., Product | Iterator[Product]]] = {
    **dict.fromkeys(
        (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.linalg.matmul, torch.mm, Tensor.mm),
        _two,
    ),
    **dict.fromkeys((torch.bmm, Tensor.bmm, torch.mv, Tensor.mv, torch.dot, Tensor.dot), _two),
    Tensor.__rmatmul__: _reversed,
    **dict.fromkeys((torch.addmm, Tensor.addmm, Tensor.addmm_), _second_and_third),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm, Tensor.baddbmm_), _second_and_third),
    **dict.fromkeys((torch.addmv, Tensor.addmv, Tensor.addmv_), _second_and_third),
    torch.einsum: einsum_product,
    F.scaled_dot_product_attention: attention_products,
}
"""The functions of torch that multiply matrices, and how their arguments are read."""


def dense(product: Product, rows: str) -> int:
    """Multiply-accumulates of one row, where `rows` are the letters that rows are told by."""
    return prod(size for letter, size in product.sizes().items() if letter not in rows)


def tally_product(product: Product, rows: str, kinds: tuple[str, str]) -> tuple[Tensor, Tensor]:
    """Count a product: ([3, *rows] non-zeros, events and value, [2, *rows] non-zeros by factor).

    `rows`: the letters of time and batch, in that order; `kinds`: what the factors are. Values of
    factors that spikes do not drive are 0, and not among the non-zeros of the first result.
    """
    sizes = product.sizes()
    shape = tuple(sizes[letter] for letter in rows)
    device = next(x.device for part in product.factors if (x := part.tensor) is not None)
    nonzero = [_nonzero(part, rows, shape, device) for part in product.factors]
    driving = [i for i in range(2) if kinds[i] != REAL]
    if not driving:
        zeros = torch.zeros_like(nonzero[0])
        return torch.stack((nonzero[0] + nonzero[1], zeros, zeros)), torch.stack(nonzero)
    if len(driving) == 2:
        events, value = _both(product, rows)
    else:
        part, other = product.factors[driving[0]], product.factors[1 - driving[0]]
        meets = prod(sizes[c] for c in other.letters if c not in part.letters and c not in rows)
        assert part.tensor is not None, "a factor that is never formed is real"
        events = nonzero[driving[0]] * meets
        value = _sum(part.tensor.abs(), part.letters, rows, shape) * meets
    used = torch.stack([nonzero[i] for i in driving]).sum(0)
    return torch.stack((used, events, value)), torch.stack(nonzero)


def _both(product: Product, rows: str) -> tuple[Tensor, Tensor]:
    shared = set(product.left.letters) & set(product.right.letters)
    results = []
    changes: tuple[Callable[[Tensor], Tensor], ...] = (lambda x: x.ne(0), torch.abs)
    for change in changes:
        reduced, names = [], []
        for part in product.factors:
            assert part.tensor is not None, "a factor that is never formed is real"
            keep = "".join(c for c in part.letters if c in shared or c in rows)
            away = [i for i, c in enumerate(part.letters) if c not in keep]
            x = change(part.tensor)
            reduced.append(x.sum(away, dtype=torch.float64) if away else x.double())
            names.append(keep)
        results.append(_einsum(names, reduced, rows))
    return results[0], results[1]


def _einsum(names: list[str], tensors: list[Tensor], rows: str) -> Tensor:
    # Sums are whole numbers below 2^53, exact in float64 whatever the order.
    total: Tensor = torch.einsum(f"{','.join(names)}->{rows}", *tensors)
    return total.round().long()


def _nonzero(part: Factor, rows: str, shape: tuple[int, ...], device: torch.device) -> Tensor:
    if part.tensor is None:
        inside = prod(s for c, s in zip(part.letters, part.sizes, strict=True) if c not in rows)
        return torch.full(shape, inside, device=device)
    return _sum(part.tensor.ne(0), part.letters, rows, shape)


def _sum(x: Tensor, letters: str, rows: str, shape: tuple[int, ...]) -> Tensor:
    """Return the sum of a factor over all axes but the rows'; one without rows is each row's."""
    away = [i for i, c in enumerate(letters) if c not in rows]
    total = x.sum(away, dtype=torch.float64) if away else x.double()
    mine = [c for c in letters if c in rows]
    order = [c for c in rows if c in mine]
    total = total.permute([mine.index(c) for c in order])
    index = tuple(slice(None) if c in mine else None for c in rows)
    return total[index].expand(shape).round().long()
