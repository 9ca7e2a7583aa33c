"""Attacks with odd arguments, runs, images, networks and environments: a message, no traceback.

`pytest tests/faults/test_hostile.py --faults 200` tries 2,000 of them, and lists what they gave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from tests.faults.attacks import Ground, attack, call

SHORT = 60
A_FAULT = 10  # tries for each kill of the long form


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A student of few images, and an empty folder."""
    place = tmp_path_factory.mktemp("trained")
    images, labels = np.random.default_rng(0).integers(0, 256, (24, 8, 8), np.uint8), [0, 1, 2] * 8
    few = {"train_images": images, "train_labels": labels}
    np.savez(place / "few.npz", **few, test_images=images[:9], test_labels=labels[:9])
    data = ["--dataset", "npz", "--data-dir", str(place / "few.npz"), "--batch-size", "8"]
    small = ["--student", "resnet20", "--method", "ce", "-T", "1", "--epochs", "1", *data]
    code, text, wrong = call(["distill", *small, "--device", "cpu", "--runs-dir", str(place)])
    assert (code, wrong) == (0, ""), text
    (run,) = place.glob("student/npz/*")
    outside = tmp_path_factory.mktemp("outside")
    (outside / "inside").mkdir()
    return Ground(run, outside / "inside")


@pytest.mark.timeout(0)
def test_attacks(
    ground: Ground,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    tries = A_FAULT * pytestconfig.getoption("--faults", default=0) or SHORT
    found = [(number, attack(number, ground)) for number in range(tries)]
    codes = Counter((finding.kind, finding.code) for _, finding in found)
    wrong = [(n, finding) for n, finding in found if finding.wrong]
    for number, finding in wrong:
        print(f"attack {number}, {finding.kind}, {finding.argv!r}:\n{finding.wrong}\n")
    record_property(f"exit codes of {tries} attacks", dict(sorted(codes.items())))
    assert not wrong
