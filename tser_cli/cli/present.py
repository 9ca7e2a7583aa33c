"""Show the results of commands. This is the only place that prints them.

Results go to standard output; progress, messages and errors go to standard error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tser_cli.base.progress import Progress
from tser_cli.cli import verbosity
from tser_cli.cli.terminal import Terminal
from tser_cli.report.words import duration
from tser_cli.settings.registry import MethodEntry

if TYPE_CHECKING:
    from tser_cli.engine.commands.ablate import AblationResult
    from tser_cli.engine.commands.audit import AuditResult
    from tser_cli.engine.commands.dry_run import AblationPlan, TrainingPlan
    from tser_cli.engine.commands.energy import EnergyResult, NetworkEnergyResult
    from tser_cli.engine.commands.evaluate import EvaluateResult
    from tser_cli.engine.evaluation.energy import Beyond
    from tser_cli.engine.page.gather import ReportResult
    from tser_cli.engine.runs.record import RunResult


def output() -> Console:
    """Return the console of results, which is silent in all processes but rank 0."""
    # torchrun and accelerate number the processes of a run in RANK; alone there is no such variable
    return Terminal(quiet=os.environ.get("RANK", "0") != "0")


def messages() -> Console:
    """Return the console of progress, messages and errors."""
    return Terminal(stderr=True)


def progress() -> Progress:
    """Return what shows the progress of a training on standard error; warnings alone if quiet."""
    from tser_cli.cli.progress import make_progress

    return make_progress(messages(), verbosity.is_quiet())


def _lines(lines: Sequence[str]) -> None:
    out = output()
    for line in lines:
        out.print(line, soft_wrap=True, markup=False)


def show_run(result: RunResult, next_commands: Sequence[str]) -> None:
    """Show a finished training: its table, what it means, its folder, and what to type next.

    `next_commands`: command lines, with what for behind a #. With --quiet only what was measured
    and the folder are shown.
    """
    from tser_cli.report import words

    output().print(words.per_timestep_table(result.name, result.per_timestep))
    _lines([words.summary(result.per_timestep, "test")])
    if result.energy_pj is not None and result.energy_budget_pj is not None:
        verdict = words.budget_verdict(result.energy_pj, result.energy_budget_pj)
        _lines([f"energy: {verdict}"])
    if verbosity.is_quiet():
        _lines([f"run folder: {result.folder}"])
        return
    _lines(words.meaning_sentences(result.kind, result.per_timestep))
    if result.against_ann is not None:
        _lines(words.headline(result.against_ann))
    _lines([words.next_steps(result.folder, next_commands)])


def show_training_plan(plan: TrainingPlan) -> None:
    """Show the resolved recipe, the network's size, the steps and the estimated time."""
    import tomli_w

    output().print(tomli_w.dumps(plan.config.model_dump(mode="json")), markup=False)
    teacher = [f"teacher: {plan.teacher}"] if plan.teacher else []
    _lines(
        [
            f"network: {plan.network}, {plan.parameters:,} parameters",
            *teacher,
            f"images: {plan.train_images:,} to train on, {plan.test_images:,} to test on",
            f"steps: {plan.steps_per_epoch:,} an epoch, {plan.steps:,} in all",
            f"time: about {duration(plan.seconds)} of training on {plan.device} "
            f"({1000 * plan.step_seconds:.0f} ms a step, measured)",
        ]
    )


def show_evaluation(result: EvaluateResult, per_timestep: bool) -> None:
    """Show the final accuracy, the table if asked for, early exit, and where the files are."""
    from tser_cli.report import words

    if per_timestep:
        output().print(words.per_timestep_table(result.name, result.rows))
    _lines([words.summary(result.rows, result.split), *_written("table", result.table)])
    _lines(_written("figure", result.figure))
    if result.early_exit_rows:
        output().print(words.early_exit_table(result.early_exit_rows))
        chosen = [row for row in result.early_exit_rows if row["chosen_on"]]
        _lines([words.budget_sentence(row) for row in chosen])
        _lines(_written("table", result.early_exit_table))


def _written(what: str, path: Path | None) -> list[str]:
    return [] if path is None else [f"{what}: {path}"]


def show_energy(result: EnergyResult) -> None:
    """Show the operations and energy of each layer, what they mean in words, and the files."""
    from tser_cli.report import words

    output().print(words.table(result.name, result.rows))
    _lines(words.energy_sentences(result.document))
    _beyond(result.beyond, result.document)
    _lines([f"written: {path}" for path in result.written])


def _beyond(beyond: Beyond, document: Mapping[str, Any]) -> None:
    from tser_cli.report import words

    if beyond.conventions:
        rows = [one.row() for one in beyond.conventions]
        output().print(words.conventions_table(rows))
    if beyond.matched is not None:
        names = [one.convention for one in beyond.matched]
        _lines([words.match_sentence(beyond.match, names)])
    if "lemaire" in document:
        _lines([words.memory_sentence(document)])
    if "fair_rival" in document:
        _lines(words.rival_sentences(document["fair_rival"]))


def show_network_energy(result: NetworkEnergyResult) -> None:
    """Show the operations of a network from elsewhere, what feeds it, and what is not counted."""
    from tser_cli.report import words

    output().print(words.table(result.name, result.rows))
    _lines(words.energy_sentences(result.document))
    _lines(
        words.network_sentences(
            result.layout, result.inputs, result.kinds, result.differing, result.uncounted
        )
    )
    _beyond(result.beyond, result.document)
    _lines([f"written: {path}" for path in result.written])


def show_audit(result: AuditResult) -> None:
    """Show what an audit found, what it could not look at, and the verdict."""
    from dataclasses import asdict

    from tser_cli.report import words

    found = result.found
    _lines([words.finding_sentence(asdict(one)) for one in found.findings])
    _lines([f"not checked: {name}: {why}" for name, why in found.skipped])
    wrong = sum(one.severity == "finding" for one in found.findings)
    _lines([f"{result.name}: {'clean' if found.clean else f'{wrong} findings'}"])


def show_report(result: ReportResult) -> None:
    """Show where the page of a report is, and on standard error what it lacks."""
    for line in result.missing:
        progress().say(f"not on the page: {line}")
    _lines([f"written: {result.output} ({result.bytes / 1e6:.1f} MB)"])


def show_ablation(result: AblationResult) -> None:
    """Show the table of an ablation, and where the files are."""
    from tser_cli.report import lists

    request = result.request
    title = f"{result.folder.name}: {request.measure.replace('_', ' ')}"
    output().print(lists.ablation_table(title, result.summary, request.axes, request.names))
    if result.exits:
        margin = request.accuracy_margin
        output().print(lists.exits_table(result.exits, request.axes, request.names, margin))
    exits = ["early_exit.csv", "early_exit_summary.csv"] if result.exits else []
    frontier = ["frontier.csv"] if any(p.stem == "frontier" for p in result.figures) else []
    figures = ["figures"] if result.figures else []
    names = ["ablation.csv", "summary.csv", *exits, *frontier, *figures]
    _lines([f"written: {result.folder / name}" for name in names])


def show_ablation_plan(plan: AblationPlan) -> None:
    """Show the cells, which are finished, what is trained first, and the time of the rest."""
    _lines([f"{title}{': finished' if finished else ''}" for title, finished in plan.cells])
    _lines(plan.teachers)
    finished = sum(done for _, done in plan.cells)
    _lines(
        [
            f"{len(plan.cells)} runs, {finished} finished; about {duration(plan.seconds)} of "
            f"training, {_side_by_side(plan)}, measured on a few real steps"
        ]
    )


def _side_by_side(plan: AblationPlan) -> str:
    if plan.address:
        fewer = "" if plan.jobs_given else ", less by as many as the cluster has room for"
        return f"{plan.jobs} at a time on machines like this one{fewer}"
    return "one after the other" if plan.jobs == 1 else f"{plan.jobs} side by side"


def show_methods(methods: Mapping[str, MethodEntry]) -> None:
    """Show the training methods."""
    from tser_cli.report import words

    output().print(words.methods_table(methods))
    _lines([words.deviations(methods)])


def next_after_teacher(folder: Path, dataset: str, data_dir: str) -> list[str]:
    """Return three commands for after a teacher's training, with what for."""
    given, more = f" --data-dir {quote(data_dir)}" if data_dir else "", plugin_flags()
    run, data = quote(str(folder)), f"--dataset {dataset}{given}"
    return _explained(
        {
            f"tser distill --teacher {run} {data} -T 2{more}": "a student of it",
            f"tser evaluate --run {run} --split train{more}": "is it surer of images it has seen?",
            f"tser list methods{more}": "the ways to learn from it",
        }
    )


def next_after_student(runs_dir: Path, default: Path = Path("runs")) -> list[str]:
    """Return three commands for after a student's training, with what for."""
    given = f" --runs-dir {quote(str(runs_dir))}" if runs_dir != default else ""
    given += plugin_flags()
    return _explained(
        {
            f"tser report{given}": "all of it on one page, to look at and to send",
            f"tser energy report.csv{given}": "operations and energy of each layer",
            f"tser evaluate --early-exit 0.8,0.9,0.99{given}": "stop each image once it is decided",
        }
    )


def plugin_flags() -> str:
    """Return the plug-ins that were imported, as flags: the commands to come need them too."""
    from tser_cli.settings import plugins

    return "".join(f" --plugin {quote(name)}" for name in plugins.stated())


def _explained(commands: Mapping[str, str]) -> list[str]:
    width = max(map(len, commands))
    return [f"{command:{width}}  # {why}" for command, why in commands.items()]
