"""The table of commands: what each takes, which function it calls, and how its result is shown."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tser_cli.base.errors import NOT_HELD, TrainingError
from tser_cli.settings import options as trunk
from tser_cli.settings import wing_options as wing

# Functions are named by texts and loaded when a command runs: torch takes longer than any --help.
TRAIN, MEASURE, USE, ABOUT = "Train", "Measure", "Use", "About"


def load(target: str) -> Any:
    """Return what MODULE:NAME, a module of this package, means."""
    module, _, name = target.partition(":")
    return getattr(importlib.import_module(f"tser_cli.{module}"), name)


def measure_energy(request: trunk.EnergyRequest) -> Any:
    """Count and price as the trunk does, or by the wing where more than its table is wanted."""
    more = request.network or load("engine.commands.energy:goes_beyond")(request)
    target = "network_energy:measure_more" if more else "energy:measure_energy"
    return load(f"engine.commands.{target}")(request)


# A script sees from the code that a bound does not hold, and from 2 that it was never looked at.
def held(kept: Callable[[Any], bool]) -> Callable[[Any], int]:
    """Return the exit code of a result that must be `kept`."""
    return lambda result: 0 if kept(result) else NOT_HELD


def run_document(result: Any) -> Any:
    """Return what JSON shows of a training: its folder and its result, or its plan."""
    return {"folder": result.folder, **result.to_json()} if hasattr(result, "to_json") else result


def ablation_document(result: Any) -> Any:
    """Return what JSON shows of an ablation: rows and files, not the settings of every cell."""
    if not hasattr(result, "request"):
        return result
    # each cell has all settings: those of 400 cells are megabytes that nobody asked for
    shown = {name: value for name, value in vars(result).items() if name != "request"}
    shown |= {name: [cell.row() for cell in shown[name]] for name in ("summary", "exits")}
    return {**shown, "axes": result.request.axes, "measure": result.request.measure}


# Only once the table is shown: what did finish is worth as much as before.
def no_failures(result: Any) -> int:
    """Return 0. Raises TrainingError where cells of an ablation failed."""
    failures = getattr(result, "failures", ())  # a plan has none
    if failures:
        raise TrainingError(
            f"{len(failures)} of {len(result.request.cells)} runs failed; the same command tries "
            "them again:\n" + "\n".join(failures)
        )
    return 0


@dataclass(frozen=True)
class Verb:
    """A command; its help is the docstring of its `request`.

    `run`: the function that takes the request, as MODULE:NAME of this package, loaded when the
    command runs. `show`: the one that shows its result and takes the request too. `document`: what
    --json shows of the result, None where there is no such option. `code`: the exit code of a
    result. `needs`: files and folders of the package without which the command is not offered.
    """

    name: str
    panel: str
    request: type[Any]
    run: str
    show: str
    examples: tuple[str, ...]
    needs: tuple[str, ...] = ()
    document: Callable[[Any], Any] | None = lambda result: result
    code: Callable[[Any], int] = lambda result: 0
    hidden: bool = False


VERBS = (
    Verb(
        name="distill",
        panel=TRAIN,
        request=trunk.DistillRequest,
        run="cli.commands:train",
        show="cli.show:show_training",
        examples=(
            "tser distill --teacher resnet34 --student resnet18 -T 2",
            "tser distill --method kd --seed 1 --epochs 20 --set optimizer.lr=0.05",
            "tser distill --recipe cifar100/resnet18_tser --dry-run",
            "tser distill --teacher latest --student vgg11 -T 4",
            "tser distill --teacher resnet34 --student resnet18 -T 2 --energy-budget 4uJ",
        ),
        document=run_document,
        code=held(lambda result: getattr(result, "energy_budget_kept", None) is not False),
    ),
    Verb(
        name="train-teacher",
        panel=TRAIN,
        request=trunk.TeacherRequest,
        run="cli.commands:train",
        show="cli.show:show_training",
        examples=(
            "tser train-teacher resnet34 --dataset digits",
            "tser train-teacher vgg11 --dataset cifar10 --epochs 100 --dry-run",
            "tser train-teacher --recipe fashion-mnist/resnet20_teacher",
        ),
        document=run_document,
    ),
    Verb(
        name="ablate",
        panel=TRAIN,
        request=wing.AblateRequest,
        run="cli.commands:ablate",
        show="cli.show_wings:show_ablation",
        examples=(
            "tser ablate --vary method=kd,ts,tser --seeds 5",
            "tser ablate --vary temperature=1,2,4 --student resnet20 -T 4 --epochs 20 --dry-run",
            "tser ablate ablations/digits_rivals --jobs 2",
        ),
        needs=("engine/commands/ablate.py", "engine/ablation", "report/ablation_figures.py"),
        document=ablation_document,
        code=no_failures,
    ),
    Verb(
        name="evaluate",
        panel=MEASURE,
        request=trunk.EvaluateRequest,
        run="engine.commands.evaluate:evaluate_run",
        show="cli.show:show_evaluation",
        examples=(
            "tser evaluate --per-timestep",
            "tser evaluate resnet18_T2_tser --per-timestep -T 1-4",
            "tser evaluate --early-exit 0.8,0.9,0.99",
            "tser evaluate --energy-budget 3uJ",
        ),
        code=held(lambda result: result.kept),
    ),
    Verb(
        name="energy",
        panel=MEASURE,
        request=trunk.EnergyRequest,
        run="cli.verbs:measure_energy",
        show="cli.show:show_energy",
        examples=(
            "tser energy --run resnet18_T2_tser",
            "tser energy report.csv --figures",
            "tser energy report.csv --conventions --match 1.38mJ",
            "tser energy report.csv --network mypackage.models:build --data images.npy -T 4",
        ),
    ),
    Verb(
        name="audit",
        panel=MEASURE,
        request=wing.AuditRequest,
        run="engine.commands.audit:run_audit",
        show="cli.show_wings:show_audit",
        examples=(
            "tser audit",
            "tser audit resnet18_T2_tser --images 64",
            "tser audit --network mypackage.models:build --dataset cifar10 -T 4",
        ),
        needs=("engine/commands/audit.py", "energy/audit.py", *trunk.ANY_NETWORK),
        code=held(lambda result: result.found.clean),
    ),
    Verb(
        name="compare",
        panel=MEASURE,
        request=wing.CompareRequest,
        run="engine.commands.compare:compare_runs",
        show="cli.show_wings:show_comparison",
        examples=(
            "tser compare latest resnet18_T2_kd_s0",
            "tser compare runs/student/digits/resnet18_T2_* --json",
        ),
        needs=("engine/commands/compare.py",),
        document=lambda result: result.to_json(),
    ),
    Verb(
        name="report",
        panel=MEASURE,
        request=wing.ReportRequest,
        run="engine.page.gather:make_report",
        show="cli.show_wings:show_report",
        examples=(
            "tser report",
            "tser report --output page.html",
            "tser report runs/ablations/digits_rivals",
        ),
        needs=("engine/page", "report/ablation_figures.py", *trunk.ANY_NETWORK),
        document=None,
    ),
    Verb(
        name="predict",
        panel=USE,
        request=wing.PredictRequest,
        run="cli.commands:predict",
        show="cli.show_wings:show_predictions",
        examples=(
            "tser predict photos/",
            "tser predict resnet18_T2_tser a.png b.png --json",
            "tser predict photos/ --output answers.csv",
        ),
        needs=("engine/commands/predict.py",),
        document=lambda result: result.answers,
        code=lambda result: 1 if result.unread else 0,
    ),
    Verb(
        name="quantize",
        panel=USE,
        request=wing.QuantizeRequest,
        run="engine.commands.quantize:quantize",
        show="cli.show_wings:show_quantized",
        examples=("tser quantize --bits 8", "tser quantize resnet18_T2_tser --bits 4"),
        needs=("engine/commands/quantize.py",),
    ),
    Verb(
        name="export",
        panel=USE,
        request=wing.ExportRequest,
        run="engine.commands.export:export",
        show="cli.show_wings:show_export",
        examples=(
            "tser export student.nir",
            "tser export resnet18_T2_tser student.onnx --stateful",
        ),
        needs=("engine/commands/export.py", "export"),
        code=held(lambda result: result.holds),
    ),
    Verb(
        name="runs",
        panel=ABOUT,
        request=wing.RunsRequest,
        run="cli.commands:runs",
        show="cli.show_wings:show_runs",
        examples=(
            "tser runs",
            "tser runs method=tser,kd T=2 state=finished --sort accuracy --reverse",
            "tser runs --json",
            "tser runs remove latest",
        ),
        needs=("engine/commands/runs.py",),
        document=lambda records: [record.to_json() for record in records],
    ),
    Verb(
        name="list",
        panel=ABOUT,
        request=trunk.ListRequest,
        run="cli.commands:listing",
        show="cli.show:show_list",
        examples=(
            "tser list recipes",
            "tser list methods --plugin mymethod.py",
            "tser list profiles --json",
        ),
    ),
    Verb(
        name="doctor",
        panel=ABOUT,
        request=wing.DoctorRequest,
        run="engine.commands.doctor:examine",
        show="cli.show_wings:show_checks",
        examples=("tser doctor", "tser doctor --quick --json"),
        needs=("engine/commands/doctor.py",),
        code=held(lambda checks: all(check.state != "wrong" for check in checks)),
    ),
    Verb(
        name="methods",  # as `tser list methods` was spelled before
        panel=ABOUT,
        request=trunk.MethodsRequest,
        run="cli.commands:listing",
        show="cli.show:show_list",
        examples=("tser list methods",),
        hidden=True,
    ),
)
