"""Figures: drawn from tables alone, written whole."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from tser_cli.errors import RunError
from tser_cli.report import plots
from tser_cli.report.plots import plot_per_timestep, save_figure


def rows(steps: int = 2, teacher: float | None = None) -> list[dict[str, Any]]:
    return [
        {
            "t": t,
            "accuracy_at_t": 0.9 + 0.01 * t,
            "accuracy_cumulative": 0.9 + 0.0111 * t,
            "teacher_accuracy": teacher,
        }
        for t in range(1, steps + 1)
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Keeps the figures instead of writing them."""
    figures: list[Figure] = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure))
    return figures


def test_a_png_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "per_timestep.png"
    plot_per_timestep(path, rows(teacher=0.95), "a run")
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400
    assert height > 300
    assert [entry.name for entry in path.parent.iterdir()] == ["per_timestep.png"]


def test_an_svg_is_an_svg(tmp_path: Path) -> None:
    path = tmp_path / "per_timestep.svg"
    plot_per_timestep(path, rows(), "a run")
    assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"


@pytest.mark.parametrize("teacher", [None, 0.95])
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_bars_and_lines_stand_where_the_numbers_are(
    drawn: list[Figure], steps: int, teacher: float | None
) -> None:
    plot_per_timestep(Path("x.png"), rows(steps, teacher), "a run")
    axes = drawn[0].axes[0]
    assert [bar.get_height() for bar in axes.patches] == pytest.approx(
        [91.0 + t for t in range(steps)]
    )
    lines = {str(line.get_label()): line.get_ydata()[0] for line in axes.lines}  # type: ignore[index]
    averaged = 90 + 1.11 * steps
    expected = {f"averaged over 1..{steps}: {averaged:.2f}": averaged}
    if teacher is not None:
        expected["teacher: 95.00"] = 95.0
    assert lines == pytest.approx(expected)
    low, high = axes.get_ylim()
    assert all(low < value < high for value in [*expected.values(), 91.0, 90.0 + steps])
    assert axes.get_title() == "a run"


def test_accuracies_of_zero_can_be_drawn(drawn: list[Figure]) -> None:
    nothing = [{**row, "accuracy_at_t": 0.0, "accuracy_cumulative": 0.0} for row in rows()]
    plot_per_timestep(Path("x.png"), nothing, "a run")
    low, high = drawn[0].axes[0].get_ylim()
    assert low == 0.0
    assert high > 0.0


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
