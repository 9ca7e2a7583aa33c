"""The terminal: nothing is markup, nothing is raw, and a lost reader ends nothing."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table

from tser_cli.base.errors import OutputError
from tser_cli.cli import show, start, terminal
from tser_cli.cli.progress import Lines

ODD = ["[/red]x", "[/x]", "[bold]x", ":smile:", "\x1b[2Jx", "a\rb", "\u202egnp"]


@pytest.mark.parametrize("name", ODD)
def test_every_text_is_shown_as_it_stands(capsys: pytest.CaptureFixture[str], name: str) -> None:
    table = Table(title=f"{name}: accuracy", caption=name)
    table.add_column(name, no_wrap=True)
    table.add_row(name)
    terminal.output().print(table)
    terminal.output().print(f"run folder: {name}", soft_wrap=True)
    Lines(terminal.Terminal(stderr=True)).say(name)
    terminal.tell(name)
    out, err = capsys.readouterr()
    shown = name.encode("unicode_escape").decode() if not name.isprintable() else name
    assert out.count(shown) == 5
    assert err == f"{shown}\n{shown}\n"


@pytest.mark.parametrize("columns", ["0", "20", "nine"])
def test_narrow_terminals_still_show_the_table(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    table = Table()
    for name in ("at t", "cumulative", "confidence"):
        table.add_column(name, no_wrap=True)
    table.add_row("99.17 %", "98.33 %", "0.913")
    terminal.output().print(table)
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("cumulative", "99.17 %", "98.33 %", "0.913"))


class Broken(io.StringIO):
    """A stream that fails as the system's do."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.error = OSError(number, os.strerror(number))

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("number", [5, 28, 32])  # EIO, ENOSPC, EPIPE
def test_messages_that_nobody_reads_are_dropped(
    monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sys, "stderr", Broken(number))
    with terminal.guarded():
        Lines(terminal.Terminal(stderr=True)).say("an epoch")
        terminal.tell("a message")


def test_results_that_can_t_be_written_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(32))
    with terminal.guarded():
        terminal.output().print("accuracy")  # nobody reads it
    monkeypatch.setattr(sys, "stdout", Broken(28))
    with terminal.guarded(), pytest.raises(OutputError, match="No space left") as told:
        terminal.output().print("accuracy")
    assert told.value.exit_code == 1


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_encoding_lacks_are_replaced(
    monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    with terminal.guarded():
        terminal.output().print("accuracy █ 日本")
        sys.stdout.flush()
    assert raw.getvalue().decode(encoding) == "accuracy ? ??\n"


def tser(*arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "tser_cli", *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, **options)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk_behind_standard_output() -> None:
    with open("/dev/full", "w") as full:  # noqa: PTH123
        process = tser("methods", stdout=full)
        message = process.communicate()[1].decode()
    assert message == "error: standard output can't be written: No space left on device\n"
    assert process.returncode == 1


@pytest.mark.skipif(os.name != "posix", reason="closes a pipe")
def test_a_reader_that_went_away_is_no_failure() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    process = tser("methods", stdout=writing)
    os.close(writing)
    assert process.communicate()[1] == b""
    assert process.returncode == 0


def test_ctrl_c_before_training_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # whoever started the tests in the background may have had it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "argv", ["tser", "list", "methods"])
    monkeypatch.setattr(show, "show_list", lambda *given: signal.raise_signal(signal.SIGINT))
    with pytest.raises(SystemExit) as stop:
        start.main()
    assert stop.value.code == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_prose_breaks_between_words_and_paths_stay_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    class Screen(io.StringIO):
        def isatty(self) -> bool:
            return True

    path = "/a/path/that-is-longer/than-forty/columns/of-a-terminal"
    command = f"  tser distill --teacher {path}"
    said = f"run folder: {path}\nthe same command resumes it, and so on\n{command}"
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal.wrapped(said, io.StringIO()) == said
    shown = terminal.wrapped(said, Screen())
    assert shown.splitlines() == [
        "run folder:",
        path,
        "the same command resumes it, and so on",
        command,
    ]
