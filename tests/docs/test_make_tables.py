"""The documents' tables: each agrees with its CSVs, and says what they allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]
RIVALS = "recipes/ablations/results/digits_rivals.csv"
EVENTS = "recipes/ablations/results/n-mnist_digits.csv"
GLYPHS = "recipes/ablations/results/glyphs_each_at_its_best.csv"
TEMPERATURE = "recipes/ablations/results/fashion-mnist_temperature.csv"


@pytest.fixture(scope="module")
def tables(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    """docs/make_tables.py as a module."""
    return docs_script("make_tables")


DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_s_tables_are_those_of_its_csvs(tables: ModuleType, path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.fill(text) == text, "run python docs/make_tables.py"
    assert text.count("<!-- table: ") == len(tables.MARKED.findall(text)), "a marker has no end"


def test_a_figure_that_was_edited_by_hand_is_found(tables: ModuleType) -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert len(tables.MARKED.findall(text)) >= 6
    spoiled = text.replace("97.61 ± 1.01", "97.91 ± 1.01")
    assert spoiled != text
    assert tables.fill(spoiled) == text


def test_a_table_by_hand(tables: ModuleType) -> None:
    # 357, 350, 347, 352, 351, 351, 351, 349, 348 and 346 of 360 images: mean 350.2, deviation 3.08
    head, rule, first, *rest = tables.table_of(RIVALS, "means").splitlines()
    assert head == (
        "| method | at t = 1 | at t = 2 | averaged | against the baseline, 95 % interval "
        "| energy an image |"
    )
    assert rule.count("---") == 6
    assert first.startswith("| `tser` | 96.47 ± 0.86 | 96.94 ± 0.69 | 97.28 ± 0.86 | baseline |")
    assert len(rest) == 10


def test_differences_are_judged_together(tables: ModuleType) -> None:
    shown = tables.table_of(RIVALS, "differences")
    assert "`ce` | -2.92 [-4.14, -1.70] | -1.67 [-2.71, -0.63], not by Holm |" in shown
    other = tables.table_of(RIVALS, "differences", "ce").splitlines()
    assert "| `ce` | baseline | baseline | baseline |" in other
    assert other[2].startswith("| `tser` | +2.92 [+1.70, +4.14]")


def test_another_measure_at_each_step_by_hand(tables: ModuleType) -> None:
    shown = tables.table_of(EVENTS, "steps:accuracy_cumulative").splitlines()
    assert shown[0].startswith("| method | T' = 1 | T' = 2 |")
    # 264, 276, 234, 298 and 259, and 317, 316, 316, 304 and 306, of 360 samples
    assert shown[2].split(" | ")[2] == "73.94 ± 6.52"
    assert shown[3].split(" | ")[2] == "86.61 ± 1.74"
    found = tables.table_of(EVENTS, "differences:accuracy_cumulative").splitlines()
    assert found[3].split(" | ")[2].startswith("+12.67 [")


def test_two_tables_are_compared_cell_by_cell_and_seed_by_seed(tables: ModuleType) -> None:
    def ablation(*rows: tuple[str, list[float]]) -> object:
        runs = [
            {"m": name, "seed": seed, "state": "finished", "accuracy_at_1": 0.5, "accuracy": value}
            for name, values in rows
            for seed, value in enumerate(values)
        ]
        return tables.Ablation(pd.DataFrame(runs), ["m"], {"m": "a"}, "accuracy")

    ours = ablation(("a", [0.5, 0.6, 0.7, 0.8, 0.9]), ("only here", [0.5] * 5))
    theirs = ablation(("only there", [0.1] * 5), ("a", [0.4, 0.5, 0.6, 0.7, 0.8, 0.1]))
    header, rows = tables.against(ours, theirs)
    assert header == ["m", "at t = 1", "averaged"]
    assert rows == [["`a`", "+0.00 [+0.00, +0.00], not resolved", "+10.00 [+10.00, +10.00]"]]


def test_an_axis_in_place_of_the_seeds_by_hand(tables: ModuleType) -> None:
    rows = [
        {"m": m, "teacher": teacher, "seed": seed, "state": "finished", "accuracy": 0.5 + more}
        for teacher, ahead in (("x", 0.01), ("y", 0.03), ("z", 0.05))
        for m, more in (("kd", 0.0), ("ts", ahead))
        for seed in range(4)
    ]
    runs = pd.DataFrame(rows)
    runs["accuracy"] += 0.02 * (runs["seed"] == 3)  # of both alike
    runs["accuracy_at_1"] = runs["accuracy"]
    ablation = tables.Ablation(runs, ["m", "teacher"], {"m": "kd"}, "accuracy")
    header, found = tables.over(ablation, "teacher")
    assert header == ["m", "at t = 1", "averaged"]
    # 1, 3 and 5 points: mean 3, deviation 2, and 4.3027 * 2 / sqrt(3) = 4.97
    assert found[1] == ["`ts`", *["+3.00 [-1.97, +7.97], n = 3: no verdict"] * 2]


def test_three_seeds_allow_no_verdict(
    tables: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    header, *rows = (ROOT / TEMPERATURE).read_text().splitlines()
    summary = TEMPERATURE.replace(".csv", "_summary.csv")
    (tmp_path / TEMPERATURE).parent.mkdir(parents=True)
    few = [row for row in rows if row.split(",")[1] in ("0", "1", "2")]
    (tmp_path / TEMPERATURE).write_text("\n".join([header, *few, ""]))
    (tmp_path / summary).write_bytes((ROOT / summary).read_bytes())
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    lines = tables.table_of(TEMPERATURE, "means").splitlines()
    assert lines[0].startswith("| temperature | validation, best epoch | test |")
    assert sum("n = 3: no verdict" in line for line in lines) == 2
    assert "resolved" not in "".join(lines)


def test_alternatives_are_compared_on_the_line_through_a_seed_s_runs(tables: ModuleType) -> None:
    line = [(1e6, 0.80), (2e6, 0.90), (4e6, 0.96)]
    runs = [
        {"seed": seed, "energy_pj": energy, "accuracy": accuracy + 0.01 * seed}
        for seed in range(5)
        for energy, accuracy in line
    ]
    tried = [
        {"alternative": "by hand", "seed": seed, "energy_pj": energy, "accuracy": 0.01 * seed + at}
        for seed, (energy, at) in enumerate([(1.5e6, 0.87), (3e6, 0.95)] * 2 + [(1e6, 0.82)])
    ]
    tried += [
        {"alternative": "beyond", "seed": seed, "energy_pj": 0.5e6 + 4e6 * seed, "accuracy": 0.9}
        for seed in range(2)
    ]
    found = tables.Ablation(pd.DataFrame(runs), [], {}, "", None, pd.DataFrame(tried))
    assert tables.alternatives(found)[1] == [
        ["by hand", "91.20 ± 5.45", "2.00 ± 0.94 µJ", "+2.00 [+2.00, +2.00]"],
        ["beyond", "90.00 ± 0.00", "2.50 ± 2.83 µJ", "none is there"],
    ]


def statistics(*rows: str) -> str:
    """Return the text of a steps.csv with these rows, as far as the tables read it."""
    header = "method.name,measure,n,accuracy_mean,difference_mean,difference_low,"
    header += "difference_high,pairs,resolved,p_value"
    return "\n".join([header, *rows, ""])


def test_the_claim_is_judged_by_all_six_comparisons(tables: ModuleType, tmp_path: Path) -> None:
    # two can be tested; one has too few runs for a test, and three of the design have none
    name = "glyphs_each_at_its_best"
    (tmp_path / f"{name}_steps.csv").write_text(
        statistics(
            "ts,accuracy_cumulative_4,10,0.92,0.01,0.005,0.015,10,1,0.008",
            "ts,accuracy_at_1,10,0.9,0.03,0.02,0.04,10,1,0.011",
        )
    )
    few = "tser,accuracy_cumulative_4,3,0.92,0.001,-0.001,0.003,3,,"
    (tmp_path / f"{name}_steps_ts.csv").write_text(statistics(few))
    rows = [row[3:] for row in tables.claim(tmp_path / f"{name}.csv")[1]]
    assert rows == [
        ["10", "+1.00 [+0.50, +1.50]", "no interval"],  # 6 times 0.008 is below 0.05
        ["10", "+3.00 [+2.00, +4.00], not by Holm", "no interval"],  # 5 times 0.011 is not
        ["3", "+0.10 [-0.10, +0.30], n = 3: no verdict", "no interval"],
    ]


def test_the_answer_has_a_row_for_each_table_of_a_design(
    tables: ModuleType, tmp_path: Path
) -> None:
    for name, steps, ahead in (("glyphs_components", 4, 0.01), ("fashion-mnist_ladder", 2, 0.02)):
        rows = [
            f"ts,{measure},10,0.9,{ahead},0.005,0.025,10,1,0.001"
            for measure in (f"accuracy_cumulative_{steps}", "accuracy_at_1")
        ]
        (tmp_path / f"{name}_steps.csv").write_text(statistics(*rows))
    header, found = tables.answer(tmp_path / "glyphs_each_at_its_best.csv")
    assert header == [
        "data set, table",
        "n",
        "`ts` - `kd`, averaged over all steps",
        "`ts` - `kd`, the first step alone",
    ]
    assert found == [
        ["glyphs, (a)", "10", *["+1.00 [+0.50, +2.50]"] * 2],
        ["Fashion-MNIST, T = 2", "10", *["+2.00 [+0.50, +2.50]"] * 2],
    ]


def test_runs_that_miss_the_accuracy_are_told(tables: ModuleType) -> None:
    shown = tables.table_of(GLYPHS, "early_exit").splitlines()
    kd, ts, _ = [line.split(" | ") for line in shown[2:]]
    assert "runs" not in kd[1]  # its own accuracy less a margin is no hard aim
    assert ts[1] == "2.27 ± 0.19 µJ (9 of 10 runs)"


def test_what_was_not_measured_is_no_zero(tables: ModuleType) -> None:
    runs = pd.DataFrame({"m": ["a", "b"], "seed": 0, "state": "finished"})
    runs["accuracy_at_1"], runs["ece_at_1"] = 0.5, [0.25, None]
    found = tables.steps(tables.Ablation(runs, ["m"], {"m": "a"}, "accuracy"), "ece_at")[1]
    assert found == [["`a`", "25.00"], ["`b`", "none is there"]]


def test_stale_documents_are_told(
    tables: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"text\n<!-- table: {RIVALS} means -->\n<!-- end of table -->\nmore\n")
    monkeypatch.setattr(tables, "documents", lambda: [path])
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    before = path.read_text()
    assert tables.main(check=True) == 1
    assert path.read_text() == before
    assert "differs from its CSVs: page.md" in capsys.readouterr().out
    assert tables.main(check=False) == 0
    assert tables.main(check=True) == 0
    assert path.read_text().startswith("text\n")
    assert path.read_text().endswith("<!-- end of table -->\nmore\n")
