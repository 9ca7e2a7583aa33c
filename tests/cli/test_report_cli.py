"""`tser report` from the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tser_cli.cli import app, present
from tser_cli.engine.page import gather
from tser_cli.engine.page.gather import ReportRequest


def tser(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Call the command line in this process; return its exit code."""
    monkeypatch.setattr("sys.argv", ["tser", "report", *arguments])
    with pytest.raises(SystemExit) as stop:
        app.main()
    return int(stop.value.code or 0)


def test_flags_become_a_request(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[ReportRequest] = []
    monkeypatch.setattr(gather, "make_report", asked.append)
    monkeypatch.setattr(present, "show_report", lambda result: None)
    given = ("a", "b", "--output", "page.html", "--no-measure", "--images", "7")
    assert tser(monkeypatch, *given, "--device", "cpu", "--runs-dir", str(tmp_path)) == 0
    (request,) = asked
    assert request.subjects == (Path("a"), Path("b")) and request.output == Path("page.html")
    assert not request.measure and request.images == 7 and request.runs_dir == tmp_path
    assert request.changes["training.device"] == "cpu"


def test_a_run_that_is_none_is_one_message_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.html"
    assert tser(monkeypatch, str(tmp_path / "nothing"), "--output", str(page)) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and "is not a run folder" in said.err
    assert said.out == "" and not page.exists()


def test_the_place_of_the_page_is_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("run: gallery: no images",)
    result = SimpleNamespace(output=Path("page.html"), bytes=1_234_567, missing=lines)
    present.show_report(result)  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.out == "written: page.html (1.2 MB)\n"
    assert "not on the page: run: gallery: no images" in said.err
