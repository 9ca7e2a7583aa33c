"""Measure a finished run again, at any number of time steps, on any split."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli.base.errors import ConfigError, DiskFullError, RunError, TserError
from tser_cli.base.files import check_folder
from tser_cli.data.loaders import Split
from tser_cli.energy import joules, prices
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.evaluation.evaluate import Evaluation, answered, evaluate_split
from tser_cli.engine.runs import networks, record, teachers
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.engine.training.budget import profile_of
from tser_cli.engine.training.run import row_labels
from tser_cli.report import csv_files, figures, statistics
from tser_cli.settings import fields, options
from tser_cli.settings.config import FRAMES

MAX_TIMESTEPS = 1024  # more fit no memory, and a mistyped number would take days
SPLITS: dict[str, Split] = {"test": "test", "validation": "validation", "train": "train"}
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class EvaluateResult:
    """What was measured: the rows of per_timestep.csv, those of early exit, and the files.

    The files are None where there is nothing in them, or the run's folder can't be written to.
    `events`: see `RunResult`.
    """

    name: str
    split: str
    rows: Rows
    table: Path | None
    figure: Path | None
    early_exit_rows: Rows
    early_exit_table: Path | None
    events: str | None = None

    @property
    def kept(self) -> bool:
        """Return whether the energy budget that was asked for, if any, was kept."""
        # None where a row was held to no budget
        return all(row["kept"] != 0 for row in self.early_exit_rows)


def evaluate_run(request: options.EvaluateRequest) -> EvaluateResult:
    """Evaluate all steps in one pass and write the tables; return what they hold.

    An SNN is causal: its logits at step t are the same for any T >= t. So one pass with the largest
    T gives the accuracy for every smaller one. Samples with a time axis are divided anew into as
    many frames as the largest T. Raises ConfigError, RunError, CheckpointError or
    DataError.
    """
    rules, budget = _check(request)  # before a network is loaded and images are read
    exits = bool(rules) or budget is not None
    run, changes = select_run(request.run, request.runs_dir), request.changes
    if request.timesteps and run.kind == "student" and run.config().data.frames:
        changes[FRAMES] = max(parse_timesteps(request.timesteps, 0))
    opened = open_finished(run, changes, request.progress)
    model, context, split = opened.loaded.model, opened.context, SPLITS[request.split]
    steps = _steps(opened, request, exits)
    # operations are counted only where early exit is priced: counting makes a pass slower
    full = evaluate_split(model, context, split, max(steps), count=exits)
    # the threshold for a budget is chosen on other images than the test's
    held_out: Split = "validation" if opened.config.data.validation_fraction > 0 else "train"
    if budget and held_out == "train":
        context.progress.warn(
            "the run held no images out: the threshold is chosen on training images, of which the "
            "network is surer than of others"
        )
    other = evaluate_split(model, context, held_out, full.timesteps, count=True) if budget else None
    rows = [row for row in full.rows() if row["t"] in steps]
    result = record.find_result(opened.run)
    # other splits were not measured at the end of the training: nothing to compare with
    recorded = [*result.per_timestep] if result and split == "test" else Rows()
    accuracy = teacher_accuracy(opened, split, result)
    if accuracy is not None:
        rows = [{**row, **beside_teacher(recorded, row, accuracy)} for row in rows]
    if recorded:
        _say_difference(opened, recorded, rows[-1])

    def write() -> EvaluateResult:
        profile = profile_of(opened.config, request.profile)
        if budget is not None and other is not None:
            assert full.counts, "a counted pass, for a budget"
            # a share, such as 25%, is of the ANN of the same shape
            budget_pj = budget.in_pj(joules.ann_macs(full.counts) * profile.mac_pj)
            stops = early_exit.stops_of(answered(other, can_stop=True), profile)
            threshold = early_exit.keep_budget(stops, budget_pj, full.images)
            chosen = early_exit.Rule(early_exit.CONFIDENCE, threshold, held_out, budget_pj)
            rules.append(chosen)
        return _write(opened, request, rows, full, rules, profile)

    # one process writes; the others wait, so that none ends while files are half there
    return context.runtime.on_main(write)


def _say_difference(opened: FinishedRun, recorded: Rows, last: dict[str, Any]) -> None:
    """Say what another precision than the run's changes, where the step is `recorded`."""
    precision, own = opened.config.training.precision, opened.run.config().training.precision
    before = next((row["correct_cumulative"] for row in recorded if row["t"] == last["t"]), None)
    if precision == own or before is None:
        return
    change = last["correct_cumulative"] - before
    opened.context.progress.say(
        f"in {precision} {last['correct_cumulative']} of {last['images']} images are right, "
        f"{change:+d} against {own}, in which the run was measured"
    )


def _check(request: options.EvaluateRequest) -> tuple[list[early_exit.Rule], fields.Budget | None]:
    """Find what is mistyped before any work; return the rules of early exit, and the budget."""
    if request.split not in SPLITS:
        raise ConfigError(f'--split "{request.split}": use one of {", ".join(SPLITS)}')
    if request.output is not None:
        check_folder(request.output)
    if request.profile:
        # read for its errors alone, before any work
        prices.load_profile(request.profile)
    asked = (
        (request.early_exit, early_exit.CONFIDENCE, "--early-exit"),
        (request.early_exit_entropy, early_exit.ENTROPY, "--early-exit-entropy"),
    )
    rules = [rule for a in asked if a[0] for rule in early_exit.parse_thresholds(*a)]
    if not request.energy_budget:
        return rules, None
    if request.split != "test":
        raise ConfigError(
            "--energy-budget chooses its threshold on held-out images and measures it on test "
            f"images: leave --split {request.split} out"
        )
    return rules, fields.parse_budget(request.energy_budget, "--energy-budget")


def _steps(opened: FinishedRun, request: options.EvaluateRequest, exits: bool) -> list[int]:
    spiking, folder = opened.loaded.model.spiking, opened.run.folder
    flag = "--energy-budget" if request.energy_budget else "--early-exit"
    # before the pass: with all steps at once, or none, there is nothing to stop between
    if not spiking and (exits or request.timesteps not in ("", "1")):
        named = flag if exits else "--timesteps"
        raise ConfigError(f"{named}: {folder} is a teacher, an ANN without time steps")
    if exits and not opened.loaded.model.steps_alone:
        raise ConfigError(
            f"{flag}: {opened.loaded.name} computes all its time steps at once; a network "
            "with stem() and body() in place of forward() can stop between them"
        )
    return parse_timesteps(request.timesteps, opened.config.model.timesteps if spiking else 1)


def parse_timesteps(text: str, trained: int) -> list[int]:
    """Return the steps: "" -> 1..trained, "4" -> 1..4, "1-6" -> 1..6, "1,2,4" -> those.

    Raises ConfigError.
    """
    if not text:
        return list(range(1, trained + 1))
    steps: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", part)
        if not match:
            raise ConfigError(f'--timesteps "{text}": write 4, 1-6 or 1,2,4')
        first, last = int(match[1]), int(match[2] or match[1])
        steps.update(range(first, last + 1))
        if not 1 <= first <= last <= MAX_TIMESTEPS:
            raise ConfigError(f'--timesteps "{text}": steps run from 1 to {MAX_TIMESTEPS}, upwards')
    # a number alone is how long the network runs; in a list it is a step to report
    alone = "," not in text and "-" not in text
    return list(range(1, max(steps) + 1)) if alone else sorted(steps)


def _write(
    opened: FinishedRun,
    request: options.EvaluateRequest,
    rows: Rows,
    full: Evaluation,
    rules: list[early_exit.Rule],
    profile: prices.Profile,
) -> EvaluateResult:
    run, stem = opened.run, _stem(opened, request, [row["t"] for row in rows])
    can_write = _can_write(opened, request, stem)
    table = request.output or (run.folder / f"{stem}.csv" if can_write else None)
    labels = row_labels(
        run, opened.config, request.split, opened.loaded.name, teachers.teacher_name(run)
    )
    if table is not None:
        csv_files.per_timestep_csv(table, rows, labels)
    figure = run.folder / "figures" / f"{stem}.png" if request.plot and can_write else None
    if figure is not None:
        steps_of_run = [figures.StepAccuracy.of_row(row) for row in rows]
        taught, method = rows[-1]["teacher_accuracy"], str(labels["method"])
        figures.accuracy(steps_of_run, taught, method, run.name).save(figure)
    exits, exits_table = Rows(), None
    if rules:
        # by split: a table on other images must not replace the one on test images
        split = "" if request.split == "test" else f"_{request.split}"
        if request.output is not None:
            exits_table = request.output.with_name(f"{request.output.stem}_early_exit.csv")
        elif can_write:
            exits_table = run.folder / f"early_exit{split}.csv"
        measured = SPLITS[request.split]
        exits = early_exit.early_exit(opened, rules, full, measured, exits_table, profile)
    events = opened.context.dataset.facts.get("events")
    return EvaluateResult(run.name, request.split, rows, table, figure, exits, exits_table, events)


def _can_write(opened: FinishedRun, request: options.EvaluateRequest, stem: str) -> bool:
    """Return whether the run's folder takes files; what was measured is worth showing without.

    Raises DiskFullError: that can be mended.
    """
    try:
        check_folder(opened.run.folder / f"{stem}.csv")
    except DiskFullError:
        raise
    except RunError as error:
        if request.output is None or request.plot:
            left = "nothing" if request.output is None else "no figure"
            opened.context.progress.warn(f"{left} was saved: {error} (--output FILE)")
        return False
    return True


def _stem(opened: FinishedRun, request: options.EvaluateRequest, steps: list[int]) -> str:
    """Name the table: the run's own is written again only by a measurement as at its end."""
    trained = opened.run.config().model.timesteps if opened.loaded.model.spiking else 1
    # bf16, or images from elsewhere, measure something else than the end of the training did
    changed = any(request.changes.get(key) for key in ("training.precision", "data.dir"))
    if request.split == "test" and steps == list(range(1, trained + 1)) and not changed:
        return "per_timestep"
    # 1, 2, 3, 4 are T4; 1, 2, 4 are T1-2-4
    whole = steps == list(range(1, len(steps) + 1))
    written = str(len(steps)) if whole else "-".join(map(str, steps))
    return f"per_timestep_{request.split}_T{written}"


def teacher_accuracy(
    opened: FinishedRun, split: Split, result: record.RunResult | None
) -> float | None:
    """Return the teacher's accuracy on `split`: recorded for the test set, else measured again.

    `result`: what the run recorded. None where the run had no teacher or, with a warning, where it
    can't be read any more.
    """
    known = result.teacher_accuracy if result else None
    # the record is of the test set; no record at all means that there was no teacher
    if split == "test" or known is None:
        return known
    try:
        teacher = teachers.read_run_teacher(opened.run, opened.context.dataset.spec)
    except TserError as error:
        opened.context.progress.warn(f"the teacher's accuracy is left out: {error}")
        return None
    if teacher is None:
        return None
    opened.context.runtime.place(networks.freeze(teacher.model))
    return evaluate_split(teacher.model, opened.context, split, 1).accuracy


AGREEMENT = ("agreement_teacher_right", "agreement_teacher_wrong")


def beside_teacher(recorded: Rows, row: dict[str, Any], accuracy: float) -> dict[str, Any]:
    """Return the columns of the teacher for a row: its test, and how often both agree, are the
    `recorded` ones where those hold.
    """
    same = ("t", "correct_cumulative", "images")
    for known in recorded:
        # McNemar's, which knows the answers of both to each image
        if all(known.get(name) == row[name] for name in same) and "p_teacher" in known:
            kept = {name: known[name] for name in AGREEMENT if name in known}
            return {"teacher_accuracy": accuracy, "p_teacher": known["p_teacher"], **kept}
    taught = round(accuracy * row["images"])
    right, images = row["correct_cumulative"], row["images"]
    p_value = statistics.proportions_p(right, images, taught, images)
    return {"teacher_accuracy": accuracy, "p_teacher": p_value}
