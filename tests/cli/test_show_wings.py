"""What is shown of the results of the wings' commands."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tser_cli.cli import show_wings, terminal
from tser_cli.energy.audit import FINDING, NOTE, Audit, Finding
from tser_cli.engine.ablation.grid import make_request
from tser_cli.engine.ablation.tables import ExitStatistics
from tser_cli.engine.commands.ablate import AblationPlan, AblationResult
from tser_cli.engine.commands.audit import AuditResult
from tser_cli.report.comparison import CellStatistics
from tser_cli.settings.recipe import Layer
from tser_cli.settings.wing_options import AblateRequest, AuditRequest, ReportRequest

Shown = Callable[[], list[str]]
ABLATION = AblationPlan(
    cells=(("method=ce, seed 0", True), ("method=[kd], seed 0", False)),
    teachers=("a resnet20 is trained first, 10 epochs",),
    seconds=1800.0,
    jobs=1,
    jobs_given=False,
    address=None,
)


def ablation(tmp_path: Path, **changes: Any) -> AblationResult:
    base = [Layer("tests", {"data.name": "digits"})]
    request = make_request(base, {"vary": ["method=ce,kd"], "seeds": 2})
    cell = CellStatistics({"method.name": "ce"}, "accuracy", 2, 0.9, 0.01, is_baseline=True)
    better = replace(cell, settings={"method.name": "kd"}, is_baseline=False)
    better = replace(better, difference=0.02, interval=(0.01, 0.03))
    summary = [cell, replace(better, resolved=True, resolved_holm=True)]
    plain = AblationResult(tmp_path / "ablation", request, summary, (), ())
    return replace(plain, **changes)


def test_an_ablation_s_table(shown: Shown, tmp_path: Path) -> None:
    result = ablation(tmp_path, figures=(tmp_path / "a.png",))
    show_wings.show_ablation(result, AblateRequest())
    lines = shown()
    assert lines[0].strip() == "ablation: accuracy"
    (kd,) = [line.split() for line in lines if line.strip().startswith("kd")]
    assert kd == ["kd", "2", "90.00", "±", "1.00", "+2.00", "+1.00", "..", "+3.00"]
    assert any(line.split()[-1:] == ["baseline"] for line in lines)
    assert lines[-3:] == [
        f"written: {result.folder / name}" for name in ("ablation.csv", "summary.csv", "figures")
    ]
    show_wings.show_ablation(ablation(tmp_path, events="simulated from x"), AblateRequest())
    lines = shown()
    assert lines[0] == "simulated events: from x" and not any("figures" in line for line in lines)


def test_an_ablation_with_early_exit(shown: Shown, tmp_path: Path) -> None:
    ce, kd = {"method.name": "ce"}, {"method.name": "kd"}
    accuracy = CellStatistics(ce, "accuracy", 2, 0.9, None, is_baseline=True)
    base = CellStatistics(ce, "energy_pj", 2, 2e6, 1e5, is_baseline=True)
    energy = CellStatistics(kd, "energy_pj", 1, 2e6, None, False, 1, -5e4, (-1e5, 0.0))
    row, other = ExitStatistics(base, accuracy, 0), ExitStatistics(energy, accuracy, 1)
    result = ablation(tmp_path, exits=(row, other), figures=(tmp_path / "frontier.png",))
    show_wings.show_ablation(result, AblateRequest())
    lines = shown()
    assert "early exit at the accuracy of the baseline less 0.5 points" in map(str.strip, lines)
    found = [line.split() for line in lines if line.split()[:1] in (["ce"], ["kd"])][-2:]
    assert found == [
        ["ce", "2", "2.00", "±", "0.10", "90.00", "baseline"],
        ["kd", "1", "of", "2", "2.00", "90.00", "-0.05", "?", "-0.10", "..", "+0.00"],
    ]
    assert any("? no verdict: the runs that miss that accuracy" in line for line in lines)
    names = [line.rpartition("/")[2] for line in lines if line.startswith("written")]
    assert names == [
        *("ablation.csv", "summary.csv", "early_exit.csv", "early_exit_summary.csv"),
        *("frontier.csv", "figures"),
    ]


MACHINES = "at a time on machines like this one"


@pytest.mark.parametrize(
    ("jobs", "given", "address", "said"),
    [
        (1, False, None, "one after the other"),
        (2, True, None, "2 side by side"),
        (2, True, "auto", f"2 {MACHINES}"),
        (1, False, "auto", f"1 {MACHINES}, less by as many as the cluster has room for"),
    ],
)
def test_how_many_cells_run_at_once(
    shown: Shown, jobs: int, given: bool, address: str | None, said: str
) -> None:
    plan = replace(ABLATION, jobs=jobs, jobs_given=given, address=address)
    show_wings.show_ablation_plan(plan)
    before, after = "2 runs, 1 finished; about 30 min of training, ", ", measured on a few real"
    assert shown() == [
        *("method=ce, seed 0: finished", "method=[kd], seed 0"),
        "a resnet20 is trained first, 10 epochs",
        f"{before}{said}{after} steps",
    ]


def silent(layer: str, count: int, severity: str = NOTE) -> Finding:
    what = "neurons never fired on 16 images"
    return Finding("firing", layer, what, "look", count, 1200, severity=severity)


def test_an_audit_is_a_table_and_a_line(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    names = [f"layer1.{i}.conv2.with_a_long_name" for i in range(8)]
    found = [
        *(silent(name, 3) for name in names[:2]),
        *(silent(name, 600, FINDING) for name in names),
        Finding("reset", "(output)", "outputs differ", "reset it", measure="by up to 0.1"),
    ]
    result = AuditResult("net", Audit(tuple(found), (("order of axes", "there are no labels"),)))
    show_wings.show_audit(result, AuditRequest())
    lines = [line.strip() for line in shown()]
    assert lines[1].split() == ["finding", "where", "how", "many", "what", "to", "do"]
    first, second = (i for i, line in enumerate(lines) if names[0] in line or "(output)" in line)
    assert "4,800 of 9,600" in lines[first] and lines[first].endswith("look")
    assert "and 7 more" in lines[first + 1] and "(50 %)" in lines[first + 1]
    assert "by up to 0.1" in lines[second]
    assert lines[-1] == "net: 9 findings; 2 notes, 1 check left out (-v shows them)"
    assert not any("note:" in line for line in lines)
    # Notes come last, and the checks that could not be made.
    try:
        terminal.choose(quiet=False, verbose=True)
        show_wings.show_audit(result, AuditRequest())
    finally:
        terminal.choose(quiet=False, verbose=False)
    lines = [line.strip() for line in shown()]
    assert any(line.startswith("note:") and "6 of 2,400" in line for line in lines[second:])
    assert lines[-2:] == [
        "not checked: order of axes: there are no labels",
        "net: 9 findings; 2 notes, 1 check left out",
    ]


def test_a_healthy_student_s_audit_is_one_line(shown: Shown) -> None:
    show_wings.show_audit(AuditResult("net", Audit((silent("act1", 3),), ())), AuditRequest())
    show_wings.show_audit(AuditResult("net", Audit((), ())), AuditRequest())
    assert shown() == ["net: clean; 1 note (-v shows them)", "net: clean"]


def test_the_place_of_a_page_and_what_it_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    lines = ("run: gallery: no images",)
    result = SimpleNamespace(output=Path("page.html"), bytes=1_234_567, missing=lines)
    request = ReportRequest(progress=terminal.progress())
    show_wings.show_report(result, request)  # type: ignore[arg-type]
    said = capsys.readouterr()
    assert said.out == "written: page.html (1.2 MB)\n"
    assert "not on the page: run: gallery: no images" in said.err
