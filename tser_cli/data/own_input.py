"""The network's input for images of one's own: its size, channels, mean and std, measured once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import DataSpec
from tser_cli.data.transforms import fixed_resize
from tser_cli.errors import ConfigError, DataError
from tser_cli.sections import AUTO

# Of more training images so many are looked at, evenly spaced: enough for four digits.
SAMPLE = 2_000
# A measured size is no larger than what networks for photographs take.
LARGEST = 224
DIGITS = 6


def sample(images: int) -> list[int]:
    """Return the indices that are looked at: all, or SAMPLE of them, evenly spaced."""
    return [index * images // min(images, SAMPLE) for index in range(min(images, SAMPLE))]


def settle(
    config: DataConfig, own: DataSpec, images: int, read: Callable[[int, int], torch.Tensor]
) -> tuple[DataSpec, dict[str, Any]]:
    """Return `own` with the size, channels, mean and std of `config`, and what was measured.

    `own` holds where `config` says nothing. `read(index, channels)` is a training image, uint8
    [C, H, W]. What was "auto" comes back by dotted key, for the run to keep. Raises ConfigError
    where mean or std have another number of values than there are channels.
    """
    chosen = sample(images)
    found: dict[str, Any] = {}
    if AUTO in (config.size, config.channels):
        found |= _size_and_channels(read(index, 3) for index in chosen)
    size = found["size"] if config.size == AUTO else int(config.size)
    channels = found["channels"] if config.channels == AUTO else int(config.channels)
    channels = channels or own.channels
    spec = _with_input(own, size, channels)
    if AUTO in (config.mean, config.std):
        resize = fixed_resize(spec)
        found |= mean_and_std(resize(read(index, channels))[None] for index in chosen)
    measured = {key: found[key] for key in found if getattr(config, key) == AUTO}
    values = {key: measured.get(key, getattr(config, key)) for key in ("mean", "std")}
    return with_mean_and_std(spec, **values), {f"data.{key}": measured[key] for key in measured}


def with_mean_and_std(spec: DataSpec, mean: Any, std: Any) -> DataSpec:
    """Return `spec` with these; () leaves its own. Raises ConfigError."""
    for key, values in (("mean", mean), ("std", std)):
        if values and len(values) != spec.channels:
            raise ConfigError(
                f"data.{key} has {len(values)} values for {spec.channels} channels: write one for "
                "each, or auto"
            )
    return replace(spec, mean=tuple(mean or spec.mean), std=tuple(std or spec.std))


def _with_input(own: DataSpec, size: int, channels: int) -> DataSpec:
    """`own` at another size and with other channels; its mean and std hold if nothing else does."""
    if channels != own.channels:
        # one channel of grey: the mean of the colours' constants
        mean, std = ((statistics.fmean(values),) * channels for values in (own.mean, own.std))
        own = replace(own, channels=channels, mean=mean, std=std)
    if not size:
        return own
    # all of a small image counts: its shorter side becomes the input's, and only a rest is cropped
    return replace(own, height=size, width=size, shorter=size)


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
