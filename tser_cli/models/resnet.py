"""ResNets: one definition for ANN and SNN, names and outputs as torchvision's.

ANN: He et al., CVPR 2016, arXiv 1512.03385. SNN: ReLU becomes a spiking neuron and time is folded
into the batch. ResNet-19: Zheng et al. (tdBN), AAAI 2021, arXiv 2011.05280. SEW, with g = ADD:
Fang et al., NeurIPS 2021, arXiv 2102.04159: the residual is added after the spike, not before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from tser_cli.models.base import Build, Classifier, initialise
from tser_cli.models.savings import whole_numbers

Call: TypeAlias = Callable[[nn.Module, Tensor, int], Tensor]
BlockType: TypeAlias = "type[BasicBlock] | type[Bottleneck]"


@dataclass(frozen=True)
class Layout:
    """Shape of a ResNet: widths and number of blocks of each stage."""

    block: BlockType
    widths: tuple[int, ...]
    blocks: tuple[int, ...]
    stem_width: int
    sew: bool = False
    hidden_head: int = 0


def conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 3 x 3 convolution with padding 1 and no bias."""
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


def conv1x1(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    """Return a 1 x 1 convolution with no bias."""
    return nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)


class Downsample(nn.ModuleList):
    """The shortcut's convolution and norm; with SEW also a neuron, so that it adds spikes."""

    def __init__(
        self, inputs: int, outputs: int, stride: int, activation: Callable[[], nn.Module] | None
    ) -> None:
        layers: list[nn.Module] = [conv1x1(inputs, outputs, stride), nn.BatchNorm2d(outputs)]
        super().__init__([*layers, *([activation()] if activation else [])])

    def forward(self, x: Tensor, timesteps: int = 1) -> Tensor:
        y: Tensor = self[1](self[0](x))
        return self[2](y, timesteps) if len(self) > 2 else y


class Block(nn.Module):
    """A residual block: `main` computes up to the last norm, `act_out` is the last activation."""

    expansion = 1

    def __init__(self, downsample: Downsample | None, sew: bool) -> None:
        super().__init__()
        self.downsample = downsample
        self.sew = sew

    def main(self, x: Tensor, timesteps: int) -> Tensor:
        """Return the residual branch up to, not including, the last activation."""
        raise NotImplementedError

    def act_out(self, x: Tensor, timesteps: int) -> Tensor:
        """Return the last activation of the block."""
        raise NotImplementedError

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        residual = self.main(x, timesteps)
        identity = x if self.downsample is None else self.downsample(x, timesteps)
        if self.sew:
            return whole_numbers(self.act_out(residual, timesteps) + identity)
        return self.act_out(residual + identity, timesteps)


class BasicBlock(Block):
    """Two 3 x 3 convolutions."""

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        activation: Callable[[], nn.Module],
        downsample: Downsample | None,
        sew: bool,
    ) -> None:
        super().__init__(downsample, sew)
        self.conv1 = conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        self.conv2 = conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation()

    def main(self, x: Tensor, timesteps: int) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)), timesteps)
        y: Tensor = self.bn2(self.conv2(x))
        return y

    def act_out(self, x: Tensor, timesteps: int) -> Tensor:
        y: Tensor = self.act2(x, timesteps)
        return y


class Bottleneck(Block):
    """1 x 1, 3 x 3 (with the stride, as in torchvision), 1 x 1 to four times the width."""

    expansion = 4

    def __init__(
        self,
        inputs: int,
        width: int,
        stride: int,
        activation: Callable[[], nn.Module],
        downsample: Downsample | None,
        sew: bool,
    ) -> None:
        super().__init__(downsample, sew)
        self.conv1 = conv1x1(inputs, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = activation()
        self.conv2 = conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = activation()
        self.conv3 = conv1x1(width, width * self.expansion)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.act3 = activation()

    def main(self, x: Tensor, timesteps: int) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)), timesteps)
        x = self.act2(self.bn2(self.conv2(x)), timesteps)
        y: Tensor = self.bn3(self.conv3(x))
        return y

    def act_out(self, x: Tensor, timesteps: int) -> Tensor:
        y: Tensor = self.act3(x, timesteps)
        return y


class Stage(nn.ModuleList):
    """Residual blocks in a row; `call(block, x, timesteps)` computes each, in its own way."""

    def forward(self, x: Tensor, timesteps: int, call: Call | None = None) -> Tensor:
        for block in self:
            x = call(block, x, timesteps) if call else block(x, timesteps)
        return x


class HiddenHead(nn.ModuleList):
    """Linear, activation, Linear: the head of ResNet-19."""

    def forward(self, x: Tensor, timesteps: int) -> Tensor:
        y: Tensor = self[2](self[1](self[0](x), timesteps))
        return y


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
        self._averages = _last_side(max(build.height, build.width), build, layout) > 1
        self.fc = _make_head(build, width, layout.hidden_head)
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
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.fc(x, timesteps) if isinstance(self.fc, HiddenHead) else self.fc(x)
        return logits

    def input_kinds(self) -> dict[str, str]:
        names = [n for n, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        return {name: self._input_kind(name) if self.spiking else "real" for name in names}

    def _input_kind(self, name: str) -> str:
        if name in ("fc.2", "conv1"):
            return "spikes" if name == "fc.2" else "real"
        if name.startswith("fc"):
            # Where the last map is one pixel the pool averages nothing: spikes pass as they are.
            return "real" if self._averages else "sums" if self.sew else "spikes"
        # The first SEW block of all still meets the stem's spikes; later ones meet sums of them.
        reads_block_input = name.endswith((".conv1", ".downsample.0"))
        if self.sew and reads_block_input and not name.startswith("layer1.0."):
            return "sums"
        return "spikes"


def _last_side(side: int, build: Build, layout: Layout) -> int:
    """Return the longer side of the last stage's map: each stride of 2 halves it, rounded up."""
    halvings = len(layout.widths) - 1 + {"small": 0, "medium": 1, "large": 2}[build.stem]
    return -(-side // (1 << halvings))


def _make_head(build: Build, width: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(width, build.num_classes)
    last = nn.Linear(hidden, build.num_classes)
    return HiddenHead([nn.Linear(width, hidden), build.make_activation(), last])


def _make_stage(build: Build, layout: Layout, inputs: int, position: int) -> tuple[Stage, int]:
    width, outputs = layout.widths[position], layout.widths[position] * layout.block.expansion
    blocks: list[nn.Module] = []
    for number in range(layout.blocks[position]):
        stride = 2 if number == 0 and position > 0 else 1
        downsample = None
        if stride != 1 or inputs != outputs:
            act = build.make_activation if layout.sew else None
            downsample = Downsample(inputs, outputs, stride, act)
        blocks.append(
            layout.block(inputs, width, stride, build.make_activation, downsample, layout.sew)
        )
        inputs = outputs
    return Stage(blocks), inputs


def _standard(
    build: Build, blocks: tuple[int, ...], block: BlockType = BasicBlock, sew: bool = False
) -> ResNet:
    return ResNet(build, Layout(block, (64, 128, 256, 512), blocks, stem_width=64, sew=sew))


def resnet18(build: Build) -> ResNet:
    """ResNet-18."""
    return _standard(build, (2, 2, 2, 2))


def resnet34(build: Build) -> ResNet:
    """ResNet-34."""
    return _standard(build, (3, 4, 6, 3))


def resnet50(build: Build) -> ResNet:
    """ResNet-50."""
    return _standard(build, (3, 4, 6, 3), Bottleneck)


def resnet19(build: Build) -> ResNet:
    """ResNet-19 of the SNN literature: 128-256-512, blocks 3-3-2, a hidden layer in the head."""
    layout = Layout(BasicBlock, (128, 256, 512), (3, 3, 2), stem_width=128, hidden_head=256)
    return ResNet(build, layout)


def resnet20(build: Build, sew: bool = False) -> ResNet:
    """ResNet-20 for small images: 16-32-64, three blocks a stage."""
    return ResNet(build, Layout(BasicBlock, (16, 32, 64), (3, 3, 3), stem_width=16, sew=sew))


def sew_resnet18(build: Build) -> ResNet:
    """SEW ResNet-18, ADD."""
    return _standard(build, (2, 2, 2, 2), sew=True)


def sew_resnet20(build: Build) -> ResNet:
    """SEW ResNet-20, ADD."""
    return resnet20(build, sew=True)


def sew_resnet34(build: Build) -> ResNet:
    """SEW ResNet-34, ADD."""
    return _standard(build, (3, 4, 6, 3), sew=True)
