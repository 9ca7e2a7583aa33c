"""Pages of reports made by hand, with names from somebody who means harm."""

from __future__ import annotations

import base64
from typing import Any

from tser_cli.engine.page.values import (
    AblationReport,
    Accuracy,
    Answer,
    CellReport,
    Curves,
    Duel,
    Energy,
    Gallery,
    Missing,
    Mistakes,
    Page,
    Pair,
    Picture,
    RunReport,
    Setting,
    Tradeoff,
)

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>{{ 7*7 }}'\"&"
NAMES = ("cat", HOSTILE, "${alert(3)}")
# A grey pixel.
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


def accuracy_row(t: int, right: int, images: int = 20) -> dict[str, Any]:
    """A row of per_timestep.csv with its intervals, which reach 0.1 to both sides."""
    share = right / images
    row: dict[str, Any] = {"t": t, "images": images, "teacher_accuracy": 0.9}
    for what in ("at_t", "cumulative"):
        row |= {f"accuracy_{what}": share, f"correct_{what}": right}
        row |= {f"low_{what}": share - 0.1, f"high_{what}": min(1.0, share + 0.1)}
    return {**row, "loss_at_t": 0.5, "entropy_at_t": 0.2, "confidence_at_t": 0.8}


def energy_row(layer: str, t: int | str, energy_pj: float) -> dict[str, Any]:
    """A row of energy.csv."""
    return {
        **{"layer": layer, "t": t, "energy_pj": energy_pj, "firing_rate": 0.25, "op": "AC"},
        **{"input_kind": "spikes", "sop_value": 10.0, "macs": 0.0},
        **{"ann_macs": 100.0, "ann_energy_pj": 460.0},
    }


def energy(layers: tuple[str, ...] = ("conv1", HOSTILE)) -> Energy:
    """Two steps of some layers: 30 pJ a step and layer, then 10."""
    spent = {1: 30.0, 2: 10.0}
    return Energy(
        profile="horowitz-45nm-fp32",
        layers=tuple(energy_row(layer, t, pj) for layer in layers for t, pj in spent.items()),
        whole=tuple(energy_row(layer, "all", 40.0) for layer in layers),
        totals=tuple(energy_row("TOTAL", t, pj * len(layers)) for t, pj in spent.items()),
        total=energy_row("TOTAL", "all", 40.0 * len(layers)),
    )


def mistakes() -> Mistakes:
    """Three classes, four errors."""
    return Mistakes(
        classes=NAMES,
        confusion_KK=((6, 1, 0), (2, 5, 0), (0, 1, 5)),
        pairs=({"true": NAMES[1], "predicted": NAMES[0], "images": 2, "share": 2 / 7},),
        by_class=tuple(
            {
                **{"name": name, "images": 7, "wrong": [3, 2], "wrong_in_the_end": k},
                **{"taken_for": NAMES[0]},
            }
            for k, name in enumerate(NAMES)
        ),
        steps=(1, 2),
    )


def picture(label: str) -> Picture:
    """An image that is taken for the class with the hostile name."""
    answer = Answer(1, HOSTILE, 0.75, False)
    source = "data:image/png;base64," + base64.b64encode(PIXEL).decode()
    return Picture(source, 7, (1, 1), label, (answer, answer), answer)


def run_report(name: str = "run-a", **parts: Any) -> RunReport:
    """A finished student with every part; keywords replace some."""
    known = energy()
    facts = {
        **{"model": HOSTILE, "dataset": "digits", "method": "tser", "teacher": "resnet20"},
        **{"seed": "0", "finished": "2026-01-02 03:04", "device": "cpu"},
        **{"timesteps": 2, "epochs": 2, "seconds": 3.5},
        **{"energy_pj": 80.0, "energy_budget_pj": 75.0},
    }
    values: dict[str, Any] = {
        "name": name,
        "folder": f"runs/student/digits/{name}",
        "title": f"{HOSTILE} on digits, T = 2",
        "kind": "student",
        "state": "finished",
        "said": (),
        "facts": facts,
        "accuracy": Accuracy((accuracy_row(1, 14), accuracy_row(2, 16)), 0.9),
        "curves": Curves(
            (
                {"epoch": 1, "lr": 0.1, "loss": 2.0, HOSTILE: 2.0, "train_accuracy": 0.5},
                {"epoch": 2, "lr": 0.01, "loss": 1.0, HOSTILE: None, "train_accuracy": 0.7},
            ),
            ("loss", HOSTILE),
        ),
        "mistakes": mistakes(),
        "energy": known,
        "headline": ("One image costs 80 pJ: as is told.", HOSTILE),
        "duels": (
            Duel("the ANN of the same shape", 80.0, 920.0, "arithmetic alone"),
            Duel(HOSTILE, 80.0, 40.0, "arithmetic alone"),
        ),
        "tradeoff": Tradeoff(
            (
                {"t": 1, "energy_pj": 60.0, "accuracy": 0.7},
                {"t": 2, "energy_pj": 80.0, "accuracy": 0.8},
            ),
            ({"threshold": 0.9, "energy_pj": 65.0, "accuracy": 0.8, "mean_steps": 1.4},),
            (1000.0, 0.9),
            920.0,
        ),
        "gallery": Gallery((picture(NAMES[0]), picture(HOSTILE)), (picture("cat"),), 4, 20),
        "all_settings": {"method.name": "tser", HOSTILE: HOSTILE, "training.seed": name},
        "settings": (Setting("optimizer.lr", "0.05", "0.1"), Setting(HOSTILE, HOSTILE, None)),
        "environment": {"python": "3.12", HOSTILE: HOSTILE},
        "commands": (f"tser distill --set 'x={HOSTILE}'", "tser distill --recipe X"),
    }
    return RunReport(**{**values, **parts})


def cell(label: str, values: tuple[float, ...], baseline: bool) -> CellReport:
    """A cell of five seeds, 1.5 points below its baseline or that itself."""
    shared = dict.fromkeys(("p_value", "p_holm", "two_way_low", "two_way_high", "resolved"))
    row: dict[str, Any] = {
        **{**shared, "method.name": label, "n": 5, "accuracy_mean": 0.9, "accuracy_std": 0.01},
        **{"baseline": int(baseline), "pairs": 5, "resolved_holm": None},
        **{"difference_mean": None, "difference_low": None, "difference_high": None},
    }
    paired: tuple[float, ...] = ()
    if not baseline:
        row |= {"difference_mean": -0.015, "difference_low": -0.02, "difference_high": -0.01}
        row |= {"resolved": 1, "resolved_holm": 1, "p_value": 0.001, "p_holm": 0.002}
        paired = (-1.0, -2.0, -1.5, -1.5, -1.5)
    reach = {"accuracy": (89.0, 91.0), "energy_pj": (60.0, 80.0), "difference": None}
    reach["difference"] = None if baseline else (-2.0, -1.0)
    steps = tuple({"t": t, "mean": 88.0 + t, "low": 87.0, "high": 91.0} for t in (1, 2))
    return CellReport(label, row, values, paired, (70.0,) * 5, reach, steps)


def ablation(**parts: Any) -> AblationReport:
    """Two methods, of which the second has a hostile name."""
    run = dict.fromkeys(("accuracy", "teacher_accuracy", "energy_pj", "seconds"), 0.9)
    values: dict[str, Any] = {
        "name": HOSTILE,
        "folder": "ablations/methods",
        "axes": {"method.name": "method"},
        "measure": "accuracy",
        "said": (),
        "teachers": (0.93,),
        "cells": (
            cell("kd", (90.0, 90.5, 89.5, 90.0, 90.0), True),
            cell(HOSTILE, (88.5,) * 5, False),
        ),
        "runs": ({**run, "method.name": HOSTILE, "seed": 0, "state": "finished", "folder": "x"},),
        "shared": {"settings": HOSTILE},
        "commands": ("tser distill --recipe cell.toml",),
    }
    return AblationReport(**{**values, **parts})


def page_of(*runs: RunReport, ablations: tuple[AblationReport, ...] = ()) -> Page:
    """A page of these runs, the first of which is compared with each other one."""
    pairs = tuple(Pair(runs[0].name, run.name, 3, 1, 0.625) for run in runs[1:])
    return Page(runs, ablations, pairs, "0.0")


def bare_run() -> RunReport:
    """A run that has nothing to show, as one that was stopped in its first epoch."""
    lost = Missing(f"there is nothing: {HOSTILE}")
    names = ("accuracy", "curves", "mistakes", "energy", "tradeoff", "gallery", "settings")
    return run_report(
        "bare",
        **{
            **dict.fromkeys(names, lost),
            "environment": lost,
            "duels": (),
            "headline": (),
            "commands": ("tser",),
        },
        state="stopped",
        said=("This run is stopped",),
    )
