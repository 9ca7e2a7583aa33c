"""Accuracies and energies in tables and plain sentences."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.measure import Measurement
from rich.table import Table

from tser_cli.report.csv_files import ALL, TOTAL
from tser_cli.report.verdict import EVEN, BesideAnn
from tser_cli.settings.fields import joules
from tser_cli.settings.registry import MethodEntry


def percent(fraction: float | None) -> str:
    """0.9534 -> "95.34 %"; None -> "-"."""
    return "-" if fraction is None else f"{100 * fraction:.2f} %"


def counted(number: int, name: str) -> str:
    """Return "1 epoch", "1,437 images"."""
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """Write a time: 37.2 -> "37 s", 4000 -> "67 min", 90000 -> "25.0 h"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def bar(fraction: float) -> str:
    """Return a bar of up to ten characters for a fraction from 0 to 1."""
    return "█" * round(10 * max(0.0, min(fraction, 1.0)))


class FittingTable(Table):
    """Leaves columns out, by their names in `drop` in that order, where there is no room for all.

    A column that is cut or folded to single letters says nothing; what is left out is said below.
    """

    drop: Sequence[str] = ()
    fold: int | None = None  # how narrow names may become before a column is left out

    def __rich_console__(self, console: Any, options: Any) -> Any:
        shown, free, folded = copy(self), options.update(width=10_000), copy(self)
        for name in self.drop:
            folded.columns = [copy(column) for column in shown.columns]
            for column in folded.columns:
                column.max_width = None if column.no_wrap else self.fold
            if Measurement.get(console, free, folded).maximum <= options.max_width:
                break
            shown.columns = [column for column in shown.columns if column.header != name]
        kept = {column.header for column in shown.columns}
        gone = [str(column.header) for column in self.columns if column.header not in kept]
        if any(gone):
            told = f"no room for: {', '.join(filter(None, gone))} (a wider terminal, or --json)"
            shown.caption = "\n".join(filter(None, [str(self.caption or ""), told]))
        yield from Table.__rich_console__(shown, console, options)


def new_table(
    title: str = "",
    left: Sequence[str] = (),
    right: Sequence[str] = (),
    drop: Sequence[str] = (),
    fold: int | None = None,
) -> FittingTable:
    """Return an empty table; on a narrow terminal `left` is folded, and `drop` left out."""
    made = FittingTable(
        title=title or None, title_justify="left", box=SIMPLE_HEAD, caption_justify="left"
    )
    made.drop, made.fold = drop, fold
    for name in left:
        made.add_column(name, overflow="fold")
    for name in right:
        # numbers: one that is cut would be another number
        made.add_column(name, justify="right", no_wrap=True)
    return made


def per_timestep_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Accuracy at each step, cumulative accuracy, and the teacher's on the last line."""
    columns = ("t", "at t", "cumulative", "loss", "entropy", "confidence")
    drop = ("", "confidence", "entropy", "loss")
    table = new_table(f"{title}: accuracy", right=columns, drop=drop)
    table.add_column("", no_wrap=True)
    for row in rows:
        table.add_row(
            str(row["t"]),
            percent(row["accuracy_at_t"]),
            percent(row["accuracy_cumulative"]),
            f"{row['loss_at_t']:.3f}",
            f"{row['entropy_at_t']:.3f}",
            f"{row['confidence_at_t']:.3f}",
            bar(row["accuracy_cumulative"]),
        )
    # an ANN has no time steps: its accuracy is set beside that of all steps together
    teacher = rows[-1]["teacher_accuracy"]
    if teacher is not None:
        table.add_section()
        table.add_row("teacher", "", percent(teacher), "", "", "", bar(teacher))
    return table


def methods_table(methods: Mapping[str, MethodEntry]) -> Table:
    """Return a line a method: its name, what it does, its source, its weights with their defaults.

    The weights that most methods read are left to the caption.
    """
    stated = [item for entry in methods.values() for item in entry.settings.weights().items()]
    # what four of five methods read would fill each line and hide what is particular
    often = {item for item, n in Counter(stated).items() if 5 * n >= 4 * len(methods)}
    common = {key: value for key, value in stated if (key, value) in often}
    caption = f"most methods also read {_listed(common)}"
    shown = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left")
    for name in ("method", "what it does", "source", "weights"):
        shown.add_column(name, no_wrap=name == "method")
    for name, entry in methods.items():
        read = entry.settings
        # one with another default than the others has it in its own line
        own = {key: value for key, value in read.weights().items() if common.get(key) != value}
        shown.add_row(name, read.summary, read.source, _listed(own))
    return shown


def _listed(weights: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in weights.items())


def deviations(methods: Mapping[str, MethodEntry]) -> str:
    """Return a line a method that differs from the code that its authors released."""
    stated = [(name, entry.settings.deviations) for name, entry in methods.items()]
    lines = ["different from the authors' code:", *(f"  {n}: {text}" for n, text in stated if text)]
    return "\n".join(lines)


def next_steps(folder: Path, commands: Sequence[str]) -> str:
    """Return where the run is, and what to type next: each command below what it is for."""
    return "\n".join([f"run folder: {folder}", "next:", *(f"  {line}" for line in commands)])


AT_LEAST = 0.05  # of the dense FLOP: so much left out would change the figures
NEVER_COUNTED = re.compile("batch_norm|pool|^(add|mean)$").search  # nor by anybody else
COUNT_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def quantity(count: float) -> str:
    """12345.6 -> "12.3k"."""
    scale, unit = next((u for u in COUNT_UNITS if abs(count) >= u[0]), COUNT_UNITS[-1])
    return f"{count / scale:.3g}{unit}"


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return a line a layer over all steps, the totals last; bars show each layer's share."""
    whole = [row for row in rows if row["t"] == ALL]
    # bars beside the largest layer: beside the total, those of a deep network would vanish
    # 1.0 where no layer spent anything: no bars, instead of a division by 0
    largest = max(row["energy_pj"] for row in whole[:-1]) or 1.0
    shown = new_table(
        f"{title}: means per image",
        ("layer", "op"),
        ("rate", "ops", "energy", "ANN"),
        ("share", "ops", "rate", "op", "ANN"),
    )
    shown.columns[1].no_wrap = True
    shown.add_column("share", no_wrap=True)
    for row in whole:
        if row["layer"] == TOTAL:
            shown.add_section()
        share = "" if row["layer"] == TOTAL else bar(row["energy_pj"] / largest)
        shown.add_row(
            str(row["layer"]),
            str(row["op"]),
            # other layers are fed with values: their share of non-zeros is no firing rate
            f"{row['firing_rate']:.3f}" if row["op"] == "AC" else "",
            quantity(row["sop_value"] + row["macs"]),
            joules(row["energy_pj"], whole[-1]["ann_energy_pj"]),
            joules(row["ann_energy_pj"], whole[-1]["ann_energy_pj"]),
            share,
        )
    return shown


def simulated(events: str | None) -> list[str]:
    """Return the heading of results on events that no camera recorded, [] for others."""
    # "simulated from digits", as a data set says it
    return [f"simulated events: {events.removeprefix('simulated ')}"] if events else []


def early_exit_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a line a threshold: accuracy, mean steps, where images stopped, energy spent."""
    steps = range(1, rows[0]["timesteps"] + 1)
    stopped = f"stopped at 1..{len(steps)}"
    timed = rows[0].get("latency_ms") is not None  # of events
    numbers = ("accuracy", "steps", "energy", "of full", *["events seen"] * timed)
    shown = new_table("early exit", ("stop when",), numbers, (stopped, "steps", "of full"))
    shown.columns[0].no_wrap = True
    # in one column: a column a step would leave no room on a terminal
    shown.add_column(stopped)
    for row in rows:
        shown.add_row(
            stopping(row),
            f"{100 * row['accuracy']:.2f} %",
            f"{row['mean_steps']:.2f}",
            joules(row["energy_pj"], row["energy_full_pj"]),
            f"{100 * row['energy_pj'] / row['energy_full_pj']:.0f} %",
            *([f"{row['latency_ms']:.0f} ms"] if timed else []),
            ", ".join(f"{100 * row[f'share_exit_{t}']:.0f} %" for t in steps),
        )
    return shown


def stopping(row: Mapping[str, Any]) -> str:
    """Return when an image stops: "confidence >= 0.8"; "never"."""
    sign = ">=" if row["criterion"] == "confidence" else "<="
    # a threshold of inf is how a rule says that no image stops before the last step
    never = row["threshold"] == math.inf
    return "never" if never else f"{row['criterion']} {sign} {row['threshold']:g}"


def budget_sentence(row: Mapping[str, Any]) -> str:
    """Return whether early exit kept its budget on the images of a row, and what it took."""
    energy, budget = row["energy_pj"], row["budget_pj"]
    lost = 100 * (row["accuracy"] - row["accuracy_full"])
    return (
        f"energy budget: {joules(energy, budget)} of {joules(budget)}, "
        f"{kept_or_over(energy, budget)}; "
        f"{lost:+.2f} points of accuracy against all steps; threshold chosen on "
        f"{row['chosen_on']} images"
    )


def compare(energy: float, other: float) -> str:
    """Return how two energies compare: "3.1 times less than", "1.2 times more than"."""
    if not energy:
        return "nothing, unlike"
    told = times(other / energy)
    return f"{told} {'as' if told.startswith('about') else 'than'}"


def budget_verdict(energy_pj: float, budget_pj: float) -> str:
    """Return "2.98 µJ of 3 µJ: kept", or "3.21 µJ of 3 µJ: 7 % over"."""
    spent = joules(energy_pj, budget_pj)
    return f"{spent} of {joules(budget_pj)}: {kept_or_over(energy_pj, budget_pj)}"


def kept_or_over(energy_pj: float, budget_pj: float) -> str:
    """Return "kept", or "7 % over"."""
    # significant digits, not decimals: 0.03 % over must not read as 0 % over
    over = 100 * (energy_pj / budget_pj - 1)
    return "kept" if energy_pj <= budget_pj else f"{over:.2g} % over"


def times(ratio: float) -> str:
    """Return how an energy compares with one `ratio` times as large: "3.1 times less"."""
    if abs(ratio - 1.0) < EVEN:
        return "about as much"
    return f"{ratio:.1f} times less" if ratio >= 1.0 else f"{1 / ratio:.1f} times more"


def comparison_table(beside: Sequence[BesideAnn]) -> Table:
    """Return a line an assumption: the student and the ANN of its shape."""
    title, numbers = "beside the ANN of the same shape", ("student", "ANN", "the student costs")
    shown = new_table(title, ("the same ANN",), numbers, ("student", "ANN"), 24)
    for one in beside:
        energies = (joules(pj, beside[0].ann_pj) for pj in (one.student_pj, one.ann_pj))
        shown.add_row(one.name, *energies, times(one.ratio))
    return shown


def leaves_out(document: Mapping[str, Any]) -> bool:
    """Return whether so much of a network is not counted that its energy is a lower bound."""
    shares = document.get("network", {}).get("uncounted_share_of_flop", {})
    left_out = sum(share for name, share in shares.items() if not NEVER_COUNTED(name))
    return bool(left_out >= AT_LEAST)


def energy_sentences(document: dict[str, Any], guessing: bool = False) -> list[str]:
    """Return the totals in words; without a ratio to the teacher of a network that guesses."""
    totals, profile, stem = document["totals"], document["profile"], document["stem"]

    def cost(energy_pj: float) -> str:
        return joules(energy_pj, totals["ann_energy_pj"])

    priced = f"Priced by {profile['name']}, on {counted(document['images'], 'image')}"
    if document["teacher"] and not guessing:
        energy, other = totals["energy_pj"], document["teacher"]["energy_pj"]
        priced += f"; {compare(energy, other)} the {cost(other)} of its teacher, "
        priced += document["teacher"]["name"]
    measured = "" if profile["measured"] else "not "
    constants = f"Constants: {profile['source']}; {measured}measured on a chip that ran networks"
    if profile["step_seconds"] is not None:
        constants += f"; a step takes {profile['step_seconds']:g} s"
    lines = [priced, constants]
    # a cheaper price of each operation must not pass for fewer operations
    if profile["name"].endswith("int8"):
        wide = cost(totals["energy_fp32_pj"])
        lines.append(f"The same operations in 32-bit floating point: {wide}")
    lines += [
        f"operations: {quantity(totals['sop_value'])} accumulates, {quantity(totals['macs'])} "
        f"MACs; the papers' formula, rate x T x FLOP, gives {cost(totals['energy_formula_pj'])}",
    ]
    frames = document["against_ann"]["assumptions"].get("frames")
    if frames:
        lines.append(
            f"the ANN of the same shape: {cost(totals['ann_energy_pj'])} on the mean frame, which "
            f"the table shows; {cost(frames['ann_pj'])} on each of the {document['timesteps']} "
            "frames"
        )
    if stem["layers"]:
        # others count the first layer at every step: with both totals a reader can compare
        lines.append(
            f"stem ({', '.join(stem['layers'])}): counted {stem['policy'].replace('_', ' ')}; the "
            f"total is {cost(stem['total_energy_once_pj'])} with it once an image, "
            f"{cost(stem['total_energy_per_step_pj'])} with it at every step"
        )
    updates = totals["neuron_update_energy_pj"]
    price = "" if updates is None else f", {cost(updates)}"
    updated = quantity(totals["neuron_updates"])
    lines.append(f"neuron updates, not in the total: {updated}{price}")
    if document["memory"]:
        traffic = cost(document["memory"]["snn"]["energy_pj"])
        lines.append(f"memory traffic, not in the total: {traffic}")
    return lines


def conventions_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a convention: operations, energy, and why it differs from the exact count."""
    numbers = ("MACs", "ACs", "energy", "x exact")
    shown = new_table("as others count it", ("convention",), numbers)
    shown.columns[0].no_wrap = True
    shown.add_column("differs by")
    largest = max((row["energy_pj"] for row in rows), default=None)
    for row in rows:
        ratio = row["ratio_to_exact"]
        shown.add_row(
            str(row["convention"]),
            quantity(row["macs"]),
            quantity(row["acs"]),
            joules(row["energy_pj"], largest),
            "" if ratio is None else f"{ratio:.3f}",
            str(row["differs_by"]),
        )
    return shown


def match_sentence(figure: str, names: Sequence[str]) -> str:
    """Return which conventions make a figure."""
    near = f"{figure} is within 5 % of: {', '.join(names)}"
    return near if names else f"{figure}: no convention comes within 5 % of it"


def memory_sentence(document: Mapping[str, Any]) -> str:
    """Return what arithmetic alone says, and what memory says, of the network beside its ANN."""
    totals, snn, ann = document["totals"], *(document["lemaire"][name] for name in ("snn", "ann"))
    plain = totals["energy_pj"], totals["ann_energy_pj"]
    names = ("arithmetic", "addressing", "memory")
    parts = ", ".join(f"{name} {joules(snn[f'{name}_pj'])}" for name in names)
    left_out = f"; without {', '.join(snn['omitted'])}" if snn["omitted"] else ""
    return (
        f"arithmetic alone: {joules(plain[0])}, {compare(*plain)} the {joules(plain[1])} of the "
        "ANN; "
        f"with memory (Lemaire et al. 2022): {joules(snn['total_pj'])}, "
        f"{compare(snn['total_pj'], ann['total_pj'])} the {joules(ann['total_pj'])} of the ANN "
        f"({parts}{left_out})"
    )


def rival_sentences(rival: Mapping[str, Any]) -> list[str]:
    """Return the fair rival, on arithmetic alone and with memory."""
    lines = [
        f"fair rival of {rival['timesteps']} time steps: the ANN with activations of "
        f"{rival['bits']} bits (Yan et al., arXiv 2409.08290)"
    ]
    for title, key in (("arithmetic alone", "arithmetic"), ("with memory", "with_memory")):
        duel = rival[key]
        winner = "SNN" if duel["snn_pj"] < duel["rival_pj"] else "ANN"
        even = duel["break_even"]
        limit = "at no spike rate" if even is None else f"below a spike rate of {100 * even:.2f} %"
        lines.append(
            f"{title}: SNN {joules(duel['snn_pj'])}, ANN {joules(duel['rival_pj'])}: the {winner} "
            f"wins; an SNN wins {limit}, and this one's is {100 * rival['spike_rate']:.2f} %"
        )
    return lines


def network_sentences(
    layout: str,
    inputs: str,
    kinds: Mapping[str, str],
    differing: Mapping[str, Mapping[str, int]],
    uncounted: Sequence[tuple[str, float]],
    notes: Sequence[str] = (),
) -> list[str]:
    """Return what was found out about a network from elsewhere."""
    groups: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    lines = [f"layout: {layout}; fed with {inputs}"]
    lines += [f"fed with {kind}: {', '.join(names)}" for kind, names in groups.items()]
    lines += notes
    for name, met in differing.items():
        calls = ", ".join(f"{kind} in {count}" for kind, count in met.items())
        lines.append(f"warning: {name} is fed with other kinds in other calls: {calls}")
    small = 0.001  # a network may have hundreds of such layers
    shares = [f"{name} {100 * share:.2g} %" for name, share in uncounted if share >= small]
    rest = sum(share for _, share in uncounted if share < small)
    if rest:
        shares.append(f"others {100 * rest:.2g} %")
    lines.append(f"not counted, of the dense FLOP: {', '.join(shares) or 'nothing'}")
    return lines
