"""From raw images to the network's input: crop, flip, AutoAugment, normalise, Cutout.

Crop, flip and Cutout act on whole batches, with parameters looked up by image; only what needs
torchvision (AutoAugment, resizing) acts image by image, and imports torchvision when it is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from tser_cli.config import AugmentConfig
from tser_cli.data.base import DataSpec, ImageSource, TensorSource
from tser_cli.data.randomness import Stream, image_seed, isolated, table
from tser_cli.errors import ConfigError

ImageTransform = Callable[[torch.Tensor], torch.Tensor]

# torchvision's evaluation of ImageNet: the shorter side to 256, then the central 224
RESIZE_RATIO = 256 / 224


def normalise(
    images_NCHW: torch.Tensor, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """uint8 images as float32: (image / 255 - mean) / std, by channel."""
    mean_C11, std_C11 = (torch.tensor(values).view(-1, 1, 1) for values in (mean, std))
    return images_NCHW.to(torch.float32).div_(255.0).sub_(mean_C11).div_(std_C11)


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
    cropped_NCHW = windows[torch.arange(len(padded)), :, offsets_N2[:, 0], offsets_N2[:, 1]]
    return torch.where(flips_N[:, None, None, None], cropped_NCHW.flip(-1), cropped_NCHW)


def cutout_(images_NCHW: torch.Tensor, corners_N2: torch.Tensor, size: int) -> torch.Tensor:
    """Sets a square of `size` pixels to 0 in place; `corners_N2` is its top and left.

    Cutout (DeVries and Taylor, 2017, arXiv 1708.04552) with the square wholly inside the
    image, as torchvision's RandomErasing draws it; after normalisation 0 is the mean.
    """
    height, width = images_NCHW.shape[-2:]
    rows_NH, columns_NW = (
        (torch.arange(length) >= start) & (torch.arange(length) < start + size)
        for length, start in ((height, corners_N2[:, :1]), (width, corners_N2[:, 1:]))
    )
    square_N1HW = rows_NH[:, None, :, None] & columns_NW[:, None, None, :]
    return images_NCHW.masked_fill_(square_N1HW, 0.0)


@dataclass(frozen=True)
class Pipeline:
    """All transforms of one split. `resize` and `autoaugment` act on single uint8 images.

    Crop, flip, AutoAugment and Cutout come as `augment` says, in this order.
    """

    source: ImageSource
    spec: DataSpec
    augment: AugmentConfig
    seed: int
    resize: ImageTransform | None = None
    autoaugment: ImageTransform | None = None

    def __call__(self, epoch: int, indices: Sequence[int]) -> torch.Tensor:
        """The images at `indices` as in `epoch`, normalised float32 [N, C, H, W].

        A pure function of (seed, epoch, index). Raises DataError for an unreadable image.
        """
        with isolated():
            images_NCHW = self._sized(epoch, indices)
            images_NCHW = self._cropped(images_NCHW, epoch, indices)
            images_NCHW = self._autoaugmented(images_NCHW, epoch, indices)
            images_NCHW = normalise(images_NCHW, self.spec.mean, self.spec.std)
            return self._cut_out(images_NCHW, epoch, indices)

    def _sized(self, epoch: int, indices: Sequence[int]) -> torch.Tensor:
        if self.resize is not None:
            raw = (self.source.image(index) for index in indices)
            return self._each(self.resize, raw, Stream.RESIZE, epoch, indices)
        if isinstance(self.source, TensorSource):
            return self.source.images_MCHW[torch.tensor(indices)]
        return torch.stack([self.source.image(index) for index in indices])

    def _cropped(
        self, images_NCHW: torch.Tensor, epoch: int, indices: Sequence[int]
    ) -> torch.Tensor:
        padding = 0 if self.augment.random_resized_crop else self.augment.crop_padding
        if not padding and not self.augment.flip:
            return images_NCHW
        offsets_N2 = self._draws(Stream.CROP, epoch, indices, (2 * padding + 1,) * 2)
        sides = 2 if self.augment.flip else 1
        flips_N = self._draws(Stream.FLIP, epoch, indices, (sides,))[:, 0] == 1
        return crop_flip(images_NCHW, offsets_N2, flips_N, padding)

    def _autoaugmented(
        self, images_NCHW: torch.Tensor, epoch: int, indices: Sequence[int]
    ) -> torch.Tensor:
        if self.autoaugment is None:
            return images_NCHW
        return self._each(self.autoaugment, images_NCHW, Stream.AUTOAUGMENT, epoch, indices)

    def _cut_out(
        self, images_NCHW: torch.Tensor, epoch: int, indices: Sequence[int]
    ) -> torch.Tensor:
        size = self.augment.cutout
        if not size:
            return images_NCHW
        bounds = (self.spec.height - size + 1, self.spec.width - size + 1)
        return cutout_(images_NCHW, self._draws(Stream.CUTOUT, epoch, indices, bounds), size)

    def _draws(
        self, stream: Stream, epoch: int, indices: Sequence[int], bounds: tuple[int, ...]
    ) -> torch.Tensor:
        draws = table(stream, self.seed, epoch, len(self.source), bounds)
        return draws[torch.tensor(indices)]

    def _each(
        self,
        transform: ImageTransform,
        images: Iterable[torch.Tensor],
        stream: Stream,
        epoch: int,
        indices: Sequence[int],
    ) -> torch.Tensor:
        results = []
        for index, image in zip(indices, images, strict=True):
            seed = image_seed(stream, self.seed, epoch, index)
            torch.default_generator.manual_seed(seed)
            results.append(transform(image))
        return torch.stack(results)


def evaluation_pipeline(source: ImageSource, spec: DataSpec) -> Pipeline:
    """The deterministic transforms: resize and centre crop where sizes vary; normalise."""
    return Pipeline(source, spec, AugmentConfig(), seed=0, resize=_fixed_resize(source, spec))


def training_pipeline(
    source: ImageSource, spec: DataSpec, augment: AugmentConfig, seed: int
) -> Pipeline:
    """The transforms of training. Raises ConfigError for a Cutout or padding too large."""
    side = min(spec.height, spec.width)
    for key, pixels in (("cutout", augment.cutout), ("crop_padding", augment.crop_padding)):
        if pixels >= side:
            raise ConfigError(
                f"augment.{key} = {pixels} can hide all of an image: those of {spec.name} have "
                f"{spec.height} x {spec.width} pixels; set it below {side}"
            )
    resize = _fixed_resize(source, spec)
    if augment.random_resized_crop:
        resize = _random_resized_crop(spec)
    autoaugment = None if augment.autoaugment == "none" else _autoaugment()
    return Pipeline(source, spec, augment, seed, resize, autoaugment)


def is_deterministic(augment: AugmentConfig) -> bool:
    """Whether training sees an image the same way in every epoch."""
    return augment == AugmentConfig()


def is_costly(source: ImageSource, augment: AugmentConfig) -> bool:
    """Whether images are read from files or transformed one by one, so that workers pay."""
    per_image = augment.random_resized_crop or augment.autoaugment != "none"
    return per_image or not isinstance(source, TensorSource)


def _fixed_resize(source: ImageSource, spec: DataSpec) -> ImageTransform | None:
    if isinstance(source, TensorSource):
        return None
    from torchvision.transforms import v2

    size = [spec.height, spec.width]
    shorter = round(min(size) * RESIZE_RATIO)
    transform: ImageTransform = v2.Compose([v2.Resize(shorter), v2.CenterCrop(size)])
    return transform


def _random_resized_crop(spec: DataSpec) -> ImageTransform:
    from torchvision.transforms import v2

    transform: ImageTransform = v2.RandomResizedCrop([spec.height, spec.width])
    return transform


def _autoaugment() -> ImageTransform:
    # the policy learnt on CIFAR-10: Cubuk et al., CVPR 2019, arXiv 1805.09501
    from torchvision.transforms import v2

    transform: ImageTransform = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
    return transform
