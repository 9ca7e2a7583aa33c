"""The model card beside an export: what it is, what it does on test images, and how to feed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tser_cli.base.errors import escaped, one_line, visible
from tser_cli.export import fixed_point, verify
from tser_cli.export.graph import Facts, Graph
from tser_cli.report.words import percent
from tser_cli.settings.fields import joules

MARK = "<!-- model card, written by tser export -->"
LIMITS = (
    "- It was trained and measured on {dataset} alone; on other images its answers mean nothing.",
    "- The network does not know when an image shows none of its classes.",
    "- The energy is that of arithmetic by the constants named above; it is no measurement of a "
    "chip.",
)


@dataclass(frozen=True)
class CardFacts:
    """What the card says besides the graph's own facts.

    `rows`: the steps of the run's result, `energy`: the sidecar of energy.csv, both empty where
    there is none; `float_energy_pj`: what the same operations cost in 32-bit floating point.
    `verdict`: on both in one line, "" where the run recorded no result. `ann_energy_pj`: that of
    the ANN in the verdict, in whose unit all energies stand; None without a comparison.
    `settings`: the recipe as TOML. `checks` is None where nothing was verified. `fixed` and
    `change`: integer potentials, and what they do to the spikes.
    """

    file: str
    format_name: str
    run: str
    method: str
    source: str
    teacher: str
    rows: tuple[Mapping[str, Any], ...]
    energy: Mapping[str, Any]
    float_energy_pj: float
    ann_energy_pj: float | None
    verdict: str
    settings: str
    checks: tuple[verify.ProgramCheck, ...] | None = None
    fixed: fixed_point.FixedGraph | None = None
    change: fixed_point.Change | None = None


def is_of(text: str, file: str) -> bool:
    """Return whether `text` is the card of that file."""
    return text.startswith(MARK) and f"\n{_named(_escaped(file))}" in text


def _named(file: str) -> str:
    return f"`{file}` ("


def _escaped(value: Any) -> Any:
    """Return a record, a mapping, a tuple or a text with all texts in it escaped, on one line."""
    if isinstance(value, str):
        return escaped(one_line(value, 500))
    if isinstance(value, Mapping):
        return {key: _escaped(part) for key, part in value.items()}
    if isinstance(value, tuple):
        return tuple(map(_escaped, value))
    if isinstance(value, Facts | CardFacts):
        return replace(value, **{key: _escaped(part) for key, part in vars(value).items()})
    return value


def card(graph: Graph, facts: CardFacts) -> str:
    """Return the card as Markdown, with the mark in its first line by which it is known again."""
    # all that comes from outside at once, and so no text is forgotten; TOML stands in a fence
    settings, verdict = visible(facts.settings), facts.verdict  # numbers in our own words
    facts, graph = _escaped(facts), replace(graph, facts=_escaped(graph.facts))
    sections = [
        (f"{graph.facts.model} on {graph.facts.dataset}", _summary(graph, facts, verdict)),
        ("Accuracy", accuracy(facts.rows)),
        ("Energy", energy(facts)),
        ("Input and output", _input(graph, facts.fixed)),
        *([("Integer potentials", _potentials(facts.change))] if facts.change else []),
        ("Checked in other programs", _checks(facts.checks)),
        ("Limits", [line.format(dataset=graph.facts.dataset) for line in LIMITS]),
        ("Recipe", ["```toml", settings.strip(), "```"]),
        ("Citation", [f"Method `{facts.method}`: {facts.source}. Exported by tser."]),
    ]
    text = [MARK, ""]
    for number, (title, lines) in enumerate(sections):
        text += [f"{'#' if number == 0 else '##'} {title}", "", *lines, ""]
    return "\n".join(text)


def _summary(graph: Graph, facts: CardFacts, verdict: str) -> list[str]:
    weights = sum(node.weight.size for node in graph.weighted)
    teacher = f"distilled from {facts.teacher} " if facts.teacher else "trained without a teacher "
    return [
        *([f"{verdict}.", ""] if verdict else []),
        f"{_named(facts.file)}{facts.format_name}) holds a spiking network, {teacher}with "
        f"the method `{facts.method}`: {len(graph.neurons)} layers of spiking neurons, "
        f"{weights:,} weights, T = {graph.facts.timesteps} time steps. Batch norms are folded into "
        f"the weights. It is from the run `{facts.run}`.",
    ]


def accuracy(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a table of the accuracy at each step."""
    if not rows:
        return ["Not measured: the run recorded no result."]
    lines = [
        "| t | accuracy of step t | of the mean of steps 1..t | test images |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        at_t, mean = (row[f"accuracy_{kind}"] for kind in ("at_t", "cumulative"))
        lines.append(f"| {row['t']} | {percent(at_t)} | {percent(mean)} | {row['images']} |")
    return lines


def energy(facts: CardFacts) -> list[str]:
    """Return what an image costs, in joules and operations, and by which constants."""
    found = facts.energy
    if not found:
        return ["Not measured: the run has no energy.json (tser energy --run RUN writes it)."]
    profile, totals, narrow = found["profile"], found["totals"], ""
    if profile.get("ac16_pj"):
        narrow = f" ({profile['ac16_pj']} where 16 bits hold the sum)"
    beside_pj = facts.ann_energy_pj or totals["energy_pj"]
    return [
        f"{joules(totals['energy_pj'], beside_pj)} an image (mean of {found['images']} test "
        f"images): {totals['sop_value']:,.0f} accumulates at {profile['ac_pj']} pJ{narrow} and "
        f"{totals['macs']:,.0f} multiply-accumulates at {profile['mac_pj']} pJ. Constants: "
        f"{profile['name']}, {profile['technology']}; {profile['source']}. {profile['note']}",
        "",
        "The same operations in 32-bit floating point: "
        f"{joules(facts.float_energy_pj, beside_pj)} an image.",
    ]


def _potentials(change: fixed_point.Change) -> list[str]:
    return [
        "Membrane potentials and thresholds are 32-bit integers, by the equations above: they are "
        f"not the student's own numbers. {change.sentence().capitalize()}. The accuracies on this "
        "card are the student's, with its own potentials."
    ]


def _input(graph: Graph, fixed: fixed_point.FixedGraph | None) -> list[str]:
    channels, height, width = graph.input_shape
    facts = graph.facts
    shape = f"float [N, {channels}, {height}, {width}]"
    colour = "grey" if channels == 1 else "RGB"
    shown = (
        f"Input: {shape}, {colour}, (pixel / 255 - mean) / std, "
        f"with mean {list(facts.mean)} and std {list(facts.std)}, the same at every time step."
    )
    if facts.frames:
        shown = f"Input: {shape} at each of {facts.timesteps} time steps, counts: {facts.frames}."
    own = [node.equations for node in graph.neurons]
    rounded = [neuron.equations for neuron in fixed.neurons.values()] if fixed else []
    # each set of equations once: most layers have the same
    neurons = dict.fromkeys(rounded or own)
    return [
        shown,
        "",
        f"Output: logits [{facts.timesteps}, N, {len(facts.classes)}], one set a time step. The "
        "answer after t steps is the argmax of the mean of steps 1..t. Classes: "
        f"{', '.join(facts.classes[:20])}{', ...' if len(facts.classes) > 20 else ''}.",
        "",
        "Neurons, one time step (v: membrane potential, x: input, s: spikes):",
        "",
        *(f"    {equations}" for equations in list(neurons)[:4]),
    ]


def _checks(checks: tuple[verify.ProgramCheck, ...] | None) -> list[str]:
    if checks is None:
        return ["Not checked: exported with --no-verify."]
    lines = [
        "| program | spikes compared | differing | ties | largest difference of logits |",
        "| --- | --- | --- | --- | --- |",
    ]
    for check in checks:
        versions = ", ".join(f"{name} {number}" for name, number in check.versions.items())
        c = check.comparison
        gap = max(c.logits_difference)
        lines.append(f"| {versions} | {c.values:,} | {c.differing} | {c.ties} | {gap:.1e} |")
    return lines
