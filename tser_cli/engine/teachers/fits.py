"""The student's teacher: found, checked to fit the data, and kept for the whole of a run."""

from __future__ import annotations

from pathlib import Path

from tser_cli.engine.runs import model_files
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context
from tser_cli.engine.teachers import find
from tser_cli.engine.training.task import check_teacher, freeze
from tser_cli.errors import CheckpointError


def find_fitting(context: Context, runs_dir: Path) -> Loaded | None:
    """The teacher that the settings name, checked to fit; None where one must be trained first."""
    loaded = find.find_teacher(context.config, context.dataset.spec, runs_dir)
    return None if loaded is None else fitting(loaded, context)


def fitting(loaded: Loaded, context: Context) -> Loaded:
    """`loaded`. Raises CheckpointError where it can't teach what the data set shows."""
    spec = context.dataset.spec
    check_teacher(find.as_ann(loaded).model, spec.image_shape, spec.num_classes)
    if loaded.classes and loaded.classes != spec.classes:
        raise CheckpointError(
            f"{loaded.source} was trained to tell apart {', '.join(loaded.classes[:3])} ..., the "
            f"classes of {spec.name} are {', '.join(spec.classes[:3])} .... Name another teacher, "
            "or train one on this data set (tser train-teacher)"
        )
    return loaded


def keep_teacher(run: Run, context: Context, found: Loaded) -> Loaded:
    """The teacher that `run` began with: `found`, which is noted down, where it begins now.

    Raises CheckpointError where an earlier teacher's file is gone or has changed.
    """

    def keep() -> Loaded:
        before = run.environment().get("teacher")
        if before is None or before["sha256"] == found.sha256:
            described = {"source": found.source, "model": found.name, "sha256": found.sha256}
            run.update_environment(teacher=described)
            return found
        earlier = fitting(model_files.read(Path(before["source"]), context.dataset.spec), context)
        if earlier.sha256 != before["sha256"]:
            raise CheckpointError(
                f"{before['source']}, the teacher of {run.folder}, has changed since that run "
                "began. Put the old file back, or begin a new run with --resume never"
            )
        context.progress.say(f"teacher: {earlier.source} instead, which the run began with")
        return earlier

    kept = context.runtime.on_main(keep)
    freeze(kept.model)
    return kept
