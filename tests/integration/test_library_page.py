"""docs/library.md: every block runs as it is printed, one after the other, in an empty folder."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "library.md"


@pytest.mark.integration
@pytest.mark.usefixtures("nothing_added")
def test_the_blocks_of_the_page_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 5
    program = tmp_path / "page.py"
    shorter = "\n".join(blocks).replace('"training.epochs": 2', '"training.epochs": 1')
    program.write_text(shorter, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(program), run_name="__main__")
    printed = capsys.readouterr().out
    accuracy = float(re.match(r"([01]\.\d+) of 360 images", printed)[1])  # type: ignore[index]
    assert 0.0 < accuracy <= 1.0
    assert (tmp_path / "runs" / "student" / "own").is_dir()


def test_importing_the_package_loads_nothing_heavy() -> None:
    program = "import sys, tser_cli; print('torch' in sys.modules, tser_cli.__all__[0])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split()[0] == "False"
