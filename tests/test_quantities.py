"""Energies as people write them."""

from __future__ import annotations

import pytest

from tser_cli.errors import ConfigError
from tser_cli.quantities import joules, parse_budget, parse_energy


@pytest.mark.parametrize(
    ("text", "expected_pj"),
    [
        ("950pJ", 950.0),
        ("4uJ", 4e6),
        ("4µJ", 4e6),
        ("4\u03bcJ", 4e6),
        (" 0.5 mJ ", 5e8),
        ("2e-3J", 2e9),
        (".25nj", 250.0),
    ],
)
def test_an_energy_in_picojoules(text: str, expected_pj: float) -> None:
    assert parse_energy(text) == pytest.approx(expected_pj, rel=1e-12)
    assert parse_budget(text, 1.0) == parse_energy(text)


@pytest.mark.parametrize("text", ["25%", "25 %", " 25.0%", "2500e-2%"])
def test_a_share_of_the_whole(text: str) -> None:
    assert parse_budget(text, 8e6) == pytest.approx(2e6, rel=1e-12)


@pytest.mark.parametrize("text", ["", "4", "-4uJ", "4 W", "-25%", "uJ", "4uJ 5uJ", "nan%", "0nJ"])
def test_what_is_no_budget(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is no energy budget; write an energy with its unit"):
        parse_budget(text, 1.0)


@pytest.mark.parametrize(
    ("energy_pj", "text"),
    [(0.5, "0.5 pJ"), (1234.5, "1.23 nJ"), (2.98e6, "2.98 µJ"), (4e9, "4 mJ"), (5e12, "5 J")],
)
def test_an_energy_in_words(energy_pj: float, text: str) -> None:
    assert joules(energy_pj) == text
