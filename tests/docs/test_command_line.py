"""docs/command-line.md is what the help texts say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tser_cli.cli.verbs import VERBS

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script(docs_script: Callable[[str], ModuleType]) -> ModuleType:
    """docs/make_command_line.py as a module."""
    return docs_script("make_command_line")


def test_the_page_is_up_to_date(script: ModuleType) -> None:
    text = script.PAGE.read_text(encoding="utf-8")
    assert text == script.page(), "run python docs/make_command_line.py"


def test_every_command_and_example_is_there(script: ModuleType) -> None:
    text = script.page()
    for verb in VERBS:
        assert (f"\n## tser {verb.name}\n" in text) is not verb.hidden
        assert f"| {verb.panel} |" in text
        assert verb.hidden or all(f"\n    {line}\n" in text for line in verb.examples)


def test_rows_by_hand(script: ModuleType) -> None:
    lines = script.page().splitlines()
    assert "| `--seed` INTEGER | Seeds weights, order and augmentation. |  |" in lines
    assert "| `--run` RUN | " in "\n".join(lines)
    expected = "| `--runs-dir` PATH | Where run folders are. Variable: `TSER_RUNS_DIR`. | `runs` |"
    assert expected in lines
    assert any(line.startswith(r"| `--batch-size` INTEGER\|auto | Images per") for line in lines)
    assert any(line.startswith("| `--json` | One JSON") for line in lines)
    where = "Where the table goes, as report.csv; without, only shown."
    assert f"| `OUTPUT` (may be left out) | {where} |  |" in lines


def test_a_stale_page_is_told(
    script: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(script, "PAGE", tmp_path / "page.md")
    assert script.main(check=True) == 1
    assert capsys.readouterr().out == "differs from the help texts: page.md\n"
    assert script.main(check=False) == 0
    assert script.main(check=True) == 0
