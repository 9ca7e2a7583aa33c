"""Turn the weights of a finished student into integers, as a run of its own."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from tser_cli.base.errors import CheckpointError, ConfigError
from tser_cli.base.files import read_json
from tser_cli.data import loaders, transforms
from tser_cli.engine.runs import networks, record, teachers
from tser_cli.engine.runs.opened import Context, FinishedRun, Options, open_finished, select_run
from tser_cli.engine.training import budget, settle, task
from tser_cli.engine.training.run import finish, open_for_training
from tser_cli.losses.base import load_method
from tser_cli.models import integers
from tser_cli.models.base import Classifier
from tser_cli.settings import fields, wing_options
from tser_cli.settings.config import FLOAT_BITS

BITS = (8, 4)
BATCH = 128


@dataclass(frozen=True)
class QuantizeResult:
    """The new run, its parent and the parent's accuracy.

    `result.energy_pj` is charged by `profile`; `float_energy_pj` is what the same operations would
    cost with weights of 32-bit floating point.
    """

    result: record.RunResult
    parent: Path
    parent_accuracy: float | None
    profile: str
    float_energy_pj: float


def quantize(request: wing_options.QuantizeRequest) -> QuantizeResult:
    """Round a student's weights, calibrate its norms, measure it; the new run names its parent.

    Raises ConfigError for other bits, a teacher, or a student with integer weights; RunError.
    """
    if request.bits not in BITS:
        raise ConfigError(f"--bits {request.bits}: weights can have 8 or 4 bits")
    if request.images < 2:
        raise ConfigError(f"--images {request.images}: calibration needs at least two images")
    parent = select_run(request.run, request.runs_dir)
    opened = open_finished(parent, request.changes, request.progress)
    folder, bits = opened.run.folder, opened.config.model.weight_bits
    if not opened.loaded.model.spiking:
        raise ConfigError(f"{folder} is a teacher; name a student's run with --run")
    if bits != FLOAT_BITS:
        raise ConfigError(
            f"the weights of {folder} have {bits} bits already; name the run that it came from "
            "with --run, or train one anew: tser distill --set model.weight_bits=4"
        )
    # the parent's budget and its profile are for weights of floating point
    changes = {
        "model.weight_bits": request.bits,
        "energy.budget": fields.NO_BUDGET,
        "energy.profile": "",
    }
    config = settle.with_whole_paths(opened.config.updated(changes))
    context = replace(opened.context, config=config)
    model = rounded(opened, context, request)
    result = _record(model, opened, context, request)
    before = record.find_result(opened.run)
    document = read_json(result.folder / "energy.json")
    return QuantizeResult(
        result=result,
        parent=folder,
        parent_accuracy=before.accuracy if before else None,
        profile=budget.profile_of(config).name,
        float_energy_pj=document["totals"]["energy_fp32_pj"],
    )


def rounded(
    opened: FinishedRun, context: Context, request: wing_options.QuantizeRequest
) -> Classifier:
    """Return a copy of the run's network with integer weights and norms calibrated for them."""
    # a copy: the parent's own weights still stand behind `opened`
    model = integers.quantise(copy.deepcopy(opened.loaded.model), request.bits)
    integers.round_weights_(model)
    dataset = context.dataset
    # data may be sorted by class: the first images would all be of one
    places = loaders.evenly_spread(len(dataset.train), request.images).tolist()
    # without augmentation, as the norms will see images from now on
    pipeline = transforms.evaluation_pipeline(dataset.train, dataset.spec)
    batches = (places[start : start + BATCH] for start in range(0, len(places), BATCH))
    # a norm needs two images for a variance
    images = (context.runtime.images(pipeline(0, batch)) for batch in batches if len(batch) > 1)
    calibrate_norms(model, images, context.config.model.timesteps)
    return model


@torch.no_grad()
def calibrate_norms(model: Classifier, batches: Any, timesteps: int) -> None:
    """Measure means and variances of the norms again: rounded weights have shifted them.

    They become the averages over `batches` of images [N, C, H, W]; all else is in eval mode.
    """
    model.eval()
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        # the statistics of the parent's weights would else be part of the average
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    for images_NCHW in batches:
        model(images_NCHW, timesteps)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


def _record(
    model: Classifier, opened: FinishedRun, context: Context, request: wing_options.QuantizeRequest
) -> record.RunResult:
    """Return the new run's folder: weights, tables, result, and where it came from."""
    try:
        teacher = teachers.read_run_teacher(opened.run, opened.context.dataset.spec)
    except CheckpointError as error:
        opened.context.progress.warn(f"the teacher's accuracy and energy are left out: {error}")
        teacher = None
    if teacher is not None:
        opened.context.runtime.place(networks.freeze(teacher.model))
    config = context.config
    # it is measured, not trained: nothing is asked of the teacher but its answers
    method = load_method(config.method.name)
    trainee = task.Trainee(model)
    made = task.Task(model, trainee, method, config.method, config.model.timesteps)
    # one that was killed is taken up, and written anew
    parent = {"run": str(opened.run.folder.resolve()), "sha256": opened.loaded.sha256}
    options = Options(request.runs_dir, "auto", request.progress, parent)
    with open_for_training("student", context, options) as (run, stop):
        if context.runtime.is_main:
            taught = opened.run.environment().get(teachers.TEACHER)
            learned = {teachers.TEACHER: taught} if taught else {}
            run.update_environment(
                calibration={"images": request.images, "split": "train"}, **learned
            )
        return finish(run, context, made, [], teacher, stop)
