"""All that a report page says of one run, part by part."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tser_cli.engine.commands import report_files as files
from tser_cli.engine.commands import report_provenance as made
from tser_cli.engine.commands.report_duels import Assumptions, assumptions, duels
from tser_cli.engine.commands.report_files import label, part
from tser_cli.engine.commands.report_measure import Measured, MeasureRequest, measure
from tser_cli.engine.commands.report_mistakes import mistakes, predictions
from tser_cli.engine.runs.run_folder import Run
from tser_cli.errors import RunError
from tser_cli.report.energy_report import headline
from tser_cli.report.page_values import (
    Accuracy,
    Duel,
    Energy,
    Missing,
    Mistakes,
    RunReport,
    Tradeoff,
)
from tser_cli.report.predictions import Predictions

Sidecar = Mapping[str, Any]


@dataclass(frozen=True)
class RunFound:
    """A run's report, with what each of its test images was answered."""

    report: RunReport
    predictions: Predictions | Missing


def run_report(run: Run, measured_too: bool, request: MeasureRequest) -> RunFound:
    """Return all that a page says of a run; `measured_too`: its network is run as well."""
    known = part("config.toml", lambda: made.stated_settings(run))
    around = part("environment.json", lambda: made.surroundings(run))
    stated = {} if isinstance(known, Missing) else known
    surroundings = {} if isinstance(around, Missing) else around
    measured = _measured(run, measured_too, request)
    accuracy = part("per_timestep.csv", lambda: files.accuracy(run))
    energy = part("energy.csv", lambda: files.energy(run))
    answered = _answered(run, measured)
    facts = made.facts(run, stated, surroundings)
    document = files.sidecar(run)
    cases = _cases(document, energy, measured)
    report = RunReport(
        name=label(run.name),
        folder=str(run.folder),
        title=_title(run, facts),
        kind=run.kind,
        state=label(run.status().get("state", "of no known state")),
        said=tuple(_said(run, measured)),
        facts=facts,
        accuracy=accuracy,
        curves=part("metrics.csv", lambda: files.curves(run)),
        mistakes=_mistakes(answered, measured),
        energy=energy,
        headline=_headline(cases),
        duels=_duels(document, energy, cases, measured),
        tradeoff=part("energy.csv", lambda: _tradeoff(run, document, accuracy, energy, measured)),
        gallery=measured if isinstance(measured, Missing) else measured.gallery,
        all_settings=made.in_words(stated),
        settings=known if isinstance(known, Missing) else made.settings(stated),
        environment=around if isinstance(around, Missing) else made.environment(around),
        commands=made.commands(run, surroundings),
    )
    return RunFound(report, answered)


def _measured(run: Run, asked: bool, request: MeasureRequest) -> Measured | Missing:
    if run.status().get("state") != "finished":
        return Missing("the run is not finished")
    if not asked:
        return Missing("the network was not run (--no-measure)")
    return part("the run", lambda: measure(run, request))


def _title(run: Run, facts: dict[str, Any]) -> str:
    if run.kind == "teacher":
        return f"{facts['model']}, a teacher on {facts['dataset']}"
    steps = facts["timesteps"]
    return f"{facts['model']} on {facts['dataset']}" + (f", T = {steps}" if steps else "")


def _said(run: Run, measured: Measured | Missing) -> list[str]:
    status = run.status()
    state, why = status.get("state"), str(status.get("why") or "")
    if state == "finished":
        without = [measured.why] if isinstance(measured, Missing) else []
        return [f"Without early exit and pictures: {why}" for why in without]
    because = f" ({label(why)})" if why else ""
    return [
        f"This run is {label(state or 'of no known state')}{because}, not finished. The page shows "
        "what it has written so far; the command that began it goes on with it"
    ]


def _answered(run: Run, measured: Measured | Missing) -> Predictions | Missing:
    """Return what each image was answered: as recorded, else as measured now."""
    recorded = part("predictions.npz", lambda: predictions(run))
    if isinstance(recorded, Missing) and isinstance(measured, Measured):
        return measured.predictions
    return recorded


def _mistakes(answered: Predictions | Missing, measured: Measured | Missing) -> Mistakes | Missing:
    if isinstance(answered, Missing):
        return answered
    names = () if isinstance(measured, Missing) else measured.classes
    return part("predictions.npz", lambda: mistakes(answered, names))


def _cases(
    document: Sidecar, energy: Energy | Missing, measured: Measured | Missing
) -> Assumptions:
    if isinstance(energy, Missing):
        return {}
    known = {} if isinstance(measured, Missing) else measured.assumptions
    return assumptions(document, known, energy)


def _headline(cases: Assumptions) -> tuple[str, ...]:
    return tuple(headline({"assumptions": cases, "steps_pj": (), "accuracy": ()})) if cases else ()


def _duels(
    document: Sidecar,
    energy: Energy | Missing,
    cases: Assumptions,
    measured: Measured | Missing,
) -> tuple[Duel, ...]:
    if isinstance(energy, Missing):
        return ()
    more = () if isinstance(measured, Missing) else measured.duels
    return (*duels(energy, cases, document), *more)


def _tradeoff(
    run: Run,
    document: Sidecar,
    accuracy: Accuracy | Missing,
    energy: Energy | Missing,
    measured: Measured | Missing,
) -> Tradeoff:
    """Return accuracy against energy: as measured, else from the run's tables. Raises RunError."""
    if isinstance(energy, Missing):
        raise RunError(energy.why)
    if isinstance(accuracy, Missing):
        raise RunError(accuracy.why)
    teacher_pj = files.teacher_energy(document)
    point = None
    if teacher_pj is not None and accuracy.teacher is not None:
        point = (teacher_pj, accuracy.teacher)
    ann_pj = float(energy.total["ann_energy_pj"])
    if isinstance(measured, Measured) and measured.steps:
        return Tradeoff(measured.steps, measured.exits, point, ann_pj, measured.images)
    spent_T = itertools.accumulate(float(row["energy_pj"]) for row in energy.totals)
    steps = [
        {"t": row["t"], "energy_pj": spent, "accuracy": row["accuracy_cumulative"]}
        for spent, row in zip(spent_T, accuracy.rows, strict=True)
    ]
    return Tradeoff(tuple(steps), files.early_exit(run), point, ann_pj)
