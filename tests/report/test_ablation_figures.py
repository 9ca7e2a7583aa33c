"""Figures of an ablation: where their points stand, and that CSVs are all they need."""

from __future__ import annotations

import sys
from pathlib import Path
from subprocess import run
from typing import Any

import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex

from tser_cli.report.ablation_figures import (
    CellRuns,
    baseline_of,
    cells_of,
    differences,
    draw_all,
    draw_averaged,
    draw_differences,
    draw_energy,
    draw_frontier,
    draw_per_timestep,
    draw_tsne,
)
from tser_cli.report.csv_files import (
    FRONTIER,
    STATISTICS,
    TSNE,
    ablation_schema,
    by_cell,
    read_ablation,
    write_csv,
)
from tser_cli.report.style import METHODS, TEACHER

METHOD, WEIGHT, STEPS = "method.name", "method.entropy_weight", "model.timesteps"
NAMES = {METHOD: "method"}
FIGURES = ("per_timestep", "accuracy", "energy", "tsne")
Rows = list[dict[str, Any]]


def row(seed: int, accuracy: float, **changes: Any) -> dict[str, Any]:
    values = {
        "method.name": "kd",
        "seed": seed,
        "state": "finished",
        "accuracy": accuracy,
        "teacher_accuracy": 0.97,
        "best_validation_accuracy": 0.5 + seed / 100,
        "accuracy_at_1": accuracy - 0.1,
        "accuracy_at_2": accuracy - 0.01,
        "energy_pj": 1e6 * (1 + seed),
    }
    return {**values, **changes}


def rows() -> Rows:
    return [
        row(0, 0.90),
        row(0, 0.94, **{METHOD: "ts"}),
        row(1, 0.92),
        row(1, 0.95, **{METHOD: "ts"}),
    ]


def summary(measure: str = "accuracy", baseline: str = "kd") -> Rows:
    return [{METHOD: m, "measure": measure, "baseline": int(m == baseline)} for m in ("kd", "ts")]


def points() -> Rows:
    names = ("teacher", "kd", "ts", "tser", "ce")
    return [
        {"network": name, "image": i, "label": i % 3, "x": i + 0.5, "y": float(-i)}
        for name in names
        for i in range(6)
    ]


def cells(of: Rows | None = None, names: dict[str, str] = NAMES) -> list[CellRuns]:
    return cells_of(pd.DataFrame(of or rows()).astype(dict.fromkeys(names, str)), names)


def faint(plot: Axes) -> list[list[float]]:
    """Where the single runs of each cell stand, across."""
    return [
        [float(x) for x in line.get_xdata()]
        for line in plot.lines
        if line.get_linestyle() == "None" and line.get_alpha()
    ]


def means(plot: Axes) -> list[float]:
    return [
        float(line.get_xdata()[0])
        for line in plot.lines
        if line.get_marker() != "None" and line.get_alpha() is None
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tables of a finished ablation, and nothing else."""
    write_csv(tmp_path / "ablation.csv", rows(), ablation_schema([METHOD], 2))
    write_csv(tmp_path / "summary.csv", summary(), by_cell([METHOD], STATISTICS))
    write_csv(tmp_path / "tsne.csv", points(), TSNE)
    return tmp_path


def test_png_and_svg_from_the_tables_alone(folder: Path) -> None:
    written = draw_all(folder, NAMES)
    files = {folder / "figures" / f"{n}.{suffix}" for n in FIGURES for suffix in ("png", "svg")}
    assert set(written) == files
    for path in written:
        start = path.read_bytes()[:8]
        assert start == b"\x89PNG\r\n\x1a\n" if path.suffix == ".png" else start[:4] == b"<svg"


@pytest.mark.slow
def test_drawing_again_needs_no_torch(folder: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from tser_cli.report.ablation_figures import draw_all\n"
        "assert 'matplotlib' not in sys.modules and 'pandas' not in sys.modules\n"
        f"assert len(draw_all(Path(sys.argv[1]), {NAMES!r})) == 8\n"
        "assert 'torch' not in sys.modules and 'sklearn' not in sys.modules"
    )
    done = run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_unfinished_runs_are_not_drawn(folder: Path) -> None:
    failed = {METHOD: "kd", "seed": 2, "state": "failed"}
    write_csv(folder / "ablation.csv", [*rows(), failed], ablation_schema([METHOD], 2))
    assert len(draw_all(folder, NAMES)) == 8
    runs = read_ablation(folder / "ablation.csv", [METHOD])
    assert [len(cell.runs) for cell in cells_of(runs, NAMES)] == [2, 2]
    write_csv(folder / "ablation.csv", [failed], ablation_schema([METHOD], 2))
    assert draw_all(folder, NAMES) == []


def test_a_column_more_changes_no_figure(folder: Path) -> None:
    (folder / "tsne.csv").unlink()
    before = [path.read_bytes() for path in draw_all(folder, NAMES)]
    text = (folder / "ablation.csv").read_text().splitlines()
    more = [f"{line},{'new' if n == 0 else f'text {n}'}" for n, line in enumerate(text)]
    (folder / "ablation.csv").write_text("\n".join(more) + "\n")
    assert [path.read_bytes() for path in draw_all(folder, NAMES)] == before


def test_cells_are_named_by_what_is_varied() -> None:
    assert [(cell.label, len(cell.runs)) for cell in cells()] == [("kd", 2), ("ts", 2)]
    both = [row(0, 0.9, **{WEIGHT: 0.1}), row(0, 0.9, **{WEIGHT: 0.2})]
    named = cells(both, {METHOD: "method", WEIGHT: "entropy_weight"})
    assert [cell.label for cell in named] == [
        "method=kd, entropy_weight=0.1",
        "method=kd, entropy_weight=0.2",
    ]


def test_a_method_has_its_look_in_every_figure() -> None:
    assert [cell.look for cell in cells()] == [METHODS["kd"], METHODS["ts"]]
    drawn = [draw_per_timestep(cells(), "method"), draw_energy(cells())]
    drawn.append(draw_differences(cells(), "method", "accuracy", {0: "kd"}))
    for drawing in drawn:
        shown = [to_hex(line.get_color()) for line in drawing.figure.axes[0].lines]
        wanted = [METHODS["kd"].colour] * 2 + [METHODS["ts"].colour] * 2
        assert shown[:4] == wanted


def test_a_panel_a_step_with_every_seed_and_the_mean() -> None:
    figure = draw_per_timestep(cells(), "method").figure
    assert [plot.get_title("left") for plot in figure.axes] == [
        *("at t = 1", "at t = 2", "averaged over time")
    ]
    at_1, at_2, averaged = figure.axes
    assert faint(at_1) == [pytest.approx([80.0, 82.0]), pytest.approx([84.0, 85.0])]
    assert means(at_1) == pytest.approx([81.0, 84.5])
    assert means(at_2) == pytest.approx([90.0, 93.5])
    assert means(averaged) == pytest.approx([91.0, 94.5])
    assert len({plot.get_xlim() for plot in figure.axes}) == 1
    assert [label.get_text() for label in at_1.get_yticklabels()] == ["kd", "ts"]
    assert at_1.get_ylim() == (1.5, -0.5)  # in the table's order, from the top
    assert figure.get_supxlabel() == "teacher: 97.00 %"


def test_the_interval_is_student_s() -> None:
    plot = draw_per_timestep(cells(), "method").figure.axes[0]
    (bar,) = plot.collections[0].get_paths()
    # 81 -+ t(0.975, 1) sqrt(2) / sqrt(2), t = 12.7062
    assert bar.vertices[:, 0] == pytest.approx([81 - 12.7062, 81 + 12.7062], abs=1e-3)


def test_the_curves_over_averaged_steps_are_the_means_of_the_seeds() -> None:
    of = {f"accuracy_{kind}_{t}": 0.5 + t / 10 for kind in ("at", "cumulative") for t in (1, 2, 3)}
    made = cells([{**one, **of, "accuracy_cumulative_2": one["accuracy"]} for one in rows()])
    drawing = draw_averaged(made)
    alone, averaged = drawing.figure.axes
    lines = [line for line in averaged.get_lines() if len(line.get_xdata()) == 3]  # type: ignore[arg-type]
    assert [list(line.get_ydata()) for line in lines] == [  # type: ignore[arg-type]
        pytest.approx([60.0, 91.0, 80.0]),
        pytest.approx([60.0, 94.5, 80.0]),
    ]
    assert list(alone.get_xticks()) == [1, 2, 3]
    drawing.figure.set_dpi(150)  # as it is saved
    drawing.figure.draw_without_rendering()
    (title,) = averaged.findobj(lambda artist: "T'" in getattr(artist, "get_text", str)()[1:])
    assert title.get_window_extent().x1 <= drawing.figure.bbox.x1  # it is not cut off
    told = [text for texts in drawing.told.values() for text in texts]
    assert "ts, T' = 2: 94.50 %, n = 2" in told


def test_cells_of_fewer_steps_have_fewer_points() -> None:
    short_one = row(0, 0.8, accuracy_at_2=None, **{METHOD: "ce"})
    figure = draw_per_timestep(cells([*rows(), short_one]), "method").figure
    assert [len(means(plot)) for plot in figure.axes] == [3, 2, 3]


def test_differences_are_paired_by_seed() -> None:
    figure = draw_differences(cells(), "method", "accuracy", {0: "kd"}).figure
    left, right = figure.axes
    assert means(left) == pytest.approx([91.0, 94.5])
    assert faint(right)[1] == pytest.approx([4.0, 3.0])
    assert means(right) == pytest.approx([3.5])
    assert [text.get_text() for text in right.texts] == ["baseline"]
    assert left.get_xlabel() == "accuracy (%)"
    assert left.get_ylabel() == "method"
    measure = "best_validation_accuracy"  # another one, and a baseline without a finished run
    left, right = draw_differences(cells(), "method", measure, {0: "ce"}).figure.axes
    assert faint(left)[0] == pytest.approx([50.0, 51.0])
    assert left.get_xlabel() == "best validation accuracy (%)"
    assert [text.get_text() for text in right.texts] == ["no pairs", "no pairs"]


def test_a_partial_baseline_is_compared_within_the_rest() -> None:
    names = {METHOD: "method", STEPS: "timesteps"}
    made = [
        row(s, base + 0.01 * s, **{METHOD: m, STEPS: t})
        for s in (0, 1)
        for m, t, base in [("kd", 1, 0.8), ("ts", 1, 0.82), ("kd", 2, 0.9), ("ts", 2, 0.95)]
    ]
    of = pd.DataFrame(
        [
            {METHOD: m, STEPS: t, "measure": "accuracy", "baseline": int(m == "kd")}
            for m, t in [("kd", "1"), ("ts", "1"), ("kd", "2"), ("ts", "2")]
        ]
    )
    assert baseline_of(of) == {0: "kd"}
    found = differences(cells(made, names), "accuracy", baseline_of(of))
    assert found == [[], pytest.approx([2.0, 2.0]), [], pytest.approx([5.0, 5.0])]


def test_energy_in_microjoules() -> None:
    plot = draw_energy(cells()).figure.axes[0]
    assert faint(plot) == [pytest.approx([1.0, 2.0])] * 2
    assert means(plot) == pytest.approx([1.5, 1.5])
    assert [text.get_text() for text in plot.texts] == ["kd", "ts"]
    assert [text.xy for text in plot.texts] == [
        pytest.approx((1.5, 91.0)),
        pytest.approx((1.5, 94.5)),
    ]


def test_a_panel_a_network_and_a_number_a_class() -> None:
    figure = draw_tsne(pd.DataFrame(points())).figure
    assert [panel.get_title("left") for panel in figure.axes] == [
        *("teacher", "kd", "ts", "tser", "ce", "", "", "")
    ]
    panel = figure.axes[1]
    drawn = [group.get_offsets().tolist() for group in panel.collections]
    assert drawn == [[[i + 0.5, -i], [i + 3.5, -i - 3]] for i in range(3)]
    assert [(text.get_text(), text.xy) for text in panel.texts] == [
        (str(i), (i + 2.0, -i - 1.5)) for i in range(3)
    ]


def point(kind: str, energy: float, accuracy: float | None, **changes: Any) -> dict[str, Any]:
    reach: dict[str, Any] = {}
    if accuracy is not None:
        reach = {"accuracy_low": accuracy - 0.01, "accuracy_high": accuracy + 0.01}
    row = {METHOD: "", "point": kind, "energy_pj": energy, "accuracy": accuracy}
    between = {"energy_low_pj": energy - 1e5, "energy_high_pj": energy + 1e5}
    return {**dict.fromkeys(FRONTIER), **row, **between, **reach, **changes}


def frontier(exits: bool = True) -> pd.DataFrame:
    made = []
    for method, accuracy in (("kd", 0.91), ("ts", 0.92)):
        made.append(point("all_steps", 4e6, accuracy, **{METHOD: method}))
        for energy in (2e6, 3e6, 4e6) if exits else ():
            below = accuracy - (4e6 - energy) / 2e8
            made.append(point("early_exit", energy, below, **{METHOD: method}))
    made.append(point("ann", 3e7, None))
    made.append(point("ann_int8", 1.5e6, None))
    made.append(point("teacher", 6e7, 0.95))
    kinds = {name: kind for name, kind in FRONTIER.items() if kind == "float64"}
    return pd.DataFrame(made).astype(kinds)


def test_cells_stand_with_their_curves_and_both_intervals() -> None:
    near = draw_frontier(frontier(), cells(), [METHOD]).figure.axes[0]
    assert [text.get_text() for text in near.texts] == ["kd", "ts"]
    curve = near.lines[0]
    assert curve.get_xdata() == pytest.approx([2.0, 3.0, 4.0])
    assert curve.get_ydata() == pytest.approx([90.0, 90.5, 91.0])
    assert to_hex(curve.get_color()) == METHODS["kd"].colour
    ends = [line for line in near.lines if line.get_marker() == "o"]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in ends] == [
        pytest.approx((2.0, 90.0)),
        pytest.approx((4.0, 91.0)),
        pytest.approx((2.0, 91.0)),
        pytest.approx((4.0, 92.0)),
    ]
    assert [line.get_markerfacecolor() for line in ends[::2]] == ["none", "none"]
    bars = [bar.get_paths()[0].vertices for bar in near.collections]
    assert [3.9, 4.1] in [pytest.approx(v[:, 0].tolist()) for v in bars]
    assert [90.0, 92.0] in [pytest.approx(v[:, 1].tolist()) for v in bars]


def test_what_has_no_early_exit_no_seeds_or_no_point() -> None:
    plain = frontier(exits=False)
    near = draw_frontier(plain, cells(), [METHOD]).figure.axes[0]
    assert (len(near.lines), near.get_title("left")) == (2, "")
    for name in FRONTIER:
        if name.endswith(("_low", "_high", "_low_pj", "_high_pj")):
            plain[name] = float("nan")
    alone = draw_frontier(plain[plain[METHOD] != "ts"], cells(), [METHOD]).figure.axes[0]
    assert len(alone.collections) == 0  # one seed has no interval
    assert [text.get_text() for text in alone.texts] == ["kd"]


def test_the_ann_is_a_line_and_the_teacher_a_point() -> None:
    far = draw_frontier(frontier(), cells(), [METHOD]).figure.axes[1]
    assert far.get_xscale() == "log"
    assert [text.get_text() for text in far.texts] == [
        *("teacher", "ANN of the same shape", "that ANN, 8-bit integers")
    ]
    (teacher,) = [line for line in far.lines if line.get_marker() == TEACHER.marker]
    assert (teacher.get_xdata()[0], teacher.get_ydata()[0]) == (60.0, 95.0)
    lines = [line.get_xdata()[0] for line in far.lines if line.get_linestyle() == ":"]
    assert lines == pytest.approx([30.0, 1.5])
    assert far.get_xlim()[0] < 1.5 < 60.0 < far.get_xlim()[1]
    assert len(far.collections) == 0  # intervals are drawn once
