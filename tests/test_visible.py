"""Text from outside, fit to be shown."""

from __future__ import annotations

import pytest

from tser_cli.base.errors import LABEL, LINE, cut, drawable, one_line, visible


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
    assert visible(text) == shown


def test_long_lines_are_cut_and_say_so() -> None:
    text = visible("x" * 100_000 + "\nshort")
    assert text.endswith("... (95,800 more characters)\nshort")
    assert len(text) < LINE + 60
    assert visible("x" * LINE) == "x" * LINE
    assert cut("abc", 3) == "abc"


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
    assert one_line(text, 10) == shown


@pytest.mark.parametrize("text", ["$x_{$", "a$b", "one\nline", "\x1b", "x" * 1000])
def test_no_name_breaks_a_figure(text: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title(drawable(text))
    figure.draw_without_rendering()
    assert "\n" not in drawable(text)
    assert len(drawable(text)) < LABEL + 40
