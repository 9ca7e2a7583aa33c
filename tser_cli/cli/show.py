"""Show the results of the trunk's commands, as text or as JSON.

A function takes the result and the request of its command; see the table of verbs.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any, cast

from tser_cli.cli.options import is_there
from tser_cli.cli.terminal import is_quiet, is_verbose, output, show_lines
from tser_cli.cli.verbs import VERBS
from tser_cli.report import lists, words
from tser_cli.report.verdict import Verdict, verdict
from tser_cli.settings import options, plugins, registry

if TYPE_CHECKING:  # a result is there by then, and torch with it; --help reads this file without
    from tser_cli.engine.commands import dry_run, energy, evaluate, network_energy
    from tser_cli.engine.runs.record import RunResult


def show_json(document: Any) -> None:
    """Show one JSON document; a number that is not finite, which JSON has not, becomes null."""
    # checked before anything is written: half a document would be worse than none
    text = json.dumps(plain(document), indent=2, allow_nan=False)
    # as it stands, for programs: neither wrapped nor cut
    if not output().quiet:
        sys.stdout.write(f"{text}\n")


def plain(value: Any) -> Any:
    """Return what JSON has a form for: of numbers, texts, paths, lists, dicts and dataclasses."""
    if hasattr(value, "model_dump"):  # settings
        return plain(value.model_dump(mode="json"))
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(of) for key, of in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if hasattr(value, "item"):  # numpy's and torch's numbers
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, int | str | None) else str(value)


def show_training(
    result: RunResult | dry_run.TrainingPlan, request: options.TrainingRequest
) -> None:
    """Show a training and what to type next, or what it would be."""
    if request.dry_run:
        show_training_plan(cast("dry_run.TrainingPlan", result))
        return
    run = cast("RunResult", result)
    if run.kind == "teacher":
        data_dir = str(request.changes.get("data.dir", ""))
        show_run(run, next_after_teacher(run.folder, run.dataset, data_dir))
    else:
        show_run(run, next_after_student(request.runs_dir))


def show_run(result: RunResult, next_commands: Sequence[str]) -> None:
    """Show a finished training: the verdict, its table, its folder, and what to type next.

    `next_commands`: lines, each command below what it is for. With --quiet only what was measured
    and the folder are shown.
    """
    steps, energy_pj, budget_pj = result.per_timestep, result.energy_pj, result.energy_budget_pj
    found = verdict(steps[-1], result.against_ann)
    show_lines([*words.simulated(result.events), found.line])
    if energy_pj is not None and budget_pj is not None:
        show_lines([f"energy budget: {words.budget_verdict(energy_pj, budget_pj)}"])
    output().print(words.per_timestep_table(result.name, steps))
    # what a script reads stays; what explains, and what to type, goes
    if is_quiet():
        show_lines([f"run folder: {result.folder}"])
        return
    show_comparisons(found)
    show_lines([words.next_steps(result.folder, next_commands)])


def show_comparisons(found: Verdict) -> None:
    """Show with how few steps the accuracy is about the same; with --verbose each comparison."""
    if found.beside and is_verbose():
        output().print(words.comparison_table(found.beside))
    show_lines([found.fewer] if found.fewer else [])


def show_training_plan(plan: dry_run.TrainingPlan) -> None:
    """Show the resolved recipe, the network's size, the steps and the estimated time."""
    import tomli_w

    output().print(tomli_w.dumps(plan.config.model_dump(mode="json")))
    lines = [f"network: {plan.network}, {plan.parameters:,} parameters"]
    lines += [f"teacher: {plan.teacher}"] if plan.teacher else []
    lines += [f"images: {plan.train_images:,} to train on, {plan.test_images:,} to test on"]
    lines += [f"steps: {plan.steps_per_epoch:,} an epoch, {plan.steps:,} in all"]
    step = f"{1000 * plan.step_seconds:.0f} ms a step, measured"
    time = f"about {words.duration(plan.seconds)} of training on {plan.device} ({step})"
    show_lines([*lines, f"time: {time}"])


def show_evaluation(result: evaluate.EvaluateResult, request: options.EvaluateRequest) -> None:
    """Show the verdict, the table if asked for, early exit, and where the files are."""
    line = verdict(result.rows[-1], split=result.split).line
    show_lines([*words.simulated(result.events), line])
    if request.per_timestep:
        output().print(words.per_timestep_table(result.name, result.rows))
    if result.early_exit_rows:
        output().print(words.early_exit_table(result.early_exit_rows))
        show_lines(words.budget_sentence(r) for r in result.early_exit_rows if r["chosen_on"])
    files = [("table", result.table), ("figure", result.figure), ("table", result.early_exit_table)]
    show_lines(f"{what}: {path}" for what, path in files if path is not None)


def show_energy(
    result: energy.EnergyResult | network_energy.NetworkEnergyResult,
    request: options.EnergyRequest,
) -> None:
    """Show the verdict, the operations and energy of each layer, their totals, and the files.

    Of a network from elsewhere also what feeds it, and what is not counted.
    """
    of = cast("network_energy.NetworkEnergyResult", result)
    title = f"{of.name}, {of.weights}" if request.network and of.weights else result.name
    against, at_least = result.document["against_ann"], words.leaves_out(result.document)
    # of a network from elsewhere no accuracy was measured
    last = None if request.network else cast("energy.EnergyResult", result).last
    found = verdict(last, against, at_least=at_least)
    show_lines([found.line])
    output().print(words.table(title, result.rows))
    show_comparisons(found)
    show_lines(words.energy_sentences(result.document, found.guessing))
    if request.network:  # a run's layers are ours: nothing of them is left out
        facts = (of.layout, of.inputs, of.kinds, of.differing, of.uncounted, of.notes)
        show_lines(words.network_sentences(*facts))
    beyond, document = result.beyond, result.document
    if beyond.conventions:
        output().print(words.conventions_table([one.row() for one in beyond.conventions]))
    if beyond.matched is not None:
        show_lines([words.match_sentence(beyond.match, [x.convention for x in beyond.matched])])
    if "lemaire" in document:
        show_lines([words.memory_sentence(document)])
    if "fair_rival" in document:
        show_lines(words.rival_sentences(document["fair_rival"]))
    show_lines(f"written: {path}" for path in result.written)


def show_list(rows: Sequence[Mapping[str, Any]], request: options.ListRequest) -> None:
    """Show what there is to choose from; methods with what differs from their authors' code."""
    if request.what == "methods":
        output().print(words.methods_table(registry.METHODS))
        show_lines([words.deviations(registry.METHODS)])
    elif request.what == "profiles":
        # in a column their sources would leave no room for the others on a terminal
        told = ("technology", "source")
        output().print(
            lists.choices_table([{k: row[k] for k in row if k not in told} for row in rows])
        )
        show_lines(f"{row['name']}: {row['technology']}; {row['source']}" for row in rows)
    elif request.what == "students":
        output().print(lists.students_table(rows))
        show_lines(["A student is named as a run is: tser energy --run NAME."])
    else:
        output().print(lists.choices_table(rows))


def next_after_teacher(folder: Path, dataset: str, data_dir: str) -> list[str]:
    """Return three commands for after a teacher's training, each below what it is for."""
    # whole commands, quoted: a folder of images or a run may have blanks in its name
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
    """Return three commands for after a student's training, each below what it is for."""
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
    return "".join(f" --plugin {quote(name)}" for name in plugins.stated())


def _explained(commands: Mapping[str, str]) -> list[str]:
    # a wing that was taken off has nothing to type
    there = [verb.name for verb in VERBS if is_there(*verb.needs)]
    known = {line: why for line, why in commands.items() if line.split()[1] in there}
    # what it is for stands above: a long command can then be seen, and pasted, as a whole
    return [line for command, why in known.items() for line in (f"# {why}", command)]
