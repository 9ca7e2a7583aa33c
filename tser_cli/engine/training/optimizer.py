"""The optimizer, the learning rate, and what processes share: gradients and running statistics."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tser_cli.engine.runs.runtime import Runtime
from tser_cli.settings.config import OptimizerConfig, ScheduleConfig


def lr_factor(step: int, steps_per_epoch: int, epochs: int, settings: ScheduleConfig) -> float:
    """Return what the learning rate is multiplied by at `step`, counted from 0 over the whole run.

    A pure function: torch's schedulers keep a state, which a resumed run would have to restore.
    Warm-up is linear from the first step's share to 1; `onecycle` warms up along a cosine.
    """
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if step < warmup:
        share = (step + 1) / warmup
        onecycle = settings.name == "onecycle"
        return (1 - math.cos(math.pi * share)) / 2 if onecycle else share
    if settings.name == "constant":
        return 1.0
    if settings.name == "step":
        passed = sum(step >= round(m * steps_per_epoch) for m in settings.milestones)
        return settings.gamma**passed
    total = max(epochs * steps_per_epoch - warmup, 1)
    cosine = (1 + math.cos(math.pi * min((step - warmup) / total, 1.0))) / 2
    return settings.final_factor + (1 - settings.final_factor) * cosine


def make_optimizer(
    modules: list[nn.Module], settings: OptimizerConfig, fused: bool = True
) -> torch.optim.Optimizer:
    """SGD with momentum, or AdamW, over all trainable parameters of `modules`.

    `fused`: one pass over all weights a step. Not for fp16: where its first step overflows, torch's
    fused SGD skips the step, but keeps a momentum that was never set.
    """
    groups = parameter_groups(modules, settings.weight_decay)
    if settings.name == "adamw":
        betas = (settings.beta1, settings.beta2)
        return torch.optim.AdamW(groups, lr=settings.lr, betas=betas, fused=fused)
    # QuickSGD stands in for a function that another version of torch may have changed
    expected = ["self", "group", "params", "grads", "momentum_buffer_list"]
    found = getattr(torch.optim.SGD, "_init_group", None)
    known = found is not None and list(inspect.signature(found).parameters) == expected
    sgd = QuickSGD if fused and known else torch.optim.SGD
    momentum, nesterov = settings.momentum, settings.nesterov
    return sgd(groups, lr=settings.lr, momentum=momentum, nesterov=nesterov, fused=fused)


def parameter_groups(modules: list[nn.Module], weight_decay: float) -> list[dict[str, object]]:
    """Two groups: convolution and linear weights, which decay, and all else, which does not."""
    decayed: list[nn.Parameter] = []
    # Norms and biases: to decay what scales a layer anew only changes its learning rate.
    plain: list[nn.Parameter] = []
    for module in modules:
        for layer in module.modules():
            for name, parameter in layer.named_parameters(recurse=False):
                decays = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Linear) and name == "weight"
                (decayed if decays else plain).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


class QuickSGD(torch.optim.SGD):
    """torch's fused SGD without two detours: its weights are torch's.

    Its CPU kernel goes through weights, gradients and momenta in the order in which they lie in
    memory. Before that it copies each gradient that is not contiguous, as those of weights in
    channels_last order are not, and never reads the copy. With the axes named in their order in
    memory they are contiguous.

    torch wraps what optimizers do for its compiler, and imports that for the wrapper's sake, which
    takes half as long as to import torch. The steps of an optimizer are not compiled here.
    """

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step; see torch.optim.SGD."""
        return inspect.unwrap(torch.optim.SGD.step)(self, closure)

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        momentum_buffer_list: list[Tensor | None],
    ) -> bool:
        found = (group, params, grads, momentum_buffer_list)
        sparse: bool = super()._init_group(*found)  # type: ignore[no-untyped-call]
        for place, (weight, grad) in enumerate(zip(params, grads, strict=True)):
            beside = [weight, *momentum_buffer_list[place : place + 1]]
            # at the first step there is no momentum yet: it is made like the gradient
            alike = all(of is not None and of.stride() == grad.stride() for of in beside)
            image_like = grad.device.type == "cpu" and grad.dim() == 4
            if image_like and alike and grad.is_contiguous(memory_format=torch.channels_last):
                grads[place] = grad.permute(0, 2, 3, 1)
        return sparse


def share_gradients(
    network: nn.Module, runtime: Runtime, sample_shape: tuple[int, ...], timesteps: int
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
    stabilise_ddp_buckets(wrapped, runtime, torch.zeros(2, *sample_shape), timesteps)
    return wrapped


def synchronised(network: nn.Module) -> nn.Module:
    """Return `network` with norms that share statistics; spikingjelly's fold time as before."""
    steps = [
        name
        for name, module in network.named_modules(remove_duplicate=False)
        if isinstance(module, _BatchNorm) and getattr(module, "step_mode", "s") == "m"
    ]
    network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
    for name in steps:
        network.get_submodule(name).__class__ = StepSyncBatchNorm
    return network


class StepSyncBatchNorm(nn.SyncBatchNorm):
    """A norm of [T, N, C, ...], which torch's own would take for images of N channels."""

    def forward(self, input: Tensor) -> Tensor:
        result: Tensor = super().forward(input.flatten(0, 1))
        return result.reshape(input.shape)


def stabilise_ddp_buckets(
    network: nn.Module, runtime: Runtime, images_NCHW: Tensor, timesteps: int
) -> None:
    """Let DDP find its final buckets before the training begins; the network stays as it was."""
    # DDP puts gradients into buckets, and sorts them anew after the first step, by the order in
    # which they came. That changes the order in which three or more processes add up: a resumed
    # run, whose first step is a later one, would have other last bits than one that was not.
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    for _ in range(2):
        with runtime.autocast():
            logits, features, *_ = network(runtime.images(images_NCHW), timesteps)
        total = torch.stack([output.float().sum() for output in (logits, *features)]).sum()
        runtime.accelerator.backward(total)
    network.zero_grad(set_to_none=True)
    network.load_state_dict(before)


def share_statistics(network: nn.Module, runtime: Runtime) -> None:
    """Give all processes the first one's running statistics, which are what is saved.

    Each process has its own, of its part of every batch, and DDP shares gradients alone.
    """
    if runtime.world > 1:
        for buffer in network.buffers():
            torch.distributed.broadcast(buffer, src=0)
