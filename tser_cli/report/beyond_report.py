"""Conventions, memory, the fair rival and an audit, as tables and sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli.quantities import joules
from tser_cli.report.energy_report import compare, quantity

SMALL_SHARE = 0.001


def conventions_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a convention: its operations, its energy, and why it differs from the exact
    count.
    """
    shown = Table(title="as others count it", title_justify="left", box=SIMPLE_HEAD)
    shown.add_column("convention", no_wrap=True)
    for name in ("MACs", "ACs", "energy", "x exact"):
        shown.add_column(name, justify="right", no_wrap=True)
    shown.add_column("differs by")
    for row in rows:
        ratio = row["ratio_to_exact"]
        shown.add_row(
            str(row["convention"]),
            quantity(row["macs"]),
            quantity(row["acs"]),
            joules(row["energy_pj"]),
            "" if ratio is None else f"{ratio:.3f}",
            str(row["differs_by"]),
        )
    return shown


def match_sentence(figure: str, names: Sequence[str]) -> str:
    """Return which conventions make a figure."""
    if not names:
        return f"{figure}: no convention comes within 5 % of it"
    return f"{figure} is within 5 % of: {', '.join(names)}"


def memory_sentence(document: Mapping[str, Any]) -> str:
    """Return what arithmetic alone says, and what memory says, of the network beside its ANN."""
    totals, snn, ann = document["totals"], *(document["lemaire"][name] for name in ("snn", "ann"))
    plain = totals["energy_pj"], totals["ann_energy_pj"]
    parts = ", ".join(
        f"{name} {joules(snn[key])}"
        for name, key in (
            ("arithmetic", "arithmetic_pj"),
            ("addressing", "addressing_pj"),
            ("memory", "memory_pj"),
        )
    )
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
) -> list[str]:
    """Return what was found out about a network from elsewhere."""
    groups: dict[str, list[str]] = {}
    for name, kind in kinds.items():
        groups.setdefault(kind, []).append(name)
    lines = [f"layout: {layout}; fed with {inputs}"]
    lines += [f"fed with {kind}: {', '.join(names)}" for kind, names in groups.items()]
    if next(iter(kinds.values()), "") == "sums":
        lines.append(
            "warning: the network's input is whole numbers, which are taken for sums of spikes; if "
            "they are pixels, scale them"
        )
    for name, met in differing.items():
        calls = ", ".join(f"{kind} in {count}" for kind, count in met.items())
        lines.append(f"warning: {name} is fed with other kinds in other calls: {calls}")
    shares = [f"{name} {100 * share:.2g} %" for name, share in uncounted if share >= SMALL_SHARE]
    rest = sum(share for _, share in uncounted if share < SMALL_SHARE)
    if rest:
        shares.append(f"others {100 * rest:.2g} %")
    lines.append(f"not counted, of the dense FLOP: {', '.join(shares) or 'nothing'}")
    return lines


def finding_sentence(row: Mapping[str, Any]) -> str:
    """Return a finding of an audit: where, how much of it, and what to do."""
    evidence = f"{row['evidence']:.3g} {row['unit']}"
    return f"{row['severity']}: {row['check']}: {row['layer']}: {evidence}; {row['advice']}"
