"""How figures look: one palette, a look for each method, labels that do not overlap.

The palette is that of Okabe and Ito (Color Universal Design, 2008; Wong, Nature Methods 8, 441,
2011) without yellow and black, which a light or a dark page would swallow. Six colours tell six
methods apart for colour-blind readers too; beyond six, the marker does.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from tser_cli.base.files import make_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Arguments = ParamSpec("Arguments")
Place = tuple[float, float]
Box = tuple[float, float, float, float]
STYLE_FILE = Path(__file__).with_name("tser.mplstyle")
GREY = "#7c7c7c"
FORMATS = (".png", ".svg")
LABEL_SIZE = 8  # points
LABEL_NEAR = 14  # points; a label further away gets a line to its point
# Where a label is tried, nearest first, in points: obliquely before straight to the side.
LABEL_PLACES = tuple(
    (reach * math.cos(math.pi * turn / 12), reach * math.sin(math.pi * turn / 12))
    for reach in (10, 16, 24, 34, 46, 60, 80)
    for turn in (3, -3, 9, -9, 2, -2, 10, -10, 4, -4, 8, -8, 1, -1, 11, -11, 0, 12)
)
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = PALETTE = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
)


@dataclass(frozen=True)
class Look:
    """A colour and a marker."""

    colour: str = BLUE
    marker: str = "o"

    @property
    def marks(self) -> dict[str, Any]:
        """matplotlib's arguments for points of this look."""
        return {"marker": self.marker, "color": self.colour}

    @property
    def faint(self) -> dict[str, Any]:
        """Return the same for single runs behind their mean."""
        return {**self.marks, "linestyle": "", "markersize": 3.5, "alpha": 0.45, "mew": 0}


# Circles: the paper's ladder. Squares: its rivals.
METHODS = {
    "ce": Look(SKY),
    "kd": Look(BLUE),
    "tskl": Look(GREEN),
    "tsce": Look(PURPLE),
    "ts": Look(ORANGE),
    "tser": Look(VERMILLION),
    "feature": Look(GREEN, "s"),
    "kd_feature": Look(BLUE, "s"),
    "bkd": Look(PURPLE, "s"),
    "tet": Look(SKY, "s"),
    "dkd": Look(ORANGE, "s"),
    "tsd": Look(VERMILLION, "s"),
    "seal": Look(GREEN, "^"),
}
TEACHER = Look(GREY, "D")


def look_of(method: str) -> Look:
    """Return a method's look, the same in every figure; that of no method for ""."""
    if not method or method in METHODS:
        return METHODS.get(method, Look())
    return Look(PALETTE[zlib.crc32(method.encode()) % len(PALETTE)], "v")


def styled(draw: Callable[Arguments, Figure]) -> Callable[Arguments, Figure]:
    """Let `draw` make its figure in the style of this project."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Figure:
        import matplotlib  # a training would begin later by the time that this takes

        with matplotlib.rc_context(fname=STYLE_FILE):
            return draw(*args, **kwargs)

    return drawn


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write `figure` as PNG and as SVG, named as `path` without .png or .svg; return the files.

    Raises RunError.
    """
    import matplotlib

    make_folder(path.parent)
    stem = path.stem if path.suffix in FORMATS else path.name
    written = []
    for suffix in FORMATS:
        buffer = io.BytesIO()
        with matplotlib.rc_context(fname=STYLE_FILE):
            # without a date, the same tables give the same bytes
            metadata = {"Date": None} if suffix == ".svg" else {}
            figure.savefig(buffer, format=suffix.removeprefix("."), metadata=metadata)
        written.append(path.with_name(f"{stem}{suffix}"))
        write_whole(written[-1], buffer.getvalue())
    return written


def label_points(
    plot: Axes, places: Sequence[Place], texts: Sequence[str], colours: Sequence[str] = ()
) -> None:
    """Write each text beside its point, on the first place round it that is free.

    A place is free where it covers no point, no line of an error bar and no other label. A label
    far from its point gets a line to it, in the point's colour.
    """
    figure = plot.get_figure(root=True)
    assert figure is not None, "the plot is part of a figure"
    figure.draw_without_rendering()  # settles the layout, and so the scale in pixels
    pixels = figure.dpi / 72  # a point
    taken = drawn_boxes(plot, 3 * pixels)
    for place, text, colour in zip(places, texts, colours or [GREY] * len(texts), strict=True):
        x, y = map(float, plot.transData.transform(place))
        size = (0.65 * LABEL_SIZE * pixels * len(text), 1.2 * LABEL_SIZE * pixels)
        tried = [(offset, label_box((x, y), offset, size, pixels)) for offset in LABEL_PLACES]
        free = [(o, box) for o, box in tried if not any(overlap(box, other) for other in taken)]
        offset, box = (free or tried)[0]
        taken.append(box)
        line = {"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
        plot.annotate(
            text,
            place,
            xytext=offset,
            textcoords="offset points",
            ha="right" if offset[0] < 0 else "left",
            va="center",
            fontsize=LABEL_SIZE,
            arrowprops=line if math.hypot(*offset) > LABEL_NEAR else None,
        )


def drawn_boxes(plot: Axes, margin: float) -> list[Box]:
    """Return a box in pixels round each point and each line of an error bar in `plot`."""
    boxes = []
    for line in plot.lines:
        if line.get_transform() is not plot.transData:
            continue  # a line across the whole plot
        x, y = plot.transData.transform(line.get_xydata()).T
        boxes += [
            (a - margin, b - margin, a + margin, b + margin) for a, b in zip(x, y, strict=True)
        ]
    for bars in plot.collections:
        for path in bars.get_paths():
            x, y = plot.transData.transform(path.vertices).T
            boxes.append((x.min() - 1, y.min() - 1, x.max() + 1, y.max() + 1))
    return boxes


def label_box(point: Place, offset: Place, size: Place, pixels: float) -> Box:
    """Return the box of a label of `size` pixels that begins `offset` points beside `point`."""
    left = point[0] + offset[0] * pixels - (size[0] if offset[0] < 0 else 0.0)
    middle = point[1] + offset[1] * pixels
    return left, middle - size[1] / 2, left + size[0], middle + size[1] / 2


def overlap(box: Box, other: Box) -> bool:
    """Return whether two boxes (left, bottom, right, top) share more than an edge."""
    across = box[0] < other[2] and other[0] < box[2]
    return across and box[1] < other[3] and other[1] < box[3]
