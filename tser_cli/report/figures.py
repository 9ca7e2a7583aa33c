"""Figures of runs, each drawn once: a run's folder and the report page take the same drawing.

They take plain values, so that they can be drawn again from the tables. Names from outside are cut
and made visible before matplotlib sees them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tser_cli.base.errors import drawable
from tser_cli.report import style
from tser_cli.report.statistics import proportion_interval
from tser_cli.report.style import BLUE, GREY, LABEL_SIZE, PALE, PALETTE, Drawing, Look, styled
from tser_cli.report.words import times
from tser_cli.settings.fields import joules, unit_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Inches. At the width of a phone a whole figure is scaled to 0.9, on a wide page to 1.25: one
# drawing has to serve both.
WIDTH, NARROW = 5.2, 3.4
ROW = 0.21  # of a layer
MOST_TICKS = 6
LABELLED = 16  # time steps of which each has a tick
DENSE = 30  # epochs above which a line has no points
WIDE = 30  # a curve that falls so many times is drawn on a logarithmic scale
ACCURACY = "accuracy (%)"
Series = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class StepAccuracy:
    """How many test images are right at step t alone, and by the mean logits of steps 1 to t."""

    # Counts, not fractions: an interval depends on how many images there were.
    t: int
    images: int
    right_at_t: int
    right: int

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> StepAccuracy:
        """Return what a row of per_timestep.csv says."""
        return cls(row["t"], row["images"], row["correct_at_t"], row["correct_cumulative"])

    @property
    def accuracy_at_t(self) -> float:
        """Return the share that step t alone gets right."""
        return self.right_at_t / self.images

    @property
    def accuracy(self) -> float:
        """Return the share that steps 1 to t together get right."""
        return self.right / self.images

    @property
    def interval_at_t(self) -> tuple[float, float]:
        """Return the 95 % interval of `accuracy_at_t` over the images."""
        return proportion_interval(self.right_at_t, self.images)

    @property
    def interval(self) -> tuple[float, float]:
        """Return the 95 % interval of `accuracy` over the images."""
        return proportion_interval(self.right, self.images)


@dataclass(frozen=True)
class LayerEnergy:
    """A layer at one time step, means per image; `firing_rate`: None where no spikes feed it."""

    layer: str
    t: int
    energy_pj: float
    firing_rate: float | None = None

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> LayerEnergy:
        """Return what a row of energy.csv says of one layer and step."""
        # what feeds other layers than those of accumulates are no spikes
        rate = row["firing_rate"] if row["op"] == "AC" else None
        return cls(row["layer"], row["t"], row["energy_pj"], rate)


@dataclass(frozen=True)
class EnergyPoint:
    """What an answer costs and how often it is right; `name` says which answer."""

    name: str
    energy_pj: float
    accuracy: float


@styled
def accuracy(
    steps: Sequence[StepAccuracy], teacher: float | None, method: str = "", title: str = ""
) -> Drawing:
    """Draw accuracy at t, hollow, and of steps 1 to t, with 95 % intervals over the images."""
    drawing, plot = style.blank(WIDTH, 3.3)
    look, ends = style.look_of(method), []
    for alone, aside in ((True, -0.012), (False, 0.012)):  # side by side at any number of steps
        ends.append(_accuracy_line(drawing, plot, steps, alone, look, aside * len(steps)))
    if teacher is not None:
        plot.axhline(100 * teacher, color=GREY, linestyle="--", linewidth=1)
        plot.annotate(
            f"teacher {100 * teacher:.2f}",
            (0.0, 100 * teacher),
            xycoords=("axes fraction", "data"),
            xytext=(3, 3),
            textcoords="offset points",
            fontsize=LABEL_SIZE,
        )
    _time_axis(plot, [step.t for step in steps])
    # room for the labels of the last points
    plot.margins(y=0.2)
    plot.set_title(drawable(title))
    # last: where a label has room depends on the limits of the axes
    style.label_points(plot, ends, ["step t alone", "steps 1 to t together"])
    return drawing


@styled
def accuracies(runs: Mapping[str, Sequence[StepAccuracy]]) -> Drawing:
    """Draw the accuracy of steps 1 to t of several runs, a line a run."""
    drawing, plot = style.blank(WIDTH, 3.3)
    for place, (name, steps) in enumerate(runs.items()):
        look = Look(PALETTE[place % len(PALETTE)])
        # beside each other, so that no interval hides another
        _accuracy_line(drawing, plot, steps, False, look, 0.03 * place, f"{name}, ")
        # named by an empty line: an error bar would bring its bars into the legend
        plot.plot([], label=_short(name, 26), **look.marks)
    _time_axis(plot, sorted({step.t for steps in runs.values() for step in steps}))
    _legend(plot)
    return drawing


def _accuracy_line(
    drawing: Drawing,
    plot: Axes,
    steps: Sequence[StepAccuracy],
    alone: bool,
    look: Look,
    aside: float,
    name: str = "",
) -> tuple[float, float]:
    """Draw a line with its intervals; return where its last point stands, in data."""
    heights = [100 * (step.accuracy_at_t if alone else step.accuracy) for step in steps]
    ends = [step.interval_at_t if alone else step.interval for step in steps]
    places = [step.t + aside for step in steps]
    # matplotlib asks how far a bar reaches, not where it ends
    below = [height - 100 * low for height, (low, _) in zip(heights, ends, strict=True)]
    above = [100 * high - height for height, (_, high) in zip(heights, ends, strict=True)]
    hollow: dict[str, Any] = {"markerfacecolor": "none", "linestyle": ":"} if alone else {}
    bars = plot.errorbar(places, heights, yerr=[below, above], elinewidth=1, **look.marks, **hollow)
    texts = [
        f"{name}{'step' if alone else 'steps 1 to'} {step.t}: {height:.2f} % "
        f"({100 * low:.2f} to {100 * high:.2f}), "
        f"{step.right_at_t if alone else step.right:,} of {step.images:,} images"
        for step, height, (low, high) in zip(steps, heights, ends, strict=True)
    ]
    drawing.tell(bars[0], texts)
    return places[-1], heights[-1]


def _time_axis(plot: Axes, steps: Sequence[int]) -> None:
    # of many steps every eighth and both ends: numbers at all of them would overlap
    few = len(steps) <= LABELLED
    plot.set_xticks([t for t in steps if few or t in (steps[0], steps[-1]) or t % 8 == 0])
    # room for the teacher's label at the left
    plot.set_xlim(steps[0] - 0.5 - 0.08 * len(steps), steps[-1] + 0.5)
    plot.grid(visible=False, axis="x")
    plot.set_xlabel("time step t")
    plot.set_ylabel(ACCURACY)


@styled
def by_layer(rows: Sequence[LayerEnergy], title: str = "") -> Drawing:
    """Draw the energy of each layer, a bar from zero, the first time step the darkest part."""
    drawing, plot, layers = _layer_plot(rows)
    steps = sorted({row.t for row in rows})
    sums = {name: sum(row.energy_pj for row in rows if row.layer == name) for name in layers}
    # the unit of the longest bar, for all of them
    scale, unit = unit_of(max(sums.values()))
    base = dict.fromkeys(layers, 0.0)
    for rank, step in enumerate(steps):
        of_step = [row for row in rows if row.t == step]
        bars = plot.barh(
            [layers[row.layer] for row in of_step],
            [row.energy_pj / scale for row in of_step],
            left=[base[row.layer] for row in of_step],
            height=0.62,
            color=BLUE,
            alpha=_strength(rank, len(steps)),
            label=f"t = {step}",
        )
        for bar, row in zip(bars, of_step, strict=True):
            base[row.layer] += row.energy_pj / scale
            drawing.tell(bar, [f"{row.layer}, t = {row.t}: {joules(row.energy_pj)}"])
    plot.set_xlabel(f"energy an image ({unit})")
    # above the legend, which stands above the plot
    plot.set_title(drawable(title), pad=22)
    _legend(plot)
    return drawing


@styled
def firing(rows: Sequence[LayerEnergy]) -> Drawing:
    """Draw the firing rate of what feeds each layer, a point a time step, beside the same axis."""
    drawing, plot, layers = _layer_plot(rows)
    spiking = [row for row in rows if row.firing_rate is not None]
    for name, place in layers.items():
        rates = [100 * float(row.firing_rate or 0.0) for row in spiking if row.layer == name]
        if rates:
            # ties the points of a layer together, which may lie far apart
            plot.plot([min(rates), max(rates)], [place, place], color=PALE, alpha=0.6, linewidth=2)
    steps = sorted({row.t for row in spiking})
    for rank, step in enumerate(steps):
        of_step = [row for row in spiking if row.t == step]
        rates = [100 * float(row.firing_rate or 0.0) for row in of_step]
        places = [layers[row.layer] for row in of_step]
        strength = _strength(rank, len(steps))
        (points,) = plot.plot(rates, places, "o", color=BLUE, alpha=strength, label=f"t = {step}")
        texts = [f"{row.layer}, t = {row.t}" for row in of_step]
        drawing.tell(points, [f"{text}: {r:.2f} %" for text, r in zip(texts, rates, strict=True)])
    plot.set_xlim(left=0.0)
    plot.set_xlabel("inputs that spike (%)")
    _legend(plot)
    return drawing


def _layer_plot(rows: Sequence[LayerEnergy]) -> tuple[Drawing, Axes, dict[str, int]]:
    """Return a drawing with a line a layer, from above, and the place of each."""
    layers = {name: place for place, name in enumerate(dict.fromkeys(row.layer for row in rows))}
    drawing, plot = style.blank(WIDTH, ROW * len(layers) + 1.1)
    plot.set_yticks(range(len(layers)), [_short(name, 26) for name in layers])
    # from above: the first layer that sees the image is the first line
    plot.set_ylim(len(layers) - 0.4, -0.6)
    plot.grid(visible=False, axis="y")
    plot.tick_params(axis="y", length=0)
    return drawing, plot, layers


def _strength(rank: int, steps: int) -> float:
    # the last step keeps 0.3: fainter would be lost on a light or a dark page
    return 1.0 - 0.7 * rank / max(1, steps - 1)


@styled
def tradeoff(
    steps: Sequence[EnergyPoint],
    teacher: EnergyPoint | None,
    exits: Sequence[EnergyPoint] = (),
    ann_pj: float | None = None,
    method: str = "",
    title: str = "",
) -> Drawing:
    """Draw accuracy against energy: the student's steps, early exit, the teacher, its ANN.

    `ann_pj`: the ANN of the same shape, a line, since nobody measured its accuracy.
    """
    drawing, plot = style.blank(WIDTH, 3.6)
    others = [] if teacher is None else [teacher]
    energies = [point.energy_pj for point in (*steps, *exits, *others)]
    scale, _ = energy_axis(
        plot, [*energies, *([ann_pj] if ann_pj else [])], ann_pj or steps[-1].energy_pj
    )
    look = style.look_of(method)
    if ann_pj:
        style.name_line(plot, ann_pj / scale, "ANN of this shape")
    # early exit first, so that the points of whole steps lie on top
    if exits:
        marks = {"marker": ".", "color": look.colour, "linewidth": 1}
        _points(drawing, plot, exits, scale, **marks)
    # where early exit lies between the steps, their own line joins what nobody measured
    _points(drawing, plot, steps, scale, linestyle=":" if exits else "-", **look.marks)
    if teacher is not None:
        marks = {"marker": style.TEACHER.marker, "color": GREY}
        _points(drawing, plot, others, scale, **marks)
    plot.margins(y=0.2)
    plot.set_title(drawable(title), pad=18)  # above the name of the ANN's line
    places = [(point.energy_pj / scale, 100 * point.accuracy) for point in (*steps, *others)]
    style.label_points(plot, places, [_short(point.name, 26) for point in (*steps, *others)])
    return drawing


@styled
def tradeoffs(runs: Mapping[str, Sequence[EnergyPoint]]) -> Drawing:
    """Draw accuracy against energy of several runs, a line a run and a point a time step."""
    drawing, plot = style.blank(WIDTH, 3.3)
    every = [point.energy_pj for points in runs.values() for point in points]
    scale, _ = energy_axis(plot, every, max(every))
    for place, (name, points) in enumerate(runs.items()):
        look = Look(PALETTE[place % len(PALETTE)])
        named = [EnergyPoint(f"{name}, {p.name}", p.energy_pj, p.accuracy) for p in points]
        _points(drawing, plot, named, scale, label=_short(name, 26), **look.marks)
    plot.margins(y=0.15)
    _legend(plot)
    return drawing


def _points(
    drawing: Drawing, plot: Axes, points: Sequence[EnergyPoint], scale: float, **look: Any
) -> None:
    places = [(point.energy_pj / scale, 100 * point.accuracy) for point in points]
    (line,) = plot.plot(*zip(*places, strict=True), **look)
    texts = [f"{p.name}: {joules(p.energy_pj, scale)}, {100 * p.accuracy:.2f} %" for p in points]
    drawing.tell(line, texts)


def energy_axis(plot: Axes, energies_pj: Sequence[float], in_unit_of: float) -> tuple[float, str]:
    """Let the x axis show energies, by their logarithms; return the unit: its pJ, its name.

    Linear where an energy is 0, which has no logarithm.
    """
    scale, unit = unit_of(in_unit_of)
    low, high = min(energies_pj) / scale / 1.5, 1.5 * max(energies_pj) / scale
    # ANN and SNN often lie a factor of ten apart
    if 0.0 < low <= high < math.inf:
        ticks = log_ticks(low, high)
        plot.set_xscale("log")
        plot.set_xticks(ticks, [f"{tick:,g}" for tick in ticks])
        # else matplotlib would number the ticks between ours as well
        plot.set_xticks([], minor=True)
        plot.set_xlim(low, high)
    plot.set_xlabel(f"energy an image ({unit}, arithmetic alone)")
    plot.set_ylabel(ACCURACY)
    return scale, unit


def log_ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`: 1, 2, 5, 10 ..., or fewer for a wide range."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        inside = [round(tick, 12 - decades[0]) for tick in ticks if low <= tick <= high]
        if len(inside) <= MOST_TICKS:
            return inside
    return inside[:: math.ceil(len(inside) / MOST_TICKS)]


@styled
def beside_others(pairs: Sequence[tuple[str, float, float]]) -> Drawing:
    """Draw a student's energy beside that of other networks: two points on a line each.

    `pairs`: the other's name, the student's energy in pJ, and the other's, both above 0.
    """
    drawing, plot = style.blank(WIDTH, 0.52 * len(pairs) + 0.9)
    energies = [energy for _, *both in pairs for energy in both]
    scale, unit = energy_axis(plot, energies, pairs[0][2])
    for place, (name, student_pj, other_pj) in enumerate(pairs):
        ends = [student_pj / scale, other_pj / scale]
        plot.plot(ends, [place, place], color=PALE, linewidth=2.5, zorder=1)
        for column, side, text in (
            (0.0, "left", _short(name, 34)),
            (1.0, "right", times(other_pj / student_pj)),
        ):
            across = plot.get_yaxis_transform()
            plot.text(column, place - 0.42, text, transform=across, ha=side, va="center")
    for which, who, look in ((1, "this student", Look(BLUE)), (2, "the other", style.TEACHER)):
        spent = [float(pair[which]) for pair in pairs]
        places = [energy / scale for energy in spent]
        (line,) = plot.plot(places, range(len(pairs)), linestyle="", label=who, **look.marks)
        named = zip(pairs, spent, strict=True)
        texts = [f"{pair[0]}: {who}, {joules(energy, scale)}" for pair, energy in named]
        drawing.tell(line, texts)
    plot.set_ylim(len(pairs) - 0.6, -0.8)
    plot.set_xlabel(f"energy an image ({unit})")
    # the axis of energies names the accuracy, which is not shown here
    plot.set_ylabel("")
    plot.set_yticks([])
    plot.spines["left"].set_visible(False)
    _legend(plot)
    return drawing


@styled
def over_epochs(curves: Mapping[str, Series], told: str, narrow: bool = True) -> Drawing:
    """Draw numbers over the epochs, a line each; `told` names them on hovering.

    On a logarithmic scale where they fall by much.
    """
    drawing, plot = style.blank(NARROW if narrow else WIDTH, 2.0 if narrow else 3.3)
    values = [value for series in curves.values() for _, value in series]
    for place, (name, series) in enumerate(curves.items()):
        colour = PALETTE[place % len(PALETTE)]
        # a mark for each of a thousand epochs would hide the line, and weigh on the page
        every = max(1, math.ceil(len(series) / DENSE))
        size = 5 if len(series) <= DENSE else 2
        epochs, heights = zip(*series, strict=True)
        look = {"color": colour, "marker": "o", "markersize": size, "markevery": every}
        (line,) = plot.plot(epochs, heights, label=_short(name, 26), **look)
        of = f"{name}, " if len(curves) > 1 else ""
        drawing.tell(line, [f"{of}epoch {n}: {told} {value:.4g}" for n, value in series[::every]])
    # not the learning rate: its schedule has the shape that was asked for on a linear scale
    if told != "lr" and min(values) > 0 and max(values) > WIDE * min(values):
        ticks = log_ticks(min(values), max(values))
        plot.set_yscale("log")
        plot.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        plot.set_yticks([], minor=True)
    else:
        plot.locator_params(axis="y", nbins=4)
    # no tick at epoch 2.5
    plot.xaxis.get_major_locator().set_params(integer=True, nbins=6)
    plot.grid(visible=False, axis="x")
    plot.set_xlabel("epoch")
    if len(curves) > 1:
        _legend(plot)
    return drawing


def _legend(plot: Axes) -> None:
    """Name the lines above the plot, where they hide nothing."""
    names = plot.get_legend_handles_labels()[1]
    # about as many letters as the plot is wide
    columns = max(1, min(len(names), 60 // (max(map(len, names), default=0) + 7)))
    if names:
        plot.legend(ncols=columns, loc="lower left", bbox_to_anchor=(0.0, 1.0))


def _short(name: str, length: int) -> str:
    """Return a name for a place with room for so much of it; on hovering the whole is told."""
    return drawable(name if len(name) <= length else f"{name[: length - 1]}…")
