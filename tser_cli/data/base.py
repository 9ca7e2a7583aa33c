"""What a data set is: a description, and raw images to train and to test on, found by name.

A validation split is held out of the training images, as is a test split where there is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from tser_cli.base.errors import DataError, TserError
from tser_cli.settings import registry
from tser_cli.settings.config import DataConfig
from tser_cli.settings.plugins import last_line


@dataclass(frozen=True)
class DataSpec:
    """What models and transforms need to know of a data set.

    `height` and `width` (pixels) are those of the network's input. `mean` and `std`, one a
    channel, are those of the training images scaled to 0..1. `shorter`: what an image's shorter
    side is scaled to before the central crop; 0 means 256/224 of the input's, as for ImageNet.
    `frames`: time steps of a sample, which is then uint8 [T, C, H, W], of counts that the network
    is shown as they are; 0 for images.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shorter: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.channels:
            raise DataError(
                f"mean and std have {len(self.mean)} and {len(self.std)} numbers, for images of "
                f"{self.channels} channels"
            )

    @property
    def num_classes(self) -> int:
        """Return the number of classes, K."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the shape of one image, or of one of a sample's frames, (C, H, W)."""
        return (self.channels, self.height, self.width)

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Return the shape of a sample: (T, C, H, W) where it has a time axis, else (C, H, W)."""
        return (self.frames, *self.image_shape) if self.frames else self.image_shape


class ImageSource(Protocol):
    """Labelled images by index, without any transform. `labels` is int64 [M]."""

    @property
    def labels(self) -> torch.Tensor: ...

    def __len__(self) -> int: ...

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [C, H, W]; its size may differ from image to image.

        Where samples have a time axis it is uint8 [T, C, H, W], of one shape for all.

        Raises DataError where it can't be read.
        """


@dataclass(frozen=True, eq=False)
class TensorSource:
    """An ImageSource held in memory, on any device: `images_MCHW` uint8, `labels` int64 [M].

    Samples with a time axis are [M, T, C, H, W]. Raises DataError for anything else.
    """

    images_MCHW: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        images, labels = self.images_MCHW, self.labels
        if images.dtype != torch.uint8 or images.ndim not in (4, 5):
            raise DataError(
                f"images must be uint8 [M, C, H, W], not {images.dtype} {list(images.shape)}; of "
                "floats in 0..1 (255 * images).round().to(torch.uint8) makes them"
            )
        if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
            raise DataError(
                f"labels must be int64 [M], here [{len(images)}], not {labels.dtype} "
                f"{list(labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [C, H, W], or the sample as [T, C, H, W]."""
        return self.images_MCHW[index]


@dataclass(frozen=True)
class Dataset:
    """A data set. A validation split, where one is asked for, is a part of `train`.

    `measured`: what the training images gave for settings that are "auto", by dotted key.
    `test_images`: which images were split off for testing, where the data set did not say so.
    `notes`: what to say before something is trained on it. `facts`: what a run keeps of where its
    samples come from, in words by key; of events "files", a SHA-256 of all files and their names.
    """

    spec: DataSpec
    train: ImageSource
    test: ImageSource
    measured: Mapping[str, Any] = field(default_factory=dict)
    test_images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)


def load_dataset(config: DataConfig) -> Dataset:
    """Return the data set that `config` names. Raises DataError where it is missing or damaged.

    One of a plug-in is checked: labels in range, and the first image of each part.
    """
    entry = registry.lookup("data set", registry.DATASETS, config.name)
    made: Any
    if registry.is_built_in(entry.target):
        made = registry.load(entry.target)(config)
        assert isinstance(made, Dataset)
        return made
    try:
        made = registry.load(entry.target)(config)
        if not isinstance(made, Dataset):
            raise DataError(f"its function returns {type(made).__name__}, not a Dataset")
        if made.spec.frames and not entry.events:
            raise DataError("its samples have a time axis: register it with events=True")
        if made.spec.frames and config.frames not in (0, made.spec.frames):
            raise DataError(f"its samples have {made.spec.frames} frames, not {config.frames}")
        for name, source in (("training", made.train), ("test", made.test)):
            if problem := _problem(source, made.spec):
                raise DataError(f"its {name} images: {problem}")
        return made
    except TserError as error:
        raise DataError(f"data set {config.name}: {error}") from error
    # a plug-in's code may fail in any way
    except (Exception, SystemExit) as error:
        raise DataError(f"data set {config.name} can't be loaded: {last_line(error)}") from error


def _problem(source: ImageSource, spec: DataSpec) -> str:
    """Return in words what is wrong with a plug-in's labels or first image; "" for nothing."""
    labels, count = source.labels, len(source)
    if count == 0:
        return "there are none"
    if labels.dtype != torch.int64 or tuple(labels.shape) != (count,):
        return f"labels must be int64 [{count}], not {labels.dtype} {list(labels.shape)}"
    least, largest = int(labels.min()), int(labels.max())
    if least < 0 or largest >= spec.num_classes:
        return (
            f"labels go from {least} to {largest}; there are {spec.num_classes} classes, so that "
            f"they must lie in 0..{spec.num_classes - 1}"
        )
    image = source.image(0)
    # images in memory are not scaled to the network's input, those that are read one by one are
    shape, axes = spec.sample_shape, "[T, C, H, W]" if spec.frames else "[C, H, W]"
    sizes = shape if spec.frames or isinstance(source, TensorSource) else shape[:1]
    right = image.ndim == len(shape) and image.shape[: len(sizes)] == sizes
    if image.dtype == torch.uint8 and right:
        return ""
    return (
        f"the first is {image.dtype} {list(image.shape)}; they must be uint8 {axes}, here "
        f"{list(shape)}"
    )


def given_path(config: DataConfig) -> Path | None:
    """Return `config.dir` as a path, ~ expanded; None where it is "". Raises DataError."""
    if not config.dir:
        return None
    try:
        if "\0" in config.dir:
            raise ValueError("it has a NUL character")
        return Path(config.dir).expanduser()
    except (ValueError, RuntimeError) as error:
        raise DataError(f"data.dir = {config.dir!r} is no path: {error}. Write it out") from error


# not training.seed: runs that differ in their seed must be comparable on the same images
SPLIT_SEED = 0


def split_off(
    labels_M: torch.Tensor,
    fraction: float,
    part: str = "validation",
    classes: Sequence[str] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ascending indices, int64, of the training images and of the `part` held out.

    The part gets ceil(fraction * M) images, in each class as nearly the same fraction as whole
    images allow; the choice depends on the labels and the fraction alone. Raises DataError, which
    names data.`part`_fraction, where a class would have no image in one of the two; `classes` has
    the names for it.
    """
    indices_M = torch.arange(len(labels_M))
    if fraction == 0.0:
        return indices_M, indices_M[:0]
    from sklearn.model_selection import train_test_split

    counts = Counter(labels_M.tolist())
    names = {label: classes[label] if classes else str(label) for label in sorted(counts)}
    alone = [name for label, name in names.items() if counts[label] == 1]
    held = math.ceil(fraction * len(labels_M))
    try:
        # asked first: scikit-learn says it in words of its own
        if alone:
            listed = ", ".join(alone[:5]) + ", ..." * (len(alone) > 5)
            raise ValueError(f"each class needs two images, and there is one of {listed}")
        if min(held, len(labels_M) - held) < len(names):
            raise ValueError(
                f"{held} of {len(labels_M)} would be held out, and each of {len(names)} classes "
                "needs an image in both parts"
            )
        _, held_out = train_test_split(
            range(len(labels_M)),
            test_size=held,
            stratify=labels_M.numpy(),
            random_state=SPLIT_SEED,
        )
        is_held_out_M = torch.zeros(len(labels_M), dtype=torch.bool)
        is_held_out_M[torch.tensor(held_out)] = True
        # ascending, whatever scikit-learn's order is: neighbours on disk are read together
        training, kept_out = indices_M[~is_held_out_M], indices_M[is_held_out_M]
        # scikit-learn may leave a rare class out of one of the two
        for name, chosen in (("training", training), (part, kept_out)):
            missing = sorted(set(counts) - set(labels_M[chosen].tolist()))
            if missing:
                raise ValueError(f"class {names[missing[0]]} has no {name} image")
    except ValueError as error:
        what = "Add images of it" if alone else "Choose another fraction"
        instead = "or remove the class" if alone else "or add images"
        if part == "validation":
            instead = "or 0 for no validation split"
        raise DataError(
            f"data.{part}_fraction = {fraction} does not split the training images: {error}. "
            f"{what}, {instead}"
        ) from error
    return training, kept_out
