"""`tser ablate` when cells have failed: the table first, then one error that names them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tser_cli.cli import app
from tser_cli.engine.ablation.folder import AblationFolder
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.commands import ablate
from tser_cli.engine.commands.ablate import AblationResult

ROW = {
    "method.name": "ce",
    "n": 1,
    "accuracy_mean": 0.5,
    "accuracy_std": None,
    "baseline": 1,
    "difference_mean": None,
    "difference_low": None,
    "difference_high": None,
    "resolved": None,
}


@pytest.mark.parametrize(
    ("failures", "code"), [((), 0), (("method=ce, seed 1: exit code 1: it broke",), 1)]
)
def test_failed_cells_are_an_error_after_the_table(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    failures: tuple[str, ...],
    code: int,
) -> None:
    def run(request: Request, place: AblationFolder, progress: Any) -> AblationResult:
        return AblationResult(place.folder, request, [ROW], (), failures)

    monkeypatch.setattr(ablate, "ablate", run)
    command = ["tser", "ablate", "--vary", "method=ce,kd", "--seeds", "2", "--dataset", "digits"]
    monkeypatch.setattr("sys.argv", [*command, "--output", str(tmp_path / "ablation")])
    with pytest.raises(SystemExit) as stop:
        app.main()
    assert int(stop.value.code or 0) == code
    captured = capsys.readouterr()
    assert "ablation: accuracy" in captured.out
    assert "written: " in captured.out
    told = "1 of 4 runs failed; the same command tries them again:\nmethod=ce, seed 1: exit code 1"
    assert (told in captured.err) == bool(failures)
