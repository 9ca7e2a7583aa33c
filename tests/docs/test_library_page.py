"""docs/library.md: every block runs as it is printed, one after the other, in an empty folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.mark.integration
@pytest.mark.usefixtures("few_digits")
def test_the_blocks_of_the_page_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    shorter = "\n".join(blocks).replace('"training.epochs": 6', '"training.epochs": 1')
    monkeypatch.chdir(tmp_path)
    exec(compile(shorter, PAGE.name, "exec"), {"__name__": "__main__"})
    accuracy = re.match(r"([01]\.\d+) of 60 images", capsys.readouterr().out)
    assert accuracy is not None and 0.0 < float(accuracy[1]) <= 1.0
    assert (tmp_path / "runs" / "student" / "own").is_dir()
