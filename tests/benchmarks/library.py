"""Students that are classes of spikingjelly, beside a plain training loop on the same class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from tests.benchmarks.subjects import CLASSES, SIDE, SPEC, Size, make_batch, make_task, step_of
from tests.benchmarks.timing import Ratio, added, alternate, one_thread, ratio
from tser_cli.engine.runs import networks
from tser_cli.engine.runs.networks import counting_of
from tser_cli.engine.runs.runtime import make_runtime
from tser_cli.models.base import Classifier
from tser_cli.settings import registry
from tser_cli.settings.config import OwnSizes

STUDENTS = ("ms_resnet18", "spikformer", "sdt", "qkformer", "maxformer")
SETTINGS = {"method.name": "kd", "optimizer.name": "adamw", "optimizer.lr": 0.001}
TEMPERATURE = 2.0  # kd's own
MORE: dict[str, dict[str, Any]] = {
    "ms_resnet18": {"stem_kernel_size": 3, "stem_stride": 1},
    "spikformer": {"img_size_h": SIDE, "img_size_w": SIDE},
    "maxformer": {"cifar": True},
}


def our_step(size: Size) -> Callable[[], object]:
    """One optimizer step of `tser distill`, the teacher's logits being there already."""
    config = size.config(SETTINGS)
    runtime = make_runtime(config.training, config.performance.channels_last)
    task, batch = make_task(config, runtime), make_batch(size.batch)
    task.teacher, task.teacher_logits_MK = None, taught(size).to(runtime.device)
    return step_of(task, config, runtime, batch)


def plain_step(size: Size) -> Callable[[], object]:
    """The same of a loop as one writes it: the class, AdamW, the same two terms, a reset."""
    device = make_runtime(size.config().training).device
    network, batch = the_class(size).train().to(device), make_batch(size.batch)
    images, labels, theirs = (
        part.to(device) for part in (batch.images_NCHW, batch.labels_N, taught(size))
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.001)

    def step() -> None:
        optimizer.zero_grad()
        logits = network(images)
        logits_NK = logits.mean(0) if logits.dim() == 3 else logits
        soft, hard = (x.div(TEMPERATURE) for x in (logits_NK, theirs))
        kl = F.kl_div(
            soft.log_softmax(-1), hard.log_softmax(-1), reduction="batchmean", log_target=True
        )
        loss = F.cross_entropy(logits_NK, labels) + TEMPERATURE**2 * kl
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        functional.reset_net(network)

    return step


def taught(size: Size) -> Tensor:
    """Logits of a teacher, drawn."""
    return torch.randn(size.batch, CLASSES, generator=torch.Generator().manual_seed(1))


def ours(size: Size) -> Classifier:
    """The student, untrained."""
    torch.manual_seed(0)
    return networks.build(size.student, SPEC, size.config(SETTINGS), spiking=True)


def the_class(size: Size) -> nn.Module:
    """The class that the student is, at the same sizes."""
    of = registry.MODELS[size.student].settings()
    assert isinstance(of, OwnSizes)
    bases = type(ours(size)).__mro__
    theirs: Any = next(one for one in bases if one.__module__.startswith("spikingjelly"))
    sizes = {**of.sizes(), **MORE.get(size.student, {})}
    made: nn.Module = theirs(T=size.timesteps, num_classes=CLASSES, **sizes)
    return made


def step_over_plain(size: Size, rounds: int) -> Ratio:
    """Our step of distillation against the plain loop's; the teacher's pass is in neither."""
    spent = alternate({"ours": our_step(size), "plain": plain_step(size)}, rounds)
    return ratio(spent["ours"], spent["plain"])


def counting_added(size: Size, rounds: int) -> Ratio:
    """What counting adds to a forward pass, in per cent of it; how to count is found before."""
    model, images_NCHW = ours(size), make_batch(size.batch).images_NCHW
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.0  # one pass then sets the statistics: all layers fire
    with torch.no_grad():
        model.train()(images_NCHW, size.timesteps)
    model.eval()

    def forward() -> None:
        with torch.no_grad():
            model(images_NCHW, size.timesteps)

    with one_thread():
        with counting_of(model, size.timesteps) as counter:
            forward()  # the plan is found at the first call
            counted = alternate({"counted": forward}, rounds)["counted"]
            counter.counts()
        plain = alternate({"plain": forward}, rounds)["plain"]
    return added(counted, plain)
