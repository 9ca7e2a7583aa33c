"""How figures look: one palette, a look for each method, labels that do not overlap.

A drawing becomes a PNG and an SVG in a run's folder; a report page takes the same SVG. Its texts
stay texts, and each mark tells its values in a `<title>`, which browsers show on hovering.

The palette is that of Okabe and Ito (Color Universal Design, 2008; Wong, Nature Methods 8, 441,
2011) without yellow and black, which a light or a dark page would swallow. Six colours tell six
methods apart for colour-blind readers too; beyond six, the marker does.
"""

from __future__ import annotations

import io
import itertools
import math
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec
from xml.etree import ElementTree

from tser_cli.base.errors import one_line
from tser_cli.base.files import make_folder, write_whole

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text

Arguments = ParamSpec("Arguments")
Place = tuple[float, float]
Box = tuple[float, float, float, float]
STYLE_FILE = Path(__file__).with_name("tser.mplstyle")
GREY = "#7c7c7c"  # as much contrast with white as with black
PALE = "#999999"  # axes and grids
SVG = "http://www.w3.org/2000/svg"
FONTS = "'DejaVu Sans', Verdana, Arial, sans-serif"  # the first is what the layout is measured with
FORMATS = (".png", ".svg")
LABEL_SIZE = 10  # points
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
    # a plug-in's method: hash() gives a text another number in each process, a checksum does not
    return Look(PALETTE[zlib.crc32(method.encode()) % len(PALETTE)], "v")


@dataclass
class Drawing:
    """A figure, and what its marks tell: by the gid of an artist, a text for each of its marks."""

    figure: Figure
    told: dict[str, list[str]] = field(default_factory=dict)

    def tell(self, artist: Artist, texts: Sequence[str]) -> None:
        """Let each mark of `artist` (points of a line, a bar) tell a text on hovering."""
        gid = f"told{len(self.told)}"
        artist.set_gid(gid)
        self.told[gid] = [one_line(text) for text in texts]

    def svg(self) -> str:
        """Return the drawing as SVG; the same drawing gives the same bytes."""
        import matplotlib

        buffer = io.BytesIO()
        # the style once more: how texts and ids are written is decided here, not when drawing
        with matplotlib.rc_context(fname=STYLE_FILE):
            self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        root = ElementTree.fromstring(buffer.getvalue())
        for group in root.iter(f"{{{SVG}}}g"):
            # points are uses of one mark, bars have paths of their own; most groups tell nothing
            marks = list(group.iter(f"{{{SVG}}}use")) or list(group.iter(f"{{{SVG}}}path"))
            for mark, text in zip(marks, self.told.get(group.get("id", ""), ()), strict=False):
                ElementTree.SubElement(mark, f"{{{SVG}}}title").text = text
        _lighten(root)
        # said once for all texts: it was taken from each of them
        root.set("style", f"font-family: {FONTS}")
        # else ElementTree would put a prefix, ns0:, before the name of every element
        ElementTree.register_namespace("", SVG)
        ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
        return ElementTree.tostring(root, encoding="unicode")

    def save(self, path: Path) -> list[Path]:
        """Write PNG and SVG, named as `path` without .png or .svg; return the files.

        Raises RunError.
        """
        import matplotlib

        buffer = io.BytesIO()
        with matplotlib.rc_context(fname=STYLE_FILE):
            self.figure.savefig(buffer, format="png")
        make_folder(path.parent)
        # a run's name may hold a dot: only endings of ours are cut off
        stem = path.stem if path.suffix in FORMATS else path.name
        written = []
        # both are drawn before one is written: a figure that can't be drawn leaves the old files
        for suffix, content in zip(FORMATS, (buffer.getvalue(), self.svg().encode()), strict=True):
            written.append(path.with_name(f"{stem}{suffix}"))
            write_whole(written[-1], content)
        return written


def _lighten(element: ElementTree.Element) -> None:
    """Leave out most of what matplotlib writes: a page of many figures is to load at once.

    That is the font at each text, digits that nobody sees, groups and names that nothing refers to,
    metadata, and clipping, since nothing is drawn outside its axes.
    """
    # a rotation by nothing, as matplotlib writes it at each text
    if element.get("transform", "").startswith("rotate(-0 "):
        del element.attrib["transform"]
    for name, value in element.attrib.items():
        # a tenth of a point is less than a pixel, even on a wide page
        plain = re.sub(r"-?\d+\.\d{2,}", lambda hit: f"{float(hit[0]):.1f}", value)
        if name == "style":
            plain = re.sub(r" ?font-family: [^;]*(; |$)", "", value)
        element.set(name, _shorter(value) if name == "d" else " ".join(plain.split()))
    element.text, element.tail = ((text or "").strip() for text in (element.text, element.tail))
    kept: list[ElementTree.Element] = []
    for child in element:
        _lighten(child)
        unseen = child.get("style") == "fill: none"
        if unseen or child.tag.endswith(("}metadata", "}clipPath")):
            continue
        child.attrib.pop("clip-path", None)
        # ids of groups alone: those of paths are what uses refer to
        if child.tag.endswith("}g"):
            child.attrib.pop("id", None)
        kept += [child] if child.attrib or not child.tag.endswith("}g") else list(child)
    element[:] = []
    for style, alike in itertools.groupby(kept, lambda child: child.get("style")):
        marks = list(alike)
        if style is None or len(marks) == 1 or any(mark.tag.endswith("}g") for mark in marks):
            element.extend(marks)
            continue
        for mark in marks:  # their style is said once for all of them
            del mark.attrib["style"]
        ElementTree.SubElement(element, f"{{{SVG}}}g", style=style).extend(marks)


def _shorter(path: str) -> str:
    """Return a path of straight lines written by its steps, in tenths: half as long."""
    parts = re.findall(r"[A-Za-z]|-?[\d.]+", path)
    if set(re.findall("[A-Za-z]", path)) - set("MLz"):  # round marks, each drawn once
        return re.sub(r"(\.\d\d)\d+", r"\1", " ".join(parts))
    written, x, y = "", 0, 0
    while parts:
        letter = parts.pop(0)
        if letter == "z":
            written += letter
            continue
        # each step is taken between rounded places, so that rounding errors do not add up
        across, up = (round(10 * float(parts.pop(0))) for _ in range(2))
        if letter == "M":  # an absolute place, since "z" moves the pen back
            written += f"M{across / 10:g} {up / 10:g}"
        elif up == y:
            written += f"h{(across - x) / 10:g}"
        elif across == x:
            written += f"v{(up - y) / 10:g}"
        else:
            written += f"l{(across - x) / 10:g} {(up - y) / 10:g}"
        x, y = across, up
    return written


def styled(draw: Callable[Arguments, Drawing]) -> Callable[Arguments, Drawing]:
    """Let `draw` make its figure in the style of this project."""

    @wraps(draw)
    def drawn(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Drawing:
        import matplotlib  # a training would begin later by the time that this takes

        with matplotlib.rc_context(fname=STYLE_FILE):
            drawing = draw(*args, **kwargs)
            _settle(drawing.figure)
        return drawing

    return drawn


def _settle(figure: Figure) -> None:
    """Lay the figure out, once: each further time would move things by a hair."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")


def blank(width: float, height: float, **panels: Any) -> tuple[Drawing, Any]:
    """Return an empty drawing of a size in inches, and what `Figure.subplots` makes in it."""
    # not pyplot: it would choose a backend by MPLBACKEND, and keep every figure in memory
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return Drawing(figure), figure.subplots(**panels)


def label_points(
    plot: Axes, places: Sequence[Place], texts: Sequence[str], colours: Sequence[str] = ()
) -> None:
    """Write each text beside its point, on the first place round it that is free.

    A place is free where it covers no point, no line of an error bar and no other label, where its
    line crosses no label, and where it ends within the figure. A label far from its point gets a
    line to it, in the point's colour.
    """
    figure = plot.get_figure(root=True)
    assert figure is not None, "the plot is part of a figure"
    _settle(figure)  # and so the scale in pixels
    pixels = figure.dpi / 72  # a point
    taken = drawn_boxes(plot, 3 * pixels)
    labels = [box_of(text) for text in plot.texts]
    width, height = figure.get_size_inches() * figure.dpi
    for place, text, colour in zip(places, texts, colours or [GREY] * len(texts), strict=True):
        x, y = map(float, plot.transData.transform(place))
        # estimated by its letters: a browser may show the text of an SVG in another font
        size = (0.65 * LABEL_SIZE * pixels * len(text), 1.4 * LABEL_SIZE * pixels)
        tried = []
        for across, up in LABEL_PLACES:  # a label at the left ends where one at the right begins
            left = x + across * pixels - (size[0] if across < 0 else 0.0)
            low = y + up * pixels - size[1] / 2
            tried.append(((across, up), (left, low, left + size[0], low + size[1])))
        inside = [
            (o, box)
            for o, box in tried
            if box[0] > 0 and box[1] > 0 and box[2] < width and box[3] < height
        ]
        free = [
            (o, box)
            for o, box in inside
            if not any(overlap(box, other) for other in (*taken, *labels))
            and not any(overlap(dot, label) for dot in leader(x, y, o, pixels) for label in labels)
        ]
        # rather over something else than beyond the edge of the figure
        offset, box = (free or inside or tried)[0]
        labels.append(box)
        taken += leader(x, y, offset, pixels)
        line = {"arrowstyle": "-", "color": colour, "lw": 0.8, "shrinkA": 0, "shrinkB": 3}
        line["relpos"] = (1.0 if offset[0] < 0 else 0.0, 0.5)  # from the end that is nearer
        label = plot.annotate(
            text,
            place,
            xytext=offset,
            textcoords="offset points",
            ha="right" if offset[0] < 0 else "left",
            va="center",
            fontsize=LABEL_SIZE,
            arrowprops=line if math.hypot(*offset) > LABEL_NEAR else None,
        )
        label.set_in_layout(False)  # the place was found for the layout as it is


def leader(x: float, y: float, offset: Place, pixels: float) -> list[Box]:
    """Return boxes along the line from a point to its label; none where that is near."""
    if math.hypot(*offset) <= LABEL_NEAR:
        return []
    ends = [(x + n / 9 * offset[0] * pixels, y + n / 9 * offset[1] * pixels) for n in range(9)]
    return [(a - pixels, b - pixels, a + pixels, b + pixels) for a, b in ends]


def box_of(text: Text) -> Box:
    """Return the box of a text in pixels."""
    left, low, right, high = text.get_window_extent().extents
    return float(left), float(low), float(right), float(high)


def name_line(plot: Axes, energy: float, text: str, above: int = 0) -> None:
    """Draw a line at an energy whose accuracy nobody measured; name it above the plot.

    There no point, curve or label can lie. `above`: the names that stand below this one. The limits
    of the x axis must be set.
    """
    plot.axvline(energy, color=GREY, linestyle=":", linewidth=1)
    across = plot.transAxes.inverted().transform(plot.transData.transform((energy, 0.0)))[0]
    plot.annotate(
        text,
        (energy, 1.0),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3 + 1.3 * LABEL_SIZE * above),
        textcoords="offset points",
        ha="left" if across < 0.5 else "right",
        va="bottom",
        fontsize=LABEL_SIZE,
    )


def drawn_boxes(plot: Axes, margin: float) -> list[Box]:
    """Return boxes in pixels round the points, the lines and the error bars in `plot`."""
    boxes = []
    for line in plot.lines:
        if line.get_transform() is not plot.transData:  # across the whole plot, as the teacher's
            left, low, right, high = line.get_window_extent().extents
            boxes.append((left - margin, low - margin, right + margin, high + margin))
            continue
        points = list(plot.transData.transform(line.get_xydata()))
        if line.get_linestyle() != "None":  # nor does a label cover the line between two points
            parts = list(itertools.pairwise(points))
            points += [a + (b - a) * n / 9 for a, b in parts for n in range(1, 9)]
        boxes += [(x - margin, y - margin, x + margin, y + margin) for x, y in points]
    for bars in plot.collections:
        for path in bars.get_paths():
            x, y = plot.transData.transform(path.vertices).T
            boxes.append((x.min() - 1, y.min() - 1, x.max() + 1, y.max() + 1))
    return boxes


def overlap(box: Box, other: Box) -> bool:
    """Return whether two boxes (left, bottom, right, top) share more than an edge."""
    across = box[0] < other[2] and other[0] < box[2]
    return across and box[1] < other[3] and other[1] < box[3]
