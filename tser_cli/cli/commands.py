"""Commands for which the command line does more than to call one function with their request."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from tser_cli.base.errors import ConfigError, unknown
from tser_cli.base.files import is_file
from tser_cli.cli import terminal
from tser_cli.settings import config, options, recipe, registry, wing_options

if TYPE_CHECKING:  # what computes is imported by the command that does: torch takes seconds
    from tser_cli.engine.commands.ablate import AblationPlan, AblationResult
    from tser_cli.engine.commands.dry_run import TrainingPlan
    from tser_cli.engine.commands.predict import Predicted
    from tser_cli.engine.runs.opened import Options
    from tser_cli.engine.runs.record import RunRecord, RunResult


def train(request: options.TrainingRequest) -> RunResult | TrainingPlan:
    """Train a student or a teacher; with --dry-run say what that would be."""
    kind = "student" if isinstance(request, options.DistillRequest) else "teacher"
    # settings first: what is mistyped is said before torch is imported
    config, how = training_config(kind, request), _how(request)
    if request.dry_run:
        from tser_cli.engine.commands import dry_run

        return (dry_run.plan_student if kind == "student" else dry_run.plan_teacher)(config, how)
    from tser_cli.engine.commands import train as command

    return (command.distill if kind == "student" else command.train_teacher)(config, how)


def training_config(kind: str, request: options.TrainingRequest) -> config.Config:
    """Return the settings of a teacher's or a student's training. Raises ConfigError, RunError."""
    layers, _ = _layers(kind, request, request.recipe)
    resolved = recipe.resolve(layers)
    if kind == "student":  # a teacher is trained by cross-entropy, whatever the method
        terminal.note(recipe.left_out(layers))
    return resolved


def _layers(
    kind: str, request: options.TrainingRequest, named: str | None
) -> tuple[list[recipe.Layer], str]:
    """Return what settings come from: recipe < TSER_* < --set < flags; and the recipe's name."""
    flags = request.changes
    # whole paths in the settings: a run's beginning may mean another run tomorrow
    if kind == "student" and "model.teacher" in flags:
        teacher = flags["model.teacher"]
        flags["model.teacher"] = meant(teacher, request.runs_dir, registry.MODELS, "teacher")
    upper = [
        recipe.from_environment(os.environ),
        recipe.from_assignments(request.assignments),
        recipe.from_flags(flags),
    ]
    stated = meant(named, request.runs_dir, recipe.available())
    names = [stated] if stated else recipe.defaults(kind, upper)
    if len(names) > 1:
        terminal.note([f"recipe {names[1]}, that of the student, above {names[0]}"])
    # plug-ins come before settings are checked, since they add methods and their keys
    layers = recipe.with_plugins([*map(recipe.read, names), *upper])
    for layer in layers:
        terminal.LOG.info("settings from %s: %s", layer.source, layer.values)
    return layers, names[0]


def meant(name: str | None, runs_dir: Path, others: Iterable[str], kind: str = "*") -> str | None:
    """Return the folder of the run that `name` means, or `name` where it is something else.

    What is among the `others`, or is a file, a folder or MODULE:FUNCTION, is no name of a run.
    """
    from tser_cli.engine.runs import find

    # what it was before runs had names comes first, so that no new run changes an old command
    if name is None or name in others or ":" in name or os.path.lexists(name):
        return name
    return find.run_or_name(name, runs_dir, kind)


def _how(request: options.TrainingRequest) -> Options:
    from tser_cli.engine.runs.opened import Options

    return Options(request.runs_dir, request.resume, request.progress)


def ablate(request: wing_options.AblateRequest) -> AblationResult | AblationPlan:
    """Train the cells of an ablation; with --dry-run say what that would be."""
    from tser_cli.engine.ablation import folder, grid
    from tser_cli.engine.commands import ablate as command

    stated = request.recipe or request.ablation
    layers, named = _layers("student", request, stated)
    asked = grid.make_request(
        layers,
        recipe.read_ablation(named),
        request.vary,
        request.seeds,
        request.baseline,
        request.accuracy_margin,
        request.seed,
        request.flags_by_setting,
    )
    terminal.note(asked.notes)
    title = Path(named).stem if stated else named
    name = grid.ablation_name(asked, "" if request.vary else title)
    output = request.output or request.runs_dir / "ablations" / name
    place = folder.AblationFolder(output, request.runs_dir, request.jobs, request.address)
    # cells are resumed one by one; --resume is about the ablation as a whole
    begun = is_file(place.plan)
    if request.resume == ("never" if begun else "must"):
        found = "an ablation already; name another folder with --output" if begun else "none"
        raise ConfigError(f"--resume {request.resume}: in {output} there is {found}")
    if request.dry_run:
        return command.plan_ablation(asked, place, _how(request))
    return command.ablate(asked, place, request.progress)


def predict(request: wing_options.PredictRequest) -> Predicted:
    """Classify image files; - stands for a list of them, and the first name may be the run's."""
    from tser_cli.engine.commands import predict as command
    from tser_cli.engine.runs import find

    images: list[str] = []
    first, *others = request.images
    if request.run is None:
        is_run = is_file(Path(first) / "status.json")
        lies_there = os.path.lexists(first) and not is_run
        found = first if lies_there else find.run_or_name(first, request.runs_dir)
        if found != first or is_run:
            if not others:
                raise ConfigError(f"{first} is a run: name images after it")
            request = replace(request, run=Path(found), images=tuple(others))
    for name in request.images:
        images += [name] if name != "-" else filter(None, sys.stdin.read().splitlines())
    predictions = command.predict(replace(request, images=tuple(images)))
    for unread in predictions.unread:  # also beside --json, whose reader may be a program
        terminal.tell(f"error: {unread.error}")
    return predictions


def runs(request: wing_options.RunsRequest) -> list[RunRecord] | None:
    """List runs, or remove some; then there is nothing to list. Raises ConfigError, RunError."""
    from tser_cli.cli import show_wings
    from tser_cli.engine.commands import runs as command

    if request.filters[:1] != ("remove",):
        return command.list_runs(request)
    names = [Path(name) for name in request.filters[1:]]
    if not names:
        raise ConfigError("remove: name the runs to delete; tser runs lists them")
    removable = command.find_removable(names, request.runs_dir)
    if not request.yes:
        question = show_wings.removal_question(removable)
        if not sys.stdin.isatty():  # a script would wait for ever, or its next line be the answer
            raise ConfigError(f"{question} There is no terminal to ask in; add --yes")
        terminal.tell(f"{question} [y/N]")
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            terminal.tell("nothing was removed")
            raise typer.Exit(1)
    for record, _ in removable:
        command.remove(record)
        terminal.tell(f"removed: {record.folder}")
    return None


def listing(request: options.ListRequest) -> list[dict[str, Any]]:
    """Return a row for each thing that can be named. Raises ConfigError."""
    from tser_cli.report import lists

    if request.what not in options.LISTS:
        raise ConfigError(unknown("list", request.what, options.LISTS))
    if request.what == "students":
        from tser_cli.engine.runs import students

        return students.rows()
    if request.what != "profiles":
        return lists.ROWS[request.what]()
    from tser_cli.energy.prices import PROFILES

    return lists.profiles(PROFILES.values())
