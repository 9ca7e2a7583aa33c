"""tet by hand and against its authors' code.

Authors: Gus-Lab/temporal_efficient_training f9bde41, functions.py, `TET_loss`.
"""

from __future__ import annotations

import pytest

from tests.losses.by_hand import (
    CE_OF_STEPS,
    STUDENT,
    check_authors,
    check_weights,
    mean,
    outputs,
    terms_of,
)


def test_tet_by_hand() -> None:
    error = mean([(value - 1) ** 2 for step in STUDENT for z in step for value in z])
    found = terms_of("tet", outputs())
    expected = {"ce": CE_OF_STEPS, "mse": error, "loss": 0.999 * CE_OF_STEPS + 0.001 * error}
    assert found == pytest.approx(expected, abs=1e-12)


def test_the_weights_it_reads() -> None:
    check_weights("tet", {"lam": 1e-3})


def test_the_loss_and_its_gradient_are_the_authors() -> None:
    gradient = [
        *(-0.03558698262977446, 0.029130294735760554, 0.006290021227347238),
        *(0.08332746953962962, 0.037352556681862215, -0.1208355817770474),
    ]
    check_authors("tet", 1.0490632959806696, gradient)
