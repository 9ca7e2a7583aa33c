"""The model card, rendered: what comes from outside stays text."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_it import MarkdownIt

from tser_cli.export import card
from tser_cli.export.card import CardFacts
from tser_cli.export.graph import Facts

ATTACKS = (
    "<script>alert(1)</script>",
    "x\n\n# forged\n",
    "x\r\n\r\n<img src=x onerror=alert(1)>",
    "[a](javascript:alert(1)) ![b](http://x/y.png) <javascript:alert(1)>",
    "``` \n```\n<b>out</b>",
    "` <i>out</i> `",
    "*bold* _bold_ ~~gone~~ | a | b |",
    "\x1b[2J\u202e\udcff",
    "&lt;script&gt; \\<b>",
    "-->\n<!--",
)
TAGS = {
    *("h1", "h2", "p", "ul", "li", "pre", "code"),
    *("table", "thead", "tbody", "tr", "th", "td"),
}
ROW = {"t": 1, "accuracy_at_t": 0.5, "accuracy_cumulative": 0.25, "images": 8}


class Rendered(HTMLParser):
    """The tags and the text of a card, as a program that shows Markdown renders it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        # of the fence alone
        assert attrs in ([], [("class", "language-toml")]), attrs

    def handle_data(self, data: str) -> None:
        self.text += data


def told(attack: str) -> CardFacts:
    """A card's facts whose every text from outside is the attack."""
    profile = {"name": attack, "source": attack, "technology": attack, "note": attack}
    return CardFacts(
        file=attack,
        format_name="onnx",
        run=attack,
        method=attack,
        source=attack,
        teacher=attack,
        rows=(ROW,),
        energy={
            "images": 8,
            "profile": {**profile, "ac_pj": 0.9, "mac_pj": 4.6},
            "totals": {"energy_pj": 1e6, "sop_value": 10.0, "macs": 2.0},
        },
        float_energy_pj=1.0,
        ann_energy_pj=None,
        verdict="98.06 % (353 of 360 test images right)",
        settings='[data]\ndir = "/home/me"\n',
    )


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_text_from_outside_becomes_markup(sew: Any, attack: str) -> None:
    facts = Facts(attack, attack, (0.3,), (0.4,), (attack,) * 10, 4)
    text = card.card(replace(sew.graph, facts=facts), told(attack))
    page = Rendered(text)
    assert set(page.tags) <= TAGS
    assert [page.tags.count(tag) for tag in ("h1", "h2", "pre")] == [1, 7, 2]
    assert not re.search("[\x1b\u202e\udcff]", text)
    # in plain text it is shown as it is, on one line
    shown = html.unescape(card._escaped(attack))
    assert " ".join(shown.split()) in " ".join(page.text.split())
    assert card.is_of(text, attack) and not card.is_of(text, "other")


def test_what_the_run_lacks_is_not_measured(sew: Any) -> None:
    text = card.card(sew.graph, replace(told("x"), rows=(), energy={}))
    assert "\n\n98.06 % (353 of 360 test images right).\n\n" in text
    assert "## Accuracy\n\nNot measured: " in text
    assert "## Energy\n\nNot measured: " in text


@pytest.mark.parametrize(
    ("ann_energy_pj", "spent", "as_floats"),
    [(8.8e6, "0.5 µJ", "0.75 µJ"), (None, "500 nJ", "750 nJ")],
)
def test_energies_stand_in_the_unit_of_the_verdict(
    sew: Any, ann_energy_pj: float | None, spent: str, as_floats: str
) -> None:
    of = told("x")
    energy = {**of.energy, "totals": {**of.energy["totals"], "energy_pj": 5e5}}
    facts = replace(of, energy=energy, float_energy_pj=7.5e5, ann_energy_pj=ann_energy_pj)
    text = card.card(sew.graph, facts)
    assert f"\n{spent} an image (mean of 8 test images)" in text
    assert f"in 32-bit floating point: {as_floats} an image." in text
