"""README.md and docs/*.md: links lead somewhere, commands parse, columns are explained."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import typer
from typer.core import TyperGroup

from tests.test_house import FILES, WINGS
from tser_cli.base import __version__
from tser_cli.cli.app import app
from tser_cli.energy.counts import Counts, LayerCounts, LayerFacts
from tser_cli.energy.prices import load_profile
from tser_cli.energy.table import Labels, energy_rows
from tser_cli.report import csv_files
from tser_cli.report.statistics import interval
from tser_cli.settings import config, recipe

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OF_THE_CODE = (ROOT / "docs" / "architecture.md", ROOT / "CONTRIBUTING.md")
MOST_LINES = 130
# click's UsageError, wherever it comes from: newer versions of typer bring a click of their own.
UsageError = typer.BadParameter.__mro__[1]
FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")

pytestmark = pytest.mark.skipif(not README.is_file(), reason="the pages are only in a checkout")


def prose(text: str) -> str:
    """A page without its blocks of code."""
    lines = FENCE.sub("", text).splitlines()
    return "\n".join(line for line in lines if not line.startswith("    "))


def links(text: str) -> list[str]:
    """The targets of a page's links into this repository."""
    found = [match["target"] for match in LINK.finditer(CODE.sub("", prose(text)))]
    return [target for target in found if "://" not in target]


def anchors(text: str) -> set[str]:
    """The names by which GitHub lets one jump to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings}


def broken(page: Path, target: str) -> bool:
    """Whether a link leads to no file, or to no heading of it."""
    name, _, anchor = target.partition("#")
    path = (page.parent / name).resolve() if name else page
    if not path.exists() or ROOT not in path.parents:
        return True
    return bool(anchor) and anchor not in anchors(path.read_text(encoding="utf-8"))


def commands(text: str) -> Iterator[list[str]]:
    """The words behind `tser` of each command line that a page prints.

    A bare name of a command in running text is a mention and no line to type; so is a line with
    an ellipsis.
    """
    blocks = [line for block in FENCE.findall(text) for line in block.splitlines()]
    indented = [line.strip() for line in text.splitlines() if line.startswith("    ")]
    spans = [span for span in CODE.findall(prose(text)) if len(span.split()) > 2]
    for line in [*blocks, *indented, *spans]:
        for part in line.split("&&"):
            words = shlex.split(part, comments=True) if part.strip().startswith("tser ") else []
            if words and not any("..." in word or "…" in word for word in words):
                yield words[1:]


def parse(words: list[str]) -> tuple[str, dict[str, object]]:
    """The command and the values of its parameters, without running it. Raises UsageError."""
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    command = group.commands.get(words[0])
    if command is None:
        raise typer.BadParameter(f"no such command: {words[0]}")
    for parameter in command.params:
        if parameter.name == "plugin":
            parameter.callback = None  # it would import the plug-in
    context = command.make_context(words[0], list(words[1:]))
    return words[0], context.params


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    found = links(page.read_text(encoding="utf-8"))
    assert [target for target in found if broken(page, target)] == []


def test_a_broken_link_is_found() -> None:
    assert links("[a](b.md) `[c](d)` [e](https://f.g)\n\n    [h](i)\n") == ["b.md"]
    assert broken(README, "docs/nothing.md")
    assert broken(README, "docs/results.md#nothing")
    assert broken(README, "../outside.md")
    assert not broken(README, "docs/results.md#how-to-read-the-tables")


def paths(text: str) -> Iterator[str]:
    """The files and folders that a page names by a path; `a/{b,c}.py` are two of them."""
    for span in CODE.findall(prose(text)):
        if "/" in span and re.fullmatch(r"[\w./{},-]+", span):
            head, _, rest = span.partition("{")
            middle, _, tail = rest.partition("}")
            yield from (head + part + tail for part in middle.split(","))


def is_there(path: str) -> bool:
    """Whether a path leads somewhere, from the top or from the package."""
    return any((place / path).exists() for place in (ROOT, ROOT / "tser_cli"))


@pytest.mark.parametrize("page", OF_THE_CODE, ids=lambda page: page.name)
def test_the_files_that_are_named_are_there(page: Path) -> None:
    found = list(paths(page.read_text(encoding="utf-8")))
    assert len(found) > 10
    assert [path for path in found if not is_there(path)] == []


def test_paths_are_found_where_they_are_named() -> None:
    text = "`a/b.py`, `c/{d,e}.py`, `f/` and `tser runs`, `logits_TNK`\n\n    `g/`\n"
    assert list(paths(text)) == ["a/b.py", "c/d.py", "c/e.py", "f/"]
    assert is_there("cli/verbs.py") and not is_there("cli/nothing.py")


def test_every_room_and_wing_is_in_the_table() -> None:
    named = set(paths(OF_THE_CODE[0].read_text(encoding="utf-8")))
    rooms = {f"{Path(file).parent}/" for file in FILES} - {"./", "engine/"}
    assert sorted((rooms | set(WINGS)) - named) == []


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert "pip install . && tser distill --teacher resnet34 --student resnet18 -T 2\n" in text
    assert 'pip install ".[test]" && pytest\n' in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_parse(page: Path) -> None:
    known = config.keys()
    for words in commands(page.read_text(encoding="utf-8")):
        try:
            _, values = parse(words)
        except UsageError as error:
            pytest.fail(f"tser {shlex.join(words)}: {error}")
        for assignment in values.get("assignments") or []:  # type: ignore[attr-defined]
            key = assignment.partition("=")[0]
            assert key in known or "--plugin" in words, f"tser {shlex.join(words)}"
        if values.get("recipe"):
            recipe.find(str(values["recipe"]))


def test_the_tour_and_the_readme_show_every_command() -> None:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    pages = (README, ROOT / "docs" / "getting-started.md")
    shown = {words[0] for page in pages for words in commands(page.read_text(encoding="utf-8"))}
    offered = {name for name, command in group.commands.items() if not command.hidden}
    assert offered - shown == set()


def test_commands_that_do_not_parse_are_found() -> None:
    # no such command; no such option; an option is missing; a surplus word
    wrong = [
        "distil --teacher x",
        "distill --teachers x",
        "predict --run x",
        "evaluate x y",
    ]
    for line in wrong:
        (words,) = commands(f"    tser {line}\n")
        with pytest.raises(UsageError):
            parse(words)


def test_the_version_to_cite_is_the_package_s() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (.+)$", text, flags=re.MULTILINE) == [__version__]


def test_commands_are_found_where_they_are_printed() -> None:
    text = (
        "`tser energy` and `tser energy a.csv` here\n\n    pip install . && tser audit  # all\n"
        "\n```console\ntser methods\n```\n\n    tser distill --recipe ...\n"
    )
    assert list(commands(text)) == [["methods"], ["audit"], ["energy", "a.csv"]]


def test_every_column_is_explained() -> None:
    text = (ROOT / "docs" / "csv.md").read_text(encoding="utf-8")
    explained = set(CODE.findall(text))
    schemas = [
        *(csv_files.PER_TIMESTEP, csv_files.ENERGY, csv_files.CONVENTIONS, csv_files.PER_IMAGE),
        *(csv_files.TSNE, csv_files.STATISTICS, csv_files.early_exit_schema(2)),
        *(csv_files.prediction_schema(2), csv_files.ablation_schema([], 1)),
        *(csv_files.ENERGY_LONG, [f"{name}_1" for name in csv_files.STEPWISE]),
        *(csv_files.ablation_exit_schema([], 2), csv_files.EXIT_STATISTICS, csv_files.FRONTIER),
    ]
    missing = [column for schema in schemas for column in schema if column not in explained]
    assert missing == []


def layer_counts(name: str, spikes_T: list[int]) -> LayerCounts:
    """A linear layer of 6 inputs and 2 outputs that one image feeds with so many spikes."""
    layer = LayerFacts(
        name, "linear", "spikes", 6, 2, macs=12, macs_formula=12, weight_bytes=4, bias_bytes=0
    )
    nonzero_TI = np.array(spikes_T)[:, None]
    return LayerCounts(layer, 0, np.ones(2, np.int64), nonzero_TI, 2 * nonzero_TI, 2 * nonzero_TI)


def test_the_page_sums_energies_right(tmp_path: Path) -> None:
    # (3 + 1 + 2 + 0) spikes x 2 outputs x 0.9 pJ = 10.8 pJ, each of them in four rows
    counts = Counts(2, 1, (layer_counts("one", [3, 1]), layer_counts("two", [2, 0])))
    profile = load_profile("horowitz-45nm-fp32")
    rows = energy_rows(counts, profile, Labels("run", "digits", "", "fp32"))
    assert sum(row["energy_pj"] for row in rows) == pytest.approx(4 * 10.8)
    csv_files.write_csv(tmp_path / "report.csv", rows, csv_files.ENERGY)
    text = (ROOT / "docs" / "csv.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    command = [sys.executable, "-c", program + "\nprint(round(by_layer.sum(), 6))"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == "10.8", done.stderr


@pytest.mark.parametrize("name", ["digits/results/main_job", "fashion-mnist/results/resnet20"])
def test_figures_outside_the_made_tables_are_those_of_their_csv(name: str) -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    table = pd.read_csv(ROOT / "recipes" / f"{name}.csv")
    groups = table.groupby(table["method"] if "method" in table else [0] * len(table))
    other = "accuracy_at_2" if "method" in table else "teacher_accuracy"
    for column in ("accuracy_at_1", "accuracy", other):
        means, deviations = 100 * groups[column].mean(), 100 * groups[column].std()
        for mean, deviation in zip(means, deviations, strict=True):
            assert f"{mean:.2f} ± {deviation:.2f}" in text


def test_figures_of_rounded_weights_are_those_of_their_csv() -> None:
    text = (ROOT / "docs" / "deployment.md").read_text(encoding="utf-8")
    runs = pd.read_csv(ROOT / "recipes/fashion-mnist/results/quantised.csv")
    cells = runs.pivot(index="seed", columns=["weight_bits", "method"], values="accuracy") * 100
    assert cells.shape == (5, 5)
    for (bits, method), values in cells.items():  # type: ignore[misc]
        mean = f"{values.mean():.2f} ± {values.std():.2f} %"
        if method == "none":
            assert f"| fp32 | {mean} | |" in text
            continue
        paired = values - cells[32, "none"]
        found = interval(paired.tolist())
        assert found is not None
        difference = f"{paired.mean():+.2f} [{found[0]:+.2f}, {found[1]:+.2f}]"
        how = method if method == "trained" else f"`{method}`"
        assert f"| {bits} bits, {how} | {mean} | {difference} |" in text
