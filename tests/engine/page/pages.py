"""Pages of reports made by hand, with names from somebody who means harm."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

from tser_cli.engine.page.values import (
    AblationReport,
    AblationRun,
    Accuracy,
    Answer,
    CellReport,
    ClassErrors,
    Confusion,
    Curves,
    Energy,
    EnergyPair,
    ExitPoint,
    Gallery,
    LayerSums,
    MeasuredStep,
    Missing,
    Mistakes,
    Page,
    Picture,
    RunFacts,
    RunReport,
    Setting,
    Tradeoff,
)
from tser_cli.report.comparison import CellStatistics, Disagreement
from tser_cli.report.figures import EnergyPoint, LayerEnergy, tradeoff
from tser_cli.report.verdict import Verdict

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}'\"&"
NAMES = ("cat", HOSTILE, "${alert(3)}")
# A grey pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


def accuracy(*right: int) -> Accuracy:
    """So many of 20 images right, at a step alone and together; the teacher has 90 %."""
    steps = (MeasuredStep(t, 20, n, n, 0.5, 0.2, 0.8) for t, n in enumerate(right, 1))
    return Accuracy(tuple(steps), 0.9)


def energy(layers: tuple[str, ...] = ("conv1", HOSTILE)) -> Energy:
    """Two steps of some layers: 30 pJ a step and layer, then 10."""
    spent = {1: 30.0, 2: 10.0}
    return Energy(
        profile="horowitz-45nm-fp32",
        layers=tuple(LayerEnergy(name, t, pj, 0.25) for name in layers for t, pj in spent.items()),
        sums=tuple(LayerSums(name, "spikes", 0.25, 10.0, 0.0, 40.0, 460.0) for name in layers),
        steps_pj=tuple(pj * len(layers) for pj in spent.values()),
        energy_pj=40.0 * len(layers),
        ann_energy_pj=460.0,
    )


def mistakes() -> Mistakes:
    """Three classes, four errors."""
    return Mistakes(
        classes=NAMES,
        confusion_KK=((6, 1, 0), (2, 5, 0), (0, 1, 5)),
        pairs=(Confusion(NAMES[1], NAMES[0], 2, 2 / 7),),
        by_class=tuple(ClassErrors(name, 7, (3, 2), k, NAMES[0]) for k, name in enumerate(NAMES)),
        steps=(1, 2),
    )


def picture(label: str) -> Picture:
    """An image that is taken for the class with the hostile name."""
    answer = Answer(1, HOSTILE, 0.75, False)
    source = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    return Picture(source, 7, label, (answer, answer), answer)


def run_report(name: str = "run-a", **parts: Any) -> RunReport:
    """A finished student with every part; keywords replace some."""
    facts = RunFacts(
        **{"model": HOSTILE, "dataset": "digits", "method": "tser", "teacher": "resnet20"},
        **{"seed": "0", "finished": "2026-01-02 03:04", "device": "cpu"},
        **{"timesteps": 2, "epochs": 2, "seconds": 3.5},
        **{"energy_pj": 80.0, "energy_budget_pj": 75.0},
    )
    values: dict[str, Any] = {
        "name": name,
        "folder": f"runs/student/digits/{name}",
        "title": f"{HOSTILE} on digits, T = 2",
        "kind": "student",
        "state": "finished",
        "said": (),
        "facts": facts,
        "accuracy": accuracy(14, 16),
        "curves": Curves(
            {
                "lr": [(1, 0.1), (2, 0.01)],
                "loss": [(1, 2.0), (2, 1.0)],
                HOSTILE: [(1, 2.0)],
                "train_accuracy": [(1, 0.5), (2, 0.7)],
            },
            ("loss", HOSTILE),
        ),
        "mistakes": mistakes(),
        "energy": energy(),
        "verdict": Verdict(f"80.00 % {HOSTILE}", "80 pJ an image: as is told", False, ()),
        "pairs": (
            EnergyPair("the ANN of the same shape", 80.0, 920.0, "arithmetic alone"),
            EnergyPair(HOSTILE, 80.0, 40.0, "arithmetic alone"),
        ),
        "tradeoff": Tradeoff(
            (EnergyPoint("t = 1", 60.0, 0.7), EnergyPoint("t = 2", 80.0, 0.8)),
            (ExitPoint("early exit", 65.0, 0.8, 0.9, 1.4),),
            EnergyPoint("teacher", 1000.0, 0.9),
            920.0,
        ),
        "gallery": Gallery((picture(NAMES[0]), picture(HOSTILE)), (picture("cat"),), 4, 20),
        "all_settings": {"method.name": "tser", HOSTILE: HOSTILE, "training.seed": name},
        "settings": (Setting("optimizer.lr", "0.05", "0.1"), Setting(HOSTILE, HOSTILE, None)),
        "environment": {"python": "3.12", HOSTILE: HOSTILE},
        "commands": (f"tser distill --set 'x={HOSTILE}'", "tser distill --recipe X"),
    }
    return RunReport(**{**values, **parts})


def cell(label: str, baseline: bool) -> CellReport:
    """A cell of five seeds, 1.5 points below its baseline or that itself."""
    found = CellStatistics({"method.name": label}, "accuracy", 5, 0.9, 0.01, baseline)
    if not baseline:
        judged = {"resolved": True, "p_value": 0.001, "p_holm": 0.002, "resolved_holm": True}
        found = replace(found, pairs=5, difference=-0.015, interval=(-0.02, -0.01), **judged)
    return CellReport(label, found, 70.0)


def ablation(**parts: Any) -> AblationReport:
    """Two methods, of which the second has a hostile name."""
    point = EnergyPoint(HOSTILE, 70.0, 0.9)
    values: dict[str, Any] = {
        "name": HOSTILE,
        "folder": "ablations/methods",
        "axes": ("method",),
        "measure": "accuracy",
        "teachers": (0.93,),
        "cells": (cell("kd", True), cell(HOSTILE, False)),
        "runs": (AblationRun((HOSTILE,), 0, "finished", 0.9, 0.9, 0.9, 0.9, "x"),),
        "shared": {"settings": HOSTILE},
        "commands": ("tser distill --recipe cell.toml",),
        "drawings": {"energy": tradeoff([point], None)},
    }
    return AblationReport(**{**values, **parts})


def page_of(*runs: RunReport, ablations: tuple[AblationReport, ...] = ()) -> Page:
    """A page of these runs, the first of which is compared with each other one."""
    pairs = tuple((run.name, Disagreement(3, 1, 0.625)) for run in runs[1:])
    return Page(runs, ablations, pairs, "0.0")


def bare_run() -> RunReport:
    """A run that has nothing to show, as one that was stopped in its first epoch."""
    lost = Missing(f"there is nothing: {HOSTILE}")
    names = ("accuracy", "curves", "mistakes", "energy", "tradeoff", "gallery", "settings")
    nothing: dict[str, Any] = dict.fromkeys((*names, "environment"), lost)
    nothing |= {
        "pairs": (),
        "verdict": Verdict("", "", False, ()),
        "commands": ("tser",),
        "state": "stopped",
    }
    return run_report("bare", **nothing, said=("This run is stopped",))
