"""Networks of others as they are, which note by hooks what every operation is fed with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import (
    masnn,
    maxformer,
    ms_resnet,
    qkformer,
    sew_resnet,
    spike_driven_transformer,
    spikformer,
    spiking_resnet,
    spiking_vgg,
)
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.overrides import TorchFunctionMode

from tests.energy.foreign import if_node, over_steps
from tser_cli.energy.any_network.layouts import present
from tser_cli.energy.neurons import reset_states
from tser_cli.models.base import build_model
from tser_cli.settings.config import NeuronConfig

LAYERS = (nn.modules.conv._ConvNd, nn.Linear)
MATMULS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm)


class Noted(TorchFunctionMode):
    """Notes, in `noted` and `forms` as Noting does, what the layers and products of a network meet.

    `loops`: whether it goes through its layers once a step.
    """

    def __init__(self, net: nn.Module, timesteps: int, images: int, loops: bool) -> None:
        super().__init__()
        self.leading, self.loops = (timesteps, images), loops
        self.noted: dict[str, list[tuple[Tensor, ...]]] = {}
        self.forms: dict[str, str] = {}
        self.path = [""]
        self.handles: list[Any] = []
        for name, module in net.named_modules():
            # Hooks of neurons' surrogate gradients would be hooks of all: one is shared.
            if isinstance(module, LAYERS) or any(module.children()):
                entered = module.register_forward_pre_hook(partial(self.enter, name))
                self.handles += [entered, module.register_forward_hook(self.leave)]

    def enter(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.path.append(name)
        if isinstance(module, LAYERS):
            self.note(args[0])

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.path.pop()

    def note(self, *operands: Tensor) -> None:
        """Note the operands of an operation of the module that is running."""
        if operands[0].shape[:2] == (1, self.leading[1]) and self.leading[0] > 1:
            operands = (operands[0][0],)  # one step that stands for all
        name = self.path[-1] or "(network)"
        uses = sum(one.partition("#")[0] == name for one in self.noted)
        name += f"#{uses + 1}" if uses and not self.loops else ""
        form = "time" if operands[0].shape[:2] == self.leading else "folded"
        if len(operands[0]) == self.leading[1] and self.leading[0] > 1:
            form = "steps" if self.loops else "once"
        self.noted.setdefault(name, []).append(tuple(x.detach().clone() for x in operands))
        self.forms[name] = form

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in MATMULS:
            self.note(*args[:2])
        return func(*args, **(kwargs or {}))


def noted(net: Any, layout: str, images: Tensor, timesteps: int, loops: bool = False) -> Any:
    """Run a network, and return it with what its operations met."""
    spy = Noted(net, timesteps, len(images), loops or layout == "stepwise")
    with torch.no_grad(), spy:
        present(layout, images, timesteps, net).call(net)
    for handle in spy.handles:
        handle.remove()
    reset_states(net)
    net.noted, net.forms, net.layout = spy.noted, spy.forms, layout
    return net


def lively(net: nn.Module, x: Tensor) -> nn.Module:
    """Give a network statistics at which every layer spikes."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.uniform_(module.bias, 0.3, 0.7)
            nn.init.uniform_(module.weight, 0.8, 1.2)
    with torch.no_grad():
        net.train()(x)
    functional.reset_net(net)
    return net.eval()


def ours(net: nn.Module) -> nn.Module:
    """spikingjelly's plain networks take [T, N, ...] once they are told so."""
    functional.set_step_mode(net, "m")
    return net


def vgg() -> nn.Module:
    """A VGG with a classifier of another size: its own has 100 million weights."""
    with torch.device("meta"):
        net = spiking_vgg.SpikingVGG([4, "M", 8, "M", 8], True, layer.BatchNorm2d, **SMALL)
    net.classifier = nn.Sequential(layer.Linear(8 * 49, 16), if_node(0.2), layer.Linear(16, 5))
    for module in net.to_empty(device="cpu").modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return ours(net)


IF: Any = {"spiking_neuron": neuron.IFNode, "v_threshold": 0.5, "step_mode": "m"}
SMALL: Any = {"num_classes": 5, **IF}
BLOCK = sew_resnet.BasicBlock
SPIKINGJELLY: dict[str, Callable[[int], nn.Module]] = {
    "ms_resnet": lambda t: ms_resnet.MSResNet(
        t, layers=(1, 1, 1), base_channels=4, stem_kernel_size=3, stem_stride=1, **SMALL
    ),
    "max_resnet": lambda t: ms_resnet.MaxResNet(
        t, layers=(1, 1, 1), base_channels=4, stem_kernel_size=3, stem_stride=1, **SMALL
    ),
    "att_ms_resnet": lambda t: masnn.AttMSResNet(
        t, layers=(1, 1, 1), base_channels=8, stem_kernel_size=3, stem_stride=1, **SMALL
    ),
    "spikformer": lambda t: spikformer.Spikformer(
        t, img_size_h=16, img_size_w=16, patch_size=4, embed_dims=16, num_heads=2, depths=1, **SMALL
    ),
    "spike_driven": lambda t: spike_driven_transformer.SpikeDrivenTransformer(
        t, embed_dims=16, num_heads=2, depths=1, **SMALL
    ),
    "qkformer": lambda t: qkformer.QKFormer(
        t, embed_dims=16, num_heads=(1, 2, 2), depths=(1, 1, 1), **SMALL
    ),
    "maxformer": lambda t: maxformer.MaxFormer(t, embed_dims=16, depths=(1, 1, 1), **SMALL),
    "maxformer cifar": lambda t: maxformer.MaxFormer(
        t, embed_dims=16, depths=(1, 1, 1), cifar=True, **SMALL
    ),
    "sew_resnet": lambda t: ours(sew_resnet.SEWResNet(BLOCK, [1, 1, 1, 1], cnf="ADD", **SMALL)),
    "spiking_resnet": lambda t: ours(
        spiking_resnet.SpikingResNet(spiking_resnet.BasicBlock, [1, 1, 1, 1], **SMALL)
    ),
    "spiking_vgg": lambda t: vgg(),
}


class Leaky(nn.Module):
    """snnTorch's tutorial 5: fully connected, its steps in the network."""

    def __init__(self, timesteps: int) -> None:
        import snntorch

        super().__init__()
        self.num_steps = timesteps
        self.fc1, self.fc2 = nn.Linear(12, 10), nn.Linear(10, 3)
        self.lif1, self.lif2 = (snntorch.Leaky(beta=0.9, threshold=0.2) for _ in range(2))

    def forward(self, x: Tensor) -> Any:
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes, potentials = [], []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
            potentials.append(mem2)
        return torch.stack(spikes), torch.stack(potentials)


def convolutional(timesteps: int) -> nn.Module:
    """snnTorch's tutorial 6: convolutional, with hidden states."""
    import snntorch

    def leaky(**given: Any) -> nn.Module:
        made: nn.Module = snntorch.Leaky(beta=0.9, threshold=0.2, init_hidden=True, **given)
        return made

    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.MaxPool2d(2), leaky(), nn.Conv2d(4, 4, 2), leaky()),
        *(nn.Flatten(), nn.Linear(4, 3), leaky(output=True)),
    )


class HandedOn(nn.Module):
    """snnTorch's neurons, one step a call; the caller hands their states on."""

    def __init__(self, kind: str) -> None:
        import snntorch

        super().__init__()
        self.fc1, self.fc2 = nn.Linear(12, 10), nn.Linear(10, 3)
        rates = {"Leaky": {"beta": 0.9}, "Synaptic": {"alpha": 0.8, "beta": 0.7}}
        given = rates.get(kind, {"alpha": 0.8, "beta": 0.7})
        self.lif1 = getattr(snntorch, kind)(threshold=0.05, **given)

    def forward(self, x: Tensor, state: Any = None) -> Any:
        spikes, *state = self.lif1(self.fc1(x), *(state or ()))
        return self.fc2(spikes), tuple(state)


class ConvLSTM(nn.Module):
    """snnTorch's convolutional LSTM, whose states the network keeps for its own steps."""

    def __init__(self, timesteps: int) -> None:
        import snntorch

        super().__init__()
        self.timesteps = timesteps
        self.lstm = snntorch.SConv2dLSTM(2, 4, 3, threshold=0.02)
        self.head = nn.Conv2d(4, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        syn, mem = self.lstm.init_sconv2dlstm()
        outputs = []
        for _ in range(self.timesteps):
            spikes, syn, mem = self.lstm(x, syn, mem)
            outputs.append(self.head(spikes))
        return torch.stack(outputs)


def norse_cells(timesteps: int) -> nn.Module:
    """norse's cells in a SequentialState, whose states the caller hands on."""
    import norse.torch as norse

    p = norse.LIFParameters(v_th=torch.as_tensor(0.02), tau_mem_inv=torch.as_tensor(500.0))
    made: nn.Module = norse.SequentialState(
        *(nn.Conv2d(2, 4, 3), norse.LIFCell(p), nn.Flatten(), nn.Linear(64, 6)),
        *(norse.LIFCell(p), nn.Linear(6, 4), norse.LICell()),
    )
    return made


class UNet(nn.Module):
    """Down and up again, with skips by concatenation; [T, N, C, H, W]."""

    def __init__(self) -> None:
        super().__init__()
        self.enc1, self.enc2 = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.down = nn.Conv2d(6, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 5, 3, stride=2, padding=1, output_padding=1)
        self.dec, self.out = nn.Conv2d(11, 4, 3, padding=1), nn.ConvTranspose2d(8, 2, 2, groups=2)
        self.acts = nn.ModuleList(if_node(0.2) for _ in range(5))

    def forward(self, x: Tensor) -> Tensor:
        steps = len(x)
        one, two, three, four, five = (partial(over_steps, act, steps=steps) for act in self.acts)
        first = one(self.enc1(x.flatten(0, 1)))
        second = two(self.enc2(first))
        up = four(self.up(three(self.down(second))))
        y = five(self.dec(torch.cat([up, second], 1)))
        return self.out(torch.cat([y, first], 1)).unflatten(0, (steps, -1))


def odd_convolutions(timesteps: int) -> nn.Module:
    """Depthwise, dilated, reflect-padded, pruned and weight-normed ones, one step a call."""
    pruned = prune.random_unstructured(nn.Conv2d(4, 4, 3, padding=1), "weight", amount=0.5)
    normed = parametrizations.weight_norm(nn.Conv2d(4, 4, 2, stride=2))
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, padding_mode="reflect"), if_node(0.2, "s")),
        *(nn.Conv2d(4, 4, 3, padding=1, groups=4), if_node(0.1, "s")),
        *(nn.Conv2d(4, 4, 3, padding=2, dilation=2), if_node(0.1, "s")),
        *(nn.Conv2d(4, 4, 3, padding=(2, 1), padding_mode="circular"), if_node(0.1, "s")),
        *(pruned, if_node(0.1, "s"), normed, if_node(0.1, "s")),
        *(nn.Conv2d(4, 3, 1, padding=1, padding_mode="reflect"), nn.Flatten()),
    )


SIZE = {"channels": 1, "height": 8, "width": 8}


def student(name: str) -> nn.Module:
    """One of those classes as a student of ours, which computes its stem once."""
    net = build_model(name, neuron=NeuronConfig(), num_classes=5, **SIZE)
    for place, module in net.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            # many queries, keys and values: few of their products would reach a threshold
            nn.init.uniform_(module.bias, 0.6, 3.0 if "qkv" in place else 1.4)
    with torch.no_grad():
        net.train()(torch.randn(8, 1, 8, 8), 2)
    return net


STUDENTS = ("ms_resnet_tiny", "spikformer_tiny", "sdt_tiny", "qkformer_tiny", "maxformer_tiny")


@dataclass(frozen=True)
class Elsewhere:
    """A network, how it is given its steps, the images that it takes, and its library."""

    make: Callable[[int], nn.Module]
    layout: str = "time-first"
    shape: tuple[int, ...] = (2, 6, 6)
    library: str = "torch"
    loops: bool = False


ZOO = {
    **{name: Elsewhere(make, shape=(3, 16, 16)) for name, make in SPIKINGJELLY.items()},
    "att_ms_resnet": Elsewhere(SPIKINGJELLY["att_ms_resnet"], "inside", (3, 16, 16)),
    "snntorch leaky": Elsewhere(Leaky, "inside", (12,), "snntorch", loops=True),
    "snntorch conv": Elsewhere(convolutional, "stepwise", library="snntorch"),
    **{
        f"snntorch {kind}": Elsewhere(
            lambda t, kind=kind: HandedOn(kind), "stepwise", (12,), "snntorch"
        )
        for kind in ("Leaky", "Synaptic", "Alpha")
    },
    "snntorch lstm": Elsewhere(ConvLSTM, "inside", library="snntorch", loops=True),
    "norse cells": Elsewhere(norse_cells, "stepwise", library="norse"),
    **{
        f"student {name}": Elsewhere(lambda t, name=name: student(name), "inside", (1, 8, 8))
        for name in STUDENTS
    },
    "u-net": Elsewhere(lambda t: UNet()),
    "odd convolutions": Elsewhere(odd_convolutions, "stepwise"),
}
