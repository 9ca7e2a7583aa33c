"""What a command reports while it works. Nothing is printed here: see `tser_cli.cli.progress`."""

from __future__ import annotations

from typing import Any, Protocol

TAUGHT = "teacher_correct"
COUNTS = ("correct", TAUGHT)  # of a step's values the sums over its batch; others are means


class Progress(Protocol):
    """Hear what the training loop and the commands report.

    No call waits for the device, except where it prints: the loop queues steps on a GPU and would
    wait for each of them otherwise.
    """

    def begin(self, epochs: int, steps: int, done_epochs: int) -> None:
        """A training of `epochs` x `steps` starts, of which some epochs are done."""

    def step(self, images: int, values: dict[str, Any]) -> None:
        """A step on `images` images gave these terms and COUNTS (0-dimensional tensors)."""

    def epoch(self, row: dict[str, Any]) -> None:
        """An epoch ended with this row of metrics.csv."""

    def end(self) -> None:
        """The training ended."""

    def say(self, text: str) -> None:
        """A message."""

    def warn(self, text: str) -> None:
        """A warning."""


class Silent:
    """Say nothing: for processes other than rank 0, and for use as a library."""

    def begin(self, *_: Any, **__: Any) -> None:
        """Do nothing, whatever is reported."""

    # one for all: what is not said needs no arguments
    step = epoch = end = say = warn = begin
