"""Count the operations of a network from elsewhere, and price them."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.energy import DEFAULT_PROFILE, Counts, Labels, energy_rows, load_profile, sidecar
from tser_cli.energy.find_layout import choose
from tser_cli.energy.layouts import AUTO, INSIDE, LAYOUTS, Presentation, present
from tser_cli.energy.network_counter import NetworkCounter, count_operations
from tser_cli.energy.plan import Plan, make_plan
from tser_cli.energy.profiles import check_precision
from tser_cli.engine.commands.beyond import Beyond, Wanted, go_beyond
from tser_cli.engine.commands.networks import Inputs, NetworkRequest, open_network
from tser_cli.engine.runs.own_modules import digest
from tser_cli.errors import ConfigError, TserError, unknown
from tser_cli.files import check_folder, write_text
from tser_cli.report.energy_forms import SUMS, write_energy_csv

IMAGES_OF_TRIAL = 2


@dataclass(frozen=True)
class NetworkEnergyRequest:
    """Which network to count, where the table goes, how it is priced, and what else is wanted."""

    output: Path
    subject: NetworkRequest
    profile: str = ""
    wanted: Wanted = field(default_factory=Wanted)
    memory: bool = False
    form: str = SUMS


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


def measure_network(request: NetworkEnergyRequest) -> NetworkEnergyResult:
    """Build, count and price a network, and write the table and its sidecar.

    Raises ConfigError, DataError, CheckpointError or TserError before anything is written.
    """
    profile = load_profile(request.profile or DEFAULT_PROFILE)
    if request.output.suffix != ".csv":
        stem = request.output.stem
        raise ConfigError(f"{request.output}: the table is a CSV file; call it {stem}.csv")
    check_folder(request.output)
    network, inputs = open_network(request.subject)
    check_precision(profile, weight_bits(network), request.wanted.assume_int8)
    detailed = request.wanted.any or profile.model != ""
    plan, counter = count(network, inputs, request.subject, detailed)
    counts = counter.counts()
    labels = Labels(request.subject.network, inputs.name, digest(network), dtype_of(network))
    rows = energy_rows(counts, profile, labels)
    document = sidecar(counts, profile, labels, memory=request.memory)
    uncounted = uncounted_shares(plan, counts)
    beyond = go_beyond(request.output, counts, counter.others, profile, request.wanted)
    document["network"] = describe(plan, counter, uncounted)
    document.update(beyond.document())
    write_energy_csv(request.output, rows, request.form)
    aside = request.output.with_suffix(".json")
    write_text(aside, json.dumps(document, indent=2) + "\n")
    return NetworkEnergyResult(
        name=request.subject.network,
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
