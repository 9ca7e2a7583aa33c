"""Begin a run, or take one up again, and say where that makes it another one."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from datetime import datetime

import tomli_w
import torch

from tser_cli.config import Config
from tser_cli.engine.runs import find_runs, run_folder
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runs.split_list import keep_images
from tser_cli.engine.runtime.context import Context, Options
from tser_cli.engine.training.optimizer import lr_factor
from tser_cli.files import write_text


def take_run(kind: str, context: Context, options: Options, held: ExitStack) -> tuple[Run, bool]:
    """Return the run to work on, locked until `held` closes, and whether it was begun before.

    Raises ConfigError or RunError where `--resume must` has nothing to go on with.
    """
    found, must = None, options.resume == "must"
    if options.resume != "never":
        found = find_runs.find_unfinished(options.runs_dir, kind, context.config, must)
    run = found or run_folder.create(options.runs_dir, kind, context.config)
    held.enter_context(run.lock())
    run.remove_leftovers()
    keep_images(run, context)
    if found is not None:
        warning = other_schedule(run, context.config)
        if warning:
            context.progress.warn(warning)
    run.update_status(state="running", why="")
    # A resumed run may have other workers, say, than it began with: the file says what holds.
    write_text(run.folder / "config.toml", tomli_w.dumps(context.config.model_dump(mode="json")))
    _record_command(run, context)
    return run, found is not None


def _record_command(run: Run, context: Context) -> None:
    """Add this command to those that have worked on the run, oldest first."""
    now = {
        "command": sys.argv,
        "device": str(context.runtime.device),
        "processes": context.runtime.world,
        "threads": torch.get_num_threads(),  # the order of sums, and so their last bits
    }
    at = datetime.now().astimezone().isoformat(timespec="seconds")
    before = run.environment().get("commands")
    commands = [*(before if isinstance(before, list) else []), {"at": at, **now}]
    run.update_environment(**now, commands=commands)


def other_schedule(run: Run, after: Config) -> str:
    """Say what differs where `run` goes on with another number of epochs; "" where nothing does.

    Only `--resume must` goes on with such a run, unless its learning rate knows no end.
    """
    before, epoch = run.config(), int(run.status().get("epoch", 0))
    old, new = before.training.epochs, after.training.epochs
    if old == new or after.policy("training.epochs").resume:
        return ""
    # The factor at the beginning of an epoch does not depend on the steps that it has.
    lrs = [
        settings.optimizer.lr
        * lr_factor(epoch * 1000, 1000, settings.training.epochs, settings.schedule)
        for settings in (before, after)
    ]
    return (
        f"--resume must: {old} epochs become {new}, so that this is another run than either. After "
        f"{epoch} epochs the {after.schedule.name} learning rate goes on at {lrs[1]:.4g} instead "
        f"of {lrs[0]:.4g}, and ends with epoch {new}"
    )
