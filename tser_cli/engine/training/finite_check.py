"""Stop a training whose loss or gradients are no longer finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tser_cli.engine.training.job import TrainingJob
from tser_cli.engine.training.position import Position
from tser_cli.errors import NonFiniteError


def check_finite(job: TrainingJob, values: dict[str, Tensor], position: Position) -> None:
    """Raise NonFiniteError on all processes where a loss or gradient of any is not finite.

    Under fp16 infinite gradients are ordinary (the loss scale adapts), so only the loss counts.
    """
    bad_loss = bad = not math.isfinite(float(values["loss"]))
    if not bad and job.config.training.precision != "fp16":
        gradients = [p.grad for _, p in job.task.named_parameters() if p.grad is not None]
        bad = not math.isfinite(float(torch.nn.utils.get_total_norm(gradients)))
    if not job.runtime.any(bad):
        return
    findings = job.runtime.gather((bad_loss, describe_terms(job, values, bad_loss)))
    # Gradients are means over all processes by now: only a loss says whose fault it is.
    finding = next((text for culprit, text in findings if culprit), findings[0][1])
    saved = job.runtime.on_main(lambda: any(job.run.checkpoints.glob("step-*")))
    kept = f" The last good checkpoint is kept in {job.run.checkpoints}." if saved else ""
    error = NonFiniteError(
        f"the loss or a gradient is not finite at epoch {position.epoch + 1}, step "
        f"{position.step + 1}: {finding}.{kept} Try a lower --lr, a warm-up, "
        "training.clip_norm, or fp32"
    )
    job.runtime.fail(error)


def describe_terms(job: TrainingJob, values: dict[str, Tensor], culprit: bool) -> str:
    """Describe the terms of a step and the layers whose gradients are not finite."""
    named = ", ".join(f"{name} = {float(value):g}" for name, value in values.items())
    layers = [
        name
        for name, p in job.task.named_parameters()
        if p.grad is not None and not torch.isfinite(p.grad).all()
    ]
    where = f"gradients of {', '.join(layers[:3])}{' ...' if len(layers) > 3 else ''}"
    process = f"{job.runtime.process_description} has " if culprit and job.runtime.world > 1 else ""
    return f"{process}{named}; {where if layers else 'the gradients here are finite'}"
