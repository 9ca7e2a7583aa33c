"""Figures of runs: where their points stand, what they tell, and how they are written."""

from __future__ import annotations

import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from tser_cli.base.errors import RunError
from tser_cli.report import figures
from tser_cli.report.figures import EnergyPoint, LayerEnergy, StepAccuracy, log_ticks
from tser_cli.report.style import METHODS, SVG, Drawing

HOSTILE = "</text><script>alert(1)</script>$x^2$\u202e"


def steps(count: int = 2) -> list[StepAccuracy]:
    return [StepAccuracy(t, 1000, 900 + 10 * t, 900 + 12 * t) for t in range(1, count + 1)]


def layers(name: str = "stem") -> list[LayerEnergy]:
    """Two layers, two steps: 1, 2 nJ and 2, 4 nJ."""
    return [
        LayerEnergy(layer, t, 1000.0 * weight * t, 0.1 * t if weight == 2 else None)
        for layer, weight in ((name, 1), ("fc", 2))
        for t in (1, 2)
    ]


POINTS = [EnergyPoint("t = 1", 1e6, 0.9), EnergyPoint("t = 2", 2e6, 0.92)]
TAUGHT = EnergyPoint("teacher (ANN)", 9e6, 0.95)
DRAWINGS = {
    "accuracy": lambda name: figures.accuracy(steps(), 0.95, "tser", name),
    "accuracies": lambda name: figures.accuracies({name: steps(), "B": steps(4)}),
    "by_layer": lambda name: figures.by_layer(layers(name)),
    "firing": lambda name: figures.firing(layers(name)),
    "tradeoff": lambda name: figures.tradeoff(POINTS, TAUGHT, POINTS, 3e6, "kd", name),
    "tradeoffs": lambda name: figures.tradeoffs({name: POINTS, "B": POINTS[:1]}),
    "beside_others": lambda name: figures.beside_others([(name, 1e6, 3e6), ("b", 1e6, 1e5)]),
    "over_epochs": lambda name: figures.over_epochs({name: [(1, 2.0), (2, 1.0)]}, name),
}


def texts_of(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def titles_of(drawing: Drawing) -> list[str]:
    """What the marks tell on hovering."""
    root = ElementTree.fromstring(drawing.svg())
    return [str(title.text) for title in root.iter(f"{{{SVG}}}title")]


@pytest.mark.parametrize("name", DRAWINGS)
def test_names_from_outside_are_text_and_every_mark_tells_its_values(name: str) -> None:
    drawing = DRAWINGS[name](HOSTILE)
    svg = drawing.svg()
    assert "<script" not in svg and "\u202e" not in svg
    assert len(titles_of(drawing)) == sum(map(len, drawing.told.values())) >= 2
    assert svg == drawing.svg() == DRAWINGS[name](HOSTILE).svg()
    assert not [e for e in ElementTree.fromstring(svg).iter() if "clip-path" in e.attrib]


def test_png_and_svg_stand_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "figures" / "per_timestep.png"
    written = figures.accuracy(steps(), 0.95, "", "a run").save(path)
    assert sorted(written) == sorted(path.parent.iterdir()) == [path, path.with_suffix(".svg")]
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    assert content.endswith(b"IEND\xaeB`\x82")
    width, height = struct.unpack(">II", content[16:24])
    assert width > 400 and height > 300
    root = ElementTree.parse(path.with_suffix(".svg")).getroot()
    assert root.tag == f"{{{SVG}}}svg"
    assert "a run" in [text.text for text in root.iter(f"{{{SVG}}}text")]  # texts stay texts


@pytest.mark.parametrize(("count", "teacher"), [(1, None), (2, 0.95), (6, 0.95)])
def test_points_stand_where_the_numbers_are(count: int, teacher: float | None) -> None:
    figure = figures.accuracy(steps(count), teacher, "tser", "a run").figure
    plot = figure.axes[0]
    assert {line.get_color() for line in plot.lines[:2]} == {METHODS["tser"].colour}
    heights = [list(line.get_ydata()) for line in plot.lines]
    assert heights[0] == pytest.approx([91.0 + t for t in range(count)])
    assert heights[1] == pytest.approx([91.2 + 1.2 * t for t in range(count)])
    texts = ["step t alone", "steps 1 to t together"]
    if teacher is not None:
        assert heights[2] == [95.0, 95.0]
        texts.insert(0, "teacher 95.00")
    assert texts_of(figure) == texts
    assert plot.get_title("left") == "a run"
    assert plot.get_xticks().tolist() == list(range(1, count + 1))


def test_labels_are_not_struck_through_by_the_teacher_s_line() -> None:
    right = [StepAccuracy(1, 360, 353, 353), StepAccuracy(2, 360, 354, 353)]
    figure = figures.accuracy(right, 352 / 360).figure
    figure.draw_without_rendering()
    plot = figure.axes[0]
    _, line = plot.transData.transform((1.0, 100 * 352 / 360))
    boxes = [super(type(t), t).get_window_extent() for t in plot.texts]  # without their arrows
    assert len(boxes) == 3 and not any(box.y0 < line < box.y1 for box in boxes)


def test_intervals_are_wilson_s() -> None:
    drawing = figures.accuracy(steps(1), None)
    (bar,) = drawing.figure.axes[0].collections[0].get_paths()
    # p = 0.91, n = 1000, z = 1.959964: (p + z^2/2n -+ z sqrt(pq/n + z^2/4n^2)) / (1 + z^2/n)
    assert bar.vertices[:, 1] == pytest.approx([89.0658, 92.6204], abs=1e-3)
    assert titles_of(drawing)[0] == "step 1: 91.00 % (89.07 to 92.62), 910 of 1,000 images"


def test_a_layer_is_a_bar_from_zero_stacked_by_step() -> None:
    drawing = figures.by_layer(layers())
    plot = drawing.figure.axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in plot.patches]
    assert bars == [(0.0, 1.0), (0.0, 2.0), (1.0, 2.0), (2.0, 4.0)]
    assert [label.get_text() for label in plot.get_yticklabels()] == ["stem", "fc"]
    assert titles_of(drawing)[0] == "stem, t = 1: 1 nJ"


def test_layers_without_spikes_have_no_firing_rate() -> None:
    plot = figures.firing(layers()).figure.axes[0]
    points = [line.get_xydata().tolist() for line in plot.lines if line.get_marker() == "o"]
    assert points == [[[10.0, 1.0]], [[20.0, 1.0]]]


@pytest.mark.parametrize("teacher", [None, TAUGHT])
def test_accuracy_against_energy(teacher: EnergyPoint | None) -> None:
    figure = figures.tradeoff(POINTS, teacher).figure
    lines = [line.get_xydata().tolist() for line in figure.axes[0].lines]
    assert lines[0] == [pytest.approx([1.0, 90.0]), pytest.approx([2.0, 92.0])]
    assert lines[1:] == ([[pytest.approx([9.0, 95.0])]] if teacher else [])
    assert texts_of(figure) == ["t = 1", "t = 2", *(["teacher (ANN)"] if teacher else [])]


def test_curves_that_fall_by_much_are_logarithmic() -> None:
    scales = [
        figures.over_epochs({"a": [(1, 100.0), (2, low)]}, "loss").figure.axes[0].get_yscale()
        for low in (1.0, 50.0, -1.0)
    ]
    assert scales == ["log", "linear", "linear"]


def test_long_trainings_tell_some_of_their_epochs() -> None:
    drawing = figures.over_epochs({"loss": [(n, 1 / n) for n in range(1, 1001)]}, "loss")
    titles = titles_of(drawing)
    assert titles[0] == "epoch 1: loss 1" and len(titles) == 30


def test_odd_accuracies_and_energies_can_be_drawn() -> None:
    nothing = [StepAccuracy(t, 1000, 0, 0) for t in range(1, 21)]
    plot = figures.accuracy(nothing, None).figure.axes[0]
    assert plot.get_ylim()[0] <= 0.0
    assert plot.get_xticks().tolist() == [1, 8, 16, 20]  # few of many steps
    free = [EnergyPoint("t = 1", 0.0, 0.5)]
    assert figures.tradeoff(free, None).figure.axes[0].get_xscale() == "linear"


def test_ticks_of_a_logarithmic_axis_are_round_and_few() -> None:
    assert log_ticks(0.9, 11.0) == [1.0, 2.0, 5.0, 10.0]
    assert log_ticks(1.0, 1e12)[:2] == [1.0, 1e3]


def test_a_figure_that_can_t_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "figure.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(RunError, match="No space left on device"):
        Drawing(Figure()).save(path)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["figure.png"]
