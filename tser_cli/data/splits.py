"""Holding a validation or a test split out of the training images."""

from __future__ import annotations

import math

import torch

from tser_cli.errors import DataError

# not training.seed: runs that differ in their seed must be comparable on the same images
SPLIT_SEED = 0


def train_validation(labels_M: torch.Tensor, fraction: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices, int64, of the training and of the validation images; see `split_off`."""
    return split_off(labels_M, fraction, "validation")


def split_off(
    labels_M: torch.Tensor, fraction: float, part: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending indices, int64, of the training images and of the `part` held out.

    The part gets ceil(fraction * M) images, in each class as nearly the same fraction as whole
    images allow; the choice depends on the labels and the fraction alone. Raises DataError, which
    names data.`part`_fraction, where a class would have no image in one of the two.
    """
    indices_M = torch.arange(len(labels_M))
    if fraction == 0.0:
        return indices_M, indices_M[:0]
    held_out = _stratified(labels_M, fraction, part)
    is_held_out_M = torch.zeros(len(labels_M), dtype=torch.bool)
    is_held_out_M[held_out] = True
    training, held = indices_M[~is_held_out_M], indices_M[is_held_out_M]
    classes = set(labels_M.tolist())
    for name, chosen in (("training", training), (part, held)):
        missing = sorted(classes - set(labels_M[chosen].tolist()))
        if missing:
            raise DataError(_too_small(fraction, part, f"class {missing[0]} has no {name} image"))
    return training, held


def _stratified(labels_M: torch.Tensor, fraction: float, part: str) -> torch.Tensor:
    from sklearn.model_selection import train_test_split

    count = math.ceil(fraction * len(labels_M))
    try:
        _, held_out = train_test_split(
            range(len(labels_M)),
            test_size=count,
            stratify=labels_M.numpy(),
            random_state=SPLIT_SEED,
        )
    except ValueError as error:
        raise DataError(_too_small(fraction, part, str(error))) from error
    return torch.tensor(held_out)


def _too_small(fraction: float, part: str, why: str) -> str:
    instead = "or 0 for no validation split" if part == "validation" else "or add images"
    return (
        f"data.{part}_fraction = {fraction} does not split the training images: {why}. "
        f"Choose another fraction, {instead}"
    )
