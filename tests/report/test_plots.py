"""Figures: drawn from tables alone, written whole."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from tser_cli.base.errors import RunError
from tser_cli.report.plots import (
    draw_accuracy,
    draw_by_layer,
    draw_per_timestep,
    plot_accuracy,
    plot_by_layer,
    plot_per_timestep,
)
from tser_cli.report.style import METHODS, save_figure


def rows(steps: int = 2, teacher: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "t": t,
            "correct_at_t": 900 + 10 * t,
            "correct_cumulative": 900 + 12 * t,
            "images": 1000,
            "teacher_accuracy": teacher,
        }
        for t in range(1, steps + 1)
    ]


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def test_png_and_svg_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "per_timestep.png"
    written = plot_per_timestep(path, rows(teacher=0.95), "a run")
    assert sorted(written) == sorted(path.parent.iterdir()) == [path, path.with_suffix(".svg")]
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400
    assert height > 300
    root = ElementTree.parse(path.with_suffix(".svg")).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"


def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    first = plot_per_timestep(tmp_path / "a.png", rows(), "a run")
    second = plot_per_timestep(tmp_path / "b.png", rows(), "a run")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


@pytest.mark.parametrize("teacher", [None, 0.95])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_points_stand_where_the_numbers_are(steps: int, teacher: float | None) -> None:
    figure = draw_per_timestep(rows(steps, teacher), "a run", "tser")
    plot = figure.axes[0]
    assert {line.get_color() for line in plot.lines[:2]} == {METHODS["tser"].colour}
    heights = [list(line.get_ydata()) for line in plot.lines]
    assert heights[0] == pytest.approx([91.0 + t for t in range(steps)])
    assert heights[1] == pytest.approx([91.2 + 1.2 * t for t in range(steps)])
    texts = ["at t", "averaged over 1..t"]
    if teacher is not None:
        assert heights[2] == [95.0, 95.0]
        texts.insert(0, "teacher 95.00")
    assert texts_of(figure) == texts
    assert plot.get_title() == "a run"
    assert plot.get_xticks().tolist() == list(range(1, steps + 1))


def test_intervals_are_wilson_s() -> None:
    plot = draw_per_timestep(rows(1), "a run").axes[0]
    (bar,) = plot.collections[0].get_paths()
    # p = 0.91, n = 1000, z = 1.959964: (p + z^2/2n -+ z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n)
    assert bar.vertices[:, 1] == pytest.approx([89.0658, 92.6204], abs=1e-3)


def test_accuracies_of_zero_can_be_drawn() -> None:
    nothing = [{**row, "correct_at_t": 0, "correct_cumulative": 0} for row in rows()]
    assert draw_per_timestep(nothing, "a run").axes[0].get_ylim()[0] <= 0.0


def energy_rows() -> list[dict[str, Any]]:
    return [
        {"layer": layer, "t": t, "energy_pj": 1000.0 * weight * (3 if t == "all" else t)}
        for layer, weight in (("stem", 1), ("fc", 2), ("TOTAL", 3))
        for t in (1, 2, "all")
    ]


def test_a_layer_is_a_bar_from_zero_stacked_by_step(tmp_path: Path) -> None:
    plot = draw_by_layer(energy_rows(), "a run").axes[0]
    bars = [(bar.get_y(), bar.get_height()) for bar in plot.patches]
    assert bars == [(0.0, 1.0), (0.0, 2.0), (1.0, 2.0), (2.0, 4.0)]
    assert [label.get_text() for label in plot.get_xticklabels()] == ["stem", "fc"]
    assert len(plot_by_layer(tmp_path / "x.png", energy_rows(), "a run")) == 2


@pytest.mark.parametrize("teacher", [None, (9e6, 0.95)])
def test_accuracy_against_energy(teacher: tuple[float, float] | None, tmp_path: Path) -> None:
    figure = draw_accuracy([(1e6, 0.9), (2e6, 0.92)], teacher, "a run")
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert lines[0] == [pytest.approx([1.0, 90.0]), pytest.approx([2.0, 92.0])]
    assert lines[1:] == ([[pytest.approx([9.0, 95.0])]] if teacher else [])
    assert texts_of(figure) == ["t = 1", "t = 2", *(["teacher (ANN)"] if teacher else [])]
    assert len(plot_accuracy(tmp_path / "x.png", [(1e6, 0.9)], teacher, "a run")) == 2


def test_a_figure_that_can_t_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        save_figure(Figure(), path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
