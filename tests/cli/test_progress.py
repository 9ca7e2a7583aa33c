"""Progress: plain lines for logs, bars for a terminal."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from rich.console import Console

from tser_cli.cli import progress
from tser_cli.cli.progress import Bars, Lines, describe, make_progress

ROW: dict[str, Any] = {
    "epoch": 2,
    "lr": 0.05,
    "loss": 1.23456,
    "ce": 0.5,
    "kd": 0.73456,
    "train_accuracy": 0.875,
    "validation_accuracy": None,
    "images_per_second": 1234.5,
    "seconds": 9.9,
}
TEXT = "epoch 2/10, loss 1.2346, ce 0.5000, kd 0.7346, train 87.50 %"


def plain_console(width: int = 40) -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=width), stream


def terminal() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, force_terminal=True, width=160), stream


def test_an_epoch_in_a_line() -> None:
    assert describe(ROW, 10) == f"{TEXT}, 1234 images/s"
    validated = {**ROW, "validation_accuracy": 0.5}
    assert describe(validated, 10) == f"{TEXT}, validation 50.00 %, 1234 images/s"
    energy = {"energy_pj": 2.98e6, "energy_budget_pj": 3e6, "energy_multiplier": 0.25}
    told = "energy 2.98 µJ, aim 3 µJ"
    expected = TEXT.replace(", train", f", {told}, train")
    assert describe({**ROW, **energy}, 10) == f"{expected}, 1234 images/s"


class Unread:
    """A loss on a device that nothing may wait for."""

    def __float__(self) -> float:
        raise AssertionError("this would wait for the device")


def test_lines_are_one_an_epoch_unwrapped_and_without_colour() -> None:
    console, stream = plain_console()
    lines = Lines(console)
    lines.begin(epochs=10, steps=3, done_epochs=1)
    lines.step(8, {"loss": Unread()})
    lines.epoch(ROW)
    lines.say("run folder: /a/path/[with]/brackets/that/is/longer/than/the/console/is/wide")
    lines.warn("it is late")
    lines.end()
    assert stream.getvalue().splitlines() == [
        f"{TEXT}, 1234 images/s",
        "run folder: /a/path/[with]/brackets/that/is/longer/than/the/console/is/wide",
        "warning: it is late",
    ]


def test_bars_only_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_progress(plain_console()[0])) is Lines
    assert type(make_progress(terminal()[0])) is Bars
    monkeypatch.setenv("TERM", "dumb")
    assert type(make_progress(terminal()[0])) is Lines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The clock of the bars; append to move it."""
    times = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: times[-1])
    return times


def shown(bars: Bars) -> dict[str, tuple[float, float | None, str]]:
    """What stands behind each bar: done, all, note."""
    return {
        task.description: (task.completed, task.total, task.fields["note"])
        for task in bars._bars.tasks
    }


def test_bars_show_speed_and_losses(clock: list[float]) -> None:
    console, stream = terminal()
    bars = Bars(console)
    bars.begin(epochs=10, steps=3, done_epochs=1)
    values = {"loss": torch.tensor(1.5), "ce": torch.tensor(0.25)}
    values |= {"correct": torch.tensor(3), "teacher_correct": torch.tensor(2)}
    bars.step(8, values)
    assert shown(bars)["steps"] == (3, 30, "")
    clock.append(100.5)
    bars.step(8, values)
    assert shown(bars)["steps"] == (5, 30, "32 images/s, loss 1.500, ce 0.250")
    bars.step(8, values)
    bars.epoch(ROW)
    assert shown(bars)["steps"][0] == 6
    assert shown(bars)["epochs"] == (2, 10, "")
    bars.end()
    assert f"{TEXT}, 1234 images/s" in stream.getvalue()


def test_a_second_training_has_bars_of_its_own(clock: list[float]) -> None:
    bars = Bars(terminal()[0])
    bars.end()  # it never began
    for epochs in (4, 7):
        bars.begin(epochs=epochs, steps=2, done_epochs=0)
        clock.append(clock[-1] + 1)
        bars.step(8, {})
        bars.step(8, {})
        bars.end()
    assert shown(bars) == {}
    bars.begin(epochs=5, steps=2, done_epochs=0)
    assert shown(bars)["steps"] == (0, 10, "")
    assert shown(bars)["epochs"] == (0, 5, "")
    bars.end()


def test_the_time_left_is_told_once(clock: list[float]) -> None:
    console, stream = plain_console()
    lines = Lines(console)
    lines.begin(epochs=4, steps=50, done_epochs=1)
    for _ in range(30):
        lines.step(8, {})
        clock.append(clock[-1] + 0.5)
    # 150 steps are left of 3 epochs; told after 2 + 4 of them, the first with 2 seconds behind it
    assert stream.getvalue() == "about 72 s of training are left, as its first steps go\n"


@pytest.mark.parametrize(("steps", "seconds"), [(4, 10.0), (1000, 0.0001), (12, 1.0)])
def test_no_time_is_told_of_what_is_short(clock: list[float], steps: int, seconds: float) -> None:
    console, stream = plain_console()
    lines = Lines(console)
    lines.begin(epochs=1, steps=steps, done_epochs=0)
    for _ in range(steps):
        lines.step(8, {})
        clock.append(clock[-1] + seconds)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("width", "bar", "note"),
    [
        (160, True, "32 images/s, loss 1.500, ce 0.250"),
        (80, True, "32 images/s, loss 1.500"),
        (50, True, ""),
        (40, True, ""),
        (36, False, ""),
    ],
)
def test_a_narrow_terminal_keeps_the_counters_whole(
    clock: list[float], width: int, bar: bool, note: str
) -> None:
    stream = io.StringIO()
    bars = Bars(Console(file=stream, force_terminal=True, width=width))
    bars.begin(epochs=120, steps=100, done_epochs=1)
    bars.step(8, {})
    clock.append(100.5)
    bars.step(8, {"loss": 1.5, "ce": 0.25})
    assert shown(bars)["steps"][2] == note
    drawn = io.StringIO()
    Console(file=drawn, width=width).print(bars._bars.get_renderable())
    epochs, steps = drawn.getvalue().splitlines()
    assert epochs.split()[0] == "epochs" and "1/120" in epochs
    assert "102/12000" in steps and steps.rstrip().endswith(note) and len(steps) <= width
    assert ("BarColumn" in {type(column).__name__ for column in bars._bars.columns}) == bar
    bars.end()
