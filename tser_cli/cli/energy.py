"""`tser energy`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tser_cli.base.errors import ConfigError
from tser_cli.cli import options as opt
from tser_cli.cli import present, present_json
from tser_cli.cli.groups import MeasureOptions
from tser_cli.cli.network_options import NetworkOptions

if TYPE_CHECKING:
    from tser_cli.engine.commands.energy import NetworkEnergyResult, NetworkRequest
    from tser_cli.engine.evaluation.energy import Wanted

EXAMPLES = (
    "tser energy report.csv",
    "tser energy report.csv --conventions --match 1.38mJ",
    "tser energy report.csv --network mypackage.models:build --data images.npy -T 4",
)
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
    measured: MeasureOptions,
    own: NetworkOptions,
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
    batch_size: opt.ForwardBatch = None,
    precision: opt.Precision = None,
    as_json: opt.Json = False,
) -> None:
    """Count the synaptic operations of a student, or of any network, exactly, and price them."""
    from tser_cli.engine.commands.energy import EnergyRequest, measure_energy
    from tser_cli.engine.evaluation.energy import Wanted

    form = _form(long, wide)
    wanted = Wanted(conventions, match or "", fair_rival, assume_int8)
    show = present_json.show if as_json else None
    if own.check({"--run": measured.run, "--per-image": per_image, "--precision": precision}):
        subject = own.request(measured.changes(), images, batch_size)
        found = _of_network(output, subject, profile, wanted, memory, form)
        (show or present.show_network_energy)(found)
        return
    changes = {
        **measured.changes(),
        "training.precision": precision,
        "training.eval_batch_size": batch_size,
    }
    request = EnergyRequest(output, measured.run, measured.runs_dir, images or 0, profile)
    request = replace(request, per_image=per_image, memory=memory, form=form)
    request = replace(request, wanted=wanted, changes=changes, progress=present.progress())
    result = measure_energy(request)
    (show or present.show_energy)(result)


def _form(long: bool, wide: bool) -> str:
    from tser_cli.report import csv_files

    if long and wide:
        raise ConfigError("--long and --wide are two forms of one table: give one of them")
    return csv_files.LONG if long else csv_files.WIDE if wide else csv_files.SUMS


def _of_network(
    output: Path, subject: NetworkRequest, profile: str, wanted: Wanted, memory: bool, form: str
) -> NetworkEnergyResult:
    from tser_cli.engine.commands.energy import NetworkEnergyRequest, measure_network

    return measure_network(NetworkEnergyRequest(output, subject, profile, wanted, memory, form))
