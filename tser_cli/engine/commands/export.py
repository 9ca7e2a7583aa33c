"""Export a finished student as a file for other programs, checked by loading it in them."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from tser_cli.base.errors import ConfigError, ExportError
from tser_cli.base.files import check_folder, sha256, write_text, write_whole
from tser_cli.data import loaders, transforms
from tser_cli.energy.table import float_energy
from tser_cli.engine.runs import folder, teachers
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.export import card, fixed_point, formats, verify
from tser_cli.export.graph import Facts, Graph, pip_line, trace
from tser_cli.report.csv_files import read_csv
from tser_cli.settings import registry, wing_options


@dataclass(frozen=True)
class Exported:
    """What came of it. `checks` is None with --no-verify; `card` None where nothing was written.

    `change`: what integer potentials do to the spikes, None for floating-point ones.
    """

    path: Path
    run: folder.Run
    size: int
    checks: tuple[verify.ProgramCheck, ...] | None
    card: Path | None
    change: fixed_point.Change | None = None

    @property
    def holds(self) -> bool:
        """Return whether every check that was made holds; the file is written only then."""
        return self.checks is None or all(check.holds for check in self.checks)


def export(request: wing_options.ExportRequest) -> Exported:
    """Write a student's file, its FILE.verified.json and a model card.

    Nothing is written where a program that reads the format gives other spikes. Raises ExportError
    for what the format can't hold or a package that is not installed, ConfigError, RunError.
    """
    formats.check_format(request.format_name, request.stateful, request.potentials)
    if request.images < 1:
        raise ConfigError(f"--images {request.images}: the check needs at least one image")
    # before the run is opened: what is not installed would be found after a minute of work
    missing = verify.missing_packages(request.format_name) if request.verify else ()
    if missing:
        raise ExportError(
            f"--format {request.format_name} is checked with {', '.join(missing)}, which is not "
            f"installed: {pip_line(request.format_name)}. Or leave the check out with --no-verify"
        )
    check_folder(request.output)
    # on the CPU: the truth is computed in float64 there, as the other programs run there
    changes = {**request.changes, "training.device": "cpu"}
    opened = open_finished(select_run(request.run, request.runs_dir), changes, request.progress)
    dataset, spec = opened.context.dataset, opened.context.dataset.spec
    facts = Facts(
        model=opened.loaded.name,
        dataset=spec.name,
        mean=spec.mean,
        std=spec.std,
        classes=opened.loaded.classes or spec.classes,
        timesteps=opened.config.model.timesteps,
        shorter=spec.shorter,
        more={"run": opened.run.name, "model_sha256": opened.loaded.sha256},
    )
    graph = trace(opened.loaded.model, spec.image_shape, facts)
    indices = loaders.evenly_spread(len(dataset.test), request.images).tolist()
    images_NCHW = transforms.evaluation_pipeline(dataset.test, spec)(0, indices)
    draft = _draft(opened, graph, images_NCHW, request)
    checks = None
    if request.verify:
        checks = verify.verify(draft.content, request.format_name, draft.truth, images_NCHW)
    # a file that computes otherwise is worse than none: the result says so, nothing is written
    size = len(draft.content)
    made = Exported(request.output, opened.run, size, checks, None, draft.change)
    if not made.holds:
        return made
    path = request.output
    write_whole(path, draft.content)
    _write_checks(made, graph, draft, request)
    # README.md beside the file; FILE.md where there is one that is not this file's card
    place, ours = path.with_name("README.md"), f"\n{card.named(path.name)}"
    there = (
        place.read_text(encoding="utf-8", errors="replace") if place.exists() else card.MARK + ours
    )
    if not there.startswith(card.MARK) or ours not in there:
        place = path.with_name(f"{path.name}.md")
    write_text(place, card.card(graph, _card_facts(made, draft, opened, request)))
    return replace(made, card=place)


@dataclass(frozen=True, eq=False)
class _Draft:
    """A file before it is checked, and what it must do. The rest is of integer potentials alone."""

    content: bytes
    truth: verify.Recording
    fixed: fixed_point.FixedGraph | None = None
    change: fixed_point.Change | None = None


def _draft(
    opened: FinishedRun, graph: Graph, images_NCHW: Tensor, request: wing_options.ExportRequest
) -> _Draft:
    """Return the file of `graph` as it was asked for."""
    own = verify.record(opened.loaded.model, graph, images_NCHW)
    if request.potentials == formats.FLOAT:
        return _Draft(formats.content(graph, request.format_name, request.stateful), own)
    # the file is held to the rule of integers; how that differs from the student is said in it
    fixed = fixed_point.fixed_point(graph)
    truth = fixed_point.run_fixed(fixed, images_NCHW)
    change = fixed_point.change(own, truth)
    content = fixed_point.integer_content(fixed, request.stateful, change.sentence())
    return _Draft(content, truth, fixed, change)


def _write_checks(
    made: Exported, graph: Graph, draft: _Draft, request: wing_options.ExportRequest
) -> None:
    document = {
        "file": made.path.name,
        # of the content that was checked: a file that is changed later can be told from it
        "sha256": sha256(draft.content),
        "format": request.format_name,
        "stateful": request.stateful,
        "potentials": request.potentials,
        "run": made.run.name,
        "timesteps": graph.facts.timesteps,
        "verified": made.checks is not None,
        "why_not": None if made.checks is not None else "--no-verify",
        "checks": [check.described() for check in made.checks or ()],
    }
    if draft.change is not None:
        document["against_float_potentials"] = vars(draft.change)
    beside = made.path.with_name(f"{made.path.name}.verified.json")
    write_text(beside, json.dumps(document, indent=2) + "\n")


def _card_facts(
    made: Exported, draft: _Draft, opened: FinishedRun, request: wing_options.ExportRequest
) -> card.CardFacts:
    home, method = opened.run.folder, opened.config.method.name
    rows, sidecar = home / "per_timestep.csv", home / "energy.json"
    energy = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    return card.CardFacts(
        file=made.path.name,
        format_name=request.format_name + (", one time step" if request.stateful else ""),
        run=opened.run.name,
        method=method,
        source=registry.METHODS[method].settings.source,
        teacher=teachers.teacher_name(opened.run) or "",
        rows=tuple(read_csv(rows)) if rows.is_file() else (),
        energy=energy,
        float_energy_pj=float_energy(energy["totals"]) if energy else 0.0,
        settings=(home / "config.toml").read_text(encoding="utf-8"),
        checks=made.checks,
        change=draft.change,
        fixed=draft.fixed,
    )
