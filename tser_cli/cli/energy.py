"""`tser energy`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tser_cli.cli import network_options as net
from tser_cli.cli import options as opt
from tser_cli.cli import present
from tser_cli.errors import ConfigError

if TYPE_CHECKING:
    from tser_cli.engine.commands.beyond import Wanted
    from tser_cli.engine.commands.networks import NetworkRequest

Output = Annotated[Path, typer.Argument(help="Where the table goes, as report.csv.")]
Images = Annotated[
    int | None,
    typer.Option("--images", help="Test images to count.", show_default="all of them", min=1),
]
Profile = Annotated[
    str,
    typer.Option(
        "--profile",
        help="horowitz-45nm-fp32, -fp16 or -int8 (whole names), loihi, lemaire-2022, or a TOML "
        "file.",
        show_default="horowitz-45nm-fp32; -int8 for a student with integer weights",
    ),
]
PerImage = Annotated[
    Path | None,
    typer.Option(
        "--per-image", help="A second CSV: right or wrong and energy of each image at each t."
    ),
]
Memory = Annotated[
    bool, typer.Option("--memory", help="Also the traffic of weights and neuron state.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", help="Images a forward pass.", show_default=False, min=1),
]
Conventions = Annotated[
    bool, typer.Option("--conventions", help="Also as spikingjelly, NeuroBench and papers count.")
]
Match = Annotated[
    str | None,
    typer.Option(
        "--match", help="Which conventions make this figure?", metavar="1.38mJ", show_default=False
    ),
]
FairRival = Annotated[
    bool,
    typer.Option("--fair-rival", help="Compare with the ANN of ceil(log2(T + 1)) bits, both ways."),
]
AssumeInt8 = Annotated[
    bool, typer.Option("--assume-int8", help="Price wider weights as if they were of 8 bits.")
]
Long = Annotated[
    bool,
    typer.Option("--long", help="A row a layer and step, without sums: columns can be summed."),
]
Wide = Annotated[
    bool,
    typer.Option("--wide", help="A row a layer, with a column a step: they can be summed too."),
]


def energy(
    output: Output,
    run: opt.RunFolder = None,
    images: Images = None,
    profile: Profile = "",
    per_image: PerImage = None,
    memory: Memory = False,
    conventions: Conventions = False,
    match: Match = None,
    fair_rival: FairRival = False,
    assume_int8: AssumeInt8 = False,
    long: Long = False,
    wide: Wide = False,
    network: net.Network = None,
    argument: net.Arguments = None,
    weights: net.Weights = None,
    dataset: net.Dataset = None,
    data: net.Data = None,
    input_shape: net.Input = None,
    timesteps: net.Timesteps = None,
    layout: net.Layout = "auto",
    data_dir: opt.DataDir = None,
    batch_size: BatchSize = None,
    device: opt.Device = None,
    precision: opt.Precision = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Count the synaptic operations of a student, or of any network, exactly, and price them."""
    from tser_cli.engine.commands.beyond import Wanted
    from tser_cli.engine.commands.energy import EnergyRequest, measure_energy

    values = net.values(argument, weights, dataset, data, input_shape, timesteps, layout)
    form = _form(long, wide)
    wanted = Wanted(conventions, match or "", fair_rival, assume_int8)
    places = {"data.dir": data_dir, "training.device": device}
    if network is not None:
        net.refuse_with_network({"--run": run, "--per-image": per_image, "--precision": precision})
        subject = net.request(network, values, places, images, batch_size)
        _of_network(output, subject, profile, wanted, memory, form)
        return
    net.given(values, network)
    changes = {
        **places,
        "training.precision": precision,
        "training.eval_batch_size": batch_size,
    }
    request = EnergyRequest(output, run, runs_dir, images or 0, profile, per_image, memory, form)
    present.show_energy(
        measure_energy(
            replace(request, wanted=wanted, changes=changes, progress=present.progress())
        )
    )


def _form(long: bool, wide: bool) -> str:
    from tser_cli.report import energy_forms

    if long and wide:
        raise ConfigError("--long and --wide are two forms of one table: give one of them")
    return energy_forms.LONG if long else energy_forms.WIDE if wide else energy_forms.SUMS


def _of_network(
    output: Path, subject: NetworkRequest, profile: str, wanted: Wanted, memory: bool, form: str
) -> None:
    from tser_cli.engine.commands.network_energy import NetworkEnergyRequest, measure_network

    asked = NetworkEnergyRequest(output, subject, profile, wanted, memory, form)
    present.show_network_energy(measure_network(asked))
