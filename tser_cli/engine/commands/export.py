"""Export a finished student as a file for other programs, checked by loading it in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tser_cli.base.errors import ConfigError, ExportError
from tser_cli.base.files import check_folder, sha256, write_text, write_whole
from tser_cli.data.loaders import evenly_spread
from tser_cli.data.transforms import evaluation_pipeline
from tser_cli.energy.table import float_energy
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.engine.runs.teachers import teacher_name
from tser_cli.export import formats, verify
from tser_cli.export.card import MARK, CardFacts, card, named
from tser_cli.export.fixed_point import (
    Change,
    FixedGraph,
    change,
    fixed_point,
    integer_content,
    run_fixed,
)
from tser_cli.export.graph import Facts, Graph, pip_line, trace
from tser_cli.export.verify import Check, Trace, record
from tser_cli.report.csv_files import read_csv
from tser_cli.settings import registry
from tser_cli.settings.wing_options import ExportRequest


@dataclass(frozen=True)
class Exported:
    """What came of it. `checks` is None with --no-verify; `card` None where nothing was written.

    `change`: what integer potentials do to the spikes, None for floating-point ones.
    """

    path: Path
    run: Run
    size: int
    checks: tuple[Check, ...] | None
    card: Path | None
    change: Change | None = None

    @property
    def holds(self) -> bool:
        """Return whether every check that was made holds; the file is written only then."""
        return self.checks is None or all(check.holds for check in self.checks)


def export(request: ExportRequest) -> Exported:
    """Write a student's file, its FILE.verified.json and a model card.

    Nothing is written where a program that reads the format gives other spikes. Raises ExportError
    for what the format can't hold or a package that is not installed, ConfigError, RunError.
    """
    formats.check_format(request.format_name, request.stateful, request.potentials)
    if request.images < 1:
        raise ConfigError(f"--images {request.images}: the check needs at least one image")
    _check_packages(request)
    check_folder(request.output)
    changes = {**request.changes, "training.device": "cpu"}
    opened = open_finished(select_run(request.run, request.runs_dir), changes, request.progress)
    graph = graph_of(opened)
    images_NCHW = checking_images(opened, request.images)
    draft = _draft(graph, record(opened.loaded.model, graph, images_NCHW), images_NCHW, request)
    checks = None
    if request.verify:
        checks = verify.verify(draft.content, request.format_name, draft.truth, images_NCHW)
    size = len(draft.content)
    made = Exported(request.output, opened.run, size, checks, None, draft.change)
    return _written(made, opened, graph, draft, request) if made.holds else made


@dataclass(frozen=True, eq=False)
class _Draft:
    """A file before it is checked, and what it must do. The rest is of integer potentials alone."""

    content: bytes
    truth: Trace
    fixed: FixedGraph | None = None
    change: Change | None = None


def _draft(graph: Graph, own: Trace, images_NCHW: Tensor, request: ExportRequest) -> _Draft:
    """Return the file of `graph`, whose student does `own`, as it was asked for."""
    if request.potentials == formats.FLOAT:
        return _Draft(formats.content(graph, request.format_name, request.stateful), own)
    fixed = fixed_point(graph)
    truth = run_fixed(fixed, images_NCHW)
    changed = change(own, truth)
    content = integer_content(fixed, request.stateful, changed.sentence())
    return _Draft(content, truth, fixed, changed)


def graph_of(opened: FinishedRun) -> Graph:
    """Return the folded graph of a finished run's network, with the facts of its data set."""
    spec = opened.context.dataset.spec
    more = {"run": opened.run.name, "model_sha256": opened.loaded.sha256}
    facts = Facts(
        model=opened.loaded.name,
        dataset=spec.name,
        mean=spec.mean,
        std=spec.std,
        classes=opened.loaded.classes or spec.classes,
        timesteps=opened.config.model.timesteps,
        shorter=spec.shorter,
        more=more,
    )
    return trace(opened.loaded.model, spec.image_shape, facts)


def checking_images(opened: FinishedRun, count: int) -> Tensor:
    """`count` test images, evenly spread over all, as the network takes them."""
    dataset = opened.context.dataset
    indices = evenly_spread(len(dataset.test), count).tolist()
    return evaluation_pipeline(dataset.test, dataset.spec)(0, indices)


def _check_packages(request: ExportRequest) -> None:
    """Before any work: the packages that write the file, and those that check it."""
    if not request.verify:
        return
    missing = verify.missing_packages(request.format_name)
    if missing:
        raise ExportError(
            f"--format {request.format_name} is checked with {', '.join(missing)}, which is not "
            f"installed: {pip_line(request.format_name)}. Or leave the check out with --no-verify"
        )


def _written(
    made: Exported, opened: FinishedRun, graph: Graph, draft: _Draft, request: ExportRequest
) -> Exported:
    path = request.output
    write_whole(path, draft.content)
    document = {
        "file": path.name,
        "sha256": sha256(draft.content),
        "format": request.format_name,
        "stateful": request.stateful,
        "potentials": request.potentials,
        "run": opened.run.name,
        "timesteps": graph.facts.timesteps,
        "verified": made.checks is not None,
        "why_not": None if made.checks is not None else "--no-verify",
        "checks": [check.described() for check in made.checks or ()],
    }
    if draft.change is not None:
        document["against_float_potentials"] = draft.change.described()
    beside = path.with_name(f"{path.name}.verified.json")
    write_text(beside, json.dumps(document, indent=2) + "\n")
    place = _card_place(path)
    write_text(place, card(graph, _card_facts(made, opened, draft, request)))
    return replace(made, card=place)


def _card_place(path: Path) -> Path:
    """README.md beside the file; FILE.md where there is one that is not this file's card."""
    readme = path.with_name("README.md")
    there = readme.read_text(encoding="utf-8", errors="replace") if readme.exists() else ""
    if not readme.exists() or (there.startswith(MARK) and f"\n{named(path.name)}" in there):
        return readme
    return path.with_name(f"{path.name}.md")


def _card_facts(
    made: Exported, opened: FinishedRun, draft: _Draft, request: ExportRequest
) -> CardFacts:
    folder, method = opened.run.folder, opened.config.method.name
    rows, sidecar = folder / "per_timestep.csv", folder / "energy.json"
    energy = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    return CardFacts(
        file=made.path.name,
        format_name=request.format_name + (", one time step" if request.stateful else ""),
        run=opened.run.name,
        method=method,
        source=registry.METHODS[method].settings.source,
        teacher=teacher_name(opened.run) or "",
        rows=tuple(read_csv(rows)) if rows.is_file() else (),
        energy=energy,
        float_energy_pj=float_energy(energy["totals"]) if energy else 0.0,
        settings=(folder / "config.toml").read_text(encoding="utf-8"),
        checks=made.checks,
        change=draft.change,
        fixed=draft.fixed,
    )
