"""Attacks with odd arguments, run folders, images and environments: a message, never a traceback.

`pytest tests/faults/test_hostile.py --faults 200` tries 2,000 of them, and lists what they gave.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.attacks import Ground, attack, call

SHORT = 32
A_FAULT = 10  # tries for each kill of the long form


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A student of digits, and an empty folder."""
    place = tmp_path_factory.mktemp("trained")
    small = ["--epochs", "1", "--batch-size", "512", "--device", "cpu", "-T", "1"]
    argv = ["distill", "--student", "resnet20", "--method", "ce", *small, "--runs-dir", str(place)]
    code, text, wrong = call(argv)
    assert (code, wrong) == (0, ""), text
    (run,) = place.glob("student/digits/*")
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
