"""What can be wrong with a spiking network without any error: found by running copies of it.

Each check yields what it finds; one that does not apply raises Unchecked, with why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import TserError
from tser_cli.energy.any_network import network_counter as trial
from tser_cli.energy.any_network.layouts import INSIDE, Presentation, fresh_copy, try_out
from tser_cli.energy.any_network.network_counter import Signature, changes, observe
from tser_cli.energy.any_network.plan import TrialPlan, make_plan
from tser_cli.energy.counter import first_tensor
from tser_cli.energy.counts import RANK, REAL, SIGNED, SUMS, Counts
from tser_cli.energy.neurons import reset_states

FINDING, NOTE = "finding", "note"


@dataclass(frozen=True)
class Finding:
    """One thing found: what, where, how much of it, and what to do.

    `count` of `total` show it; `measure`, in words, where it is no count. `severity`: finding, or
    note where it may be meant. `evidence`: what and how much of it in one text.
    """

    check: str
    layer: str
    what: str
    advice: str
    count: int = 0
    total: int = 0
    measure: str = ""
    severity: str = FINDING
    evidence: str = field(init=False)

    def __post_init__(self) -> None:
        counted = share(self.count, self.total, self.what)
        evidence = f"{self.what}: {self.measure}" if self.measure else counted
        object.__setattr__(self, "evidence", evidence)


@dataclass(frozen=True)
class Subject:
    """A network to audit, how it is given images, and where its steps and images are."""

    network: nn.Module
    presentation: Presentation
    plan: TrialPlan

    def run(self, presentation: Presentation) -> tuple[Signature, list[Any]]:
        """Return what the calls of a fresh copy are fed with, and its outputs."""
        return observe(fresh_copy(self.network), self.plan, presentation)

    def otherwise(self, two: Presentation, step: int, before: Signature) -> Signature:
        """Return the same where the first of two images is another at a step."""
        return next(trial.fed_otherwise(self.network, self.plan, two, step), before)


@dataclass(frozen=True)
class Audit:
    """Everything found, and the checks that could not be made, with why."""

    findings: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def clean(self) -> bool:
        """Return whether nothing but notes was found."""
        return all(finding.severity == NOTE for finding in self.findings)


class Unchecked(Exception):  # noqa: N818  (no fault: a check that does not apply)
    """A check that can't be made on this network; the message says why."""


SILENT_SHARE, ALWAYS_SHARE = 1.0, 0.5
"""Shares of a layer's neurons from which silence, and firing at every step, are findings."""
SWAPPED_MARGIN, SWAPPED_IMAGES = 0.2, 8  # wider than what labels fit by chance on so few images
MET = {REAL: "real values", SUMS: "sums of spikes", SIGNED: "signed spikes"}
INPUT_ADVICE = {
    REAL: "something between the neurons and this layer makes real values of spikes (a pool, a "
    "norm, a scale), or a shortcut passes membrane potentials by them; until then it costs "
    "multiply-accumulates. Multiples of a constant c, as of an average pool, become accumulates if "
    "they are summed, and the weights scaled by c",
    SUMS: "spikes are added before this layer; a chip of binary spikes can't compute it so",
    SIGNED: "spikes of -1 reach this layer; a chip of binary spikes can't compute it so",
}


def check_reset(subject: Subject) -> Iterator[Finding]:
    """Does a second forward pass equal the first, once the states were reset?"""
    made = fresh_copy(subject.network)
    first, outputs = observe(made, subject.plan, subject.presentation)
    kept, _ = observe(made, subject.plan, subject.presentation)
    reset_states(made)
    second, again = observe(made, subject.plan, subject.presentation)
    layer, differing = _worst(first, second)
    pairs = zip(map(first_tensor, outputs), map(first_tensor, again), strict=True)
    apart = [float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None]
    advice = "the network keeps something from the batch before; reset it, in a method called reset"
    if layer:
        what = "inputs (of a step and image) differ in the second pass"
        yield Finding("reset", layer, what, advice, *_flagged(differing))
        return
    if most := max(apart, default=0.0):
        what = "outputs differ in the second pass"
        yield Finding("reset", "(output)", what, advice, measure=f"by up to {most:.3g}")
        return
    layer, differing = _worst(first, kept)
    if layer:
        what = "inputs (of a step and image) differ in a second pass without a reset"
        advice = "reset the states before every batch, as tser energy does"
        count, total = _flagged(differing)
        yield Finding("reset", layer, what, advice, count, total, severity=NOTE)


def check_batch(subject: Subject) -> Iterator[Finding]:
    """Does an image give the same whatever the other images of its batch are?"""
    two = subject.presentation.of(2)
    before, _ = subject.run(two)
    for step in range(1 if two.layout == INSIDE else len(two.x_TN)):
        after = subject.otherwise(two, step, before)
        for key in before:
            # Only the first image was disturbed.
            mixed_S = changes(before[key], after[key])[:, 1]
            if mixed_S.any():
                # The first layer alone is named: the fault spreads to all behind it.
                yield Finding(
                    "batch independence",
                    key[0],
                    "steps of an image change with another image",
                    "this layer, or the neurons before it, go over the batch as if it were time; "
                    "give them [T, N, ...], and check with a batch of one image",
                    *_flagged(mixed_S),
                )
                return


def check_causality(subject: Subject) -> Iterator[Finding]:
    """Do later inputs leave earlier steps alone?"""
    two, last = subject.presentation.of(2), subject.plan.timesteps - 1
    if not last:
        raise Unchecked("there is one time step")
    before, _ = subject.run(two)
    if two.layout != INSIDE:
        after = subject.otherwise(two, last, before)
    elif "timesteps" not in two.kwargs:
        raise Unchecked("the network makes its own steps, and can't be given other ones")
    else:
        # Its last step can't be disturbed alone, but left out: T - 1 steps are the first ones of T.
        x = two.x_TN[:, :last] if two.frames else two.x_TN
        shorter = replace(two, x_TN=x, kwargs={**two.kwargs, "timesteps": last})
        plan = make_plan(subject.network, shorter, last)
        after, _ = observe(fresh_copy(subject.network), plan, shorter)
        before = {key: rows_SN[:last] for key, rows_SN in before.items()}
        after = {key: after[key] for key in before if key in after}
    for key in after:
        rows_SN = changes(before[key], after[key])[:last]
        # An operation that is computed once for all steps has no step of its own.
        if (len(before[key]) > 1 or last == 1) and rows_SN.any() and len(rows_SN) == last:
            yield Finding(
                "causality",
                key[0],
                "earlier inputs (of a step and image) change with a later one",
                "something before this layer looks ahead in time: a norm over the time axis, a "
                "reversed order, or an attention over all steps",
                *_flagged(rows_SN),
            )
            return


def check_inputs(
    counts: Counts, met: dict[str, dict[str, int]], declared: dict[str, str] | None
) -> Iterator[Finding]:
    """Yield which layers meet values that are no spikes, though spikes ought to drive them?

    A network that declares what feeds its layers is held to it. Of others the stem and the last
    layer may be real, and sums of spikes are noted.
    """
    for layer in counts.layers:
        name, kind = layer.layer.name, layer.layer.input_kind
        said, severity = (declared or {}).get(name), ""
        if said is not None:
            if RANK[kind] > RANK[said]:
                severity = FINDING
        elif kind == REAL and not any(layer is one for one in (*counts.stem, counts.layers[-1])):
            severity = FINDING
        elif kind in (SUMS, SIGNED):
            severity = NOTE
        if severity:
            calls, what = sum(met[name].values()), f"calls met {MET[kind]}"
            advice, count = INPUT_ADVICE[kind], met[name].get(kind, 0)
            yield Finding(
                "spike-driven inputs", name, what, advice, count, calls, severity=severity
            )


def check_firing(counts: Counts) -> Iterator[Finding]:
    """Yield which neurons never fire, and which at every step of every image?"""
    if not counts.neurons:
        raise Unchecked("the network has no layer of neurons that is a module")
    for neurons in counts.neurons:
        assert neurons.silent is not None and neurons.always is not None
        silent, always = neurons.silent / neurons.updates, neurons.always / neurons.updates
        if silent:
            whole = silent >= SILENT_SHARE
            yield Finding(
                "firing",
                neurons.name,
                f"neurons never fired on {counts.images} images",
                "no spike leaves this layer: lower the threshold, or look at its inputs"
                if whole
                else "dead on these images; on more of them they may fire",
                neurons.silent,
                neurons.updates,
                severity=FINDING if whole else NOTE,
            )
        if always and counts.timesteps * counts.images > 1:
            yield Finding(
                "firing",
                neurons.name,
                "neurons fired at every step",
                "they carry no information, and cost as much as can be: raise the threshold",
                neurons.always,
                neurons.updates,
                severity=FINDING if always >= ALWAYS_SHARE else NOTE,
            )


def check_order(subject: Subject, labels_N: Tensor | None) -> Iterator[Finding]:
    """Do the labels fit better when the outputs' steps and images are swapped?"""
    shown, timesteps = subject.presentation, subject.plan.timesteps
    images = shown.x_TN.shape[shown.images_axis]
    if labels_N is None:
        raise Unchecked("there are no labels")
    if timesteps == 1 or images < SWAPPED_IMAGES:
        raise Unchecked(f"it takes two time steps and {SWAPPED_IMAGES} labelled images")
    found = [first_tensor(output) for output in try_out(fresh_copy(subject.network), shown)]
    outputs = [output for output in found if output is not None]
    logits = torch.stack(outputs) if len(outputs) > 1 else outputs[0]
    if logits.numel() % (timesteps * images) or logits.numel() == images * logits.shape[-1]:
        raise Unchecked("the outputs have no time axis")
    rows = logits.reshape(timesteps * images, -1)
    as_TN = rows.reshape(timesteps, images, -1).mean(0).argmax(-1) == labels_N
    as_NT = rows.reshape(images, timesteps, -1).mean(1).argmax(-1) == labels_N
    gain = float(as_NT.double().mean() - as_TN.double().mean())
    if gain > SWAPPED_MARGIN:
        yield Finding(
            "order of axes",
            "(output)",
            "labels fit outputs better as [N, T] than as [T, N]",
            "time and batch are swapped somewhere; put time outermost",
            measure=f"{100 * gain:.3g} points of accuracy",
        )


def check_numbers(subject: Subject) -> Iterator[Finding]:
    """Is every value a finite number?"""
    found, outputs = subject.run(subject.presentation)
    given = [x for x in map(first_tensor, outputs) if x is not None]
    looked_at = [
        *((key[0], rows_SN, "inputs (of a step and image)") for key, rows_SN in found.items()),
        *(("(output)", x, "outputs") for x in given),
    ]
    for layer, x, what in looked_at:
        wrong = ~x.isfinite()
        if wrong.any():
            advice = "look for a division by zero or an overflow before this layer"
            said = f"{what} are NaN or infinite"
            yield Finding("numbers", layer, said, advice, *_flagged(wrong))
            return  # what comes after is wrong because of it


def _worst(first: Signature, second: Signature) -> tuple[str, Tensor]:
    """Return the first layer that is fed differently, "" if none, and where it differs, [S, N]."""
    for key in first:
        differing = changes(first[key], second[key])
        if differing.any():
            return key[0], differing
    return "", torch.empty(0)


def _flagged(flags: Tensor) -> tuple[int, int]:
    return int(flags.sum()), flags.numel()


def share(count: int, total: int, what: str = "") -> str:
    """Return a share in words: "3 of 12 (25 %)"; of `what`: "3 of its 12 neurons (25 %)"."""
    noun, _, rest = what.partition(" ")
    if count == total == 1 and noun in ("calls", "neurons"):
        return f"its only {noun[:-1]} {rest}"
    percent = f"{100 * count / max(total, 1):.3g}"
    # Rounded up, one that is missing would be hidden.
    exact = percent if percent != "100" or count == total else "over 99.9"
    of = f"of its {total:,} {what}" if what else f"of {total:,}"
    return f"{count:,} {of} ({exact} %)"


def audit(
    network: nn.Module,
    presentation: Presentation,
    timesteps: int,
    labels_N: Tensor | None = None,
    declared: dict[str, str] | None = None,
) -> Audit:
    """Make every check. Raises TserError where the network can't be run or counted at all."""
    # In float64, where it can: two passes are compared, and with other images in the batch float32
    # rounds otherwise, which moves a spike now and then.
    try:
        exact = copy.deepcopy(network).double()
        x_TN = presentation.x_TN
        shown = replace(presentation, x_TN=x_TN.double() if x_TN.is_floating_point() else x_TN)
        try_out(fresh_copy(exact), shown.of(2))
    except (TserError, RuntimeError, TypeError):
        exact, shown = network, presentation
    plan = make_plan(exact, shown, timesteps)
    subject, made = Subject(exact, shown, plan), fresh_copy(exact)
    with trial.count_operations(made, shown.layout, plan.timesteps, detailed=True) as counter:
        counter.plan, counter.declared = plan, declared or {}
        try_out(made, shown)
    counts = counter.counts()
    findings, skipped = [], []
    tests: dict[str, Iterator[Finding]] = {
        "reset": check_reset(subject),
        "batch independence": check_batch(subject),
        "causality": check_causality(subject),
        "spike-driven inputs": check_inputs(counts, counter.met(), declared),
        "firing": check_firing(counts),
        "order of axes": check_order(subject, labels_N),
        "numbers": check_numbers(subject),
    }
    for name, check in tests.items():
        # Each is a generator: it runs here, and one that does not apply says so here.
        try:
            findings += list(check)
        except Unchecked as reason:
            skipped.append((name, str(reason)))
    return Audit(tuple(findings), tuple(skipped))
