"""Audit a finished run, or a network from elsewhere: faults that raise no error."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy.audit import audit
from tser_cli.energy.findings import Audit
from tser_cli.energy.layouts import INSIDE
from tser_cli.engine.commands.network_energy import find_audit_layout, presented
from tser_cli.engine.commands.networks import NetworkRequest, open_network
from tser_cli.engine.runs.finished_run import open_finished, select_run
from tser_cli.report.progress import Progress, Silent

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
    batch = next(iter(build_eval_loader(context.dataset, "test", context.config)))
    images = context.runtime.images(batch.images_NCHW[: request.images]).contiguous()
    timesteps = opened.config.model.timesteps if model.spiking else 1
    shown = presented(INSIDE, images, timesteps, model)
    labels_N = batch.labels_N[: request.images].to(images.device)
    found = audit(model, shown, timesteps, labels_N, model.input_kinds())
    return AuditResult(opened.run.name, found)


def _audit_network(subject: NetworkRequest, count: int) -> AuditResult:
    network, inputs = open_network(subject)
    images, labels = inputs.first()
    images, labels_N = images[:count], None if labels is None else labels[:count]
    layout, timesteps = find_audit_layout(network, images, subject)
    shown = presented(layout, images, timesteps, network)
    on_device: Tensor | None = None if labels_N is None else labels_N.to(images.device)
    return AuditResult(subject.network, audit(network, shown, timesteps, on_device))
