"""Count the synaptic operations of a finished run, and price them."""

from __future__ import annotations

import itertools
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from torch import nn

from tser_cli.base.errors import ConfigError
from tser_cli.base.files import check_folder
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import energy_up_to
from tser_cli.energy.prices import Profile, check_precision, load_profile
from tser_cli.energy.table import Labels
from tser_cli.engine.evaluation.energy import Beyond, EnergyReport, energy_report
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, as_measured, evaluate_split
from tser_cli.engine.runs.networks import Counting, counting_of
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.engine.runs.record import find_result
from tser_cli.engine.runs.teachers import teacher_to_count
from tser_cli.engine.training.budget import profile_of
from tser_cli.models.base import Classifier
from tser_cli.report import figures
from tser_cli.report.csv_files import ALL, PER_IMAGE, TOTAL, write_csv
from tser_cli.report.style import FORMATS
from tser_cli.settings.config import method_label
from tser_cli.settings.options import EnergyRequest

BY_LAYER, ACCURACY = "by_layer", "accuracy"


@dataclass(frozen=True)
class EnergyResult:
    """What was counted and priced: the rows of energy.csv, the sidecar's document, the files.

    `last`: the last row of per_timestep.csv, None where it is not known.
    """

    name: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    written: tuple[Path, ...]
    beyond: Beyond = field(default_factory=Beyond)
    last: dict[str, Any] | None = None


def goes_beyond(request: EnergyRequest) -> bool:
    """Return whether something is wanted that takes more than the plain counts of a run."""
    return request.any or bool(request.profile and load_profile(request.profile).model)


class Beside(Protocol):
    """What is counted in the same pass and written beside the table; see `network_energy`."""

    def counting(self, model: Classifier, timesteps: int) -> AbstractContextManager[Counting]: ...
    def write(self, opened: FinishedRun, request: EnergyRequest, profile: Profile) -> Beyond: ...


def measure_energy(request: EnergyRequest, beside: Beside | None = None) -> EnergyResult:
    """Count the operations of a finished run, price them, and write what was asked for.

    Raises RunError, CheckpointError or ConfigError before anything is written.
    """
    if request.profile:
        load_profile(request.profile)  # a mistyped one is told before any work
    check_paths(request)
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model = opened.loaded.model
    profile = profile_of(opened.config, request.profile)
    check_precision(profile, weight_bits(model), request.assume_int8)
    # Kernels for integers can't be looked into, and each of several processes has its part alone:
    # what is beside then takes a pass of its own.
    context = opened.context
    together = context.runtime.world == 1 and as_measured(model, context) is model
    full = evaluate_split(
        model,
        context,
        "test",
        opened.config.model.timesteps,
        count=True,
        images=request.images,
        counting=beside.counting if beside is not None and together else counting_of,
    )
    return context.runtime.on_main(lambda: _write(opened, request, full, profile, beside))


def _write(
    opened: FinishedRun,
    request: EnergyRequest,
    full: Evaluation,
    profile: Profile,
    beside: Beside | None,
) -> EnergyResult:
    assert full.counts is not None and full.answers is not None, "a counted pass"
    teacher = teacher_to_count(opened.run, opened.context)
    config, weights = opened.config, opened.loaded.sha256
    report = energy_report(
        full,
        Labels(opened.run.name, config.data.name, weights, config.training.precision),
        profile,
        opened.context,
        teacher=teacher,
        memory=request.memory,
    )
    beyond = Beyond() if beside is None else beside.write(opened, request, profile)
    report = replace(report, document={**report.document, **beyond.document()})
    files = files_of(request)
    if request.output is not None:
        report.write(request.output, request.form)
    if request.figures:
        draw_layers(request.output, opened.run.name, report.rows)
        draw_accuracy(opened, request.output, report, full)
    if request.per_image is not None:
        rows = per_image_rows(opened, full.answers, full.counts, profile)
        write_csv(request.per_image, rows, PER_IMAGE)
    written = (*files, *beyond.written)
    result = find_result(opened.run)
    # on all test images, and beside its teacher's answers, if it was measured with as many steps
    same = result is not None and result.timesteps == full.timesteps
    last = result.per_timestep[-1] if result and same else full.rows()[-1]
    return EnergyResult(opened.run.name, report.rows, report.document, written, beyond, last)


def figure_of(output: Path | None, kind: str) -> Path:
    """Return the name of a figure beside the table, without suffix."""
    assert output is not None, "figures lie beside a table"
    return output.with_name(f"{output.stem}_{kind}")


def files_of(request: EnergyRequest) -> list[Path]:
    """Return what was asked for: the table with its sidecar, images' rows, figures as PNG and SVG.

    A network from elsewhere has no figure of accuracy.
    """
    table = request.output
    paths = [] if table is None else [table, table.with_suffix(".json")]
    if request.per_image is not None:
        paths.append(request.per_image)
    if request.figures:
        kinds = (BY_LAYER,) if request.network else (BY_LAYER, ACCURACY)
        names = [figure_of(table, kind) for kind in kinds]
        paths += [name.with_name(f"{name.name}{suffix}") for name in names for suffix in FORMATS]
    return paths


def check_paths(request: EnergyRequest) -> None:
    """Raise ConfigError or RunError where two files would be one, or one can't be written."""
    if request.output is not None and request.output.suffix != ".csv":
        if not request.output.suffix:  # a run, as other commands take it
            raise ConfigError(
                f"{request.output}: this is where the table goes, as report.csv; "
                f"a run is --run {request.output}"
            )
        check_folder(request.output)
        raise ConfigError(
            f"{request.output}: the table is a CSV file; call it {request.output.stem}.csv"
        )
    paths = files_of(request)
    if len({path.absolute() for path in paths}) < len(paths):
        raise ConfigError(
            f"{request.output}: the table, its sidecar {paths[1].name} and the other files must "
            "have different names; call the table something.csv"
        )
    for path in paths:
        check_folder(path)


def per_image_rows(
    opened: FinishedRun, answers: Answers, counts: Counts, profile: Profile
) -> list[dict[str, Any]]:
    """Return a row per image and step: right at t, right on the mean up to t, energy up to t."""
    energy_TI = energy_up_to(counts, profile)
    return [
        {
            "run": opened.run.name,
            "dataset": opened.config.data.name,
            "profile": profile.name,
            "image": int(answers.index_I[image]),
            "label": int(answers.labels_I[image]),
            "t": t + 1,
            "correct_at_t": int(answers.correct_TI[t, image]),
            "correct_cumulative": int(answers.correct_cumulative_TI[t, image]),
            "energy_pj": float(energy_TI[t, image]),
        }
        for image in range(counts.images)
        for t in range(counts.timesteps)
    ]


def draw_layers(output: Path | None, title: str, rows: list[dict[str, Any]]) -> None:
    """Draw the energy by layer beside the table."""
    layers = [
        figures.LayerEnergy.of_row(row) for row in rows if row["layer"] != TOTAL and row["t"] != ALL
    ]
    figures.by_layer(layers, title).save(figure_of(output, BY_LAYER))


def draw_accuracy(
    opened: FinishedRun, output: Path | None, report: EnergyReport, full: Evaluation
) -> None:
    """Draw accuracy against energy beside the table."""
    run, method = opened.run, method_label(opened.config)
    accuracy_T = [right / full.images for right in full.correct_cumulative]
    steps = [row for row in report.rows if row["layer"] == TOTAL and row["t"] != ALL]
    teacher = (report.document["teacher"] or {}).get("energy_pj")
    result = find_result(run)
    accuracy = result.teacher_accuracy if result and result.images == full.images else None
    spent_T = itertools.accumulate(row["energy_pj"] for row in steps)
    points = [
        figures.EnergyPoint(f"t = {t}", spent_pj, reached)
        for t, (spent_pj, reached) in enumerate(zip(spent_T, accuracy_T, strict=True), 1)
    ]
    taught = None
    if teacher is not None and accuracy is not None:
        taught = figures.EnergyPoint("teacher (ANN)", teacher, accuracy)
    drawn = figures.tradeoff(points, taught, method=method, title=run.name)
    drawn.save(figure_of(output, ACCURACY))


def weight_bits(network: nn.Module) -> int:
    """Return the bits of the widest weights; layers of ours that round theirs say how far."""
    found = [
        getattr(module, "bits", 8 * weight.element_size())
        for module in network.modules()
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1
    ]
    return max(found, default=8)
