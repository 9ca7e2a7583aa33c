"""What `tser energy` counts and prices beyond the table of a run; a wing.

Networks from elsewhere: a function of the user's builds one, and files or data sets feed it. Of
runs too: conventions, memory, and the fair rival.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock
from weakref import WeakSet

import numpy as np
import torch
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError, DataError, TserError, error_line, unknown
from tser_cli.base.files import is_file
from tser_cli.data.loaders import build_eval_loader
from tser_cli.energy.any_network import layouts
from tser_cli.energy.any_network import network_counter as trial
from tser_cli.energy.any_network.layouts import AUTO, INSIDE, LAYOUTS, Presentation, told_timesteps
from tser_cli.energy.any_network.network_counter import TrialCounter, count_operations
from tser_cli.energy.any_network.plan import TrialPlan, make_plan
from tser_cli.energy.conventions import rival
from tser_cli.energy.conventions.conventions import AsCounted, Auxiliary, compare, matching
from tser_cli.energy.counts import SUMS, Counts
from tser_cli.energy.neurons import reset_states
from tser_cli.energy.prices import DEFAULT_PROFILE, Profile, check_precision, load_profile
from tser_cli.energy.table import Labels, energy_rows, sidecar
from tser_cli.energy.tally import find_kind
from tser_cli.engine.commands.energy import (
    EnergyResult,
    check_paths,
    draw_layers,
    files_of,
    measure_energy,
    weight_bits,
)
from tser_cli.engine.evaluation.energy import Beyond, EnergyReport, Memory
from tser_cli.engine.runs.opened import Context, FinishedRun, prepare
from tser_cli.engine.runs.own_modules import build_network, digest, load_weights, their_code
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.models.base import Classifier
from tser_cli.report.csv_files import CONVENTIONS, write_csv
from tser_cli.settings import recipe
from tser_cli.settings.fields import parse_energy
from tser_cli.settings.options import EnergyRequest, NetworkRequest, Wanted

IMAGES_OF_TRIAL, RANDOM_IMAGES, NETWORK_BATCH = 2, 8, 32
MOST_RANDOM = 2**28  # a gigabyte
DTYPES = {torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}
UNTRAINED = "weights as the function made them: untrained"


class SamePass:
    """Counts a run in detail in the one pass over its images: the wing beside `measure_energy`."""

    def __init__(self) -> None:
        self.details: tuple[Counts, Auxiliary] | None = None
        self.counts: Callable[[], Counts]

    @contextmanager
    def counting(self, model: Classifier, timesteps: int) -> Iterator[SamePass]:
        """Count what `model` does, by a plan by trial; `counts` are then those of hooks."""
        # By trial, though the network declares its kinds: conventions go by what each call met, and
        # hooks would pass products by.
        kinds, others = model.input_kinds(), Auxiliary()
        with count_operations(model, INSIDE, timesteps, True, others.add) as counter:
            counter.declared, counter.frames = kinds or {}, model.fed_counts

            def counts() -> Counts:
                found = counter.counts()
                self.details = found, others
                return found if kinds is None else trial.as_declared(found, model, kinds)

            self.counts = counts
            yield self

    def write(self, opened: FinishedRun, request: EnergyRequest, profile: Profile) -> Beyond:
        """Write the table of conventions, and return what else was asked for."""
        # None where the pass was counted by hooks alone; see `measure_energy`.
        counts, others = self.details or detailed_counts(opened, request.images)
        return go_beyond(request.output, counts, others, profile, request)


def measure_more(request: EnergyRequest) -> EnergyResult | NetworkEnergyResult:
    """Count and price a network from elsewhere, or a run with all that is wanted, in one pass."""
    return measure_network(request) if request.network else measure_energy(request, SamePass())


def detailed_counts(opened: FinishedRun, images: int) -> tuple[Counts, Auxiliary]:
    """Count so many test images (0: all) in detail, and beside it what syops alone counts.

    Raises TserError where the network's layers can't be told apart so.
    """
    model, timesteps = opened.loaded.model, opened.config.model.timesteps
    subject = NetworkRequest(network=opened.run.name, timesteps=timesteps, layout=INSIDE)
    inputs = test_images(opened.context, images)
    _, counter, others = count(model, inputs, subject, True, model.input_kinds())
    return counter.counts(), others


def go_beyond(
    output: Path | None, counts: Counts, others: Auxiliary, profile: Profile, wanted: Wanted
) -> Beyond:
    """Make what was asked for from counts with details; a table goes beside `output`, if any.

    `others`: what syops alone counts. Raises ConfigError for a figure that is no energy.
    """
    figure = parse_energy(wanted.match) if wanted.match else None
    compared: tuple[AsCounted, ...] = ()
    written: tuple[Path, ...] = ()
    if wanted.conventions or figure is not None:
        compared = tuple(compare(counts, profile, others))
    if wanted.conventions and output is not None:
        table = output.with_name(f"{output.stem}_conventions.csv")
        write_csv(table, [one.row() for one in compared], CONVENTIONS)
        written = (table,)
    memory = None
    if profile.model or wanted.fair_rival:
        memory = Memory(rival.snn_energy(counts), rival.ann_energy(counts))
    return Beyond(
        conventions=compared,
        matched=None if figure is None else tuple(matching(compared, figure)),
        match=wanted.match,
        memory=memory,
        rival=rival.fair_rival(counts, profile) if wanted.fair_rival else None,
        written=written,
    )


@dataclass(frozen=True)
class NetworkEnergyResult:
    """What was counted and priced; `uncounted`: operations left out, with their share of the FLOP.

    `differing`: of layers whose kind of input differs between calls, how many met which.
    `weights`: where they come from, where that is not a file. `notes`: what else is to be known.
    """

    name: str
    weights: str
    layout: str
    inputs: str
    rows: list[dict[str, Any]]
    document: dict[str, Any]
    kinds: dict[str, str]
    differing: dict[str, dict[str, int]]
    uncounted: list[tuple[str, float]]
    notes: list[str]
    beyond: Beyond
    written: tuple[Path, ...]


def measure_network(request: EnergyRequest) -> NetworkEnergyResult:
    """Build, count and price a network, and write what was asked for.

    Raises ConfigError, DataError, CheckpointError or TserError before anything is written.
    """
    profile = load_profile(request.profile or DEFAULT_PROFILE)
    check_paths(request)
    detailed = request.any or profile.model != ""
    with their_code(f"--network {request.network}"):
        network, inputs, weights = open_network(request)
        check_precision(profile, weight_bits(network), request.assume_int8)
        plan, counter, others = count(network, inputs, request, detailed)
        counts, sha256 = counter.counts(), digest(network)
    dtype = DTYPES.get(float_type(network), "fp32")
    labels = Labels(request.network, inputs.name, sha256, dtype)
    rows = energy_rows(counts, profile, labels)
    document = sidecar(counts, profile, labels, memory=request.memory)
    uncounted = uncounted_shares(plan, counts)
    beyond = go_beyond(request.output, counts, others, profile, request)
    notes = notes_of(network, plan, counter, inputs, request)
    document["network"] = {
        "layout": plan.layout,
        "weights": weights or str(request.weights or ""),
        "seed": request.seed,
        "notes": notes,
        "neurons": plan.neurons,
        "kinds_met": counter.met(),
        "scales": counter.folded(),
        "differing": counter.differing(),
        "uncounted_share_of_flop": dict(uncounted),
    }
    document.update(beyond.document())
    if request.output is not None:
        EnergyReport(rows, document).write(request.output, request.form)
    if request.figures:
        draw_layers(request.output, request.network, rows)
    return NetworkEnergyResult(
        name=request.network,
        weights=weights,
        layout=f"{plan.layout}, T = {plan.timesteps}",
        inputs=inputs.name,
        rows=rows,
        document=document,
        kinds=counter.kinds(),
        differing=counter.differing(),
        uncounted=uncounted,
        notes=notes,
        beyond=beyond,
        written=(*files_of(request), *beyond.written),
    )


def count(
    network: nn.Module,
    inputs: Inputs,
    request: NetworkRequest,
    detailed: bool,
    declared: dict[str, str] | None = None,
) -> tuple[TrialPlan, TrialCounter, Auxiliary]:
    """Find the layout, and count all batches; `declared`: see Counter. Raises TserError.

    Beside the counter: how the network is called, and what syops alone counts.
    """
    plan, others = find_layout(network, inputs.first(), request, inputs.frames), Auxiliary()
    also = others.add if detailed else None
    with (
        torch.no_grad(),
        layouts.seeded(request.seed),
        count_operations(network, plan.layout, plan.timesteps, detailed, also) as counter,
    ):
        counter.plan, counter.declared = plan, declared or {}
        counter.frames = inputs.frames > 0
        for images, _ in inputs.batches():
            shown = (images, plan.timesteps, network, counter.frames)
            layouts.present(plan.layout, *shown).call(network)
    return plan, counter, others


def find_layout(
    network: nn.Module,
    images: Tensor,
    request: NetworkRequest,
    frames: int = 0,
    faulty: bool = False,
) -> TrialPlan:
    """Return the plan of the network for the layout that was said, or for the one that fits.

    Of several that fit and give equal counts the first is taken. `frames`: see `Inputs`. `faulty`:
    see `choose`.
    """
    timesteps = frames or request.timesteps
    check_layout(request, timesteps)
    names = LAYOUTS if request.layout == AUTO else (request.layout,)
    if not timesteps:
        names = (INSIDE,)
    candidates = [layouts.present(name, images, timesteps, network, frames > 0) for name in names]
    certain = request.layout != AUTO or not timesteps
    try:
        return trial.choose(network, candidates, timesteps, certain, faulty)
    except layouts.MisfitError as error:
        raise TserError(misfit(error, images)) from error
    except trial.SeveralFitError as error:
        shown = {one.layout: one.of(IMAGES_OF_TRIAL) for one in candidates}
        first, *others = (_trial_counts(network, plan, shown[plan.layout]) for plan in error.plans)
        if any(other != first for other in others):
            raise
        # One that is told T goes before one that is given it in front of the images.
        error.plans.sort(key=lambda plan: not told_timesteps(network, plan.layout))
        taken, *also = error.plans
        return replace(taken, also_fits=tuple(plan.layout for plan in also))


def _trial_counts(network: nn.Module, plan: TrialPlan, shown: Presentation) -> list[Any]:
    """Return what a plan counts on a few images, layer by layer."""
    made = layouts.fresh_copy(network)
    with count_operations(made, plan.layout, plan.timesteps) as counter:
        counter.plan = plan
        layouts.try_out(made, shown)
    return [
        (one.layer, one.executed_T.tolist(), one.value_TI.tolist(), one.events_TI.tolist())
        for one in counter.counts().layers
    ]


def misfit(error: layouts.MisfitError, images: Tensor) -> str:
    """Return what is wrong with the size of the images, in one line."""
    wanted, axis = error.wanted, images.dim() - 3
    if not error.channels or axis < 1:
        return f"{error}; images of {tuple(images.shape[1:])} have another size than it"
    plural = "s" * (wanted > 1)
    have = f"the network takes {wanted} channel{plural}, the images have {images.shape[axis]}"
    if images.shape[-1] == wanted != images.shape[axis]:
        have += f"; their last axis has {wanted}: they look like [N, H, W, C], give [N, C, H, W]"
    return have


def check_layout(request: NetworkRequest, timesteps: int) -> None:
    """Raise ConfigError for a layout that there is not, or that needs to be told T."""
    layout = request.layout
    if layout not in (AUTO, *LAYOUTS):
        raise ConfigError(f"--layout: {unknown('layout', layout, (AUTO, *LAYOUTS))}")
    if not timesteps and layout not in (AUTO, INSIDE):
        raise ConfigError(f"--layout {layout}: say how many time steps, with -T")


def find_audit_layout(
    network: nn.Module, images: Tensor, request: NetworkRequest, frames: int = 0
) -> tuple[str, int]:
    """Return the layout and T to audit a network in; `frames`: see `Inputs`.

    One that was said is not tried out: a fault may hide it. Else it is the one that fits; where a
    fault lets none fit, the only one that can be run.
    """
    timesteps = frames or request.timesteps
    check_layout(request, timesteps)
    if request.layout != AUTO:
        return request.layout, timesteps
    try:
        plan = find_layout(network, images, request, frames, faulty=True)
    except TserError as error:
        possible = []
        for name in LAYOUTS if timesteps else ():
            with suppress(TserError):
                shown = layouts.present(name, images, timesteps, network, frames > 0)
                make_plan(network, shown, timesteps)
                possible.append(name)
        if len(possible) != 1:
            raise error
        return possible[0], timesteps
    return plan.layout, plan.timesteps


def uncounted_shares(plan: TrialPlan, counts: Counts) -> list[tuple[str, float]]:
    """Operations outside of neurons that are not counted, with their share of the dense FLOP."""
    macs = sum(layer.layer.macs_formula * layer.executions for layer in counts.layers)
    others = {name: flop / IMAGES_OF_TRIAL for name, flop in plan.survey.uncounted.items()}
    # A multiply-accumulate is two FLOP.
    total = 2 * macs + sum(others.values())
    shares = [(name, flop / total) for name, flop in others.items()]
    return sorted(shares, key=lambda share: -share[1])


def notes_of(
    network: nn.Module,
    plan: TrialPlan,
    counter: TrialCounter,
    inputs: Inputs,
    request: NetworkRequest,
) -> list[str]:
    """Return what to know of a count, in sentences."""
    images, notes = inputs.first(), []
    if inputs.frames:
        notes.append("note: each time step has an input of its own")
    # Of the input itself: a first layer may well be fed with sums of spikes that neurons made.
    elif (
        images.is_floating_point()
        and find_kind(images) == SUMS
        and SUMS in counter.kinds().values()
    ):
        notes.append(
            "warning: the network's input is whole numbers; a layer that reads them counts as fed "
            "with sums of spikes; if they are pixels, scale them"
        )
    if counter.weights_alone:
        notes.append(
            f"not counted, as only weights are multiplied, the same for every image: "
            f"{', '.join(sorted(counter.weights_alone))}"
        )
    folded = counter.folded()
    if len(set(folded.values())) == 1:
        c, many = f"{next(iter(folded.values())):g}", len(folded) > 1
        fed = ("layers", "are", "their") if many else ("layer", "is", "its")
        notes.append(
            f"note: {fed[0]} {', '.join(folded)} {fed[1]} fed with spikes of {c}: {c} folds into "
            f"{fed[2]} weights"
        )
    elif folded:
        each = ", ".join(f"{name} {c:g}" for name, c in folded.items())
        notes.append(f"note: spikes of a size of their own, which folds into the weights: {each}")
    told = told_timesteps(network, plan.layout) if request.timesteps else ""
    if told:
        notes.append(f"note: T = {plan.timesteps} was passed to the network as {told}")
    outputs = plan.survey.outputs
    state = layouts.handed_on(network, outputs[0], {}) if len(outputs) > 1 else {}
    if state:
        notes.append(
            f"note: what comes out beside the first output goes in again as {', '.join(state)}"
        )
    if plan.also_fits:
        others = " and ".join(plan.also_fits)
        notes.append(f"note: it can be called {others} too, with equal counts on the trial images")
    if plan.chance:
        notes.append(
            f"note: the network draws random numbers (seed {request.seed}): another --seed gives "
            "another count"
        )
    return notes


def float_type(network: nn.Module) -> torch.dtype:
    """Return the type that the network computes in: that of its first weight, float32 without any.

    Norms are often kept wider than weights.
    """
    floats = [value for value in network.parameters() if value.is_floating_point()]
    weights = [value for value in floats if nn.parameter.is_lazy(value) or value.dim() > 1]
    return next((value.dtype for value in (*weights, *floats)), torch.float32)


Batches = Callable[[], Iterator[tuple[Tensor, Tensor | None]]]


@dataclass(frozen=True)
class Inputs:
    """Batches of images [N, ...] and labels, where there are some, and what they are called.

    `frames`: the time steps T where these are samples [N, T, ...] that have an input for each of
    them; 0 where an image is the same at every step.
    """

    batches: Batches
    name: str
    frames: int = 0

    def first(self) -> Tensor:
        """Return the images of the first batch. Raises DataError where there is none."""
        for images, _ in self.batches():
            return images
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


def open_network(request: NetworkRequest) -> tuple[nn.Module, Inputs, str]:
    """Build the network on the device, with its weights, and open what it is fed with.

    The text says that nobody gave the weights, else it is "". Raises ConfigError, CheckpointError
    or DataError with what is wrong.
    """
    with layouts.seeded(request.seed), weights_seen() as seen:
        network = layouts.unwrapped(build_network(request.network, request.arguments))
    # Modules without weights may be shared with other networks, as surrogates of spikingjelly are.
    owners = [module for module in network.modules() if [*module.parameters(recurse=False)]]
    drawn = owners and seen.isdisjoint(owners) and request.weights is None
    weights = UNTRAINED if drawn else ""
    # of events, as many frames as time steps
    steps = {"model.timesteps": request.timesteps} if request.dataset and request.timesteps else {}
    config = recipe.resolve([recipe.Layer("flags", {**request.changes, **steps})])
    if request.dataset:
        context = prepare(config, request.progress)
        device, given = context.runtime.device, test_images(context, request.images)
    else:
        device = make_runtime(config.training, channels_last=False).device
        images = _images(request, begins_with_embedding(network)).to(device)
        parts = torch.split(images, request.batch_size or NETWORK_BATCH)
        name = str(request.data) if request.data else f"random numbers of {request.input_shape}"
        frames = 0 if request.time_axis is None else images.shape[1]
        given = Inputs(lambda: ((part, None) for part in parts), name, frames)
    if given.frames and request.timesteps not in (0, given.frames):
        raise ConfigError(
            f"-T {request.timesteps}: {given.name} has {given.frames} time steps; leave -T out"
        )
    network, dtype = network.eval().to(device), float_type(network)

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for images, labels in given.batches():
            yield images.to(dtype) if images.is_floating_point() else images, labels

    inputs = replace(given, batches=batches)
    if any(nn.parameter.is_lazy(value) for value in (*network.parameters(), *network.buffers())):
        network = initialised(network, inputs, request)
    if request.weights is not None:
        load_weights(network, request.weights)
    for key, value in network.named_parameters():
        if value.is_floating_point() and value.isnan().any():
            raise TserError(f"the network's weights hold NaN: {key}")
    return network, inputs, weights


@contextmanager
def weights_seen() -> Iterator[WeakSet[nn.Module]]:
    """Keep which modules are given weights by `load_state_dict` inside the `with`."""
    seen: WeakSet[nn.Module] = WeakSet()
    load = nn.Module.load_state_dict

    def watched(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        seen.update(self.modules())
        return load(self, *args, **kwargs)

    # Torch has no hook for all modules at once.
    with mock.patch.object(nn.Module, "load_state_dict", watched):
        yield seen


def initialised(network: nn.Module, inputs: Inputs, request: NetworkRequest) -> nn.Module:
    """Return a copy of a network whose lazy modules have learnt their sizes in a trial pass.

    Raises TserError where it runs in no layout.
    """
    said = () if request.layout == AUTO else (request.layout,)
    images, timesteps = inputs.first(), inputs.frames or request.timesteps
    # One call with the images as they are, before one with time in front.
    for layout in said or (INSIDE, layouts.FOLDED, layouts.TIME_FIRST):
        made = layouts.fresh_copy(network)
        with torch.no_grad(), layouts.seeded(request.seed):
            shown = layouts.present(layout, images, timesteps, made, inputs.frames > 0)
            try:
                shown.of(IMAGES_OF_TRIAL).call(made)
            except Exception as error:
                failed = error
                continue
        reset_states(made)
        if not any(nn.parameter.is_lazy(value) for value in made.parameters()):
            return made.to(images.device)
        failed = ValueError("a lazy layer does not run")
    raise TserError(
        "the network has lazy layers, which get their sizes from what they are fed with, and "
        f"fails on these images: {error_line(failed)}"
    ) from failed


def begins_with_embedding(network: nn.Module) -> bool:
    """Return whether the first layer with weights, as they are defined, takes indices."""
    leaves = (module for module in network.modules() if not any(True for _ in module.children()))
    layers = (module for module in leaves if any(True for _ in module.parameters()))
    return isinstance(next(layers, None), nn.Embedding)


def _images(request: NetworkRequest, indices: bool) -> Tensor:
    """Return the array of a file, or random numbers. Raises ConfigError or DataError.

    `indices`: leave whole numbers as they are.
    """
    if request.data is not None:
        try:
            if not is_file(request.data):
                raise ValueError("it is no regular file")
            # mapped: a header that claims more than the file has is an error, and not read
            array = np.load(request.data, mmap_mode="r", allow_pickle=False)
            if not isinstance(array, np.ndarray):
                raise ValueError("it holds several arrays; save one with numpy.save")
        except Exception as error:  # a damaged header makes the reader fail in any way
            raise DataError(f"--data {request.data} can't be read: {error_line(error)}") from error
        if array.dtype.kind not in "fiub" or array.ndim < 2 or not len(array):
            raise DataError(
                f"--data {request.data} holds {array.dtype} {array.shape}, not numbers [N, ...]"
            )
        if request.time_axis is not None:
            if array.ndim < 3 or request.time_axis >= array.ndim or 0 in array.shape:
                raise DataError(
                    f"--time-axis {request.time_axis}: --data {request.data} holds an array "
                    f"{array.shape}; with an axis of time it must be [N, T, ...]"
                )
            array = np.moveaxis(array, request.time_axis, 1)
        array = array[: request.images or None]  # before the rest of a large file is read
        if not np.isfinite(array).all():
            raise DataError(f"--data {request.data} holds NaN or infinite values")
        if indices and array.dtype.kind in "iu":
            return torch.from_numpy(array.astype(np.int64))
        return torch.from_numpy(array.astype(np.float64 if array.itemsize == 8 else np.float32))
    try:
        shape = [int(part) for part in request.input_shape.split(",")]
    except ValueError as error:
        raise ConfigError(f'--input "{request.input_shape}": write 3,32,32') from error
    shape = [request.images or RANDOM_IMAGES, *shape]
    if len(shape) < 2 or min(shape) < 1 or math.prod(shape) > MOST_RANDOM:
        raise ConfigError(
            f'--input "{request.input_shape}": sizes are at least 1, and {shape[0]:,} images of '
            f"them at most {MOST_RANDOM:,} random numbers"
        )
    return torch.rand(shape, generator=torch.Generator().manual_seed(request.seed))


def test_images(context: Context, images: int) -> Inputs:
    """Return the test images of a data set, evenly spread where not all are wanted (0: all)."""
    loader = build_eval_loader(context.dataset, "test", context.config, images=images)

    def batches() -> Iterator[tuple[Tensor, Tensor | None]]:
        for batch in loader:
            shown = batch.images_NCHW.contiguous().to(context.runtime.device)
            yield shown, batch.labels_N

    return Inputs(batches, context.config.data.name, context.dataset.spec.frames)
