"""ResNets: one definition for ANN and SNN, names and outputs as torchvision's.

ANN: He et al., CVPR 2016, arXiv 1512.03385. SNN: ReLU becomes a spiking neuron and time is folded
into the batch. ResNet-19: Zheng et al. (tdBN), AAAI 2021, arXiv 2011.05280. SEW, with g = ADD:
Fang et al., NeurIPS 2021, arXiv 2102.04159: the residual is added after the spike, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from tser_cli.models.base import Build, Classifier, initialise
from tser_cli.models.neurons import Timed
from tser_cli.models.savings import whole_numbers

Call: TypeAlias = Callable[[nn.Module, Tensor, int], Tensor]


@dataclass(frozen=True)
class Layout:
    """Shape of a ResNet: kind of block, widths and number of blocks of each stage."""

    block: type[Block]
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem_width: int
    sew: bool = False
    hidden_head: int = 0


class ResNet(Classifier):
    """A residual network of any `Layout`; stages are `layer1` .. `layerN`."""

    def __init__(self, build: Build, layout: Layout) -> None:
        super().__init__()
        self.norms_follow = True
        self.spiking = build.spiking
        self.sew = layout.sew
        self.stages = tuple(f"layer{number}" for number in range(1, len(layout.widths) + 1))
        width = layout.stem_width
        kernel, stride = {"small": (3, 1), "medium": (3, 2), "large": (7, 2)}[build.stem]
        self.conv1 = nn.Conv2d(build.channels, width, kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = build.make_activation()
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if build.stem == "large" else nn.Identity()
        for position, stage in enumerate(self.stages):
            made, width = _make_stage(build, layout, width, position)
            self.add_module(stage, made)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        # the longer side of the last map: each stride of 2 halves it, rounded up
        halvings = len(layout.widths) - 1 + {"small": 0, "medium": 1, "large": 2}[build.stem]
        self._averages = -(-max(build.height, build.width) // (1 << halvings)) > 1
        hidden = layout.hidden_head
        last = nn.Linear(hidden or width, build.num_classes)
        # a lone layer keeps torchvision's name, fc: its weights are then found
        head = [nn.Linear(width, hidden), build.make_activation(), last] if hidden else []
        self.fc = Timed(head) if head else last
        initialise(self)

    def stage_names(self) -> tuple[str, ...]:
        return self.stages

    def stem(self, images_NCHW: Tensor) -> Tensor:
        y: Tensor = self.bn1(self.conv1(images_NCHW))
        return y

    def stem_norm(self) -> nn.Module:
        return self.bn1

    def body(self, x: Tensor, timesteps: int) -> Tensor:
        x = self.maxpool(self.act1(x, timesteps))
        for stage in self.stages:
            x = self.get_submodule(stage)(x, timesteps, self.remembered)
        # over space alone: time is part of the batch, and each step keeps its own logits
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(x, timesteps) if isinstance(self.fc, Timed) else self.fc(x)
        return logits

    def input_kinds(self) -> dict[str, str]:
        names = [n for n, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return {name: self._input_kind(name) if self.spiking else "real" for name in names}

    def _input_kind(self, name: str) -> str:
        if name == "conv1":
            return "sums" if self.fed_counts else "real"
        if name == "fc.2":
            return "spikes"
        if name.startswith("fc"):
            # Where the last map is one pixel the pool averages nothing: spikes pass as they are.
            return "real" if self._averages else "sums" if self.sew else "spikes"
        # The first SEW block of all still meets the stem's spikes; later ones meet sums of them.
        reads_block_input = name.endswith((".conv1", ".downsample.0"))
        if self.sew and reads_block_input and not name.startswith("layer1.0."):
            return "sums"
        return "spikes"


def _make_stage(build: Build, layout: Layout, inputs: int, position: int) -> tuple[Stage, int]:
    width, outputs = layout.widths[position], layout.widths[position] * layout.block.expansion
    blocks: list[nn.Module] = []
    for number in range(layout.blocks[position]):
        stride = 2 if number == 0 and position > 0 else 1
        downsample = None
        if stride != 1 or inputs != outputs:
            downsample = Timed([conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs)])
            # in SEW a neuron as well, so that the shortcut too adds spikes
            downsample.extend([build.make_activation()] if layout.sew else [])
        blocks.append(
            layout.block(inputs, width, stride, build.make_activation, downsample, layout.sew)
        )
        inputs = outputs
    return Stage(blocks), inputs


class Stage(nn.ModuleList):
    """Residual blocks in a row; `call(block, x, timesteps)` computes each, in its own way."""

    def forward(self, x: Tensor, timesteps: int, call: Call | None = None) -> Tensor:
        for block in self:
            x = call(block, x, timesteps) if call else block(x, timesteps)
        return x


class Block(nn.Module):
    """Layers of convolution, norm and activation (`conv1`, `bn1`, `act1`, ...) beside a shortcut.

    The shortcut is added before the last activation, in SEW after it.
    """

    expansion = 1

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        activation: Callable[[], nn.Module],
        downsample: Timed | None,
        sew: bool,
    ) -> None:
        super().__init__()
        self.downsample = downsample
        self.sew = sew
        convolutions = self.convolutions(inputs, width, stride)
        for number, convolution in enumerate(convolutions, start=1):
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(convolution.out_channels))
            self.add_module(f"act{number}", activation())
        self._layers = len(convolutions)

    def convolutions(self, inputs: int, width: int, stride: int) -> tuple[nn.Conv2d, ...]:
        """Return the convolutions of the block, first to last."""
        raise NotImplementedError

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        y = x
        for number in range(1, self._layers + 1):
            # looked up at each call: folding and quantising put others in their place
            convolution, norm = getattr(self, f"conv{number}"), getattr(self, f"bn{number}")
            activation = getattr(self, f"act{number}")
            y = norm(convolution(y))
            if number < self._layers:
                y = activation(y, timesteps)
        identity = x if self.downsample is None else self.downsample(x, timesteps)
        if self.sew:
            return whole_numbers(activation(y, timesteps) + identity)
        result: Tensor = activation(y + identity, timesteps)
        return result


class BasicBlock(Block):
    """Two 3 x 3 convolutions."""

    def convolutions(self, inputs: int, width: int, stride: int) -> tuple[nn.Conv2d, ...]:
        return conv3x3(inputs, width, stride), conv3x3(width, width)


class Bottleneck(Block):
    """1 x 1, 3 x 3 (with the stride, as in torchvision), 1 x 1 to four times the width."""

    expansion = 4

    def convolutions(self, inputs: int, width: int, stride: int) -> tuple[nn.Conv2d, ...]:
        return (
            conv1x1(inputs, width),
            conv3x3(width, width, stride),
            conv1x1(width, width * self.expansion),
        )


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution with padding 1 and no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1 x 1 convolution with no bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


def _standard(
    build: Build, blocks: tuple[int, ...], block: type[Block] = BasicBlock, sew: bool = False
) -> ResNet:
    return ResNet(build, Layout(block, (64, 128, 256, 512), blocks, stem_width=64, sew=sew))


resnet18 = partial(_standard, blocks=(2, 2, 2, 2))
resnet34 = partial(_standard, blocks=(3, 4, 6, 3))
resnet50 = partial(_standard, blocks=(3, 4, 6, 3), block=Bottleneck)
sew_resnet18 = partial(_standard, blocks=(2, 2, 2, 2), sew=True)
sew_resnet34 = partial(_standard, blocks=(3, 4, 6, 3), sew=True)


def resnet19(build: Build) -> ResNet:
    """ResNet-19 of the SNN literature: 128-256-512, blocks 3-3-2, a hidden layer in the head."""
    layout = Layout(BasicBlock, (128, 256, 512), (3, 3, 2), stem_width=128, hidden_head=256)
    return ResNet(build, layout)


def resnet20(build: Build, sew: bool = False) -> ResNet:
    """ResNet-20 for small images: 16-32-64, three blocks a stage."""
    return ResNet(build, Layout(BasicBlock, (16, 32, 64), (3, 3, 3), stem_width=16, sew=sew))


sew_resnet20 = partial(resnet20, sew=True)
