"""The page of a report: what is in it, and that nothing from a run can act on it."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser

import pytest

from tests.engine.page.pages import (
    HOSTILE,
    NAMES,
    ablation,
    bare_run,
    cell,
    page_of,
    picture,
    run_report,
)
from tser_cli.engine.page.gather import PICTURE_BYTES
from tser_cli.engine.page.page import COLOURS, TEMPLATES, render, shade
from tser_cli.engine.page.values import (
    ClassErrors,
    Confusion,
    Curves,
    Energy,
    EnergyPair,
    Gallery,
    LayerSums,
    Mistakes,
    Page,
    Tradeoff,
)
from tser_cli.report.figures import EnergyPoint, LayerEnergy
from tser_cli.report.style import PALETTE


class Document(HTMLParser):
    """The tags of a page with their attributes, and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All text, spaces joined."""
        return " ".join(" ".join(self.words).split())

    def attributes(self, *names: str) -> list[str]:
        """The values of some attributes, wherever they are."""
        return [str(found[name]) for _, found in self.tags for name in names if name in found]


PAGES = {
    "a run": page_of(run_report()),
    "two runs": page_of(run_report(), run_report("run-b")),
    "an ablation": page_of(ablations=(ablation(),)),
    "all": page_of(run_report(), bare_run(), ablations=(ablation(),)),
    "nothing to show": page_of(bare_run()),
}
every_page = pytest.mark.parametrize("name", PAGES)


@cache
def text_of(name: str) -> str:
    return render(PAGES[name])


def words_of(page: Page) -> str:
    return Document(render(page)).text.replace("\xa0", " ")


@every_page
def test_no_text_of_a_run_becomes_a_tag_or_a_script(name: str) -> None:
    text = text_of(name)
    document = Document(text)
    assert HOSTILE not in text
    assert not {"script", "iframe", "object", "foreignobject"} & {tag for tag, _ in document.tags}
    assert [key for _, found in document.tags for key in found if key.startswith("on")] == []
    assert HOSTILE.split("{{")[0] in document.text  # it stays text
    assert "{{ 7*7 }}" in document.text  # and is no template either


@every_page
def test_the_page_asks_for_nothing(name: str) -> None:
    document = Document(text_of(name))
    targets = document.attributes(
        *("src", "href", "xlink:href", "action", "data", "poster", "srcset", "formaction")
    )
    assert [target for target in targets if not target.startswith(("#", "data:"))] == []
    links = [target[1:] for target in targets if target.startswith("#")]
    ids = document.attributes("id")
    assert {*links, *document.attributes("aria-labelledby")} <= set(ids)
    assert len(set(ids)) == len(ids)
    assert "url(" not in text_of(name)


@every_page
def test_the_policy_allows_no_script_and_no_connection(name: str) -> None:
    (policy,) = [
        str(found["content"])
        for tag, found in Document(text_of(name)).tags
        if tag == "meta" and found.get("http-equiv") == "Content-Security-Policy"
    ]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    assert rules["default-src"] == rules["script-src"] == ["'none'"]
    assert rules.keys() - {"default-src", "script-src", "base-uri", "form-action"} == {
        *("style-src", "img-src")
    }


def test_a_run_has_every_figure_and_its_size_is_small() -> None:
    text = text_of("a run")
    shown = re.findall(r'<svg [^>]*aria-labelledby="r1-(\w+)-title"', text)
    assert sorted(shown) == sorted(
        [
            *("accuracy", "firing", "layers", "beside", "tradeoff"),
            *("term0", "term1", "term2", "accuracies"),
        ]
    )
    assert len(text.encode()) < 100_000  # with three pictures and two layers


@pytest.mark.slow
def test_the_page_of_a_large_network_loads_at_once() -> None:
    """A ResNet-34 of four steps, 100 classes, 300 epochs, and as many pictures as a page has."""
    draw = random.Random(0)
    steps, names = range(1, 5), [f"layer{n // 10}.{n % 10}.conv1" for n in range(40)]
    points = tuple(EnergyPoint(f"t = {t}", 1e6 * t, 0.6 + 0.02 * t) for t in steps)
    classes = tuple(f"class number {k}" for k in range(100))
    series = {
        name: [(n, draw.random()) for n in range(1, 301)]
        for name in ("lr", "loss", "ce", "kd", "rate", "train_accuracy", "validation_accuracy")
    }
    each_step = [
        LayerEnergy(n, t, 1e6 * draw.random(), draw.random()) for n in names for t in steps
    ]
    seen = replace(picture("cat"), source=f"data:image/png;base64,{'A' * (PICTURE_BYTES // 40)}")
    run = run_report(
        energy=Energy(
            "horowitz-45nm-fp32",
            tuple(each_step),
            tuple(LayerSums(n, "spikes", draw.random(), 1e6, 0.0, 1e6, 1e7) for n in names),
            *((1e6,) * 4, 4e6, 4e7),
        ),
        curves=Curves(series, ("loss", "ce", "kd", "rate")),
        mistakes=Mistakes(
            *(classes, None, tuple(Confusion(name, "cat", 7, 0.07) for name in classes[:20])),
            tuple(ClassErrors(name, 100, (41, 37, 29, 28), 27, "cat") for name in classes[:60]),
            tuple(steps),
        ),
        tradeoff=Tradeoff(points, (), points[-1], 4e7),
        gallery=Gallery((seen,) * 30, (seen,) * 10, 100, 1000),
    )
    size = len(render(page_of(run)).encode())
    assert 150_000 < size < 300_000, size


@every_page
def test_colours_of_figures_are_those_of_the_page(name: str) -> None:
    figures = re.findall("<svg.*?</svg>", text_of(name), flags=re.DOTALL)
    assert all(not re.search("#[0-9a-f]{6}\\b", figure) for figure in figures)
    assert all("font-family" not in figure and "<style" not in figure for figure in figures)
    sheet = (TEMPLATES / "page.css").read_text()
    light, dark, paper = (
        re.findall(r"--s\d: (#\w+);", rules) for rules in sheet.split(":root")[1:]
    )
    assert tuple(light) == tuple(paper) == PALETTE and len(dark) == len(PALETTE)
    assert all(f"{name}:" in sheet for name in COLOURS.values())


def test_control_characters_are_shown_as_such() -> None:
    text = render(page_of(run_report(title="left \u202e right \x1b[31m \udcff")))
    assert "\u202e" not in text and "\x1b" not in text
    assert r"left \u202e right \x1b[31m \udcff" in Document(text).text
    text.encode()


def test_the_summary_says_what_matters() -> None:
    text = Document(text_of("a run")).text.replace("\xa0", " ")
    assert "its teacher 90.00 % student: −10.00 points" in text
    assert "The first step alone gives 70.00 %, for 75 % of the energy." in text
    assert "It was trained to an energy budget: 80 pJ of 75 pJ: 6.7 % over." in text
    assert "; 80 pJ an image: as is told." in text
    assert "energy an image 80 pJ budget: 80 pJ of 75 pJ: 6.7 % over" in text
    assert "beside the same ANN 11.5 times less … 2.0 times more" in text
    assert "(confidence 0.9) reach 80.00 % for 65 pJ, 81 % of the energy." in text
    assert "Side by side" not in text
    assert text.count("75 % ✗") == 9  # three images, two steps and all together


def test_what_a_run_does_not_have_is_not_told() -> None:
    run = run_report()
    free = replace(run, facts=replace(run.facts, energy_budget_pj=None))
    text = words_of(page_of(free))
    assert "budget" not in text and "energy an image 80 pJ arithmetic alone" in text
    ann = words_of(page_of(run_report(kind="teacher", title="resnet20, a teacher")))
    assert "Layer by layer" not in ann and "Further left is cheaper" not in ann


def test_energies_of_nothing_are_not_compared() -> None:
    pairs = (EnergyPair("an ANN", 0.0, 920.0, "x"), EnergyPair("nothing", 5.0, 0.0, "x"))
    free = Tradeoff((EnergyPoint("t = 1", 0.0, 0.5),), (), None, 0.0)
    text = render(page_of(run_report(pairs=pairs, tradeoff=free)))
    assert "r1-beside" not in text
    assert "inf" not in Document(text).text.replace("information", "")


def test_what_is_missing_is_said_with_its_reason() -> None:
    text = Document(text_of("nothing to show")).text
    assert text.count("Not shown: there is nothing") >= 6
    assert "This run is stopped." in text


def test_differences_between_runs_are_marked() -> None:
    other = run_report("run-b", all_settings={"method.name": "kd", "optimizer.lr": "0.1"})
    text = render(page_of(run_report(), other))
    marked = re.findall(r'<td class="mono differs">([^<]*)</td>', text)
    assert marked[:1] == ["kd"] and "0.1" in marked
    words = Document(text).text
    assert "3 are right in A alone, 1 in B alone" in words and "p = 0.62" in words


def test_the_lines_of_an_ablation_give_interval_n_and_verdict() -> None:
    text = words_of(page_of(ablations=(ablation(cells=(cell("kd", True), cell("ts", False))),)))
    assert (
        "ts against the baseline: −1.50 points, 95 % interval −2.00 to −1.00, n = 5: resolved."
    ) in text
    assert "kd against" not in text


def test_every_column_of_a_table_has_a_header() -> None:
    tables = re.findall(r"<table[^>]*>\n<thead>.*?</table>", text_of("all"), flags=re.DOTALL)
    assert len(tables) > 10
    for table in tables:
        (head,) = re.findall(r"<thead>(.*?)</thead>", table, flags=re.DOTALL)
        headers = len(re.findall(r"<t[hd][ >]", head))
        for row in re.findall(r"<tr>(.*?)</tr>", table.split("</thead>")[1], flags=re.DOTALL):
            assert len(re.findall(r"<t[hd][ >]", row)) == headers


def test_the_matrix_is_a_table_of_classes() -> None:
    (table,) = re.findall(r'<table class="matrix">.*?</table>', text_of("a run"), flags=re.DOTALL)
    rows = [re.findall(r"<td([^>]*)>([^<]*)</td>", row)[-3:] for row in table.split("<tr>")[2:]]
    assert [[count for _, count in row] for row in rows] == [
        *(["6", "1", ""], ["2", "5", ""], ["", "1", "5"])
    ]
    assert rows[0][1][0].startswith(' class="wrong2" title="cat taken for &lt;/script&gt;')
    assert all(
        Document(row).text.startswith(name)
        for row, name in zip(table.split("<tr>")[2:], NAMES, strict=True)
    )


@pytest.mark.parametrize(
    ("images", "right", "found"),
    [(0, True, ""), (1, True, "right0"), (100, True, "right4"), (30, False, "wrong4")],
)
def test_the_colour_of_a_cell_is_the_share_of_its_class(
    images: int, right: bool, found: str
) -> None:
    assert shade(images, 100, right) == found
