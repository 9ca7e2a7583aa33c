"""`tser audit`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tser_cli.cli import network_options as net
from tser_cli.cli import options as opt
from tser_cli.cli import present

FOUND = 4  # done, and something was found
Images = Annotated[int, typer.Option("--images", help="Images to look at.", min=2)]


def audit(
    run: opt.RunFolder = None,
    images: Images = 16,
    network: net.Network = None,
    argument: net.Arguments = None,
    weights: net.Weights = None,
    dataset: net.Dataset = None,
    data: net.Data = None,
    input_shape: net.Input = None,
    timesteps: net.Timesteps = None,
    layout: net.Layout = "auto",
    data_dir: opt.DataDir = None,
    device: opt.Device = None,
    plugin: opt.Plugin = None,
    runs_dir: opt.RunsDir = Path("runs"),
) -> None:
    """Find what is wrong with a spiking network: resets, mixed images, real inputs, dead neurons.

    Exit code 0: clean; 4: something was found.
    """
    from tser_cli.engine.commands.audit import AuditRequest, run_audit

    values = net.values(argument, weights, dataset, data, input_shape, timesteps, layout)
    places = {"data.dir": data_dir, "training.device": device}
    subject = None
    if network is None:
        net.given(values, network)
    else:
        net.refuse_with_network({"--run": run})
        subject = net.request(network, values, places, images, images)
    result = run_audit(AuditRequest(run, runs_dir, subject, images, places, present.progress()))
    present.show_audit(result)
    if not result.found.clean:
        raise typer.Exit(FOUND)
