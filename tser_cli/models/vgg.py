"""VGG with batch norm: one definition for ANN and SNN, names as torchvision's `vgg*_bn`.

Simonyan and Zisserman, ICLR 2015, arXiv 1409.1556. With a smaller stem a pool that would leave
nothing is passed over, and the head is one linear layer.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from tser_cli.models.base import Build, Classifier, initialise
from tser_cli.models.neurons import Timed

Plan = tuple[int | str, ...]
POOL = "pool"
STEM_LAYERS = 2  # the first convolution and its norm
VGG11: Plan = (64, POOL, 128, POOL, 256, 256, POOL, 512, 512, POOL, 512, 512, POOL)
VGG16: Plan = (
    *(64, 64, POOL, 128, 128, POOL, 256, 256, 256, POOL),
    *(512, 512, 512, POOL, 512, 512, 512, POOL),
)


class Vgg(Classifier):
    """A VGG of any plan: widths of 3 x 3 convolutions and max-pools between them."""

    norms_follow = True

    def __init__(self, build: Build, plan: Plan) -> None:
        super().__init__()
        self.spiking = build.spiking
        self.features, width, sides = _make_features(build, plan)
        pooled = 7 if build.stem == "large" else 1
        self.avgpool = nn.AdaptiveAvgPool2d(pooled)
        self._averages = sides != (pooled, pooled)
        if build.stem != "large":
            self.classifier = Timed([nn.Linear(width, build.num_classes)])
        else:
            act, size = build.make_activation, width * 7 * 7
            hidden = [nn.Linear(size, 4096), act(), nn.Dropout()]
            hidden += [nn.Linear(4096, 4096), act(), nn.Dropout()]
            self.classifier = Timed([*hidden, nn.Linear(4096, build.num_classes)])
        initialise(self)

    def stem(self, images_NCHW: Tensor) -> Tensor:
        y: Tensor = self.features[1](self.features[0](images_NCHW))
        return y

    def body(self, x: Tensor, timesteps: int) -> Tensor:
        for part in self._parts():
            x = self.remembered(part, x, timesteps)
        x = self.avgpool(x).flatten(1)
        logits: Tensor = self.classifier(x, timesteps)
        return logits

    def stem_norm(self) -> nn.Module:
        return self.features[1]

    def _parts(self) -> list[Timed]:
        # made anew, so that layers that were replaced (as by SyncBatchNorm) are not forgotten
        parts: list[list[nn.Module]] = [[]]
        for layer in list(self.features)[STEM_LAYERS:]:
            parts[-1].append(layer)
            if isinstance(layer, nn.MaxPool2d):
                parts.append([])
        return [Timed(part) for part in parts if part]

    def input_kinds(self) -> dict[str, str]:
        names = [n for n, m in self.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        # A pool to the size that the map has already averages nothing: spikes pass as they are.
        kinds = dict.fromkeys(names, "spikes" if self.spiking else "real")
        if self.spiking:
            kinds["features.0"] = "sums" if self.fed_counts else "real"
            kinds |= {"classifier.0": "real"} if self._averages else {}
        return kinds


def _make_features(build: Build, plan: Plan) -> tuple[Timed, int, tuple[int, int]]:
    """Return the layers up to the head, and the channels and (H, W) of the last map."""
    layers: list[nn.Module] = []
    channels, height, width = build.channels, build.height, build.width
    if build.stem == "medium":
        # the stride of the first convolution halves both, rounded up
        height, width = (height + 1) // 2, (width + 1) // 2
    for step in plan:
        if isinstance(step, int):
            stride = 2 if build.stem == "medium" and not layers else 1
            layers += [nn.Conv2d(channels, step, 3, stride, padding=1), nn.BatchNorm2d(step)]
            layers.append(build.make_activation())
            channels = step
        elif min(height, width) >= 2:
            layers.append(nn.MaxPool2d(2, 2))
            height, width = height // 2, width // 2
        else:
            # it keeps the numbering of torchvision where the map can't shrink further
            layers.append(nn.Identity())
    return Timed(layers), channels, (height, width)


vgg11 = partial(Vgg, plan=VGG11)
vgg16 = partial(Vgg, plan=VGG16)
