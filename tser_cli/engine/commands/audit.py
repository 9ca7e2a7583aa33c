"""Audit a finished run, or a network from elsewhere: faults that raise no error."""

from __future__ import annotations

from dataclasses import dataclass

from tser_cli.energy.any_network.layouts import INSIDE, present
from tser_cli.energy.audit import Audit, audit
from tser_cli.engine.commands.network_energy import find_audit_layout, open_network, test_images
from tser_cli.engine.runs.opened import open_finished, select_run
from tser_cli.engine.runs.own_modules import their_code
from tser_cli.settings.wing_options import AuditRequest


@dataclass(frozen=True)
class AuditResult:
    """The name of what was audited, and what was found."""

    name: str
    found: Audit


def run_audit(request: AuditRequest) -> AuditResult:
    """Audit a run or a network. Raises TserError where it can't be opened, run or counted."""
    if request.network:
        with their_code(f"--network {request.network}"):
            network, inputs, _ = open_network(request)
            images, labels_N = inputs.some(request.images)
            layout, timesteps = find_audit_layout(network, images, request, inputs.frames)
            shown = present(layout, images, timesteps, network, inputs.frames > 0)
            return AuditResult(request.network, audit(network, shown, timesteps, labels_N))
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model, context = opened.loaded.model, opened.context
    images, labels_N = test_images(context, request.images).some(request.images)
    timesteps = opened.config.model.timesteps if model.spiking else 1
    shown = present(INSIDE, images, timesteps, model, context.dataset.spec.frames > 0)
    found = audit(model, shown, timesteps, labels_N, model.input_kinds())
    return AuditResult(opened.run.name, found)
