"""Energy on the terminal, from the rows of energy.csv and its sidecar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli.csv_words import ALL, TOTAL
from tser_cli.quantities import joules
from tser_cli.report.console import bar

ABOUT_THE_SAME = 0.005  # half a point of accuracy
COUNT_UNITS = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def quantity(count: float) -> str:
    """12345.6 -> "12.3k"."""
    scale, unit = next((u for u in COUNT_UNITS if abs(count) >= u[0]), COUNT_UNITS[-1])
    return f"{count / scale:.3g}{unit}"


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Return a line a layer over all steps, the totals last; bars show each layer's share."""
    whole = [row for row in rows if row["t"] == ALL]
    largest = max(row["energy_pj"] for row in whole[:-1]) or 1.0
    shown = Table(title=f"{title}: means per image", title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("layer", overflow="fold")
    shown.add_column("op", no_wrap=True)
    for name in ("rate", "ops", "energy", "ANN"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("share", no_wrap=True)
    for row in whole:
        if row["layer"] == TOTAL:
            shown.add_section()
        share = "" if row["layer"] == TOTAL else bar(row["energy_pj"] / largest, 10)
        shown.add_row(
            str(row["layer"]),
            str(row["op"]),
            f"{row['firing_rate']:.3f}" if row["op"] == "AC" else "",
            quantity(row["sop_value"] + row["macs"]),
            joules(row["energy_pj"]),
            joules(row["ann_energy_pj"]),
            share,
        )
    return shown


def early_exit_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a line a threshold: accuracy, mean steps, where images stopped, energy spent."""
    steps = range(1, rows[0]["timesteps"] + 1)
    shown = Table(title="early exit", title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("stop when", no_wrap=True)
    for name in ("accuracy", "steps", "energy", "of full"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column(f"stopped at 1..{len(steps)}")
    for row in rows:
        shown.add_row(
            stopping(row),
            f"{100 * row['accuracy']:.2f} %",
            f"{row['mean_steps']:.2f}",
            joules(row["energy_pj"]),
            f"{100 * row['energy_pj'] / row['energy_full_pj']:.0f} %",
            ", ".join(f"{100 * row[f'share_exit_{t}']:.0f} %" for t in steps),
        )
    return shown


def stopping(row: Mapping[str, Any]) -> str:
    """Return when an image stops: "confidence >= 0.8"; "never"."""
    if row["threshold"] == math.inf:
        return "never"
    sign = ">=" if row["criterion"] == "confidence" else "<="
    return f"{row['criterion']} {sign} {row['threshold']:g}"


def budget_sentence(row: Mapping[str, Any]) -> str:
    """Return whether early exit kept its budget on the images of a row, and what it took."""
    energy, budget = row["energy_pj"], row["budget_pj"]
    lost = 100 * (row["accuracy"] - row["accuracy_full"])
    return (
        f"energy budget: {joules(energy)} of {joules(budget)}, {kept_or_over(energy, budget)}; "
        f"{lost:+.2f} points of accuracy against all steps; threshold chosen on "
        f"{row['chosen_on']} images"
    )


def compare(energy: float, other: float) -> str:
    """Return how two energies compare: "3.1 times less than", "1.2 times more than"."""
    return f"{times(other / energy)} than" if energy else "nothing, unlike"


def budget_verdict(energy_pj: float, budget_pj: float) -> str:
    """Return "2.98 µJ of 3 µJ: kept", or "3.21 µJ of 3 µJ: 7 % over"."""
    return f"{joules(energy_pj)} of {joules(budget_pj)}: {kept_or_over(energy_pj, budget_pj)}"


def kept_or_over(energy_pj: float, budget_pj: float) -> str:
    """Return "kept", or "7 % over"."""
    if energy_pj <= budget_pj:
        return "kept"
    return f"{100 * (energy_pj / budget_pj - 1):.2g} % over"


def headline(against: Mapping[str, Any]) -> list[str]:
    """Return what decides, in two or three lines: the range beside the ANN of the same shape.

    `against` is the entry `against_ann` of the sidecar. The third line is there where fewer steps
    have about the same accuracy.
    """
    cases = against["assumptions"]
    snn, ann = cases["same"]["snn_pj"], cases["same"]["ann_pj"]
    if snn in (0.0, ann):  # nothing was counted, or the network is that ANN itself
        return [f"One image costs {joules(snn)}."]
    ratios = sorted((case["ann_pj"] / case["snn_pj"] for case in cases.values()), reverse=True)
    lines = [f"One image costs {joules(snn)}: {spanned(ratios)} the ANN of the same shape."]
    return [*lines, _cases(cases), *_fewer_steps(against["steps_pj"], against["accuracy"])]


def spanned(ratios: Sequence[float]) -> str:
    """Return the first and the last of several comparisons: "6.8 times less to 2.9 times more
    than".
    """
    first, last = times(ratios[0]), times(ratios[-1])
    return f"{first} than" if first == last else f"from {first} to {last} than"


def times(ratio: float) -> str:
    """Return how an energy compares with one `ratio` times as large: "3.1 times less"."""
    return f"{ratio:.1f} times less" if ratio >= 1.0 else f"{1 / ratio:.1f} times more"


def _cases(cases: Mapping[str, Any]) -> str:
    ratio = {name: times(case["ann_pj"] / case["snn_pj"]) for name, case in cases.items()}
    told = [f"{ratio['same']} than its {joules(cases['same']['ann_pj'])} in the same arithmetic"]
    if "skipping" in cases:
        share = f"{100 * cases['skipping']['skipped']:.0f} %"
        told.append(f"{ratio['skipping']} if it skips its zeros ({share}, as in the teacher)")
    if "memory" in cases:
        told.append(f"{ratio['memory']} with memory traffic")
    if "int8" in cases:
        int8 = joules(cases["int8"]["ann_pj"])
        told.append(f"{ratio['int8']} than its {int8} in 8-bit integers")
    return f"That is {', '.join(told)}."


def _fewer_steps(steps_pj: Sequence[float], accuracy: Sequence[float]) -> list[str]:
    for t, reached in enumerate(accuracy[:-1]):
        if reached >= accuracy[-1] - ABOUT_THE_SAME:
            steps = "t = 1 alone has" if t == 0 else f"t = 1..{t + 1} have"
            whole = 100 * accuracy[-1]
            return [
                f"{steps} {100 * reached:.2f} % for {joules(steps_pj[t])}; all steps {whole:.2f} %."
            ]
    return []


def sentences(document: dict[str, Any]) -> list[str]:
    """Return the totals, and what they mean, in words."""
    totals, profile, stem = document["totals"], document["profile"], document["stem"]
    lines = [
        *headline(document["against_ann"]),
        f"Priced by {profile['name']}, on {document['images']} images"
        + _teacher(totals["energy_pj"], document["teacher"]),
        *_in_floating_point(totals, profile["name"]),
        f"operations: {quantity(totals['sop_value'])} accumulates, {quantity(totals['macs'])} "
        f"MACs; the papers' formula, rate x T x FLOP, gives {joules(totals['energy_formula_pj'])}",
        f"stem ({', '.join(stem['layers'])}): counted {stem['policy'].replace('_', ' ')}; the "
        f"total is {joules(stem['total_energy_once_pj'])} with it once an image, "
        f"{joules(stem['total_energy_per_step_pj'])} with it at every step",
    ]
    updates = totals["neuron_update_energy_pj"]
    lines.append(
        f"neuron updates, not in the total: {quantity(totals['neuron_updates'])}"
        + (f", {joules(updates)}" if updates is not None else "")
    )
    if document["memory"]:
        traffic = joules(document["memory"]["snn"]["energy_pj"])
        lines.append(f"memory traffic, not in the total: {traffic}")
    return lines


def _in_floating_point(totals: dict[str, Any], profile: str) -> list[str]:
    """Return what the same operations cost with wider weights, where they were charged as int8."""
    if not profile.endswith("int8"):
        return []
    return [f"The same operations in 32-bit floating point: {joules(totals['energy_fp32_pj'])}"]


def _teacher(energy: float, teacher: dict[str, Any] | None) -> str:
    if not teacher:
        return ""
    other = teacher["energy_pj"]
    return f"; {compare(energy, other)} the {joules(other)} of its teacher, {teacher['name']}"
