"""MS-ResNet and spiking transformers: the classes of spikingjelly as students of ours.

Each is the class itself, with our face beside it (`Classifier`): parameters and their names are the
class's own, so that weights load both ways. What changes: the logits of every time step come out,
where the class averages over time first (all but Spikformer); T is an argument of the call; what is
computed up to the first neurons, which is the same at every step, is computed once; and neurons
keep no state between calls. The mean of the logits over time is what the class gives.

The neurons are the papers', as the classes have them: of [neuron] what is stated is handed on to
all of them, but for thresholds, which differ by place (attention 0.5, others 1).
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from typing import Any, ClassVar

from spikingjelly.activation_based import neuron as library
from spikingjelly.activation_based.model import (
    maxformer as max_former,
)
from spikingjelly.activation_based.model import (
    ms_resnet as membrane_shortcut,
)
from spikingjelly.activation_based.model import (
    qkformer as qk_former,
)
from spikingjelly.activation_based.model import (
    spike_driven_transformer as spike_driven,
)
from spikingjelly.activation_based.model import (
    spikformer as spik_former,
)
from torch import Tensor, nn

from tser_cli.base.errors import ConfigError
from tser_cli.models import sizes
from tser_cli.models.base import Build, Classifier, time_first
from tser_cli.models.neurons import SURROGATES, SpikingNeuron, constants_of
from tser_cli.models.savings import as_of_copies, whole_numbers
from tser_cli.settings.config import NeuronConfig


class Shown:
    """For how many time steps a network is shown its images, as its neurons see it."""

    timesteps = 1


class LibraryNeuron(SpikingNeuron):
    """A layer of neurons of a class of spikingjelly: [T, N, ...] -> spikes [T, N, ...].

    An input [1, N, ...] is the same at each step. As in `SpikingNeuron`, no state is left from one
    call to the next, unless streaming.
    """

    def __init__(self, node: nn.Module, shown: Shown, backend: str) -> None:
        nn.Module.__init__(self)
        self._hold(node, constants_of(node) if backend == "auto" else None)
        self._shown = shown

    def forward(self, x_TN: Tensor) -> Tensor:  # type: ignore[override]
        timesteps = max(self._shown.timesteps, len(x_TN))
        if len(x_TN) < timesteps:
            x_TN = x_TN.expand(timesteps, *x_TN.shape[1:])
        spikes = super().forward(x_TN.flatten(0, 1), timesteps)
        return whole_numbers(spikes.reshape(timesteps, *x_TN.shape[1:]))


class LibraryNetwork(Classifier):
    """A class of spikingjelly as a student: images [N, C, H, W] and T -> logits [T, N, K].

    `once`: the norms in front of the first neurons. A subclass says which `parts` follow each
    other, and how their last map becomes what the head reads (`pooled`).
    """

    spiking = True
    any_maps = True
    head: nn.Module
    once: ClassVar[tuple[str, ...]]
    _shown: Shown

    def forward(self, images_NCHW: Tensor, timesteps: int = 1) -> Tensor:
        self._shown.timesteps = timesteps
        x_TNCHW = images_NCHW[None]
        if images_NCHW.dim() == 5:  # frames, which differ from step to step
            x_TNCHW = time_first(images_NCHW, timesteps)
        elif not self.stem_once:
            x_TNCHW = x_TNCHW.expand(timesteps, *images_NCHW.shape)
        # what is computed once counts as T copies
        copies = timesteps // len(x_TNCHW) if self.training else 1
        with ExitStack() as stack:
            for name in self.once:
                stack.enter_context(as_of_copies(self.get_submodule(name), copies))
            return self.steps(x_TNCHW)

    def steps(self, x_TNCHW: Tensor) -> Tensor:
        """Images [T, N, C, H, W], or [1, N, ...] where they are the same -> logits [T, N, K]."""
        for part in self.parts():
            x_TNCHW = self.remembered(part, x_TNCHW)
        logits_TNK: Tensor = self.head(self.pooled(x_TNCHW))
        return logits_TNK

    def parts(self) -> list[nn.Module]:
        """Return what follows each other from the images on, up to the last map."""
        raise NotImplementedError

    def pooled(self, x_TNCHW: Tensor) -> Tensor:
        """Return what the head reads: [T, N, C, H, W] -> [T, N, C], the mean of the tokens."""
        return x_TNCHW.flatten(3).mean(-1)

    @property
    def steps_alone(self) -> bool:
        return True

    def begun(self, images_NCHW: Tensor) -> Tensor:
        return images_NCHW

    def body(self, x: Tensor, timesteps: int) -> Tensor:
        """One step, or several with time folded into the batch: [T * N, C, H, W] -> [T * N, K]."""
        self._shown.timesteps = timesteps
        return self.steps(x.reshape(timesteps, -1, *x.shape[1:])).flatten(0, 1)

    def notes(self) -> tuple[str, ...]:
        layers = [m.node for m in self.modules() if isinstance(m, LibraryNeuron)]
        alike = Counter(_described(node) for node in layers)
        return (
            "neurons, by the network's own defaults but for what is stated in [neuron]: "
            + "; ".join(f"{count} layers of {words}" for words, count in alike.most_common()),
        )


def _described(node: Any) -> str:
    reset = "soft reset" if node.v_reset is None else f"reset to {node.v_reset:g}"
    surrogate = f"{type(node.surrogate_function).__name__} {node.surrogate_function.alpha:g}"
    return (
        f"LIF, tau {node.tau:.3g}{', input decays' if node.decay_input else ''}, threshold "
        f"{node.v_threshold:g}, {reset}{', detached' if node.detach_reset else ''}, {surrogate}"
    )


class MsResNet(LibraryNetwork, membrane_shortcut.MSResNet):  # type: ignore[misc]
    """MS-ResNet (Hu et al., arXiv 2112.08954): shortcuts add membrane potentials."""

    once = ("stem.1", "layer1.0.downsample.1")
    head_lif: nn.Module
    avgpool: nn.Module

    @property
    def stem(self) -> nn.Module:
        # the class calls a part of it so, which hides our method of that name
        part = self._modules["stem"]
        assert part is not None
        return part

    def parts(self) -> list[nn.Module]:
        return [self.stem, *(self.get_submodule(name) for name in self.stage_names())]

    def pooled(self, x_TNCHW: Tensor) -> Tensor:
        averaged: Tensor = self.avgpool(self.head_lif(x_TNCHW)).flatten(2)
        return averaged

    def stage_names(self) -> tuple[str, ...]:
        return ("layer1", "layer2", "layer3", *(("layer4",) if self.layer4 is not None else ()))


class _OfOneStage(LibraryNetwork):
    """What Spikformer and the spike-driven transformer share: blocks behind one embedding."""

    patch_embed: nn.Module
    blocks: nn.ModuleList

    def parts(self) -> list[nn.Module]:
        return [self.patch_embed, *self.blocks]

    def stage_names(self) -> tuple[str, ...]:
        return tuple(f"blocks.{place}" for place in range(len(self.blocks)))


class Spikformer(_OfOneStage, spik_former.Spikformer):  # type: ignore[misc]
    """Spikformer (Zhou et al., ICLR 2023, arXiv 2209.15425)."""

    once = ("patch_embed.stages.0.conv_bn.block.1",)


class SpikeDrivenTransformer(_OfOneStage, spike_driven.SpikeDrivenTransformer):  # type: ignore[misc]
    """The spike-driven transformer (Yao et al., NeurIPS 2023, arXiv 2307.01694)."""

    once = ("patch_embed.stages.0.1",)
    head_lif: nn.Module

    def pooled(self, x_TNCHW: Tensor) -> Tensor:
        spikes: Tensor = self.head_lif(super().pooled(x_TNCHW))
        return spikes


class _OfThreeStages(LibraryNetwork):
    """What QKFormer and Max-Former share: three stages of blocks, each behind an embedding."""

    def parts(self) -> list[nn.Module]:
        found: list[nn.Module] = []
        for number in (1, 2, 3):
            blocks = self.get_submodule(f"stage{number}")
            found += [self.get_submodule(f"patch_embed{number}"), *blocks.children()]
        return found

    def stage_names(self) -> tuple[str, ...]:
        depths = [len(list(self.get_submodule(f"stage{n}").children())) for n in (1, 2, 3)]
        return tuple(f"stage{n}.{depth - 1}" for n, depth in enumerate(depths, start=1))


class QkFormer(_OfThreeStages, qk_former.QKFormer):  # type: ignore[misc]
    """QKFormer (Zhou et al., NeurIPS 2024, arXiv 2403.16552)."""

    once = ("patch_embed1.bn1",)


class MaxFormer(_OfThreeStages, max_former.MaxFormer):  # type: ignore[misc]
    """Max-Former (arXiv 2505.18608), as for CIFAR: its entry keeps single pixels."""

    once = ("patch_embed1.bn",)
    head_lif: nn.Module

    def pooled(self, x_TNCHW: Tensor) -> Tensor:
        spikes: Tensor = self.head_lif(super().pooled(x_TNCHW))
        return spikes


def ms_resnet(build: Build) -> Classifier:
    """Return MS-ResNet; on small images the stem has stride 1, since the first stage has 2."""
    kernel, stride = {"small": (3, 1), "medium": (3, 2), "large": (7, 2)}[build.stem]
    of = build.settings
    assert isinstance(of, sizes.MsResNet18)
    stem = {"stem_kernel_size": kernel, "stem_stride": stride}
    return _made(MsResNet, build, layers=of.layers, base_channels=of.base_channels, **stem)


def spikformer(build: Build) -> Classifier:
    """Return Spikformer. Raises ConfigError where its patches do not fit the images."""
    of = build.settings
    assert isinstance(of, sizes.SpikformerSizes)
    of.check_image(build.height, build.width)
    image = {"img_size_h": build.height, "img_size_w": build.width}
    return _made(Spikformer, build, **of.sizes(), **image)


def sdt(build: Build) -> Classifier:
    """Return the spike-driven transformer. Raises ConfigError where its pools do not fit."""
    of = build.settings
    assert isinstance(of, sizes.SdtSizes)
    of.check_image(build.height, build.width)
    return _made(SpikeDrivenTransformer, build, **of.sizes())


def qkformer(build: Build) -> Classifier:
    """Return QKFormer."""
    assert isinstance(build.settings, sizes.QkformerSizes)
    return _made(QkFormer, build, **build.settings.sizes())


def maxformer(build: Build) -> Classifier:
    """Return Max-Former."""
    assert isinstance(build.settings, sizes.MaxformerSizes)
    return _made(MaxFormer, build, cifar=True, **build.settings.sizes())


def _made(network: type[LibraryNetwork], build: Build, **arguments: Any) -> Classifier:
    """Return a network of the class with these arguments, its neurons in our hands."""
    arguments |= {"in_channels": build.channels, "num_classes": build.num_classes}
    # T is only what the class repeats an image for, which ours does by itself
    made = network(T=1, **arguments, **neuron_arguments(build.neuron))
    made._shown = Shown()
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, library.BaseNode):
                setattr(parent, name, LibraryNeuron(child, made._shown, build.neuron.backend))
    return made


def neuron_arguments(neuron: NeuronConfig) -> dict[str, Any]:
    """Return what is stated of [neuron] as the classes take it.

    Raises ConfigError for what they can't. Not as `spiking_neuron`, which would make all neurons
    alike, those of attention too.
    """
    stated = neuron.model_fields_set - {"backend"}
    for name, why in (
        ("name", "has LIF neurons") if neuron.name != "lif" else ("", ""),
        ("threshold", "has thresholds by place, of attention 0.5"),
        ("surrogate_alpha", "has a surrogate of its own; state neuron.surrogate too")
        if "surrogate" not in stated
        else ("", ""),
    ):
        if name in stated:
            raise ConfigError(f"neuron.{name}: the network {why}; leave it out")
    found = {
        name: getattr(neuron, name) for name in stated & {"tau", "decay_input", "detach_reset"}
    }
    if stated & {"reset", "reset_value"}:
        found["v_reset"] = neuron.reset_value if neuron.reset == "hard" else None
    if "surrogate" in stated:
        found["surrogate_function"] = SURROGATES[neuron.surrogate](alpha=neuron.surrogate_alpha)
    return found
