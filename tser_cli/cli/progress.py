"""Progress of a training on standard error: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any, TextIO, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichBars

from tser_cli.base.progress import COUNTS, Progress, Silent
from tser_cli.cli.terminal import wrapped
from tser_cli.report.words import duration
from tser_cli.settings.fields import joules

REFRESH_SECONDS = 0.25
WARM_UP = 2  # steps: the first ones plan convolutions and ask for memory
FEWEST_STEPS, FEWEST_SECONDS = 3, 2.0  # on a GPU a call returns before its work is done
WORTH_TELLING = 20.0  # seconds
LONGEST_BAR, SHORTEST_BAR = 20, 8
ENERGY = ("energy_pj", "energy_budget_pj", "energy_multiplier")
OF_TEACHER = "teacher_train_accuracy"


def describe(row: dict[str, Any], epochs: int) -> str:
    """Describe an epoch in one line: losses by term, accuracies, speed."""
    fixed = {"epoch", "lr", "train_accuracy", OF_TEACHER, "validation_accuracy"}
    fixed |= {"images_per_second", "seconds", *ENERGY}
    parts = [f"epoch {row['epoch']}/{epochs}"]
    parts += [f"{name} {value:.4f}" for name, value in row.items() if name not in fixed]
    if "energy_pj" in row:
        budget = row["energy_budget_pj"]
        parts.append(f"energy {joules(row['energy_pj'], budget)}, aim {joules(budget)}")
    taught = f" (its teacher {100 * row[OF_TEACHER]:.2f} %)" if OF_TEACHER in row else ""
    parts.append(f"train {100 * row['train_accuracy']:.2f} %{taught}")
    if row["validation_accuracy"] is not None:
        parts.append(f"validation {100 * row['validation_accuracy']:.2f} %")
    parts.append(f"{row['images_per_second']:.0f} images/s")
    return ", ".join(parts)


class Lines(Silent):
    """Print a line an epoch, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._epochs = self._left = self._steps = 0
        self._began, self._said = 0.0, False

    def begin(self, epochs: int, steps: int, done_epochs: int) -> None:
        self._epochs, self._left, self._steps = epochs, (epochs - done_epochs) * steps, 0
        self._said = False

    def step(self, images: int, values: dict[str, Any]) -> None:
        self._left, self._steps = self._left - 1, self._steps + 1
        if self._said or self._steps < WARM_UP:
            return
        now = time.monotonic()
        if self._steps == WARM_UP:
            self._began = now
        steps, seconds = self._steps - WARM_UP, now - self._began
        if steps < FEWEST_STEPS or seconds < FEWEST_SECONDS:
            return
        # said once, even where it is not worth a line: later steps would not make it so
        self._said = True
        left = seconds / steps * self._left
        if left >= WORTH_TELLING:
            self.say(f"about {duration(left)} of training are left, as its first steps go")

    def epoch(self, row: dict[str, Any]) -> None:
        self.say(describe(row, self._epochs))

    def say(self, text: str) -> None:
        shown = wrapped(text, cast("TextIO", self._console.file))
        self._console.print(shown, soft_wrap=True, markup=False, highlight=False)

    def warn(self, text: str) -> None:
        Lines.say(self, f"warning: {text}")


class Bars(Lines):
    """Show bars of epochs and steps with images/s, losses by term and the time left."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        # rich draws nothing before start(): bars that never begin can be stopped all the same
        self._bars = self._make()
        self._epoch_bar = self._batch_bar = TaskID(0)
        self._shown, self._images, self._waiting, self._room = 0.0, 0, 0, 0

    def _make(self, steps: int = 0) -> RichBars:
        # The counters stay whole: the bar has what is left, and the note what the bar leaves.
        counters = len("epochs") + len(f" {steps}/{steps} 0:00:00 ")
        left = self._console.width - counters
        bar = min(left - 2, LONGEST_BAR) if left - 2 >= SHORTEST_BAR else 0
        self._room = left - bar - 2
        return RichBars(
            TextColumn("{task.description}", markup=False),
            *([BarColumn(bar)] if bar else []),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self._console,
            transient=True,  # the lines of epochs stay, the bars go
        )

    def begin(self, epochs: int, steps: int, done_epochs: int) -> None:
        super().begin(epochs, steps, done_epochs)
        self._bars = self._make(epochs * steps)  # a student's training follows its teacher's
        done, add = done_epochs, self._bars.add_task
        self._epoch_bar = add("epochs", total=epochs, completed=done, note="")
        self._batch_bar = add("steps", total=epochs * steps, completed=done * steps, note="")
        self._shown, self._images, self._waiting = time.monotonic(), 0, 0
        self._bars.start()

    def step(self, images: int, values: dict[str, Any]) -> None:
        super().step(images, values)
        # turning a loss into a number waits for the GPU: only when a line is drawn
        self._images += images
        self._waiting += 1
        spent = time.monotonic() - self._shown
        if spent < REFRESH_SECONDS:
            return
        note = f"{self._images / spent:.0f} images/s"
        for name in [name for name in values if name not in COUNTS]:
            value = float(values[name])
            said = f"energy {joules(value)}" if name == "energy_pj" else f"{name} {value:.3f}"
            if len(f"{note}, {said}") > self._room:
                break
            note = f"{note}, {said}"
        note = note if len(note) <= self._room else ""
        self._bars.update(self._batch_bar, advance=self._waiting, note=note)
        self._shown, self._images, self._waiting = time.monotonic(), 0, 0

    def epoch(self, row: dict[str, Any]) -> None:
        self._bars.update(self._batch_bar, advance=self._waiting)
        self._bars.update(self._epoch_bar, completed=row["epoch"])
        self._waiting = 0
        super().epoch(row)

    def end(self) -> None:
        self._bars.stop()
        for task in self._bars.task_ids:
            self._bars.remove_task(task)


class Warnings(Lines):
    """Show warnings, and nothing else."""

    def say(self, text: str) -> None:
        """Nothing: epochs and the time that is left are said, too."""

    def epoch(self, row: dict[str, Any]) -> None:
        """Nothing, whatever the row has."""


def make_progress(console: Console, quiet: bool = False) -> Progress:
    """Return bars where `console` is a terminal that can redraw a line, lines elsewhere."""
    if quiet:
        return Warnings(console)
    # an editor's or a CI's console is a terminal, but shows each redraw as a line
    redraws = console.is_terminal and not console.is_dumb_terminal
    return Bars(console) if redraws else Lines(console)
