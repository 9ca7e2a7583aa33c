"""Audit a finished run, or a network from elsewhere: faults that raise no error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tser_cli.base.progress import Progress, Silent
from tser_cli.energy.any_network.layouts import INSIDE
from tser_cli.energy.audit import Audit, audit
from tser_cli.engine.commands.energy import (
    NetworkRequest,
    find_audit_layout,
    open_network,
    presented,
    test_images,
)
from tser_cli.engine.runs.opened import open_finished, select_run

AUDIT_IMAGES = 16


@dataclass(frozen=True)
class AuditRequest:
    """What to audit: `subject`, a network from elsewhere, or a run, by default the newest."""

    run: Path | None = None
    runs_dir: Path = Path("runs")
    subject: NetworkRequest | None = None
    images: int = AUDIT_IMAGES
    changes: dict[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Silent)


@dataclass(frozen=True)
class AuditResult:
    """The name of what was audited, and what was found."""

    name: str
    found: Audit


def run_audit(request: AuditRequest) -> AuditResult:
    """Audit a run or a network. Raises TserError where it can't be opened, run or counted."""
    if request.subject is not None:
        return _audit_network(request.subject, request.images)
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model, context = opened.loaded.model, opened.context
    images, labels_N = test_images(context, request.images).some(request.images)
    timesteps = opened.config.model.timesteps if model.spiking else 1
    shown = presented(INSIDE, images, timesteps, model)
    found = audit(model, shown, timesteps, labels_N, model.input_kinds())
    return AuditResult(opened.run.name, found)


def _audit_network(subject: NetworkRequest, count: int) -> AuditResult:
    network, inputs = open_network(subject)
    images, labels_N = inputs.some(count)
    layout, timesteps = find_audit_layout(network, images, subject)
    shown = presented(layout, images, timesteps, network)
    return AuditResult(subject.network, audit(network, shown, timesteps, labels_N))
