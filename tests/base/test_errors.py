"""What can go wrong, its exit codes and hints; and text from outside, fit to be shown."""

from __future__ import annotations

import html
import inspect

import pytest

from tser_cli.base import errors
from tser_cli.base.errors import Interrupted, TserError, nearest


@pytest.mark.parametrize(
    ("name", "code"),
    [("ConfigError", 2), ("RunError", 2), ("DamagedError", 3), ("TrainingError", 1)],
)
def test_exit_codes(name: str, code: int) -> None:
    assert getattr(errors, name)("what is wrong").exit_code == code
    kinds = [kind for _, kind in inspect.getmembers(errors, inspect.isclass)]
    ours = {kind for kind in kinds if issubclass(kind, Exception)} - {Interrupted}
    assert len(ours) >= 7 and all(issubclass(kind, TserError) for kind in ours)


@pytest.mark.parametrize(("signal_number", "code"), [(2, 130), (15, 143)])
def test_an_interrupted_run_exits_as_the_shell_would(signal_number: int, code: int) -> None:
    stop = Interrupted(signal_number)
    assert stop.exit_code == code
    assert str(stop) == f"stopped by signal {signal_number}"
    assert str(Interrupted(signal_number, "epoch 3")) == "epoch 3"
    assert not isinstance(stop, TserError)


class Mute(Exception):  # noqa: N818  (as anybody may name one)
    def __str__(self) -> str:
        raise ValueError


@pytest.mark.parametrize(
    ("error", "said"),
    [
        # as torch on a CPU and on a GPU, NumPy and C++ say it
        (
            RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to "
                "allocate 9599 bytes. Error code 12"
            ),
            "out of memory: 9599 bytes more were asked for. Lower --batch-size",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 20.50 GiB. GPU 0 has"),
            "out of memory: 20.50 GiB more were asked for. ",
        ),
        (MemoryError("Unable to allocate 728. TiB for an array"), "out of memory: 728. TiB more"),
        (MemoryError(), "out of memory. Lower "),
        (RuntimeError("std::bad_alloc"), "out of memory. Lower "),
        (RuntimeError("sizes do not match"), ""),
        (Mute(), ""),
    ],
)
def test_memory_that_ran_out_says_what_was_asked_for(error: Exception, said: str) -> None:
    assert errors.out_of_memory(error).startswith(said)
    assert bool(errors.out_of_memory(error)) == bool(said)


def test_an_error_from_elsewhere_is_one_line() -> None:
    assert errors.error_line(ValueError(" first\nsecond")) == "ValueError: first"
    assert errors.error_line(Mute()) == "Mute: "


def test_nearest_proposes_one_word_or_none() -> None:
    assert nearest("resnet81", ["resnet18", "vgg11"]) == ' (did you mean "resnet18"?)'
    assert nearest("qqq", ["resnet18", "vgg11"]) == ""
    assert nearest("qqq", []) == ""


def test_unknown_lists_the_choices_in_order() -> None:
    message = errors.unknown("method", "tsre", ["tser", "ce"])
    assert message == 'unknown method "tsre" (did you mean "tser"?). Known: ce, tser'


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain [red]text[/red]", "plain [red]text[/red]"),
        ("two\nlines\tof\u00a0text", "two\nlines\tof\u00a0text"),
        ("\x1b[31mred\x07\r", "\\x1b[31mred\\x07\\r"),
        ("right\u202eleft", "right\\u202eleft"),
        ("\udcff", "\\udcff"),
        ("größe 日本 █ µ", "größe 日本 █ µ"),
        ("", ""),
    ],
)
def test_what_can_t_be_seen_is_shown_as_such(text: str, shown: str) -> None:
    assert errors.visible(text) == shown


def test_long_lines_are_cut_and_say_so() -> None:
    text = errors.visible("x" * 100_000 + "\nshort")
    assert text.endswith("... (95,800 more characters)\nshort")
    assert len(text) < errors.LINE + 60
    assert errors.visible("x" * errors.LINE) == "x" * errors.LINE
    assert errors.cut("abc", 3) == "abc"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("abcdefghij", "abcdefghij"),
        ("abcdefghijk", "abcdefghij... (1 more characters)"),
        ("x" * 10_000, "xxxxxxxxxx... (9,990 more characters)"),
        ("\x1b\x1b\x1b", "\\x1b\\x1b\\x..."),
        ("", ""),
    ],
)
def test_text_on_one_line(text: str, shown: str) -> None:
    assert errors.one_line(text, 10) == shown


@pytest.mark.parametrize("text", ["$x_{$", "a$b", "one\nline", "\x1b", "x" * 1000])
def test_no_name_breaks_a_figure(text: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title(errors.drawable(text))
    figure.draw_without_rendering()
    assert "\n" not in errors.drawable(text)
    assert len(errors.drawable(text)) < errors.LABEL + 40


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("<b a='\"'>&", "&lt;b a=&#x27;&quot;&#x27;&gt;&amp;"),
        ("[x](javascript:1)", "&#91;x&#93;(javascript:1)"),
        ("`*|~$\\", "&#96;&#42;&#124;&#126;&#36;&#92;"),
        ("resnet20_T2 _x_", "resnet20_T2 &#95;x&#95;"),
        ("\x1b\u202e", "&#92;x1b&#92;u202e"),
    ],
)
def test_text_is_escaped_for_html_and_markdown_alike(text: str, shown: str) -> None:
    assert errors.escaped(text) == shown
    assert html.unescape(shown) == errors.visible(text)
