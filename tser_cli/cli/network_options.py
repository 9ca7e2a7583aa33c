"""Options of the commands that take a network from elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tser_cli.base.errors import ConfigError
from tser_cli.cli import present
from tser_cli.cli.grouped import OWN_NETWORK as PANEL
from tser_cli.cli.options import option
from tser_cli.settings import registry

if TYPE_CHECKING:
    from tser_cli.engine.commands.energy import NetworkRequest

Network = Annotated[
    str | None,
    option(
        PANEL,
        "--network",
        help="A function, found from here, that returns an nn.Module.",
        metavar="MODULE:FUNCTION",
    ),
]
Arguments = Annotated[
    list[str] | None,
    option(PANEL, "--arg", help="An argument of that function: --arg depth=4. Repeatable."),
]
Weights = Annotated[
    Path | None, option(PANEL, "--weights", help="Its weights: safetensors or a state dict.")
]
Dataset = Annotated[
    str | None,
    option(PANEL, "--dataset", help=f"Feed it the test images of {', '.join(registry.DATASETS)}."),
]
Data = Annotated[
    Path | None,
    option(PANEL, "--data", help="Feed it an array [N, ...], as it is.", metavar="FILE.npy"),
]
Input = Annotated[
    str | None,
    option(PANEL, "--input", help="Feed it random numbers from 0 to 1.", metavar="3,32,32"),
]
Timesteps = Annotated[int | None, option(PANEL, "-T", "--timesteps", help="Its time steps.", min=1)]
Layout = Annotated[
    str,
    option(
        PANEL,
        "--layout",
        help="auto, time-first [T, N, ...], folded [T*N, ...], stepwise (T calls), inside.",
        show_default=True,
    ),
]


@dataclass(frozen=True)
class NetworkOptions:
    """A network from elsewhere, and what it is fed with."""

    network: Network = None
    argument: Arguments = None
    weights: Weights = None
    dataset: Dataset = None
    data: Data = None
    input_shape: Input = None
    timesteps: Timesteps = None
    layout: Layout = "auto"

    def check(self, others: dict[str, Any]) -> bool:
        """Return whether there is such a network; `others`: flags that it has no use for.

        Raises ConfigError where these are given beside it, or its options without it.
        """
        if self.network is None:
            values = {**self._fed(), **{"--arg": self.argument, "--weights": self.weights}}
            values |= {"-T": self.timesteps, "--layout": self.layout}
            self._refuse(values, "only with --network")
            return False
        self._refuse(others, "not with --network")
        return True

    def _fed(self) -> dict[str, Any]:
        return {"--dataset": self.dataset, "--data": self.data, "--input": self.input_shape}

    def _refuse(self, values: dict[str, Any], why: str) -> None:
        named = [name for name, value in values.items() if value not in (None, [], "auto")]
        if named:
            raise ConfigError(f"{', '.join(named)}: {why}")

    def request(
        self, places: dict[str, Any], images: int | None, batch_size: int | None
    ) -> NetworkRequest:
        """Return the request for the network. Raises ConfigError."""
        from tser_cli.engine.commands.energy import NetworkRequest

        fed = [name for name, value in self._fed().items() if value]
        if len(fed) != 1:
            raise ConfigError(
                f"{' and '.join(fed)}: feed the network with one of them"
                if fed
                else "--network: say what it is fed with: --dataset, --data or --input 3,32,32"
            )
        return NetworkRequest(
            network=self.network or "",
            arguments=tuple(self.argument or ()),
            weights=self.weights,
            dataset=self.dataset or "",
            data=self.data,
            input_shape=self.input_shape or "",
            images=images or 0,
            batch_size=batch_size or 32,
            timesteps=self.timesteps or 0,
            layout=self.layout,
            changes={**places, "data.name": self.dataset},
            progress=present.progress(),
        )
