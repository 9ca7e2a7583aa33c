"""Show the results of the wings' commands; see `show`."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from shlex import quote
from typing import TYPE_CHECKING, cast

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tser_cli.cli import show
from tser_cli.cli.terminal import is_verbose, output, show_lines, tell
from tser_cli.report import lists, words
from tser_cli.settings import wing_options
from tser_cli.settings.fields import joules

if TYPE_CHECKING:  # see `show`
    from tser_cli.energy.audit import Finding
    from tser_cli.engine.commands import ablate, audit, compare, doctor, export, predict, quantize
    from tser_cli.engine.page.gather import ReportResult
    from tser_cli.engine.runs.record import RunRecord


def show_ablation(
    found: ablate.AblationResult | ablate.AblationPlan, request: wing_options.AblateRequest
) -> None:
    """Show the table of an ablation and where the files are, or what it would be."""
    if request.dry_run:
        show_ablation_plan(cast("ablate.AblationPlan", found))
        return
    result = cast("ablate.AblationResult", found)
    asked = result.request
    title = f"{result.folder.name}: {asked.measure.replace('_', ' ')}"
    show_lines(words.simulated(result.events))
    output().print(lists.ablation_table(title, result.summary, asked.names))
    if result.exits:
        cells = [(one.energy, one.accuracy, one.missed, one.latency_ms) for one in result.exits]
        output().print(lists.exits_table(cells, asked.names, asked.accuracy_margin))
    # tables that were not written this time are not named, though an older one may lie there
    exits = ["early_exit.csv", "early_exit_summary.csv"] if result.exits else []
    # the frontier needs two methods or more; its figure tells whether there is one
    frontier = ["frontier.csv"] if any(p.stem == "frontier" for p in result.figures) else []
    figures = ["figures"] if result.figures else []
    of_steps = ["steps.csv"] if result.of_steps else []
    names = ["ablation.csv", "summary.csv", *of_steps, *exits, *frontier, *figures]
    show_lines([f"written: {result.folder / name}" for name in names])


def show_ablation_plan(plan: ablate.AblationPlan) -> None:
    """Show the cells, which are finished, what is trained first, and the time of the rest."""
    show_lines([f"{title}{': finished' if finished else ''}" for title, finished in plan.cells])
    show_lines(plan.teachers)
    finished = sum(done for _, done in plan.cells)
    how = "one after the other" if plan.jobs == 1 else f"{plan.jobs} side by side"
    if plan.address:
        fewer = "" if plan.jobs_given else ", less by as many as the cluster has room for"
        how = f"{plan.jobs} at a time on machines like this one{fewer}"
    time = f"about {words.duration(plan.seconds)} of training, {how}, measured on a few real steps"
    show_lines([f"{len(plan.cells)} runs, {finished} finished; {time}"])


def show_audit(result: audit.AuditResult, request: wing_options.AuditRequest) -> None:
    """Show the findings as a table, and the verdict; with -v also notes, and what was left out."""
    findings, skipped = result.found.findings, result.found.skipped
    wrong = [one for one in findings if one.severity == "finding"]
    notes = [one for one in findings if one not in wrong]
    if shown := [*wrong, *(notes if is_verbose() else ())]:
        output().print(findings_table(shown))
    if is_verbose():
        show_lines([f"not checked: {name}: {why}" for name, why in skipped])
    said = [words.counted(len(notes), "note")] if notes else []
    said += [f"{words.counted(len(skipped), 'check')} left out"] if skipped else []
    aside = ", ".join(said)
    if aside and not is_verbose():
        aside += " (-v shows them)"
    verdict = words.counted(len(wrong), "finding") if wrong else "clean"
    show_lines([f"{result.name}: {verdict}{f'; {aside}' if aside else ''}"])


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return a line a finding; what layers have in common takes one, with their counts added."""
    from tser_cli.energy.audit import share

    alike: dict[tuple[str, ...], list[Finding]] = {}
    for one in findings:
        key = (one.severity, one.check, one.what, one.advice, one.measure)
        alike.setdefault(key, []).append(one)
    table = words.new_table(left=("finding", "where", "how many", "what to do"))
    # a name that is broken can't be looked for, nor a number read
    table.columns[1].no_wrap = table.columns[2].no_wrap = True
    for group in alike.values():
        first, more = group[0], len(group) - 1
        count, total = sum(one.count for one in group), sum(one.total for one in group)
        table.add_row(
            f"note: {first.what}" if first.severity == "note" else first.what,
            f"{first.layer}\nand {more} more" if more else first.layer,
            first.measure or share(count, total).replace(" (", "\n("),
            first.advice,
        )
    return table


def show_report(result: ReportResult, request: wing_options.ReportRequest) -> None:
    """Show where the page of a report is, and on standard error what it lacks."""
    # aside from the result: a page without early exit is a page
    for line in result.missing:
        request.progress.say(f"not on the page: {line}")
    show_lines([f"written: {result.output} ({result.bytes / 1e6:.1f} MB)"])


INTERVALS = (
    "95 % interval: how far other test images may lead, not another training. p: both err equally "
    "often on these images (McNemar)"
)
ONE_EACH = (
    "One run each says little of the settings: the seed alone moves accuracy. Compare several "
    "seeds (tser ablate), or name more runs here"
)
WIDEST = 1000  # columns; rich would fold a table into the 80 that it gives a pipe


def show_runs(records: Sequence[RunRecord], request: wing_options.RunsRequest) -> None:
    """Show a line a run; what is wrong with one goes to standard error."""
    from tser_cli.engine.commands.runs import COLUMNS

    out = output()
    # into a pipe or a file nothing is left out: a program may look for any column
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = WIDEST
    columns = {name: [value(record) for record in records] for name, value in COLUMNS.items()}
    columns["dataset"] = [
        f"{one.dataset}, simulated events" if one.is_simulated else one.dataset for one in records
    ]
    columns["age"] = [time.time() - one.when if one.when else None for one in records]
    titles = {"dataset": "data set"}
    table = lists.listing({titles.get(name, name): of for name, of in columns.items()})
    if records:
        out.print(table)
    else:
        out.print(f"no such run under {request.runs_dir}", soft_wrap=True)
    for record in records:
        if record.trouble:
            tell(f"warning: {record.name} is damaged: {record.trouble}")


def removal_question(runs: Sequence[tuple[RunRecord, int]]) -> str:
    """Return what would be removed, and the question whether to; see `find_removable`."""
    lines = []
    for record, students in runs:
        taught = f"; {students} students here learned from it" if students else ""
        lines.append(f"  {record.folder} ({record.state}, {lists.size(record.size)}{taught})")
    what = "this run" if len(runs) == 1 else f"these {len(runs)} runs"
    return "\n".join([*lines, f"Remove {what} with all files?"])


def show_comparison(comparison: compare.ComparedRuns, request: wing_options.CompareRequest) -> None:
    """Show which runs there are, the settings that differ, and what came out."""
    out, records = output(), comparison.records
    for letter, record in zip(lists.letters(len(records)), records, strict=True):
        out.print(f"{letter}  {record.folder}", soft_wrap=True)
    titles = {"settings that differ": comparison.settings, "made with": comparison.surroundings}
    for title, pairs in titles.items():
        if pairs:
            out.print(lists.side_by_side(title, pairs))
    if not comparison.settings:
        out.print("the settings are the same")
    out.print(lists.figures(comparison.figures))
    if comparison.cells:
        names = comparison.axes or ("group",)
        out.print(lists.ablation_table("over seeds", comparison.cells, names))
    out.print("\n".join([INTERVALS, *([] if comparison.cells else [ONE_EACH])]), soft_wrap=True)
    for record, found in zip(records, comparison.figures, strict=True):
        if record.trouble or found.trouble:
            tell(f"warning: {record.name}: {record.trouble or found.trouble}")


def show_export(exported: export.Exported, request: wing_options.ExportRequest) -> None:
    """Show the table of checks, and what was written."""
    if exported.checks:
        output().print(checks_table(exported))
        silent, layers = exported.checks[0].comparison.silent, exported.checks[0].comparison.layers
        if silent:  # what such a layer feeds was given nothing to compare
            shown = ", ".join(silent[:3]) + (", ..." if len(silent) > 3 else "")
            request.progress.warn(
                f"{len(silent)} of {len(layers)} layers never spiked on these images ({shown}): "
                "the weights behind them were not checked. Take more (--images), or train longer"
            )
    if exported.checks is None:
        show_lines(["not verified: --no-verify"])
    if exported.change is not None:
        show_lines([f"integer potentials: {exported.change.sentence()}"])
    if not exported.holds:
        show_lines([f"the check does not hold; {exported.path} was not written"])
        return
    path = exported.path
    show_lines([f"file: {path} ({exported.size / 2**20:.1f} MiB)", f"checks: {path}.verified.json"])
    show_lines([f"model card: {exported.card}"])


def checks_table(exported: export.Exported) -> Table:
    """Return a row a program: what was compared, and whether it agrees."""
    checks = exported.checks or ()
    images = checks[0].comparison.images
    title = f"the same spikes in other programs, {images} test images"
    columns = ("compared", "differing", "ties", "logits", "holds")
    table = words.new_table(title, ("program",), columns)
    for check in checks:
        c, library = check.comparison, check.target.library
        table.add_row(
            f"{library} {check.versions[check.target.packages[0]]}, {check.target.precision}",
            *(f"{number:,}" for number in (c.values, c.differing)),
            f"{c.ties:,}" + (f" ({c.parted} images part)" if c.parted else ""),
            f"{max(c.logits_difference):.0e}",
            "yes" if check.holds else "NO",
        )
    return table


def show_predictions(predictions: predict.Predicted, request: wing_options.PredictRequest) -> None:
    """Show a line an image, those that can't be read aside."""
    for answer in predictions.answers:
        if not hasattr(answer, "error"):  # the others are on standard error already
            confidences = " ".join(f"{value:.2f}" for value in answer.confidence)
            steps = words.counted(answer.stop_t, "step")
            line = f"{answer.image}: {answer.name}, confidence {confidences}, stops after {steps}"
            show_lines([f"{line}, {answer.sop_value:,} SOP, {answer.macs:,} MAC"])
    if predictions.table is not None:
        show_lines([f"table: {predictions.table}"])


def show_quantized(
    quantized: quantize.QuantizeResult, request: wing_options.QuantizeRequest
) -> None:
    """Show the new run, and what it changed against its parent."""
    result = quantized.result
    exporting = f"tser export {quote(str(result.folder))} student.onnx"
    show.show_run(result, [exporting + show.plugin_flags()])
    if quantized.parent_accuracy is not None:
        change = 100 * (result.accuracy - quantized.parent_accuracy)
        show_lines(
            [f"before: {words.percent(quantized.parent_accuracy)} ({change:+.2f} points now)"]
        )
    if result.energy_pj is not None:
        here = f"{joules(result.energy_pj, quantized.float_energy_pj)} ({quantized.profile})"
        as_floats = f"the same operations in fp32: {joules(quantized.float_energy_pj)}"
        show_lines([f"energy an image: {here}; {as_floats}"])
    show_lines([f"parent: {quantized.parent}"])


# words as well as colours: neither a log nor everybody's eye has these
STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def show_checks(checks: Sequence[doctor.Checkup], request: wing_options.DoctorRequest) -> None:
    """Show a line a thing, what to do about it below, and how many are wrong."""
    table = Table(box=SIMPLE_HEAD, show_header=False)
    for column in ("state", "name", "found"):
        table.add_column(column, no_wrap=column != "found", overflow="fold")
    for check in checks:
        todo = f"\nto do: {check.advice}" if check.advice else ""
        state = Text(check.state, style=STYLES[check.state])
        table.add_row(state, check.name, f"{check.found}{todo}")
    output().print(table)
    states = Counter(check.state for check in checks)
    show_lines([f"{states['wrong']} wrong, {states['note']} to know, {states['ok']} well"])
