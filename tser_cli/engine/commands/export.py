"""Export a finished student as a file for other programs, checked by loading it in them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import tomli_w
from torch import Tensor

from tser_cli.base import files
from tser_cli.base.errors import ConfigError, DamagedFileError, ExportError, cut, visible
from tser_cli.data import loaders, transforms
from tser_cli.data.events import EventSource
from tser_cli.energy.prices import Profile
from tser_cli.energy.table import float_energy
from tser_cli.engine.runs import folder, record, teachers
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.export import card, fixed_point, formats, verify
from tser_cli.export.graph import Facts, Graph, pip_line, trace
from tser_cli.report.verdict import verdict
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
            f"installed: {pip_line(request.format_name)}"
            # what writes the file is called as its format
            + ". Or leave the check out with --no-verify"
            * (request.format_name not in missing)
        )
    path = request.output
    files.check_folder(path)
    checks_file, place = path.with_name(f"{path.name}.verified.json"), _card_file(path)
    for beside in (checks_file, place):
        files.check_folder(beside)
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
        frames=_frames(opened) if spec.frames else "",
        # a folder's name may be no UTF-8, which no format holds
        more={"run": visible(opened.run.name), "model_sha256": opened.loaded.sha256},
    )
    said = card_facts(opened, request)
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
    said = replace(said, checks=checks, change=draft.change, fixed=draft.fixed)
    about = {place: card.card(graph, said), checks_file: _checks(made, graph, draft, request)}
    # the file comes last, and so never without its card
    encoded = {one: text.encode() for one, text in about.items()}
    files.write_together({**encoded, path: draft.content})
    return replace(made, card=place)


def _frames(opened: FinishedRun) -> str:
    """Return what the frames are that a network of events is shown, in words."""
    test, steps = opened.context.dataset.test, opened.context.dataset.spec.frames
    if not isinstance(test, EventSource):
        return f"the data set's own frames, T = {steps}, up to 255"
    by = opened.config.data.frames_by
    parts = "spans of equal time" if by == "time" else "runs of equally many events"
    return (
        "how often each pixel became darker (channel 0) and brighter (1), up to 255, in T = "
        f"{steps} {parts} of a sample, one a step (data.frames_by = {by})"
    )


def _card_file(path: Path) -> Path:
    """Return FILE.md, the card's. Raises ConfigError where that is something else already."""
    place = path.with_name(f"{path.name}.md")
    try:
        text = files.read_regular(place, files.JSON_BYTES).decode(errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return place
    except (OSError, ValueError):
        text = ""  # a folder or a pipe: no card
    if not card.is_of(text, path.name):
        raise ConfigError(f"{place} is no model card of {path.name}, which would go there: move it")
    return place


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


def _checks(
    made: Exported, graph: Graph, draft: _Draft, request: wing_options.ExportRequest
) -> str:
    document = {
        "file": made.path.name,
        # of the content that was checked: a file that is changed later can be told from it
        "sha256": files.sha256(draft.content),
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
    return json.dumps(document, indent=2) + "\n"


def card_facts(opened: FinishedRun, request: wing_options.ExportRequest) -> card.CardFacts:
    """Return what the run's files say for the card. Raises TserError where one is damaged."""
    method, energy = opened.config.method.name, _energy(opened.run.folder / "energy.json")
    result = record.find_result(opened.run)
    against = result.against_ann if result else None
    return card.CardFacts(
        file=request.output.name,
        format_name=request.format_name + (", one time step" if request.stateful else ""),
        run=opened.run.name,
        method=method,
        source=registry.METHODS[method].settings.source,
        teacher=teachers.teacher_name(opened.run) or "",
        rows=result.per_timestep if result else (),
        energy=energy,
        float_energy_pj=float_energy(energy["totals"]) if energy else 0.0,
        ann_energy_pj=against["assumptions"]["same"]["ann_pj"] if against else None,
        verdict=verdict(result.per_timestep[-1], against).line if result else "",
        settings=tomli_w.dumps(opened.run.config().model_dump(mode="json")),
    )


def _energy(path: Path) -> dict[str, Any]:
    """Return what the card says of energy.json, {} where there is none. Raises TserError."""
    if not os.path.lexists(path):
        return {}
    found = files.read_json(path, types={"images": int, "profile": dict, "totals": dict})
    try:
        totals = {k: float(found["totals"][k]) for k in ("energy_pj", "sop_value", "macs")}
        profile = Profile.model_validate(found["profile"]).model_dump()
        return {"images": found["images"], "profile": profile, "totals": totals}
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(
            f"{path} is damaged ({cut(str(error), 200)}). tser energy writes it again, or remove it"
        ) from error
