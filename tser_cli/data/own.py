"""Images of your own: folders of image files, as ImageNet's, and NumPy's npz files.

A folder is DIR/train/CLASS/*.jpg with DIR/val/CLASS/*.jpg, or DIR/CLASS/*.jpg, of which a part is
split off for testing. What the network is shown (size, channels, mean and std) is measured on the
training images where settings say "auto"; the run keeps what came out. The fingerprint tells
whether two data sets hold the same images, wherever their files lie.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from tser_cli.base.errors import ConfigError, DataError, reason
from tser_cli.base.files import is_file, is_folder
from tser_cli.data.base import Dataset, DataSpec, TensorSource, given_path, split_off
from tser_cli.data.image_files import (
    SUFFIXES,
    header_fault,
    image_files,
    no_images,
    passed_over,
    read_image,
)
from tser_cli.data.loaders import evenly_spread
from tser_cli.data.transforms import fixed_resize
from tser_cli.settings import registry
from tser_cli.settings.config import AUTO, DataConfig

# Two folders of such names would become two classes, which a network tells apart at random.
SPLIT_WORDS = {"train", "training", "val", "valid", "validation", "test", "testing"}
IMAGENET_CLASSES = 1000
# of ImageNet's training images, as torchvision's pretrained models take them
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FOLDER_LAYOUT = (
    "It must hold train/CLASS/ and val/CLASS/, a folder for each class with its images "
    f"({', '.join(SUFFIXES)}) in it, or the class folders alone"
)


@dataclass(frozen=True, eq=False)
class FolderSource:
    """An ImageSource of image files below `folder`; `files` holds their relative paths.

    The paths are one array of bytes: as Python strings, ImageNet's would be copied into every
    worker's memory by counting their references.
    """

    folder: Path
    files: np.ndarray
    labels: torch.Tensor
    channels: int = 3

    def __len__(self) -> int:
        return len(self.files)

    def image(self, index: int) -> torch.Tensor:
        """Return the image as uint8 [channels, H, W].

        Raises DataError, which names the file, where it can't be read.
        """
        return self.image_as(index, self.channels)

    def image_as(self, index: int, channels: int) -> torch.Tensor:
        """Return the image with so many channels: 1 (grey) or 3 (RGB)."""
        return read_image(self.folder / self.name(index), channels)

    def name(self, index: int) -> str:
        """Return the path of an image below the folder."""
        return os.fsdecode(bytes(self.files[index]))

    def part(self, indices_P: torch.Tensor) -> FolderSource:
        """Return the images at these indices."""
        return replace(self, files=self.files[indices_P.numpy()], labels=self.labels[indices_P])


def imagefolder(config: DataConfig) -> Dataset:
    """Load images of your own, a subfolder a class, from train/ and val/ or without the two.

    Any sizes; 224 x 224 RGB for the network unless `config` says otherwise. Opens no image unless
    something is to be measured. Raises DataError where no folder is given, a class is empty, or
    train/ and val/ have different classes.
    """
    folder = given_path(config)
    if folder is None:
        raise DataError(
            f"{config.name} needs a folder; name it with --data-dir (or TSER_DATA_DIR, or data.dir "
            f"in a recipe). {FOLDER_LAYOUT}"
        )
    is_split = any(is_folder(folder / part) for part in ("train", "val"))
    others: Counter[str] = Counter()
    if is_split:
        classes, held_classes = (class_folders(folder / part) for part in ("train", "val"))
        if classes != held_classes:
            raise DataError(class_difference(folder, classes, held_classes, ("train", "val")))
        train, test = (_folder_source(folder / part, classes, others) for part in ("train", "val"))
    else:
        classes = class_folders(folder)
        whole = _folder_source(folder, classes, others)
        if config.test_fraction == 0.0:
            raise DataError(
                f"{folder} has no train/ and val/, and data.test_fraction = 0 leaves no image to "
                "test on: choose a fraction, as 0.2"
            )
        parts = split_off(whole.labels, config.test_fraction, "test", classes)
        train, test = map(whole.part, parts)
    own = DataSpec(config.name, 3, 224, 224, classes, IMAGENET_MEAN, IMAGENET_STD)
    spec, measured = _settled(config, own, train)
    names = () if is_split else tuple(map(test.name, range(len(test))))
    train, test = (replace(source, channels=spec.channels) for source in (train, test))
    notes = [passed_over(others)] if others else []
    # a folder of images alone has classes elsewhere, or none
    beside = [folder / "train", folder / "val"] if is_split else [folder]
    if loose := sum(name.lower().endswith(SUFFIXES) for f in beside for name in os.listdir(f)):  # noqa: PTH208
        notes.append(f"image files left out, beside the class folders of {folder}: {loose:,}")
    return Dataset(spec, train, test, measured, names, tuple(notes))


def check_files(dataset: Dataset) -> None:
    """Raise DataError, which names some, where image files are no images by their first bytes."""
    faults, count = [], 0
    for source in (dataset.train, dataset.test):
        if isinstance(source, FolderSource):
            count += len(source)
            paths = (source.folder / source.name(index) for index in range(len(source)))
            faults += [f"{path}: {fault}" for path in paths if (fault := header_fault(path))]
    if faults:
        more = f"; and {len(faults) - 5:,} more" if len(faults) > 5 else ""
        raise DataError(
            f"{len(faults):,} of {count:,} image files can't be read: "
            f"{'; '.join(faults[:5])}{more}. Replace them or remove them"
        )


def imagenet(config: DataConfig) -> Dataset:
    """ImageNet-1k: 1,000 classes, in the alphabetical order of their WordNet folders.

    Raises DataError as `imagefolder` does, and for another number of classes.
    """
    dataset = imagefolder(config)
    if dataset.spec.num_classes != IMAGENET_CLASSES:
        raise DataError(
            f"{config.dir} has {dataset.spec.num_classes} class folders, ImageNet has "
            f"{IMAGENET_CLASSES}. For other images use --dataset imagefolder"
        )
    return dataset


def class_folders(folder: Path, layout: str = FOLDER_LAYOUT) -> tuple[str, ...]:
    """Return the names of the folders in `folder`, sorted: two or more. Raises DataError."""
    try:
        names = sorted(
            entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."
        )
    except OSError as error:
        raise DataError(f"{folder} can't be listed: {reason(error)}. {layout}") from error
    if not names:
        raise DataError(f"{folder} has no class folders. {layout}")
    if len(names) == 1:
        raise DataError(
            f"{folder} has one class folder alone ({names[0]}): there is nothing to tell apart. If "
            f"the classes are folders inside that one, name it: --data-dir {folder / names[0]}"
        )
    if {name.lower() for name in names} <= SPLIT_WORDS:
        raise DataError(
            f"the folders in {folder} are called {' and '.join(names)}, which are no classes: call "
            "the one with training images train, the one with test images val"
        )
    return tuple(names)


def class_difference(
    folder: Path, first: Sequence[str], second: Sequence[str], names: tuple[str, str]
) -> str:
    """Return in words which classes one part of a folder has alone."""
    parts = []
    for present, absent, lacking in (
        (*names, set(first) - set(second)),
        (*names[::-1], set(second) - set(first)),
    ):
        if lacking:
            shown = ", ".join(sorted(lacking)[:5]) + (", ..." if len(lacking) > 5 else "")
            parts.append(f"{len(lacking)} of {present}/ are not in {absent}/ ({shown})")
    return f"the class folders of {folder} differ: {'; '.join(parts)}. Both must have the same"


def _folder_source(folder: Path, classes: tuple[str, ...], others: Counter[str]) -> FolderSource:
    files: list[bytes] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        here: Counter[str] = Counter()
        found = image_files(folder, name, here)
        if not found:
            raise no_images(folder / name, here)
        others += here
        files += found
        labels += [label] * len(found)
    return FolderSource(folder, np.array(files), torch.tensor(labels))


NPZ_LAYOUT = (
    "It must hold train_images, train_labels, test_images and test_labels: images as uint8, or as "
    "floats in 0..1, [M, H, W], [M, H, W, C] or [M, C, H, W] with 1 or 3 channels; labels as "
    "integers from 0 on, [M]"
)


def npz(config: DataConfig) -> Dataset:
    """Load the file `config.dir`; classes are called by their numbers.

    Images stay as they are; floats are rounded to 8 bits. Mean and std are measured on the
    training images unless `config` states them. Raises DataError, or ConfigError where mean and
    std do not go with the channels.
    """
    path = given_path(config)
    if path is None:
        raise DataError(f"npz needs a file; name it with --data-dir FILE.npz. {NPZ_LAYOUT}")
    arrays = npz_arrays(path, "images", NPZ_LAYOUT)
    train, test = (_npz_source(path, arrays, part) for part in ("train", "test"))
    classes = npz_classes(path, train, test)
    channels, height, width = train.image(0).shape
    found: dict[str, Any] = mean_and_std(torch.split(train.images_MCHW, 1000))
    measured = {key: found[key] for key in found if getattr(config, key) in ((), AUTO)}
    none, one = (0.0,) * channels, (1.0,) * channels
    spec = DataSpec("npz", channels, height, width, classes, none, one)
    kept = {f"data.{key}": value for key, value in measured.items()}
    return Dataset(_normalised_by(spec, config, measured), train, test, kept)


def npz_arrays(path: Path, kind: str, layout: str) -> dict[str, np.ndarray]:
    """Return the four arrays of an npz file, of "images" or of "frames". Raises DataError."""
    names = [f"{part}_{of}" for part in ("train", "test") for of in (kind, "labels")]
    savez = f"np.savez(FILE, {', '.join(f'{name}=...' for name in names)})"
    if is_folder(path):
        raise DataError(f"{path} is a folder: --dataset imagefolder reads a folder of images")
    if not is_file(path):
        raise DataError(f"{path} is no regular file; --data-dir names the npz file. {layout}")
    try:
        with path.open("rb") as stream:
            if stream.read(6) == b"\x93NUMPY":
                raise ValueError(f"it is a npy file, one array, and four are needed: {savez}")
        with zipfile.ZipFile(path) as archive:
            sizes = {Path(info.filename).stem: info.file_size for info in archive.infolist()}
        missing = [name for name in names if name not in sizes]
        if missing:
            held = ", ".join(list(sizes)[:8]) or "nothing"
            raise ValueError(f"it lacks {', '.join(missing)} and holds {held}. Save it so: {savez}")
        # asked first: a system short of memory would kill the process without a word
        needed, free = sum(sizes[name] for name in names), psutil.virtual_memory().available
        if needed > free:
            raise ValueError(f"it unpacks to {needed:,} bytes, and {free:,} are free in memory")
        arrays = {}
        with np.load(path, allow_pickle=False) as archive:  # pickled objects would run code
            for name in names:
                arrays[name] = archive[name]
        return arrays
    # a damaged file can make the parsers fail in any way
    except Exception as error:
        pickled = "allow_pickle" in str(error)
        why = f"{name} holds Python objects; save an array of numbers" if pickled else error
        raise DataError(f"{path} can't be read: {why}") from error


def _npz_source(path: Path, arrays: dict[str, np.ndarray], part: str) -> TensorSource:
    name = f"{part}_images"
    images = arrays[name]
    if fault := _shape_fault(images.shape):
        raise DataError(f"{path}: {name} have the shape {list(images.shape)}: {fault}")
    if images.ndim == 3:
        images = images[:, None]
    elif images.shape[-1] in (1, 3):
        images = images.transpose(0, 3, 1, 2)
    if fault := _values_fault(images):
        raise DataError(f"{path}: {name} {fault}")
    if images.dtype != np.uint8:
        images = np.rint(images * 255).astype(np.uint8)
    labels_M = npz_labels(path, part, arrays, images.shape)
    return TensorSource(torch.from_numpy(np.ascontiguousarray(images)), labels_M)


def npz_labels(
    path: Path, part: str, arrays: dict[str, np.ndarray], shape: tuple[int, ...]
) -> torch.Tensor:
    """Return the labels of the images or frames of that shape, int64 [M]. Raises DataError."""
    labels = arrays[f"{part}_labels"]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if fault := _labels_fault(labels, shape):
        raise DataError(f"{path}: {part}_labels {fault}")
    return torch.from_numpy(labels.astype(np.int64))


def _shape_fault(shape: tuple[int, ...]) -> str:
    """Return what is wrong with the shape of an array of images, "" for nothing."""
    if 0 in shape:
        return "there is none"
    if len(shape) == 2:
        return "an image is one row; reshape them to [M, H, W]"
    if len(shape) not in (3, 4):
        return "pass [M, H, W], [M, H, W, C] or [M, C, H, W]"
    if len(shape) == 4 and shape[1] not in (1, 3) and shape[3] not in (1, 3):
        rgba = "; of RGBA pass images[..., :3]" if shape[3] == 4 else ""
        return f"images have 1 or 3 channels, on the second axis or the last{rgba}"
    return ""


def _values_fault(images: np.ndarray) -> str:
    """Return what is wrong with pixels, which must be uint8 or floats in 0..1; "" for nothing."""
    kind, wanted = images.dtype, "pass uint8, or floats in 0..1"
    if kind == np.uint8:
        return ""
    if kind.kind not in "iuf":
        return f"are of type {kind}; {wanted}"
    least, most = images.min(), images.max()
    if not (np.isfinite(least) and np.isfinite(most)):  # one NaN makes both NaN
        bad = np.flatnonzero(~np.isfinite(images).all(axis=(1, 2, 3)))
        return f"hold NaN or infinity in {len(bad):,} images, first in image {bad[0]}"
    found = f"are {kind} with values from {least} to {most}"
    if least < 0:
        return f"{found}: normalised already? Undo that, and {wanted}"
    if kind.kind != "f" and most <= 255:
        return f"{found}: pass images.astype('uint8')"
    if kind.kind != "f" or most > 1:
        return f"{found}; {wanted}: divide by white's value (255, 65535)"
    # floats that were divided by 255 twice reach 1 of 255
    tiny = 0 < most * 255 < 2
    return f"{found}, of which 8 bits keep nothing: scale them to 0..1" if tiny else ""


def _labels_fault(labels: np.ndarray, shape: tuple[int, ...]) -> str:
    """Return what is wrong with labels, integers [M] for images of that shape; "" for nothing."""
    images, *sizes = shape
    if labels.ndim == 2 and len(labels) == images:
        return f"have the shape {list(labels.shape)}: of one-hot labels pass labels.argmax(1)"
    if labels.shape != (images,):
        return f"have the shape {list(labels.shape)}, for {images:,} images {sizes}"
    if labels.dtype.kind in "iu":
        return ""
    kind = {"f": "floats", "U": "strings"}.get(labels.dtype.kind, f"of type {labels.dtype}")
    few = ", ".join(map(str, np.unique(labels)[:2].tolist()))
    return f"are {kind}: {few}, ...; pass integers from 0"


def npz_classes(path: Path, train: TensorSource, test: TensorSource) -> tuple[str, ...]:
    """Return the classes of an npz file, called by their numbers. Raises DataError."""
    if train.image(0).shape != test.image(0).shape:
        raise DataError(
            f"{path}: its training images have the shape {list(train.image(0).shape)}, its test "
            f"images {list(test.image(0).shape)}; they must be alike"
        )
    present = sorted(set(train.labels.tolist()))
    if present != list(range(len(present))):
        raise DataError(
            f"{path}: train_labels hold {len(present)} classes, from {present[0]} to "
            f"{present[-1]}; pass integers from 0, with images of each"
        )
    if len(present) == 1:
        raise DataError(
            f"{path}: train_labels hold one class alone: there is nothing to tell apart"
        )
    unknown = sorted(set(test.labels.tolist()) - set(present))
    if unknown:
        raise DataError(f"{path}: test_labels hold {unknown[0]}, which train_labels do not")
    return tuple(str(label) for label in present)


SAMPLE = 2_000  # training images that are looked at: enough for four digits
LARGEST = 224  # a measured size is no larger than what networks for photographs take
DIGITS = 6


def _settled(
    config: DataConfig, own: DataSpec, train: FolderSource
) -> tuple[DataSpec, dict[str, Any]]:
    """Return `own` with the size, channels, mean and std of `config`, and what was measured.

    `own` holds where `config` says nothing. What was "auto" comes back by dotted key, for the run
    to keep. Raises ConfigError where mean or std have another number of values than there are
    channels.
    """
    found: dict[str, Any] = {}
    looked_at = evenly_spread(len(train), SAMPLE).tolist()
    if AUTO in (config.size, config.channels):
        found |= _size_and_channels(train.image_as(index, 3) for index in looked_at)
    size = found["size"] if config.size == AUTO else int(config.size)
    channels = found["channels"] if config.channels == AUTO else int(config.channels)
    spec = own
    if channels and channels != own.channels:
        # one channel of grey: the mean of the colours' constants
        mean, std = ((statistics.fmean(values),) * channels for values in (own.mean, own.std))
        spec = replace(spec, channels=channels, mean=mean, std=std)
    if size:
        # all of a small image counts: its shorter side becomes the input's, and only what is
        # left of the longer one is cropped
        spec = replace(spec, height=size, width=size, shorter=size)
    if AUTO in (config.mean, config.std):
        resize = fixed_resize(spec)
        images = (train.image_as(index, spec.channels) for index in looked_at)
        found |= mean_and_std(resize(image)[None] for image in images)
    measured = {key: found[key] for key in found if getattr(config, key) == AUTO}
    kept = {f"data.{key}": measured[key] for key in measured}
    return _normalised_by(spec, config, measured), kept


def _normalised_by(spec: DataSpec, config: DataConfig, measured: dict[str, Any]) -> DataSpec:
    """Return `spec` with mean and std: measured, of `config`, or its own. Raises ConfigError."""
    chosen = {}
    for key in ("mean", "std"):
        values = measured.get(key, getattr(config, key))
        if values and len(values) != spec.channels:
            raise ConfigError(
                f"data.{key} has {len(values)} values for {spec.channels} channels: write one for "
                "each, or auto"
            )
        chosen[key] = tuple(values or getattr(spec, key))
    return replace(spec, mean=chosen["mean"], std=chosen["std"])


def _size_and_channels(images: Iterable[torch.Tensor]) -> dict[str, int]:
    """Return the median of the shorter sides, at most LARGEST; 1 channel where no image has
    colour.
    """
    sides, is_grey = [], True
    for image_CHW in images:
        sides.append(min(image_CHW.shape[1:]))
        is_grey = is_grey and bool((image_CHW == image_CHW[:1]).all())
    return {"size": min(LARGEST, statistics.median_low(sides)), "channels": 1 if is_grey else 3}


def mean_and_std(batches: Iterable[torch.Tensor]) -> dict[str, list[float]]:
    """Return the mean and std over all pixels in 0..1, by channel, of uint8 [N, C, H, W] batches.

    A channel that is the same everywhere has std 1: its pixels become 0. Raises DataError where
    all of them are.
    """
    # counted, not summed: exact for any number of images, in one pass
    counts_C256: torch.Tensor | int = 0
    for images_NCHW in batches:
        channels = images_NCHW.transpose(0, 1).flatten(1)
        counts_C256 = counts_C256 + torch.stack(
            [torch.bincount(c, minlength=256) for c in channels]
        )
    assert isinstance(counts_C256, torch.Tensor)
    weights_C256 = counts_C256.double() / counts_C256.sum(1, keepdim=True)
    values_256 = torch.arange(256, dtype=torch.float64) / 255
    mean_C = weights_C256 @ values_256
    std_C = (weights_C256 * (values_256 - mean_C[:, None]) ** 2).sum(1).sqrt()
    if not std_C.any():
        raise DataError(
            "the training images are all of one colour: nothing can be learned from them. Of "
            "16-bit images the upper 8 bits count, and transparency is dropped: convert them first"
        )
    std_C[std_C == 0] = 1.0
    return {
        key: [round(v, DIGITS) for v in of.tolist()]
        for key, of in (("mean", mean_C), ("std", std_C))
    }


def fingerprint(dataset: Dataset) -> str:
    """Return a SHA-256 of the training and test images; "" for a data set that is always the same.

    Counted are the labels, and of images in memory the pixels, of those in files their names below
    the folder; also how the network is shown them: size, channels, mean and std. Where the folder
    or the npz file lies makes no difference.
    """
    spec = dataset.spec
    entry = registry.DATASETS.get(spec.name)
    if entry is not None and registry.is_built_in(entry.target) and not entry.own_images:
        return ""
    # names may hold bytes that are no UTF-8: folders are named by anyone
    made = hashlib.sha256("\0".join(spec.classes).encode(errors="surrogateescape"))
    # the same files shown otherwise train another network
    made.update(repr((spec.image_shape, spec.shorter, spec.mean, spec.std)).encode())
    for source in (dataset.train, dataset.test):
        made.update(source.labels.cpu().numpy().tobytes())
        if "files" in dataset.facts:  # events: what they are, however they are made into frames
            made.update(dataset.facts["files"].encode())
        elif isinstance(source, TensorSource):
            made.update(source.images_MCHW.cpu().contiguous().numpy().tobytes())
        elif isinstance(source, FolderSource):
            made.update(b"\0".join(source.files.tolist()))
    if "files" in dataset.facts:  # of all files together: which of them are tested on is beside it
        made.update("\0".join(dataset.test_images).encode(errors="surrogateescape"))
    return made.hexdigest()
