"""Options of the commands that take a network from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tser_cli import registry
from tser_cli.cli import present
from tser_cli.errors import ConfigError

if TYPE_CHECKING:
    from tser_cli.engine.commands.networks import NetworkRequest

PANEL = "Your own network"


def _option(*names: str, help: str, metavar: str | None = None) -> Any:
    return typer.Option(
        *names, help=help, metavar=metavar, show_default=False, rich_help_panel=PANEL
    )


Network = Annotated[
    str | None,
    _option(
        "--network",
        help="A function, found from here, that returns an nn.Module.",
        metavar="MODULE:FUNCTION",
    ),
]
Arguments = Annotated[
    list[str] | None,
    _option("--arg", help="An argument of that function: --arg depth=4. Repeatable."),
]
Weights = Annotated[
    Path | None, _option("--weights", help="Its weights: safetensors or a state dict.")
]
Dataset = Annotated[
    str | None,
    _option("--dataset", help=f"Feed it the test images of {', '.join(registry.DATASETS)}."),
]
Data = Annotated[
    Path | None, _option("--data", help="Feed it an array [N, ...], as it is.", metavar="FILE.npy")
]
Input = Annotated[
    str | None,
    _option("--input", help="Feed it random numbers from 0 to 1.", metavar="3,32,32"),
]
Timesteps = Annotated[
    int | None,
    typer.Option(
        "-T",
        "--timesteps",
        help="Its time steps.",
        show_default=False,
        min=1,
        rich_help_panel=PANEL,
    ),
]
Layout = Annotated[
    str,
    typer.Option(
        "--layout",
        help="auto, time-first [T, N, ...], folded [T*N, ...], stepwise (T calls), inside.",
        rich_help_panel=PANEL,
    ),
]


def given(values: dict[str, Any], network: str | None) -> None:
    """Raise ConfigError for options of one's own network where there is none."""
    named = [name for name, value in values.items() if value not in (None, [], "auto")]
    if network is None and named:
        raise ConfigError(f"{', '.join(named)}: only with --network")


def refuse_with_network(values: dict[str, Any]) -> None:
    """Raise ConfigError for options that a network from elsewhere has no use for."""
    named = [name for name, value in values.items() if value is not None]
    if named:
        raise ConfigError(f"{', '.join(named)}: not with --network")


def values(
    argument: list[str] | None,
    weights: Path | None,
    dataset: str | None,
    data: Path | None,
    input_shape: str | None,
    timesteps: int | None,
    layout: str,
) -> dict[str, Any]:
    """Return what was given of the options of one's own network, by flag."""
    return {
        **{"--arg": argument, "--weights": weights, "--dataset": dataset, "--data": data},
        **{"--input": input_shape, "-T": timesteps, "--layout": layout},
    }


def request(
    network: str,
    given: dict[str, Any],
    places: dict[str, Any],
    images: int | None,
    batch_size: int | None,
) -> NetworkRequest:
    """Return the request for a network, from its options."""
    from tser_cli.engine.commands.networks import NetworkRequest

    fed = [name for name in ("--dataset", "--data", "--input") if given[name]]
    if len(fed) != 1:
        raise ConfigError(
            f"{' and '.join(fed)}: feed the network with one of them"
            if fed
            else "--network: say what it is fed with: --dataset, --data or --input 3,32,32"
        )
    return NetworkRequest(
        network=network,
        arguments=tuple(given["--arg"] or ()),
        weights=given["--weights"],
        dataset=given["--dataset"] or "",
        data=given["--data"],
        input_shape=given["--input"] or "",
        images=images or 0,
        batch_size=batch_size or 32,
        timesteps=given["-T"] or 0,
        layout=given["--layout"],
        changes={**places, "data.name": given["--dataset"]},
        progress=present.progress(),
    )
