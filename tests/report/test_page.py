"""The page of a report: what is in it, and that nothing from a run can act on it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest

from tests.report.pages import (
    HOSTILE,
    NAMES,
    ablation,
    bare_run,
    cell,
    energy,
    page_of,
    run_report,
)
from tser_cli.engine.page import page
from tser_cli.engine.page.chart_library import library
from tser_cli.engine.page.page import render
from tser_cli.engine.page.values import Curves, Duel, Page, Tradeoff

SHORT_LIBRARY = "window.vegaEmbed = () => 0;\n"


@pytest.fixture(autouse=True)
def short_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """The chart library is a line here: the real one takes seconds to make."""
    monkeypatch.setattr(page, "library", lambda: SHORT_LIBRARY)


class Document(HTMLParser):
    """The tags of a page with their attributes, its scripts, and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts[-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text outside scripts, spaces joined."""
        return " ".join(" ".join(self.words).split())

    def attributes(self, *names: str) -> list[str]:
        """The values of some attributes, wherever they are."""
        return [str(found[name]) for _, found in self.tags for name in names if name in found]


def data_of(document: Document) -> dict[str, Any]:
    """What the page gives to its charts."""
    found: dict[str, Any] = json.loads(document.scripts[0])
    return found


PAGES = {
    "a run": page_of(run_report()),
    "two runs": page_of(run_report(), run_report("run-b")),
    "an ablation": page_of(ablations=(ablation(),)),
    "all": page_of(run_report(), bare_run(), ablations=(ablation(),)),
    "nothing to show": page_of(bare_run()),
}
every_page = pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)


@every_page
def test_no_text_of_a_run_becomes_a_tag_or_a_script(page: Page) -> None:
    text = render(page)
    document = Document(text)
    assert HOSTILE not in text
    assert len(document.scripts) == 3
    assert "alert" not in document.scripts[1] + document.scripts[2]
    assert [name for _, found in document.tags for name in found if name.startswith("on")] == []
    assert HOSTILE.split("{{")[0] in document.text  # it stays text
    assert "{{ 7*7 }}" in document.text  # and is no template either


@every_page
def test_the_page_asks_for_nothing(page: Page) -> None:
    document = Document(render(page))
    targets = document.attributes("src", "href", "action", "data", "poster", "srcset", "formaction")
    assert [target for target in targets if not target.startswith(("#", "data:"))] == []
    links = [target[1:] for target in targets if target.startswith("#")]
    assert set(links) <= set(document.attributes("id"))


@every_page
def test_the_policy_allows_the_own_scripts_alone(page: Page) -> None:
    document = Document(render(page))
    (policy,) = [
        str(found["content"])
        for tag, found in document.tags
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy"
    ]
    assert "default-src 'none'" in policy
    allowed = re.findall(r"'sha256-([^']+)'", policy)
    made = [hashlib.sha256(script.encode()).digest() for script in document.scripts[1:]]
    assert allowed == [base64.b64encode(digest).decode() for digest in made]
    script_rule = next(rule for rule in policy.split(";") if "script-src" in rule)
    assert "unsafe" not in script_rule


@every_page
def test_each_chart_has_a_place_and_each_place_a_chart(page: Page) -> None:
    document = Document(render(page))
    places = document.attributes("data-chart")
    assert sorted(places) == sorted(data_of(document)["charts"])
    assert len(set(document.attributes("id"))) == len(document.attributes("id"))


def test_a_run_has_every_chart() -> None:
    ends = {
        name.removeprefix("r1-") for name in data_of(Document(render(PAGES["a run"])))["charts"]
    }
    assert ends == {
        *("accuracy", "confusion", "firing", "layers", "duels", "tradeoff"),
        *("term0", "term1", "term2", "accuracies"),
    }


def fields_of(spec: Any) -> set[str]:
    """Every field and every expression that a chart names."""
    if isinstance(spec, list):
        return {name for part in spec for name in fields_of(part)}
    if not isinstance(spec, dict):
        return set()
    own = {
        spec[key] for key in ("field", "filter", "expr", "test") if isinstance(spec.get(key), str)
    }
    return own.union(*(fields_of(part) for key, part in spec.items() if key != "values"), set())


@every_page
def test_names_from_outside_are_never_fields_or_expressions_of_a_chart(page: Page) -> None:
    assert not any("alert" in name for name in fields_of(data_of(Document(render(page)))))


def test_the_data_of_charts_is_json_whatever_the_numbers() -> None:
    rows = (
        {"epoch": 1, "lr": float("nan"), "loss": float("inf")},
        {"epoch": 2, "lr": 0.1, "loss": 2},
    )
    text = render(page_of(run_report(curves=Curves(rows, ("loss",)))))
    assert "NaN" not in Document(text).scripts[0] and "Infinity" not in Document(text).scripts[0]


def test_control_characters_are_shown_as_such() -> None:
    text = render(page_of(run_report(title="left \u202e right \x1b[31m \udcff")))
    assert "\u202e" not in text and "\x1b" not in text
    assert r"left \u202e right \x1b[31m \udcff" in Document(text).text
    text.encode()


def test_the_summary_says_what_matters() -> None:
    text = Document(render(PAGES["a run"])).text.replace("\xa0", " ")
    assert "After 2 time steps 16 of 20 test images are right: 80.00 %" in text
    assert "Its teacher, resnet20, reaches 90.00 %; the student is −10.00 points from it." in text
    assert "The first step alone gives 70.00 %, for 75 % of the energy." in text
    assert "It was trained to an energy budget: 80 pJ of 75 pJ: 6.7 % over." in text
    assert "One image costs 80 pJ: as is told." in text
    assert "energy an image 80 pJ budget: 80 pJ of 75 pJ: 6.7 % over" in text
    assert "beside the same ANN 11.5 times less … 2.0 times more" in text
    assert "(confidence 0.9) reach 80.00 % for 65 pJ, 81 % of the energy." in text


def test_a_run_without_a_budget_has_no_verdict() -> None:
    run = run_report()
    free = replace(run, facts={**run.facts, "energy_budget_pj": None})
    text = Document(render(page_of(free))).text
    assert "budget" not in text and "energy an image 80 pJ arithmetic alone" in text


def test_energies_of_nothing_are_not_compared() -> None:
    duels = (Duel("an ANN", 0.0, 920.0, "x"), Duel("nothing", 5.0, 0.0, "x"))
    steps = ({"t": 1, "energy_pj": 0.0, "accuracy": 0.5},)
    page = page_of(run_report(duels=duels, tradeoff=Tradeoff(steps, (), None, 0.0)))
    document = Document(render(page))
    assert "r1-duels" not in data_of(document)["charts"]
    assert "inf" not in document.text.replace("information", "")


def test_what_is_missing_is_said_with_its_reason() -> None:
    text = Document(render(PAGES["nothing to show"])).text
    assert text.count("Not shown: there is nothing") >= 6
    assert "This run is stopped." in text


def test_an_ann_has_no_part_for_its_spikes() -> None:
    text = Document(render(page_of(run_report(kind="teacher", title="resnet20, a teacher")))).text
    assert "Layer by layer" not in text and "Further left is cheaper" not in text


def test_differences_between_runs_are_marked() -> None:
    other = run_report("run-b", all_settings={"method.name": "kd", "optimizer.lr": "0.1"})
    text = render(page_of(run_report(), other))
    marked = re.findall(r'<td class="mono differs">([^<]*)</td>', text)
    assert marked[:1] == ["kd"] and "0.1" in marked
    words = Document(text).text
    assert "3 are right in A alone, 1 in B alone" in words and "p = 0.62" in words


def test_one_run_has_nothing_beside_it() -> None:
    assert "Side by side" not in render(PAGES["a run"])


def test_the_lines_of_an_ablation_give_interval_n_and_verdict() -> None:
    shown = ablation(cells=(cell("kd", (90.0,) * 5, True), cell("ts", (88.5,) * 5, False)))
    text = Document(render(page_of(ablations=(shown,)))).text.replace("\xa0", " ")
    assert (
        "ts against the baseline: −1.50 points, 95 % interval −2.00 to −1.00, n = 5: resolved."
    ) in text
    assert "kd against" not in text


def test_images_carry_their_answers() -> None:
    text = render(PAGES["a run"])
    assert text.count('src="data:image/png;base64,') == 3
    assert Document(text).text.count("75 % ✗") == 9  # three images, two steps and all together


def test_bars_of_errors_are_numbers() -> None:
    parts = re.findall(r"--part: ([^\"]*)\"", render(PAGES["a run"]))
    assert parts and all(0.0 <= float(part) <= 1.0 for part in parts)


def test_every_column_of_a_sortable_table_has_a_header() -> None:
    text = render(PAGES["all"])
    for table in re.findall(r'<table class="sortable">.*?</table>', text, flags=re.DOTALL):
        (head,) = re.findall(r"<thead>(.*?)</thead>", table, flags=re.DOTALL)
        headers = len(re.findall(r"<th[ >]", head))
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("</thead>")[1], flags=re.DOTALL):
            assert len(re.findall(r"<t[hd][ >]", row)) == headers


def test_a_small_energy_has_its_unit() -> None:
    text = Document(render(page_of(run_report(energy=energy(("conv1",)))))).text
    assert "energy an image 40 pJ" in text


def test_the_names_of_classes_stand_in_the_matrix() -> None:
    spec = data_of(Document(render(PAGES["a run"])))["charts"]["r1-confusion"]
    assert list(dict.fromkeys(row["true"] for row in spec["data"]["values"])) == list(NAMES)


def test_the_library_comes_without_a_network_and_ends_no_script() -> None:
    script = library()
    assert "window.vegaEmbed" in script and "BSD 3-Clause" in script
    assert "</script" not in script.lower() and "<!--" not in script and "\r" not in script
    assert len(script) < 1_500_000
