"""From raw images to the network's input: crop, flip, AutoAugment, normalise, Cutout.

All but resizing acts on whole batches, on the device where the images lie, with parameters looked
up by image. AutoAugment and resizing need torchvision, which is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional

from tser_cli.config import AugmentConfig
from tser_cli.data.autoaugment import BOUNDS, AutoAugment
from tser_cli.data.base import DataSpec, ImageSource, TensorSource
from tser_cli.data.devices import device_of, sent
from tser_cli.data.randomness import Stream, image_seed, isolated, table
from tser_cli.errors import ConfigError

ImageTransform = Callable[[torch.Tensor], torch.Tensor]

# torchvision's evaluation of ImageNet: the shorter side to 256, then the central 224
RESIZE_RATIO = 256 / 224


def normalise(
    images_NCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """uint8 images as float32: (image / 255 - mean) / std, by channel."""
    mean_C11, std_C11 = (_channels(tuple(values), images_NCHW.device) for values in (mean, std))
    return images_NCHW.to(torch.float32).div_(255.0).sub_(mean_C11).div_(std_C11)


# moved once: a copy to a GPU from memory that is not pinned waits for all that the GPU has to do
@lru_cache(maxsize=8)
def _channels(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def crop_flip(
    images_NCHW: torch.Tensor, offsets_N2: torch.Tensor, flips_N: torch.Tensor, padding: int
) -> torch.Tensor:
    """Pads with `padding` pixels of 0, crops back to size, flips left to right where told.

    `offsets_N2` int64 is each crop's top and left in the padded image, 0..2 * padding;
    `flips_N` is bool. Equal to F.pad, then x[:, top:top + H, left:left + W], then flip(-1).
    """
    height, width = images_NCHW.shape[-2:]
    padded = functional.pad(images_NCHW, [padding] * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    images_N = torch.arange(len(padded), device=padded.device)
    cropped_NCHW = windows[images_N, :, offsets_N2[:, 0], offsets_N2[:, 1]]
    return torch.where(flips_N[:, None, None, None], cropped_NCHW.flip(-1), cropped_NCHW)


def cutout_(images_NCHW: torch.Tensor, corners_N2: torch.Tensor, size: int) -> torch.Tensor:
    """Sets a square of `size` pixels to 0 in place; `corners_N2` is its top and left.

    Cutout (DeVries and Taylor, 2017, arXiv 1708.04552) with the square wholly inside the
    image, as torchvision's RandomErasing draws it; after normalisation 0 is the mean.
    """
    height, width = images_NCHW.shape[-2:]
    rows_H, columns_W = (torch.arange(n, device=images_NCHW.device) for n in (height, width))
    rows_NH, columns_NW = (
        (line >= start) & (line < start + size)
        for line, start in ((rows_H, corners_N2[:, :1]), (columns_W, corners_N2[:, 1:]))
    )
    square_N1HW = rows_NH[:, None, :, None] & columns_NW[:, None, None, :]
    return images_NCHW.masked_fill_(square_N1HW, 0.0)


@dataclass(frozen=True)
class Pipeline:
    """All transforms of one split, on the device where the source's images lie.

    `resize` acts on single uint8 images. Crop, flip, AutoAugment and Cutout come as `augment`
    says, in this order.
    """

    source: ImageSource
    spec: DataSpec
    augment: AugmentConfig
    seed: int
    resize: ImageTransform | None = None
    autoaugment: AutoAugment | None = None

    def __call__(self, epoch: int, indices: Sequence[int]) -> torch.Tensor:
        """Return the images at `indices` as in `epoch`, normalised float32 [N, C, H, W].

        On one device a pure function of (seed, epoch, index). Raises DataError for an
        unreadable image.
        """
        drawn_N = torch.tensor(indices)
        indices_N = sent(drawn_N, device_of(self.source))
        images_NCHW = self._sized(epoch, indices, indices_N)
        images_NCHW = self._cropped(images_NCHW, epoch, indices_N)
        images_NCHW = self._autoaugmented(images_NCHW, epoch, drawn_N)
        images_NCHW = normalise(images_NCHW, self.spec.mean, self.spec.std)
        return self._cut_out(images_NCHW, epoch, indices_N)

    def _sized(self, epoch: int, indices: Sequence[int], indices_N: torch.Tensor) -> torch.Tensor:
        if self.resize is not None:
            return self._resized(self.resize, epoch, indices)
        if isinstance(self.source, TensorSource):
            return self.source.images_MCHW[indices_N]
        return torch.stack([self.source.image(index) for index in indices])

    def _resized(self, resize: ImageTransform, epoch: int, indices: Sequence[int]) -> torch.Tensor:
        images = []
        with isolated():
            for index in indices:
                seed = image_seed(Stream.RESIZE, self.seed, epoch, index)
                torch.default_generator.manual_seed(seed)
                images.append(resize(self.source.image(index)))
        return torch.stack(images)

    def _cropped(
        self, images_NCHW: torch.Tensor, epoch: int, indices_N: torch.Tensor
    ) -> torch.Tensor:
        padding = 0 if self.augment.random_resized_crop else self.augment.crop_padding
        if not padding and not self.augment.flip:
            return images_NCHW
        offsets_N2 = self._draws(Stream.CROP, epoch, indices_N, (2 * padding + 1,) * 2)
        sides = 2 if self.augment.flip else 1
        flips_N = self._draws(Stream.FLIP, epoch, indices_N, (sides,))[:, 0] == 1
        return crop_flip(images_NCHW, offsets_N2, flips_N, padding)

    def _autoaugmented(
        self, images_NCHW: torch.Tensor, epoch: int, drawn_N: torch.Tensor
    ) -> torch.Tensor:
        if self.autoaugment is None:
            return images_NCHW
        choices_N5 = self._draws(Stream.AUTOAUGMENT, epoch, drawn_N, BOUNDS)
        return self.autoaugment(images_NCHW, choices_N5)

    def _cut_out(
        self, images_NCHW: torch.Tensor, epoch: int, indices_N: torch.Tensor
    ) -> torch.Tensor:
        size = self.augment.cutout
        if not size:
            return images_NCHW
        bounds = (self.spec.height - size + 1, self.spec.width - size + 1)
        return cutout_(images_NCHW, self._draws(Stream.CUTOUT, epoch, indices_N, bounds), size)

    def _draws(
        self, stream: Stream, epoch: int, indices_N: torch.Tensor, bounds: tuple[int, ...]
    ) -> torch.Tensor:
        count, device = len(self.source), indices_N.device
        return table(stream, self.seed, epoch, count, bounds, device)[indices_N].long()


def evaluation_pipeline(source: ImageSource, spec: DataSpec) -> Pipeline:
    """Return the deterministic transforms: resize and centre crop where sizes vary; normalise."""
    return Pipeline(
        source,
        spec,
        AugmentConfig(),
        seed=0,
        resize=None if isinstance(source, TensorSource) else fixed_resize(spec),
    )


def check_augmentation(augment: AugmentConfig, spec: DataSpec) -> None:
    """Raise ConfigError for a Cutout or a padding that could hide all of an image."""
    side = min(spec.height, spec.width)
    for key, pixels in (("cutout", augment.cutout), ("crop_padding", augment.crop_padding)):
        if pixels >= side:
            raise ConfigError(
                f"augment.{key} = {pixels} can hide all of an image: those of {spec.name} have "
                f"{spec.height} x {spec.width} pixels; set it below {side}"
            )


def training_pipeline(
    source: ImageSource, spec: DataSpec, augment: AugmentConfig, seed: int
) -> Pipeline:
    """Return the transforms of training; `augment` has been checked."""
    resize = None if isinstance(source, TensorSource) else fixed_resize(spec)
    if augment.random_resized_crop:
        resize = _random_resized_crop(spec)
    autoaugment = None
    if augment.autoaugment != "none":
        autoaugment = AutoAugment(spec.height, spec.width, device_of(source))
    return Pipeline(source, spec, augment, seed, resize, autoaugment)


def is_deterministic(augment: AugmentConfig) -> bool:
    """Return whether training sees an image the same way in every epoch."""
    return augment == AugmentConfig()


def is_costly(source: ImageSource, augment: AugmentConfig, device: torch.device) -> bool:
    """Return whether training on `device` would wait for these images if no workers made them.

    Files are read and images resized one by one. Images in memory take one core about 0.1
    milliseconds each with AutoAugment: nothing while the CPU trains, too long while a GPU does.
    """
    if augment.random_resized_crop or not isinstance(source, TensorSource):
        return True
    return augment.autoaugment != "none" and device_of(source).type != device.type


def fixed_resize(spec: DataSpec) -> ImageTransform:
    """Return the resizing of evaluation: the shorter side scaled, then the central crop."""
    from torchvision.transforms import v2

    size = [spec.height, spec.width]
    shorter = spec.shorter or round(min(size) * RESIZE_RATIO)
    transform: ImageTransform = v2.Compose([v2.Resize(shorter), v2.CenterCrop(size)])
    return transform


def _random_resized_crop(spec: DataSpec) -> ImageTransform:
    from torchvision.transforms import v2

    transform: ImageTransform = v2.RandomResizedCrop([spec.height, spec.width])
    return transform
