"""What several processes share of a network in training: its gradients and running statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tser_cli.engine.runtime.processes import Runtime


def share_gradients(
    network: nn.Module, runtime: Runtime, image_shape: tuple[int, int, int], timesteps: int
) -> nn.Module:
    """`network` wrapped so that gradients are means over all processes; itself where alone.

    Several GPUs also share the statistics of a batch (SyncBatchNorm). On CPUs torch has no such
    norm: each process normalises with its own part of the batch.
    """
    if runtime.world == 1:
        return network
    if runtime.device.type == "cuda":
        network = synchronised(network)
    wrapped: nn.Module = runtime.accelerator.prepare_model(network)
    stabilise_ddp_buckets(wrapped, runtime, torch.zeros(2, *image_shape), timesteps)
    return wrapped


def synchronised(network: nn.Module) -> nn.Module:
    """`network` with every batch norm replaced by one that all processes compute together.

    Our norms are torch's own, on images with time folded into the batch: nothing is lost, as
    spikingjelly's step mode would be.
    """
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    return converted


def share_statistics(network: nn.Module, runtime: Runtime) -> None:
    """Give all processes the first one's running statistics, which are what is saved."""
    if runtime.world > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)


def stabilise_ddp_buckets(
    network: nn.Module, runtime: Runtime, images_NCHW: Tensor, timesteps: int
) -> None:
    # DDP fills its buckets anew after a first step, and so changes the order in which three or
    # more processes add up: a run that was resumed would differ from one that was not.
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    for _ in range(2):
        with runtime.autocast():
            logits, features, *_ = network(runtime.images(images_NCHW), timesteps)
        total = torch.stack([output.float().sum() for output in (logits, *features)]).sum()
        runtime.accelerator.backward(total)
    network.zero_grad(set_to_none=True)
    network.load_state_dict(before)
