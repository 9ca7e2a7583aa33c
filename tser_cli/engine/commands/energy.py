"""Count the synaptic operations of a finished run, and price them.

Count the operations of a network from elsewhere, and price them.

Networks from elsewhere: a function of the user's builds one, and files or data sets feed it.
"""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError, DataError, TserError, unknown
from tser_cli.base.files import check_folder, write_text
from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy.any_network.find_layout import choose
from tser_cli.energy.any_network.layouts import AUTO, INSIDE, LAYOUTS, Presentation, present
from tser_cli.energy.any_network.network_counter import NetworkCounter, count_operations
from tser_cli.energy.any_network.plan import Plan, make_plan
from tser_cli.energy.conventions.conventions import Auxiliary
from tser_cli.energy.counts import Counts
from tser_cli.energy.joules import energy_up_to
from tser_cli.energy.prices import DEFAULT_PROFILE, Profile, check_precision, load_profile
from tser_cli.energy.table import Labels, energy_rows, sidecar
from tser_cli.engine.evaluation.energy import (
    Beyond,
    EnergyReport,
    Price,
    go_beyond,
    write_energy,
)
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, evaluate_split
from tser_cli.engine.runs.opened import Context, FinishedRun, open_finished, prepare, select_run
from tser_cli.engine.runs.own_modules import build_network, digest, error_line, load_weights
from tser_cli.engine.runs.record import recorded
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.engine.runs.teachers import teacher_to_count
from tser_cli.engine.training.budget import profile_of
from tser_cli.report import figures
from tser_cli.report.csv_files import ALL, PER_IMAGE, TOTAL, write_csv, write_energy_csv
from tser_cli.report.style import FORMATS
from tser_cli.settings import recipe
from tser_cli.settings.config import Config, method_label
from tser_cli.settings.options import EnergyRequest, NetworkRequest


@dataclass(frozen=True)
class EnergyResult:
    """What was counted and priced: the rows of energy.csv, the sidecar's document, the files."""

    name: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    written: tuple[Path, ...]
    beyond: Beyond = field(default_factory=Beyond)


def measure_energy(request: EnergyRequest) -> EnergyResult | NetworkEnergyResult:
    """Count the operations of a run or a network, price them, and write tables and figures.

    Raises RunError, CheckpointError or ConfigError before anything is written.
    """
    if request.network:
        return measure_network(request)
    if request.profile:
        load_profile(request.profile)  # a mistyped one is told before any work
    check_paths(request)
    opened = open_finished(
        select_run(request.run, request.runs_dir), request.changes, request.progress
    )
    model = opened.loaded.model
    profile = profile_of(opened.config, request.profile)
    check_precision(profile, weight_bits(model), request.assume_int8)
    full = evaluate_split(
        opened.loaded.model,
        opened.context,
        "test",
        opened.config.model.timesteps,
        count=True,
        images=request.images,
    )
    return opened.context.runtime.on_main(lambda: _write(opened, request, full, profile))


def _write(
    opened: FinishedRun, request: EnergyRequest, full: Evaluation, profile: Profile
) -> EnergyResult:
    assert full.counts is not None and full.answers is not None, "a counted pass"
    teacher = teacher_to_count(opened.run, opened.context)
    price = Price(profile, teacher, request.memory, request.form)
    report = write_energy(request.output, full, labels_of(opened), price, opened.context)
    if request.per_image is not None:
        rows = per_image_rows(opened, full.answers, full.counts, profile)
        write_csv(request.per_image, rows, PER_IMAGE)
    figures = draw(opened, request.output, report, full)
    beyond = _beyond(opened, request, profile)
    document = {**report.document, **beyond.document()}
    if document != report.document:
        write_text(request.output.with_suffix(".json"), json.dumps(document, indent=2) + "\n")
    files = [request.output, files_of(request.output)[0], request.per_image, *figures]
    written = (*(path for path in files if path is not None), *beyond.written)
    return EnergyResult(opened.run.name, report.rows, document, written, beyond)


def _beyond(opened: FinishedRun, request: EnergyRequest, profile: Profile) -> Beyond:
    """Return what was asked for beyond the table, which takes a second, more detailed count."""
    if not request.any and not profile.model:
        return Beyond()
    counts, others = detailed_counts(opened, request.images)
    return go_beyond(request.output, counts, others, profile, request)


def detailed_counts(opened: FinishedRun, images: int) -> tuple[Counts, Auxiliary]:
    """Count so many test images (0: all) with what memory and conventions need to know of them.

    Raises TserError where the network's layers can't be told apart so.
    """
    model, context, timesteps = opened.loaded.model, opened.context, opened.config.model.timesteps
    subject = NetworkRequest(network=opened.run.name, timesteps=timesteps, layout=INSIDE)
    inputs = test_images(context, images)
    _, counter = count(model, inputs, subject, True, model.input_kinds())
    return counter.counts(), counter.others


def figures_of(output: Path) -> tuple[Path, Path]:
    """Return the names of the two figures beside the table, without suffix."""
    by_layer = output.with_name(f"{output.stem}_by_layer")
    return by_layer, output.with_name(f"{output.stem}_accuracy")


def files_of(output: Path) -> list[Path]:
    """Return what is written beside the table: the sidecar, and two figures as PNG and SVG."""
    figures = [name.with_name(f"{name.name}{s}") for name in figures_of(output) for s in FORMATS]
    return [output.with_suffix(".json"), *figures]


def check_paths(request: EnergyRequest) -> None:
    """Raise ConfigError or RunError where two files would be one, or one can't be written."""
    check_folder(request.output)
    if request.output.suffix != ".csv":
        raise ConfigError(
            f"{request.output}: the table is a CSV file; call it {request.output.stem}.csv"
        )
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


def labels_of(opened: FinishedRun) -> Labels:
    """Return what tells the run's table apart."""
    config = opened.config
    return Labels(
        opened.run.name, config.data.name, opened.loaded.sha256, config.training.precision
    )


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


def draw(opened: FinishedRun, output: Path, report: EnergyReport, full: Evaluation) -> list[Path]:
    """Draw the two figures beside the table: energy by layer, and accuracy against energy."""
    run, method = opened.run, method_label(opened.config)
    by_layer, against = figures_of(output)
    accuracy_T = [right / full.images for right in full.correct_cumulative]
    steps = [row for row in report.rows if row["layer"] == TOTAL and row["t"] != ALL]
    teacher = (report.document["teacher"] or {}).get("energy_pj")
    known = recorded(run)
    accuracy = known.get("teacher_accuracy") if known.get("images") == full.images else None
    spent_T = itertools.accumulate(row["energy_pj"] for row in steps)
    points = [
        figures.EnergyPoint(f"t = {t}", spent_pj, reached)
        for t, (spent_pj, reached) in enumerate(zip(spent_T, accuracy_T, strict=True), 1)
    ]
    taught = None
    if teacher is not None and accuracy is not None:
        taught = figures.EnergyPoint("teacher (ANN)", teacher, accuracy)
    layers = [
        figures.LayerEnergy.of_row(row)
        for row in report.rows
        if row["layer"] != TOTAL and row["t"] != ALL
    ]
    return [
        *figures.by_layer(layers, run.name).save(by_layer),
        *figures.tradeoff(points, taught, method=method, title=run.name).save(against),
    ]


IMAGES_OF_TRIAL = 2


@dataclass(frozen=True)
class NetworkEnergyResult:
    """What was counted and priced; `uncounted`: operations left out, with their share of the FLOP.

    `differing`: of layers whose kind of input differs between calls, how many met which.
    """

    name: str
    layout: str
    inputs: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    kinds: dict[str, str]
    differing: dict[str, dict[str, int]]
    uncounted: list[tuple[str, float]]
    beyond: Beyond
    written: tuple[Path, ...]


def measure_network(request: EnergyRequest) -> NetworkEnergyResult:
    """Build, count and price a network, and write the table and its sidecar.

    Raises ConfigError, DataError, CheckpointError or TserError before anything is written.
    """
    profile = load_profile(request.profile or DEFAULT_PROFILE)
    if request.output.suffix != ".csv":
        stem = request.output.stem
        raise ConfigError(f"{request.output}: the table is a CSV file; call it {stem}.csv")
    check_folder(request.output)
    network, inputs = open_network(request)
    check_precision(profile, weight_bits(network), request.assume_int8)
    detailed = request.any or profile.model != ""
    plan, counter = count(network, inputs, request, detailed)
    counts = counter.counts()
    labels = Labels(request.network, inputs.name, digest(network), dtype_of(network))
    rows = energy_rows(counts, profile, labels)
    document = sidecar(counts, profile, labels, memory=request.memory)
    uncounted = uncounted_shares(plan, counts)
    beyond = go_beyond(request.output, counts, counter.others, profile, request)
    document["network"] = describe(plan, counter, uncounted)
    document.update(beyond.document())
    write_energy_csv(request.output, rows, request.form)
    aside = request.output.with_suffix(".json")
    write_text(aside, json.dumps(document, indent=2) + "\n")
    return NetworkEnergyResult(
        name=request.network,
        layout=f"{plan.layout}, T = {plan.timesteps}",
        inputs=inputs.name,
        rows=rows,
        document=document,
        kinds=counter.kinds(),
        differing=counter.differing(),
        uncounted=uncounted,
        beyond=beyond,
        written=(request.output, aside, *beyond.written),
    )


def weight_bits(network: nn.Module) -> int:
    """Return the bits of the widest weights; layers of ours that round theirs say how far."""
    found = [
        getattr(module, "bits", 8 * weight.element_size())
        for module in network.modules()
        for weight in module.parameters(recurse=False)
        if weight.dim() > 1
    ]
    return max(found, default=8)


def count(
    network: nn.Module,
    inputs: Inputs,
    request: NetworkRequest,
    detailed: bool,
    declared: dict[str, str] | None = None,
) -> tuple[Plan, NetworkCounter]:
    """Find the layout, and count all batches; `declared`: see NetworkCounter. Raises TserError."""
    plan = find_layout(network, inputs.first()[0], request)
    with torch.no_grad(), count_operations(network, plan.layout, plan.timesteps, detailed) as made:
        made.plan, made.declared = plan, declared or {}
        for images, _ in inputs.batches():
            presented(plan.layout, images, plan.timesteps, network).call(network)
    return plan, made


def find_layout(network: nn.Module, images: Tensor, request: NetworkRequest) -> Plan:
    """Return the plan of the network for the layout that was said, or for the one that fits."""
    if request.layout not in (AUTO, *LAYOUTS):
        raise ConfigError(f"--layout: {unknown('layout', request.layout, (AUTO, *LAYOUTS))}")
    layouts = LAYOUTS if request.layout == AUTO else (request.layout,)
    if not request.timesteps:
        if request.layout not in (AUTO, INSIDE):
            raise ConfigError(f"--layout {request.layout}: say how many time steps, with -T")
        layouts = (INSIDE,)
    candidates = [presented(name, images, request.timesteps, network) for name in layouts]
    certain = request.layout != AUTO or not request.timesteps
    return choose(network, candidates, request.timesteps, certain)


def find_audit_layout(
    network: nn.Module, images: Tensor, request: NetworkRequest
) -> tuple[str, int]:
    """Return the layout and T to audit a network in; as said, it is not checked: a fault may hide
    it.
    """
    if request.layout == AUTO:
        return _audited_layout(network, images, request)
    if request.layout not in LAYOUTS:
        raise ConfigError(f"--layout: {unknown('layout', request.layout, (AUTO, *LAYOUTS))}")
    if not request.timesteps and request.layout != INSIDE:
        raise ConfigError(f"--layout {request.layout}: say how many time steps, with -T")
    return request.layout, request.timesteps


def _audited_layout(network: nn.Module, images: Tensor, request: NetworkRequest) -> tuple[str, int]:
    """Return the layout that fits; where a fault lets none fit, the only one that can be run."""
    try:
        plan = find_layout(network, images, request)
    except TserError as error:
        possible = [
            name
            for name in LAYOUTS
            if request.timesteps and _runs(network, images, name, request.timesteps)
        ]
        if len(possible) != 1:
            raise error
        return possible[0], request.timesteps
    return plan.layout, plan.timesteps


def _runs(network: nn.Module, images: Tensor, layout: str, timesteps: int) -> bool:
    try:
        make_plan(network, presented(layout, images, timesteps, network), timesteps)
    except TserError:
        return False
    return True


def presented(layout: str, images: Tensor, timesteps: int, network: nn.Module) -> Presentation:
    """Images as a layout presents them; a network that makes its own steps is told T if it asks."""
    named: dict[str, Any] = {}
    if (
        layout == INSIDE
        and timesteps
        and "timesteps" in inspect.signature(network.forward).parameters
    ):
        named["timesteps"] = timesteps
    return present(layout, images, timesteps or 1, ((), named))


def uncounted_shares(plan: Plan, counts: Counts) -> list[tuple[str, float]]:
    """Operations outside of neurons that are not counted, with their share of the dense FLOP."""
    macs = sum(layer.layer.macs_formula * int(layer.executed_T.sum()) for layer in counts.layers)
    others = {name: flop / IMAGES_OF_TRIAL for name, flop in plan.survey.uncounted.items()}
    # A multiply-accumulate is two FLOP.
    total = 2 * macs + sum(others.values())
    shares = [(name, flop / total) for name, flop in others.items()]
    return sorted(shares, key=lambda share: -share[1])


def describe(
    plan: Plan, counter: NetworkCounter, uncounted: list[tuple[str, float]]
) -> dict[str, Any]:
    """Return what the sidecar says of a network from elsewhere."""
    return {
        "layout": plan.layout,
        "neurons": plan.neurons,
        "kinds_met": {name: dict(kinds) for name, kinds in counter.kinds_met.items()},
        "differing": counter.differing(),
        "uncounted_share_of_flop": dict(uncounted),
    }


def dtype_of(network: nn.Module) -> str:
    """Return the type of the first weight, fp32 without any."""
    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    first = next(iter(network.parameters()), None)
    return "fp32" if first is None else names.get(first.dtype, str(first.dtype))


RANDOM_IMAGES = 8
NETWORK_BATCH = 32
Batches = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]


@dataclass(frozen=True)
class Inputs:
    """Batches of images [N, ...] and labels, where there are some, and what they are called."""

    batches: Batches
    name: str

    def first(self) -> tuple[Tensor, Tensor | None]:
        """Return the first batch. Raises DataError where there is none."""
        for batch in self.batches():
            return batch
        raise DataError(f"{self.name} holds no images")

    def some(self, count: int) -> tuple[Tensor, Tensor | None]:
        """Up to `count` images in one batch. Raises DataError where there are none."""
        images, labels, left = [], [], count
        for batch, labels_N in self.batches():
            images.append(batch[:left])
            labels += [] if labels_N is None else [labels_N[:left]]
            left -= len(images[-1])
            if left <= 0:
                break
        if not images:
            raise DataError(f"{self.name} holds no images")
        return torch.cat(images), torch.cat(labels).to(images[0].device) if labels else None


def open_network(request: NetworkRequest) -> tuple[nn.Module, Inputs]:
    """Build the network on the device, with its weights, and open what it is fed with.

    Raises ConfigError, CheckpointError or DataError with what is wrong.
    """
    network = build_network(request.network, request.arguments)
    if request.weights is not None:
        load_weights(network, request.weights)
    config = recipe.resolve([recipe.Layer("flags", request.changes)])
    if request.dataset:
        return network.eval(), _from_dataset(request, network, config)
    runtime = make_runtime(config.training, channels_last=False)
    images = _images(request)
    images = images[: request.images or len(images)].to(runtime.device)
    network.eval().to(runtime.device)
    parts = torch.split(images, request.batch_size or NETWORK_BATCH)
    name = str(request.data) if request.data else f"random numbers of {request.input_shape}"
    return network, Inputs(lambda: ((part, None) for part in parts), name)


def _images(request: NetworkRequest) -> Tensor:
    if request.data is None:
        return _random(request)
    import numpy as np

    try:
        array = np.load(request.data, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"--data {request.data} can't be read: {error_line(error)}") from error
    if array.dtype.kind not in "fiub" or array.ndim < 2 or not len(array):
        raise DataError(
            f"--data {request.data} holds {array.dtype} {array.shape}, not numbers [N, ...]"
        )
    return torch.from_numpy(array.astype(np.float32))


def _random(request: NetworkRequest) -> Tensor:
    if not request.input_shape:
        raise ConfigError("say what the network is fed with: --dataset, --data or --input 3,32,32")
    try:
        shape = [int(part) for part in request.input_shape.split(",")]
    except ValueError as error:
        raise ConfigError(f'--input "{request.input_shape}": write 3,32,32') from error
    if not shape or min(shape) < 1:
        raise ConfigError(f'--input "{request.input_shape}": sizes are at least 1')
    generator = torch.Generator().manual_seed(0)
    return torch.rand(request.images or RANDOM_IMAGES, *shape, generator=generator)


def _from_dataset(request: NetworkRequest, network: nn.Module, config: Config) -> Inputs:
    context = prepare(config, request.progress)
    network.to(context.runtime.device)
    return test_images(context, request.images)


def test_images(context: Context, images: int) -> Inputs:
    """Return the test images of a data set, evenly spread where not all are wanted (0: all)."""
    loader = build_eval_loader(context.dataset, "test", context.config)
    wanted = min(images or loader.images, loader.images)
    chosen = set((torch.arange(wanted) * loader.images // wanted).tolist())

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in loader:
            taken = torch.tensor([int(i) in chosen for i in batch.indices_N])
            if taken.any():
                shown = batch.images_NCHW[taken].contiguous().to(context.runtime.device)
                yield shown, batch.labels_N[taken]

    return Inputs(batches, context.config.data.name)
