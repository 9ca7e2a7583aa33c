"""Which test images a network took for what, from the classes that it answered."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tser_cli.engine.commands.report_files import MOST_STEPS, existing, label, thinned
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import RunError
from tser_cli.report.page_values import Mistakes
from tser_cli.report.predictions import PREDICTIONS, Predictions, read_predictions

MOST_DRAWN = 30  # classes of a matrix
MOST_LISTED = 60  # rows of the table of classes
MOST_CLASSES = 2**12  # the matrix would take gigabytes
MOST_PAIRS = 20


def predictions(run: Run) -> Predictions:
    """Return predictions.npz. Raises RunError."""
    found = read_predictions(existing(run.folder, PREDICTIONS))
    assert found is not None, "it exists"
    if not len(found.labels_I):
        raise RunError(f"{PREDICTIONS} holds no images")
    return found


def mistakes(found: Predictions, names: Sequence[str]) -> Mistakes:
    """Return what was taken for what; `names` are the classes', which else go by their number.

    Raises ValueError for more than 4,096 classes.
    """
    largest = max(int(found.labels_I.max()), int(found.cumulative_IT.max()), len(names) - 1)
    if largest >= MOST_CLASSES:
        raise ValueError(f"it has more than {MOST_CLASSES:,} classes")
    classes = class_names(names, largest + 1)
    confusion_KK = count_pairs(found, len(classes))
    steps = thinned(range(found.at_t_IT.shape[1]), MOST_STEPS)
    images_K = confusion_KK.sum(1)
    shares_K = 1 - confusion_KK.diagonal() / np.maximum(images_K, 1)
    seen = [int(k) for k in np.argsort(-shares_K, kind="stable") if images_K[k]]
    return Mistakes(
        classes=tuple(classes),
        confusion_KK=_drawn(confusion_KK),
        pairs=tuple(_pairs(confusion_KK, classes)),
        by_class=tuple(
            _of_class(k, classes, found, confusion_KK[k], steps) for k in sorted(seen[:MOST_LISTED])
        ),
        steps=tuple(step + 1 for step in steps),
        left_out=max(0, len(seen) - MOST_LISTED),
    )


def class_names(names: Sequence[str], count: int) -> list[str]:
    """Return a name for each class, each another one; the number where there is no name."""
    shown = [label(names[k]) if k < len(names) else str(k) for k in range(count)]
    often = Counter(shown)
    return [name if often[name] == 1 else f"{name} ({k})" for k, name in enumerate(shown)]


def count_pairs(found: Predictions, classes: int) -> NDArray[np.int64]:
    """Return how many images of each class were taken for each class after all steps: [K, K]."""
    true_I, taken_I = found.labels_I.astype(np.int64), found.cumulative_IT[:, -1].astype(np.int64)
    flat = np.bincount(true_I * classes + taken_I, minlength=classes**2)
    return flat.astype(np.int64).reshape(classes, classes)


def _drawn(confusion_KK: NDArray[np.int64]) -> tuple[tuple[int, ...], ...] | None:
    if len(confusion_KK) > MOST_DRAWN:
        return None
    return tuple(tuple(map(int, row)) for row in confusion_KK.tolist())


def _of_class(
    k: int,
    classes: Sequence[str],
    found: Predictions,
    taken_K: NDArray[np.int64],
    steps: Sequence[int],
) -> dict[str, Any]:
    mine_I = found.labels_I == k
    others_K = np.where(np.arange(len(classes)) == k, 0, taken_K)
    return {
        "name": classes[k],
        "images": int(mine_I.sum()),
        "wrong": [int((found.at_t_IT[mine_I, step] != k).sum()) for step in steps],
        "wrong_in_the_end": int(others_K.sum()),
        "taken_for": classes[int(others_K.argmax())] if others_K.any() else "",
    }


def _pairs(confusion_KK: NDArray[np.int64], classes: Sequence[str]) -> list[dict[str, Any]]:
    wrong_KK = confusion_KK.copy()
    np.fill_diagonal(wrong_KK, 0)
    order = np.argsort(-wrong_KK, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        {
            "true": classes[true],
            "predicted": classes[taken],
            "images": int(wrong_KK[true, taken]),
            "share": int(wrong_KK[true, taken]) / int(confusion_KK[true].sum()),
        }
        for true, taken in places
        if wrong_KK[true, taken]
    ]
