"""The picture of a terminal: what the commands printed, and nothing from elsewhere."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    """docs/make_terminal.py as a module."""
    return docs_script("make_terminal")


def words_in(svg: str) -> str:
    """The text of a picture."""
    texts = [text for text in ElementTree.fromstring(svg).itertext() if "{" not in text]
    return " ".join(html.unescape("".join(texts)).replace("\u00a0", " ").split())


def test_epochs_between_the_first_and_the_last_are_counted(script: ModuleType) -> None:
    lines = [f"epoch {n}/4, loss {n}" for n in range(1, 5)]
    assert script.abridged(["a", *lines, "b  "]) == [
        *("a", "epoch 1/4, loss 1", "  ... 2 more epochs", "epoch 4/4, loss 4", "b"),
    ]
    assert script.abridged(lines[:1]) == lines[:1]
    two = ["epoch 1/2, x", "epoch 2/2, x"]
    assert script.abridged(two) == two


def test_a_picture_holds_its_text_and_fetches_nothing(script: ModuleType) -> None:
    svg = script.picture("$ tser runs\n\n  accuracy <97 %> & █\n")
    assert "$ tser runs" in words_in(svg)
    assert "accuracy <97 %> & █" in words_in(svg)
    assert "@font-face" not in svg
    assert set(re.findall(r"https?://[\w./]+", svg)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }
    assert svg == script.picture("$ tser runs\n\n  accuracy <97 %> & █\n")


def test_the_picture_that_is_kept_is_of_what_was_printed(script: ModuleType) -> None:
    printed = script.PRINTED.read_text(encoding="utf-8")
    assert all(f"$ {command}\n" in printed for command in script.COMMANDS)
    assert re.search(r"\d\d\.\d\d % (\(\d+ )?of 360 test images", printed)
    assert "/tmp" not in printed
    drawn = script.FIGURE.read_text(encoding="utf-8")
    assert words_in(drawn) == words_in(script.picture(printed))
