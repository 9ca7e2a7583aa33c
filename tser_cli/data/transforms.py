"""Random choices as pure functions of (seed, epoch) and of (seed, epoch, image index).

Nothing here depends on a generator's history, so that neither the number of workers and
processes nor a resume in mid-epoch changes what an image looks like.

From raw images to the network's input: crop, flip, AutoAugment, normalise, Cutout.

All but resizing acts on whole batches, on the device where the images lie, with parameters looked
up by image. AutoAugment and resizing need torchvision, which is imported when it is used.

Where images are kept: on the training device if they take little of its memory.

AutoAugment on whole batches: to each image exactly what torchvision does to it alone.

The policy learnt on CIFAR-10 (Cubuk et al., CVPR 2019, arXiv 1805.09501), its magnitudes and its
operations are those of torchvision.transforms.v2.AutoAugment, which is imported when it is used.
The images of a batch that get the same operation get it together, on whatever device they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from tser_cli.base.errors import ConfigError
from tser_cli.data.base import DataSpec, ImageSource, TensorSource
from tser_cli.settings.config import AugmentConfig

CPU = torch.device("cpu")


class Stream(IntEnum):
    """Independent uses of one (seed, epoch)."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    CUTOUT = 4
    RESIZE = 5
    AUTOAUGMENT = 6


def permutation(seed: int, epoch: int, count: int) -> torch.Tensor:
    """Return the order of `count` images in an epoch, int64 [count]."""
    rng = np.random.default_rng([Stream.ORDER, seed, epoch])
    return torch.from_numpy(rng.permutation(count))


@lru_cache(maxsize=8)
def table(
    stream: Stream,
    seed: int,
    epoch: int,
    count: int,
    bounds: tuple[int, ...],
    device: torch.device = CPU,
) -> torch.Tensor:
    """Uniform draws for each image, int32 [count, len(bounds)]; column i is in 0..bounds[i]-1.

    Drawn on the CPU, whatever the device. The result is cached: do not write to it.
    """
    rng = np.random.default_rng([stream, seed, epoch])
    draws = rng.integers(0, bounds, size=(count, len(bounds)))
    return sent(torch.from_numpy(draws.astype(np.int32)), device)


def image_seed(stream: Stream, seed: int, epoch: int, index: int) -> int:
    """Return a 63-bit seed for one image, mixed by NumPy's SeedSequence."""
    sequence = np.random.SeedSequence([stream, seed, epoch, index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, torch's default generator may be seeded at will; its state is put back after.

    torchvision.transforms.v2 draws from this generator alone. Torch has one thread inside: on
    single images several only wait for one another.
    """
    state, threads = torch.default_generator.get_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.default_generator.set_state(state)


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


# of the free memory: the rest is for the networks, whose need is not known yet
LARGEST_SHARE = 1 / 4


def fits(needed: int, free: int) -> bool:
    """Return whether `needed` bytes may be kept on a device with `free` bytes."""
    return needed <= LARGEST_SHARE * free


def placed(source: ImageSource, device: torch.device) -> ImageSource:
    """Return the same images and labels on a CUDA `device`, if they are in memory and fit there.

    Else, and for a device of any other kind, `source` as it is.
    """
    if device.type != "cuda" or not isinstance(source, TensorSource):
        return source
    free, _ = torch.cuda.mem_get_info(device)
    if not fits(source.images_MCHW.nbytes, free):
        return source
    return TensorSource(source.images_MCHW.to(device), source.labels.to(device))


def device_of(source: ImageSource) -> torch.device:
    """Return where the images lie; those that are read from files come on the CPU."""
    return source.images_MCHW.device if isinstance(source, TensorSource) else CPU


def sent(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a CPU tensor on `device`, without waiting for what the device still has to do."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


# torch.rand has this many values
CHANCES = 2**24
# the bounds of an image's choices: sub-policy; then, for its two stages, chance and sign
BOUNDS = (25, CHANCES, CHANCES, 2, 2)

# what only moves pixels, by whole ones, since torchvision's default is the nearest
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


class Operation(NamedTuple):
    """One of torchvision's operations with its magnitude, sign included."""

    name: str
    magnitude: float


class AutoAugment:
    """AutoAugment for images of one size on one device.

    `operations`: all that the policy may do, geometric ones first. `probabilities_P2` float32
    and `numbers_P22` int64: by sub-policy and stage how likely an operation is, and by sign
    which one it is.
    """

    def __init__(self, height: int, width: int, device: torch.device = CPU) -> None:
        from torchvision.transforms import v2

        self._torchvision: Any = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        policies = self._torchvision._policies
        assert len(policies) == BOUNDS[0]
        by_choice = [
            [self._signed(name, level, height, width) for name, _, level in stages]
            for stages in policies
        ]
        found = {operation for stages in by_choice for pair in stages for operation in pair}
        self.operations = sorted(found, key=lambda one: (one.name not in GEOMETRIC, one))
        self.numbers_P22 = torch.tensor(
            [[list(map(self.operations.index, pair)) for pair in stages] for stages in by_choice]
        )
        self.probabilities_P2 = torch.tensor(
            [[probability for _, probability, _ in stages] for stages in policies]
        )
        geometric = [one for one in self.operations if one.name in GEOMETRIC]
        self._geometric = len(geometric)
        maps = [self._pixel_map(operation, height, width) for operation in geometric]
        self._maps_GM = torch.stack(maps).to(device)

    def __call__(self, images_NCHW: torch.Tensor, choices_N5: torch.Tensor) -> torch.Tensor:
        """Return the images, uint8 with 1 or 3 channels, each as its choices say; same shape.

        `choices_N5`, int64 on the CPU, is as drawn within BOUNDS: chance c stands for the outcome
        c / CHANCES of torch.rand, sign 1 for a negative magnitude.
        """
        images_NCHW = images_NCHW.clone()
        for stage in (0, 1):
            self._act_(images_NCHW, self.chosen(choices_N5, stage))
        return images_NCHW

    def chosen(self, choices_N5: torch.Tensor, stage: int) -> torch.Tensor:
        """Return each image's number in `operations`; their count where it is left as it is."""
        policies_N, signs_N = choices_N5[:, 0], choices_N5[:, 3 + stage]
        outcomes_N = choices_N5[:, 1 + stage].to(torch.float32) / CHANCES
        acts_N = outcomes_N <= self.probabilities_P2[policies_N, stage]
        numbers_N = self.numbers_P22[policies_N, stage, signs_N]
        return torch.where(acts_N, numbers_N, len(self.operations))

    def _signed(self, name: str, level: int | None, height: int, width: int) -> list[Operation]:
        bins = 10  # torchvision's number of levels
        function, signed = self._torchvision._AUGMENTATION_SPACE[name]
        magnitudes = function(bins, height, width)
        magnitude = 0.0 if magnitudes is None else float(magnitudes[level])
        return [Operation(name, magnitude), Operation(name, -magnitude if signed else magnitude)]

    def _act_(self, images_NCHW: torch.Tensor, numbers_N: torch.Tensor) -> None:
        sorted_N, order_N = numbers_N.sort()
        # all geometric operations are one group
        groups_N = sorted_N.clamp(min=self._geometric - 1)
        groups, sizes = torch.unique_consecutive(groups_N, return_counts=True)
        both_2N = sent(torch.stack([sorted_N, order_N]), images_NCHW.device)
        parts = torch.split(both_2N, sizes.tolist(), dim=1)
        for group, (numbers, where) in zip(groups.tolist(), parts, strict=True):
            if group < self._geometric:
                result = self._moved(images_NCHW[where], numbers)
            elif group < len(self.operations):
                result = self._applied(images_NCHW[where], self.operations[group])
            else:
                continue
            images_NCHW.index_copy_(0, where, result)

    def _moved(self, images_NCHW: torch.Tensor, numbers_N: torch.Tensor) -> torch.Tensor:
        pixels_NCM = functional.pad(images_NCHW.flatten(2), [1, 0])
        maps_N1M = self._maps_GM[numbers_N][:, None]
        moved_NCM = pixels_NCM.gather(2, maps_N1M.expand(-1, images_NCHW.shape[1], -1))
        return moved_NCM.view_as(images_NCHW)

    def _applied(self, images_NCHW: torch.Tensor, operation: Operation) -> torch.Tensor:
        # one channel would be blurred by cuDNN, in TF32; several go another way, in full float32
        if operation.name == "Sharpness" and images_NCHW.shape[1] == 1:
            return self._torchvisions(images_NCHW.expand(-1, 3, -1, -1), operation)[:, :1]
        return self._torchvisions(images_NCHW, operation)

    def _pixel_map(self, operation: Operation, height: int, width: int) -> torch.Tensor:
        """For each pixel of the result which one it was, counted from 1; 0 is the black outside.

        On the CPU, where no lower precision can shift the grid.
        """
        pixels_M = torch.arange(1, height * width + 1, dtype=torch.float32)
        moved_1HW = self._torchvisions(pixels_M.view(1, height, width), operation)
        return moved_1HW.flatten().to(torch.int64)

    def _torchvisions(self, images: torch.Tensor, operation: Operation) -> torch.Tensor:
        ours = self._torchvision
        result: torch.Tensor = ours._apply_image_or_video_transform(
            images, operation.name, operation.magnitude, ours.interpolation, ours._fill
        )
        return result
