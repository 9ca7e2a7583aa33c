"""Energies as a person writes them."""

from __future__ import annotations

import pytest

from tser_cli.base.errors import ConfigError
from tser_cli.settings.fields import Budget, joules, parse_budget, parse_energy


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("1.38mJ", 1.38e9), ("4 uJ", 4e6), (" 4µJ ", 4e6), ("4μJ", 4e6), ("950nJ", 950e3)),
        *(("2J", 2e12), (".5uj", 0.5e6), ("1e-3mJ", 1e6), ("7pJ", 7.0)),
    ],
)
def test_energies_are_read(text: str, expected: float) -> None:
    assert parse_energy(text) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "text", ["", "1.38", "mJ", "0mJ", "-1mJ", "1.38 kWh", "3MJ", "1e999J", "25%", "nanJ", "1 2uJ"]
)
def test_what_is_no_energy_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="no energy; write it as"):
        parse_energy(text)


def test_a_budget_is_an_energy_or_a_share_of_the_ann() -> None:
    assert parse_budget("4uJ", "--energy-budget") == Budget(4e6)
    assert parse_budget(" 25 % ", "--energy-budget") == Budget(0.25, of_ann=True)
    assert parse_budget("4uJ", "--energy-budget").in_pj(ann_pj=100.0) == 4e6
    assert parse_budget("25%", "--energy-budget").in_pj(ann_pj=100.0) == 25.0


@pytest.mark.parametrize("text", ["", "4", "-4uJ", "-5%", "%", "four", "9" * 1000])
def test_a_budget_without_unit_is_refused_with_what_to_write(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--energy-budget: .*950nJ.*25%$") as raised:
        parse_budget(text, "--energy-budget")
    assert len(str(raised.value)) < 300
    for share in ("0%", "101%", "1e3%"):
        with pytest.raises(ConfigError, match=rf"--energy-budget: {share}: a share"):
            parse_budget(share, "--energy-budget")


@pytest.mark.parametrize(
    ("energy_pj", "text"),
    [(0.5, "0.5 pJ"), (1234.5, "1.23 nJ"), (2.98e6, "2.98 µJ"), (4e9, "4 mJ"), (5e12, "5 J")],
)
def test_an_energy_in_words(energy_pj: float, text: str) -> None:
    assert joules(energy_pj) == text
