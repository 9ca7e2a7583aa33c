"""`tser energy`: count the synaptic operations of a finished run, and price them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli.csv_words import ALL, TOTAL
from tser_cli.energy import DEFAULT_PROFILE, Labels, Profile, energy_up_to, load_profile
from tser_cli.engine.evaluation.operation_counts import Measured, Price, measure, write_energy
from tser_cli.engine.runs import model_files
from tser_cli.engine.runs.finished_run import Opened, open_finished, select_run
from tser_cli.engine.runs.model_files import Loaded
from tser_cli.engine.runs.run_folder import Run
from tser_cli.engine.runtime.context import Context
from tser_cli.errors import ConfigError, TserError
from tser_cli.files import check_folder
from tser_cli.report import console, energy_report
from tser_cli.report.csv_files import PER_IMAGE, write_csv


@dataclass(frozen=True)
class EnergyRequest:
    """What `tser energy` was asked; `images` 0 means the whole test set."""

    output: Path
    run: Path | None = None
    runs_dir: Path = Path("runs")
    images: int = 0
    profile: str = DEFAULT_PROFILE
    per_image: Path | None = None
    memory: bool = False
    changes: dict[str, Any] | None = None


def find_run_teacher(run: Run, context: Context) -> Loaded | None:
    """The teacher that `run` learned from; None where it had none or it can't be read.

    Where its file is gone an untrained network of its architecture serves, with a warning: what
    an ANN costs does not depend on its weights.
    """
    described = run.environment().get("teacher")
    if not described:
        return None
    spec, source = context.dataset.spec, Path(str(described["source"]))
    try:
        if source.is_file():
            loaded = model_files.read(source, spec)
        else:
            name = str(described["model"])
            context.progress.warn(f"{source} is not there; its architecture, {name}, is counted")
            loaded = model_files.untrained(name, spec, context.config)
    except TserError as error:
        context.progress.warn(f"the teacher's energy is left out: {error}")
        return None
    context.runtime.place(loaded.model.eval())
    return loaded


def energy(request: EnergyRequest) -> None:
    """Count, price, write the table, its sidecar and the figures, and show them.

    Raises RunError, CheckpointError or ConfigError before anything is written.
    """
    profile = load_profile(request.profile)
    check_paths(request)
    opened = open_finished(select_run(request.run, request.runs_dir), request.changes or {})
    if not opened.context.runtime.is_main:
        return
    timesteps = opened.config.model.timesteps
    measured = measure(opened.loaded.model, opened.context, timesteps, request.images)
    price = Price(profile, find_run_teacher(opened.run, opened.context), request.memory)
    report = write_energy(request.output, measured, labels_of(opened), price, opened.context)
    if request.per_image is not None:
        write_csv(request.per_image, per_image_rows(opened, measured, profile), PER_IMAGE)
    figures = draw(opened.run, request.output, report.rows, measured, report.document)
    out = console.output()
    out.print(energy_report.table(opened.run.name, report.rows))
    for line in energy_report.sentences(report.document):
        out.print(line, soft_wrap=True, markup=False)
    written = [request.output, files_of(request.output)[0], request.per_image, *figures]
    for path in written:
        if path is not None:
            out.print(f"written: {path}", soft_wrap=True, markup=False)


def files_of(output: Path) -> tuple[Path, Path, Path]:
    """What is written beside the table: the sidecar and the two figures."""
    by_layer = output.with_name(f"{output.stem}_by_layer.png")
    return output.with_suffix(".json"), by_layer, output.with_name(f"{output.stem}_accuracy.png")


def check_paths(request: EnergyRequest) -> None:
    """Raise ConfigError or RunError where two files would be one, or one can't be written."""
    check_folder(request.output)
    paths = [request.output, *files_of(request.output)]
    if request.per_image is not None:
        paths.append(request.per_image)
    if len({path.absolute() for path in paths}) < len(paths):
        raise ConfigError(
            f"{request.output}: the table, its sidecar {paths[1].name} and the other files must "
            "have different names; call the table something.csv"
        )
    for path in paths:
        check_folder(path)


def labels_of(opened: Opened) -> Labels:
    """What tells the run's table apart."""
    config = opened.config
    return Labels(
        opened.run.name, config.data.name, opened.loaded.sha256, config.training.precision
    )


def per_image_rows(opened: Opened, measured: Measured, profile: Profile) -> list[dict[str, Any]]:
    """A row per image and step: right or wrong at t and on the mean up to t, energy up to t."""
    energy_TI = energy_up_to(measured.counts, profile)
    return [
        {
            "run": opened.run.name,
            "dataset": opened.config.data.name,
            "profile": profile.name,
            "image": int(measured.index_I[image]),
            "label": int(measured.labels_I[image]),
            "t": t + 1,
            "correct_at_t": int(measured.correct_TI[t, image]),
            "correct_cumulative": int(measured.correct_cumulative_TI[t, image]),
            "energy_pj": float(energy_TI[t, image]),
        }
        for image in range(measured.counts.images)
        for t in range(measured.counts.timesteps)
    ]


def draw(
    run: Run,
    output: Path,
    rows: list[dict[str, Any]],
    measured: Measured,
    document: dict[str, Any],
) -> list[Path]:
    """The two figures, beside the table: energy by layer, and accuracy against energy."""
    _, by_layer, against = files_of(output)
    energy_report.plot_by_layer(by_layer, rows, run.name)
    accuracy_T = measured.correct_cumulative_TI.double().mean(1).tolist()
    per_step = [row["energy_pj"] for row in rows if row["layer"] == TOTAL and row["t"] != ALL]
    teacher = (document["teacher"] or {}).get("energy_pj")
    whole = run.status().get("images") == measured.counts.images
    accuracy = run.status().get("teacher_accuracy") if whole else None
    energy_report.plot_accuracy(against, accuracy_T, per_step, teacher, accuracy, run.name)
    return [by_layer, against]
