"""Any text on the command line: a valid run, or exit code 2 with a message. Never a traceback."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tser_cli import config as settings
from tser_cli.cli import app
from tser_cli.cli.options import training_config
from tser_cli.config import Config
from tser_cli.engine import plan, run
from tser_cli.errors import ConfigError

KEYS = st.one_of(st.sampled_from(sorted(settings.keys())), st.text(max_size=20))
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["true", "[]", "{}", "1e999", "nan", "-0", "''", '"\\u0000"', "[[", "1=2"]),
)
ASSIGNMENTS = st.lists(st.tuples(KEYS, VALUES).map("=".join) | st.text(max_size=20), max_size=3)
FLAGS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                *("-T", "--epochs", "--batch-size", "--lr", "--seed", "--method", "--temperature"),
                *("--dataset", "--device", "--precision", "--checkpoint-every", "--resume"),
                *("--student", "--teacher", "--data-dir", "--recipe", "--runs-dir", "--bogus"),
            ]
        ),
        VALUES,
    ),
    max_size=3,
)
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(st.tuples(KEYS, VALUES).map(" = ".join), max_size=4).map(
        lambda lines: "\n".join(lines).encode(errors="replace")
    ),
)


@given(st.sampled_from(["teacher", "student"]), ASSIGNMENTS)
def test_any_assignments(kind: str, assignments: list[str]) -> None:
    try:
        assert isinstance(training_config(kind, {}, None, assignments), Config)
    except ConfigError as error:
        assert str(error)


@given(CONTENT)
def test_any_recipe(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.toml"
    path.write_bytes(content)
    try:
        assert isinstance(training_config("student", {}, str(path), []), Config)
    except ConfigError as error:
        assert str(error)


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Config]]:
    """The settings with which the verbs would have begun; they don't."""
    begun: list[Config] = []
    for module, name in (
        *((run, name) for name in ("train_teacher", "distill")),
        *((plan, name) for name in ("plan_teacher", "plan_student")),
    ):
        monkeypatch.setattr(module, name, lambda config, options: begun.append(config))
    yield begun


def call(*argv: str) -> tuple[int, str]:
    """The exit code of the command line, and what it wrote."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(out):
        patch.setattr(sys, "argv", ["tser", *argv])
        try:
            app.main()
        except SystemExit as stop:
            return int(stop.code or 0), out.getvalue()
    return 0, out.getvalue()


def test_any_command_line(called: list[Config], tmp_path: Path) -> None:
    @given(st.sampled_from(["train-teacher", "distill"]), FLAGS, ASSIGNMENTS)
    def any_command_line(verb: str, flags: list[tuple[str, str]], assignments: list[str]) -> None:
        called.clear()
        argv: list[Any] = [verb, *(part for flag in flags for part in flag)]
        argv += [part for assignment in assignments for part in ("--set", assignment)]
        code, text = call(*argv)
        assert code in (0, 2), text
        assert "Traceback" not in text
        assert text if code else len(called) == 1 or "--help" in argv

    any_command_line()
