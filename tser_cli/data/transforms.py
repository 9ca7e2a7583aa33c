"""From raw images to the network's input: crop, flip, AutoAugment, normalise, erase, mix.

Every random choice is a pure function of (seed, epoch), of (seed, epoch, image), or, where images
are mixed, of (seed, epoch, step). None depends on a generator's history, so that neither the number
of workers and processes nor a resume in mid-epoch changes what an image looks like. Crop, flip,
normalise and Cutout act on whole batches, on the device where the images lie. Resizing, AutoAugment
or RandAugment, and random erasing are torchvision's, which is imported when it is used, and act on
one image after the other, on the CPU. MixUp and CutMix are torchvision's too, on whole batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tser_cli.base.errors import ConfigError
from tser_cli.data.base import DataSpec, ImageSource, TensorSource
from tser_cli.settings.config import AugmentConfig

CPU = torch.device("cpu")
# torchvision's evaluation of ImageNet: the shorter side to 256, then the central 224
RESIZE_RATIO = 256 / 224
ImageTransform = Callable[[Tensor], Tensor]
# images [N, C, H, W] and labels [N], mixed with those before them: labels [N, K], if mixed at all
BatchTransform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pipeline:
    """All transforms of one split, on the device where the source's images lie.

    `resize` and `policy` act on single uint8 images, `erase` on single normalised ones, `mix` on
    batches. Crop, flip, policy, erasing, Cutout and mixing come as `augment` says, in this order.
    """

    source: ImageSource
    spec: DataSpec
    augment: AugmentConfig
    seed: int
    resize: ImageTransform | None = None
    policy: ImageTransform | None = None
    erase: ImageTransform | None = None
    mix: BatchTransform | None = None

    def __call__(self, epoch: int, indices: Sequence[int]) -> Tensor:
        """Return the images at `indices` as in `epoch`, normalised float32 [N, C, H, W].

        Samples with a time axis come as counts, float32 [N, T, C, H, W]. On one device a pure
        function of (seed, epoch, index). Raises DataError for an unreadable image.
        """
        indices_N = sent(torch.tensor(indices), device_of(self.source))
        if self.resize is None and isinstance(self.source, TensorSource):
            images_NCHW = self.source.images_MCHW[indices_N]
        else:
            read = (self.source.image(index) for index in indices)
            images_NCHW = self._one_by_one(self.resize, Draw.RESIZE, epoch, indices, read)
        # steps and channels in one axis: a sample is cut and turned alike at all its steps
        axes, images_NCHW = images_NCHW.shape[1:-2], images_NCHW.flatten(1, -3)
        images_NCHW = self._cropped(images_NCHW, epoch, indices_N)
        images_NCHW = self._one_by_one(self.policy, Draw.POLICY, epoch, indices, images_NCHW)
        images_NCHW = as_shown(images_NCHW, self.spec)
        images_NCHW = self._one_by_one(self.erase, Draw.ERASE, epoch, indices, images_NCHW)
        size = self.augment.cutout
        if size:
            # last: the square must be 0 in what the network sees, and no other step may change it
            bounds = (self.spec.height - size + 1, self.spec.width - size + 1)
            cutout_(images_NCHW, self._draws(Draw.CUTOUT, epoch, indices_N, bounds), size)
        return images_NCHW.view(-1, *axes, *images_NCHW.shape[-2:])

    def mixed(
        self, epoch: int, step: int, images_NCHW: Tensor, labels_N: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the images and labels of a step, each mixed with the one before it in the batch.

        The labels are then shares of the classes, [N, K]; [N] where this batch is not mixed. All
        images of a step have the same share of the other one, whichever process has them.
        """
        assert self.mix is not None, "only epochs that mix ask for it"
        with isolated():
            torch.default_generator.manual_seed(image_seed(Draw.MIX, self.seed, epoch, step))
            # a sample's steps, where it has its own, in one axis with its channels: mixed alike
            mixed_NCHW, labels = self.mix(images_NCHW.flatten(1, -3), labels_N)
            return mixed_NCHW.view(images_NCHW.shape), labels

    def _one_by_one(
        self,
        transform: ImageTransform | None,
        draw: Draw,
        epoch: int,
        indices: Sequence[int],
        images: Iterable[Tensor],
    ) -> Tensor:
        """Return the images, each transformed under a seed of its own."""
        if transform is None:
            return images if isinstance(images, Tensor) else torch.stack(list(images))
        made = []
        with isolated():
            for index, image_CHW in zip(indices, images, strict=True):
                torch.default_generator.manual_seed(image_seed(draw, self.seed, epoch, index))
                made.append(transform(image_CHW))
        return torch.stack(made)

    def _cropped(self, images_NCHW: Tensor, epoch: int, indices_N: Tensor) -> Tensor:
        padding = 0 if self.augment.random_resized_crop else self.augment.crop_padding
        if not padding and not self.augment.flip:
            return images_NCHW
        offsets_N2 = self._draws(Draw.CROP, epoch, indices_N, (2 * padding + 1,) * 2)
        sides = 2 if self.augment.flip else 1
        flips_N = self._draws(Draw.FLIP, epoch, indices_N, (sides,))[:, 0] == 1
        return crop_flip(images_NCHW, offsets_N2, flips_N, padding)

    def _draws(self, draw: Draw, epoch: int, indices_N: Tensor, bounds: tuple[int, ...]) -> Tensor:
        count, device = len(self.source), indices_N.device
        return table(draw, self.seed, epoch, count, bounds, device)[indices_N].long()


def evaluation_pipeline(source: ImageSource, spec: DataSpec) -> Pipeline:
    """Return the deterministic transforms: resize and centre crop where sizes vary; normalise."""
    return Pipeline(source, spec, AugmentConfig(), 0, _resize_of(source, spec))


def training_pipeline(
    source: ImageSource, spec: DataSpec, augment: AugmentConfig, seed: int
) -> Pipeline:
    """Return the transforms of training; `augment` has been checked."""
    resize = _resize_of(source, spec)
    policy: ImageTransform | None = None
    erase: ImageTransform | None = None
    mix: BatchTransform | None = None
    if augment.one_by_one or augment.mixes(0):
        from torchvision.transforms import v2

        if augment.random_resized_crop:
            resize = v2.RandomResizedCrop([spec.height, spec.width])
        if augment.autoaugment != "none":
            # the policy learnt on CIFAR-10: Cubuk et al., CVPR 2019, arXiv 1805.09501
            policy = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
        if augment.randaugment_ops:  # Cubuk et al., 2019, arXiv 1909.13719
            policy = v2.RandAugment(augment.randaugment_ops, augment.randaugment_magnitude)
        if augment.random_erasing:  # Zhong et al., AAAI 2020, arXiv 1708.04896; filled with 0
            erase = v2.RandomErasing(augment.random_erasing)
        # Zhang et al., ICLR 2018, arXiv 1710.09412; Yun et al., ICCV 2019, arXiv 1905.04899
        alphas = {v2.MixUp: augment.mixup, v2.CutMix: augment.cutmix}
        kinds = [
            kind(alpha=alpha, num_classes=spec.num_classes)
            for kind, alpha in alphas.items()
            if alpha
        ]
        if kinds:
            mix = v2.RandomApply([v2.RandomChoice(kinds)], augment.mix_probability)
    return Pipeline(source, spec, augment, seed, resize, policy, erase, mix)


def _resize_of(source: ImageSource, spec: DataSpec) -> ImageTransform | None:
    """Return how samples get the network's size; None where all have it."""
    alike = spec.frames or isinstance(source, TensorSource)
    return None if alike else fixed_resize(spec)


def fixed_resize(spec: DataSpec) -> ImageTransform:
    """Return the resizing of evaluation: the shorter side scaled, then the central crop."""
    from torchvision.transforms import v2

    size = [spec.height, spec.width]
    shorter = spec.shorter or round(min(size) * RESIZE_RATIO)
    transform: ImageTransform = v2.Compose([v2.Resize(shorter), v2.CenterCrop(size)])
    return transform


def check_augmentation(augment: AugmentConfig, spec: DataSpec) -> None:
    """Raise ConfigError for a Cutout or a padding that could hide all of an image.

    Also for what counts of events can't take: resizing, and operations on colours.
    """
    for_images = ("random_resized_crop", "autoaugment", "randaugment_ops")
    stated = [key for key in for_images if getattr(augment, key) != getattr(AugmentConfig(), key)]
    if spec.frames and stated:
        raise ConfigError(
            f"augment.{stated[0]} is for images, and the samples of {spec.name} are counts of "
            "events: flip, crop_padding, cutout, random_erasing, mixup and cutmix serve"
        )
    side = min(spec.height, spec.width)
    for key, pixels in (("cutout", augment.cutout), ("crop_padding", augment.crop_padding)):
        if pixels >= side:
            raise ConfigError(
                f"augment.{key} = {pixels} can hide all of an image: those of {spec.name} have "
                f"{spec.height} x {spec.width} pixels; set it below {side}"
            )


def is_costly(source: ImageSource, augment: AugmentConfig, device: torch.device) -> bool:
    """Return whether training on `device` would wait for these images if no workers made them.

    Files are read and images resized one by one. AutoAugment and its like take a core some
    tenths of a millisecond an image: little while the CPU trains, too long while a GPU does.
    """
    if augment.random_resized_crop or not isinstance(source, TensorSource):
        return True
    return augment.one_by_one and device_of(source).type != device.type


def as_shown(images: Tensor, spec: DataSpec) -> Tensor:
    """Return images as a network is shown them: normalised, counts of events as they are."""
    if spec.frames:
        return images.to(torch.float32)  # no event stays 0
    return normalise(images, spec.mean, spec.std)


def normalise(images_NCHW: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 images as float32: (image / 255 - mean) / std, by channel."""
    mean_C11, std_C11 = (_channels(tuple(values), images_NCHW.device) for values in (mean, std))
    # in place and in this order: another one rounds otherwise
    return images_NCHW.to(torch.float32).div_(255.0).sub_(mean_C11).div_(std_C11)


# moved once: a copy to a GPU from memory that is not pinned waits for all that the GPU has to do
@lru_cache(maxsize=8)
def _channels(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def crop_flip(images_NCHW: Tensor, offsets_N2: Tensor, flips_N: Tensor, padding: int) -> Tensor:
    """Pads with `padding` pixels of 0, crops back to size, flips left to right where `flips_N`.

    `offsets_N2` int64 is each crop's top and left in the padded image, 0..2 * padding;
    `flips_N` is bool. Equal to F.pad, then x[:, top:top + H, left:left + W], then flip(-1).
    """
    height, width = images_NCHW.shape[-2:]
    padded = F.pad(images_NCHW, [padding] * 4)
    # all windows as a view, of which each image picks one: no loop, and one copy
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    images_N = torch.arange(len(padded), device=padded.device)
    cropped_NCHW = windows[images_N, :, offsets_N2[:, 0], offsets_N2[:, 1]]
    return torch.where(flips_N[:, None, None, None], cropped_NCHW.flip(-1), cropped_NCHW)


def cutout_(images_NCHW: Tensor, corners_N2: Tensor, size: int) -> Tensor:
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


class Draw(IntEnum):
    """Independent uses of one (seed, epoch). The numbers decide what is drawn: keep them."""

    ORDER = 1
    CROP = 2
    FLIP = 3
    CUTOUT = 4
    RESIZE = 5
    POLICY = 6
    ERASE = 7
    MIX = 8


def permutation(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order of `count` images in an epoch, int64 [count]."""
    rng = np.random.default_rng([Draw.ORDER, seed, epoch])
    return torch.from_numpy(rng.permutation(count))


@lru_cache(maxsize=8)
def table(
    draw: Draw,
    seed: int,
    epoch: int,
    count: int,
    bounds: tuple[int, ...],
    device: torch.device = CPU,
) -> Tensor:
    """Uniform draws for each image, int32 [count, len(bounds)]; column i is in 0..bounds[i]-1.

    Drawn on the CPU, whatever the device. The result is cached: do not write to it.
    """
    # for all images at once: an image has the same draws whichever process asks for it
    rng = np.random.default_rng([draw, seed, epoch])
    draws = rng.integers(0, bounds, size=(count, len(bounds)))
    return sent(torch.from_numpy(draws.astype(np.int32)), device)


def image_seed(draw: Draw, seed: int, epoch: int, index: int) -> int:
    """Return a 63-bit seed for one image, or one step, mixed by NumPy's SeedSequence."""
    sequence = np.random.SeedSequence([draw, seed, epoch, index])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


@contextmanager
def isolated() -> Iterator[None]:
    """Inside, torch's default generator may be seeded at will; its state is put back after.

    torchvision.transforms.v2 takes no generator: it draws from this one alone. Torch has one thread
    inside: on single images several only wait for one another.
    """
    state, threads = torch.default_generator.get_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.default_generator.set_state(state)


# of the free memory: the rest is for the networks, whose need is not known yet
LARGEST_SHARE = 1 / 4


def placed(source: ImageSource, device: torch.device) -> ImageSource:
    """Return the same images and labels on a CUDA `device`, if they are in memory and fit there.

    Else, and for a device of any other kind, `source` as it is.
    """
    if device.type != "cuda" or not isinstance(source, TensorSource):
        return source
    free, _ = torch.cuda.mem_get_info(device)
    if source.images_MCHW.nbytes > LARGEST_SHARE * free:
        return source
    return TensorSource(source.images_MCHW.to(device), source.labels.to(device))


def device_of(source: ImageSource) -> torch.device:
    """Return where the images lie; those that are read from files come on the CPU."""
    return source.images_MCHW.device if isinstance(source, TensorSource) else CPU


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on `device`, without waiting for what the device still has to do."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
