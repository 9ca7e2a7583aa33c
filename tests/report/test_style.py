"""The style: legible on white and on black, told apart by colour-blind readers, labels apart."""

from __future__ import annotations

from itertools import combinations

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from tser_cli.report.style import (
    GREY,
    METHODS,
    PALETTE,
    STYLE_FILE,
    Drawing,
    drawn_boxes,
    label_points,
    look_of,
    overlap,
    styled,
)
from tser_cli.settings import registry

DARK = "#0d1117"  # the ground of GitHub's dark pages
# Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009: severity 1.0, of linear RGB
DEFICIENCIES = {
    "none": "1 0 0; 0 1 0; 0 0 1",
    "protanopia": "0.152286 1.052583 -0.204868; 0.114503 0.786281 0.099216; "
    "-0.003882 -0.048116 1.051998",
    "deuteranopia": "0.367322 0.860646 -0.227968; 0.280085 0.672501 0.047413; "
    "-0.011820 0.042940 0.968881",
    "tritanopia": "1.255528 -0.076749 -0.178779; -0.078411 0.930809 0.147602; "
    "0.004733 0.691367 0.303900",
}


def matrix(text: str) -> np.ndarray:
    return np.array([row.split() for row in text.split(";")], dtype=float)


TO_XYZ = matrix(
    "0.4124564 0.3575761 0.1804375; 0.2126729 0.7151522 0.0721750; 0.0193339 0.1191920 0.9503041"
)


def linear(colour: str) -> np.ndarray:
    """Linear RGB of an sRGB colour (IEC 61966-2-1)."""
    values = np.array([int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(colour: str, ground: str) -> float:
    """WCAG 2.1: (lighter + 0.05) / (darker + 0.05), of relative luminances."""
    low, high = sorted(float(linear(each) @ TO_XYZ[1]) for each in (colour, ground))
    return (high + 0.05) / (low + 0.05)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE 1976 L*a*b* of linear RGB, white as in sRGB."""
    xyz = (TO_XYZ @ rgb.clip(0, 1)) / TO_XYZ.sum(1)
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("ground", ["#ffffff", DARK])
def test_text_and_points_stand_out_from_light_and_dark_pages(ground: str) -> None:
    assert contrast(GREY, ground) >= 4.0
    assert min(contrast(colour, ground) for colour in PALETTE) >= 2.2


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_can_be_told_apart(deficiency: str) -> None:
    seen = [lab(matrix(DEFICIENCIES[deficiency]) @ linear(colour)) for colour in PALETTE]
    # 2.3 is just noticeable (Mahy et al., 1994)
    assert min(float(np.linalg.norm(a - b)) for a, b in combinations(seen, 2)) > 15


def test_every_method_has_a_look_of_its_own() -> None:
    assert METHODS.keys() >= registry.METHODS.keys()
    assert len(set(METHODS.values())) == len(METHODS)
    assert look_of("kd") == METHODS["kd"]
    assert look_of("kd+entropy") == look_of("kd+entropy")
    assert look_of("kd+entropy") not in METHODS.values()


def test_the_style_is_read_and_the_reader_s_own_is_left_alone() -> None:
    @styled
    def draw() -> Drawing:
        assert matplotlib.rcParams["axes.spines.top"] is False
        return Drawing(Figure())

    with matplotlib.rc_context({"font.size": 30, "axes.spines.top": True}):
        figure = draw().figure
        assert matplotlib.rcParams["axes.spines.top"] is True
    assert figure.get_facecolor() == (0.0, 0.0, 0.0, 0.0)
    assert f"text.color: {GREY.removeprefix('#')}" in STYLE_FILE.read_text()


@pytest.mark.parametrize("seed", range(3))
def test_labels_cover_neither_points_nor_each_other(seed: int) -> None:
    figure = Figure(figsize=(6, 4))
    plot = figure.subplots()
    places = [tuple(map(float, place)) for place in np.random.default_rng(seed).random((9, 2))]
    for x, y in places:
        plot.errorbar(x, y, xerr=0.05, yerr=0.05, marker="o")
    label_points(plot, places, [f"method {n}" for n in range(9)])  # type: ignore[arg-type]
    figure.draw_without_rendering()
    # the texts themselves: the window of an annotation holds its line too
    boxes = [super(type(t), t).get_window_extent().extents.tolist() for t in plot.texts]
    covered = [(a, b) for a, b in combinations(boxes, 2) if overlap(a, b)]
    points = [b for b in drawn_boxes(plot, 0.0) if b[0] == b[2]]
    assert covered == []
    assert len(points) >= 9
    assert not any(
        overlap(box, (p[0] - 1, p[1] - 1, p[2] + 1, p[3] + 1)) for box in boxes for p in points
    )
    alone = Figure().subplots()
    alone.plot(1.0, 2.0, "o")
    label_points(alone, [(1.0, 2.0)], ["kd"])
    (text,) = alone.texts
    assert (text.get_text(), text.xy, text.arrow_patch) == ("kd", (1.0, 2.0), None)
