"""Figures of an ablation: where the points stand, and that CSVs are all they need."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.collections import PathCollection

from tser_cli.report.ablation_plots import (
    Rows,
    axes_of,
    colour,
    draw_all,
    draw_distribution,
    draw_energy,
    draw_per_timestep,
    draw_tsne,
    groups,
    short,
)
from tser_cli.report.csv_files import write_csv

METHOD, WEIGHT = "method.name", "method.entropy_weight"
FIGURES = ("per_timestep", "accuracy", "energy", "tsne")


def row(seed: int, accuracy: float, **changes: Any) -> dict[str, str]:
    values = {
        "method.name": "kd",
        "seed": seed,
        "state": "finished",
        "accuracy": accuracy,
        "teacher_accuracy": 0.97,
        "validation_accuracy": 0.5 + seed / 100,
        "accuracy_at_1": accuracy - 0.1,
        "accuracy_at_2": accuracy - 0.01,
        "accuracy_cumulative_1": accuracy - 0.1,
        "accuracy_cumulative_2": accuracy,
        "energy_pj": 1e6 * (1 + seed),
        "seconds": 1.5,
        "folder": "cells/x",
    }
    return {key: str(value) for key, value in {**values, **changes}.items()}


def rows() -> Rows:
    return [
        row(0, 0.90),
        row(0, 0.94, **{METHOD: "ts"}),
        row(1, 0.92),
        row(1, 0.95, **{METHOD: "ts"}),
    ]


def points() -> Rows:
    names = ("teacher", "kd", "ts", "tser", "ce")
    return [
        {"network": name, "image": str(i), "label": str(i % 3), "x": str(i + 0.5), "y": str(-i)}
        for name in names
        for i in range(6)
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tables of a finished ablation, and nothing else."""
    write_csv(tmp_path / "ablation.csv", rows(), list(rows()[0]))
    write_csv(tmp_path / "summary.csv", [{"measure": "accuracy"}], ["measure"])
    write_csv(tmp_path / "tsne.csv", points(), list(points()[0]))
    return tmp_path


def test_png_and_svg_from_the_tables_alone(folder: Path) -> None:
    written = draw_all(folder)
    assert {path.name for path in written} == {f"{n}.{s}" for n in FIGURES for s in ("png", "svg")}
    for path in written:
        assert path.parent == folder / "figures"
        if path.suffix == ".png":
            assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        else:
            assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_drawing_again_needs_no_torch(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tser_cli.report.ablation_plots import draw_all\n"
        "assert len(draw_all(Path(sys.argv[1]))) == 8\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    done = run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unfinished_runs_are_not_drawn(folder: Path) -> None:
    failed = row(2, 0.1, state="failed", accuracy_at_1="", energy_pj="")
    lacking = [*rows(), {**failed, "accuracy": ""}]
    write_csv(folder / "ablation.csv", lacking, list(lacking[0]))
    assert len(draw_all(folder)) == 8
    nothing = [row(0, 0.1, state="missing")]
    write_csv(folder / "ablation.csv", nothing, list(nothing[0]))
    assert draw_all(folder) == []


def test_tables_of_few_columns_suffice(folder: Path) -> None:
    (folder / "tsne.csv").unlink()
    (folder / "summary.csv").unlink()
    assert len(draw_all(folder)) == 6


def test_the_axes_are_the_columns_that_are_not_fixed() -> None:
    assert axes_of(rows()) == [METHOD]
    assert axes_of([row(0, 0.9, **{WEIGHT: 0.1})]) == [METHOD, WEIGHT]


@pytest.mark.parametrize(
    ("axis", "name"),
    [
        (WEIGHT, "entropy_weight"),
        ("method.temperature", "temperature"),
        (METHOD, "method"),
        ("data.name", "data"),
        ("plain", "plain"),
    ],
)
def test_axes_have_short_names(axis: str, name: str) -> None:
    assert short(axis) == name


def test_cells_are_named_by_what_is_varied() -> None:
    assert {name: len(members) for name, members in groups(rows(), [METHOD]).items()} == {
        "kd": 2,
        "ts": 2,
    }
    both = [row(0, 0.9, **{WEIGHT: 0.1}), row(0, 0.9, **{WEIGHT: 0.2})]
    assert list(groups(both, [METHOD, WEIGHT])) == [
        "method=kd, entropy_weight=0.1",
        "method=kd, entropy_weight=0.2",
    ]


def test_bars_and_lines_per_timestep() -> None:
    plot = draw_per_timestep(rows(), [METHOD]).axes[0]
    bars = [bar.get_height() for bar in plot.patches]
    # means over two seeds: kd at t = 1 and 2, then ts
    assert bars == pytest.approx([81.0, 90.0, 84.5, 93.5])
    lines = {str(line.get_label()): line.get_ydata()[0] for line in plot.lines}  # type: ignore[index]
    assert lines == pytest.approx({"kd: 91.00": 91.0, "ts: 94.50": 94.5, "teacher 97.00": 97.0})
    low, high = plot.get_ylim()
    assert low < 81.0
    assert high > 97.0
    assert plot.get_xticks().tolist() == [1, 2]


def test_cells_of_fewer_steps_have_fewer_bars() -> None:
    short_one = row(0, 0.8, accuracy_at_2="", accuracy_cumulative_2="", **{METHOD: "ce"})
    plot = draw_per_timestep([*rows(), short_one], [METHOD]).axes[0]
    assert len(plot.patches) == 5


def test_a_distribution_shows_every_seed_and_the_mean() -> None:
    sweep = [row(s, 0.9 + s / 50 + w, **{WEIGHT: w}) for s in (0, 1) for w in (0.0, 0.01)]
    axes = [WEIGHT]
    plot = draw_distribution(sweep, axes).axes[0]
    heights = [sorted(map(float, line.get_ydata())) for line in plot.lines]  # type: ignore[arg-type]
    expected = [[90.0, 92.0], [91.0, 91.0], [91.0, 93.0], [92.0, 92.0], [97.0, 97.0]]
    assert [h for pair in heights for h in pair] == pytest.approx(
        [h for pair in expected for h in pair]
    )
    assert plot.get_xlabel() == "entropy_weight"
    assert [label.get_text() for label in plot.get_xticklabels()] == ["0.0", "0.01"]
    assert plot.get_ylabel() == "accuracy (%)"


def test_a_distribution_of_validation_accuracies(folder: Path) -> None:
    plot = draw_distribution(rows(), [METHOD], "validation_accuracy").axes[0]
    assert list(plot.lines[0].get_ydata()) == pytest.approx([50.0, 51.0])
    assert plot.get_ylabel() == "validation accuracy (%)"
    assert len(plot.lines) == 4  # the teacher's line is of test images


def test_energy_in_microjoules() -> None:
    plot = draw_energy(rows(), [METHOD]).axes[0]
    assert list(plot.lines[0].get_xdata()) == pytest.approx([1.0, 2.0])
    assert list(plot.lines[0].get_ydata()) == pytest.approx([90.0, 92.0])
    assert [line.get_label() for line in plot.lines] == ["kd", "ts"]


def test_a_panel_a_network_and_a_colour_a_class() -> None:
    figure = draw_tsne(points())
    assert [panel.get_title() for panel in figure.axes] == [
        *("teacher", "kd", "ts", "tser", "ce", "", "", "")
    ]
    drawn = figure.axes[1].collections[0]
    assert isinstance(drawn, PathCollection)
    assert drawn.get_offsets().tolist() == [[i + 0.5, -i] for i in range(6)]  # type: ignore[union-attr]
    assert list(drawn.get_array()) == [0, 1, 2, 0, 1, 2]  # type: ignore[arg-type]


@pytest.mark.parametrize("cells", [1, 10, 11, 20])
def test_cells_have_colours_of_their_own(cells: int) -> None:
    assert len({colour(number, cells) for number in range(cells)}) == cells
