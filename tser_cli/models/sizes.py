"""The sizes of the networks in `models/zoo.py`: of each a class of [model], read without torch.

The defaults are the papers' for images of 32 x 32: MS-ResNet (Hu et al., arXiv 2112.08954),
Spikformer-4-384 (Zhou et al., ICLR 2023, arXiv 2209.15425), SDT-2-512 (Yao et al., NeurIPS 2023,
arXiv 2307.01694), QKFormer (Zhou et al., NeurIPS 2024, arXiv 2403.16552) and Max-Former (arXiv
2505.18608) of 4 blocks and width 384. The tiny ones are ours, for small images and tests.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from tser_cli.base.errors import ConfigError
from tser_cli.settings.config import OwnSizes, Whole

Width = Annotated[Whole, Field(ge=8, le=8192)]
Few = Annotated[Whole, Field(ge=1, le=128)]  # blocks of a stage, or heads
Three = tuple[Few, Few, Few]


class MsResNet18(OwnSizes):
    """`base_channels`: width of the first stage, doubled by each other; `layers`: their blocks."""

    base_channels: Width = 64
    layers: tuple[Few, Few, Few] | tuple[Few, Few, Few, Few] = (2, 2, 2, 2)


class MsResNet34(MsResNet18):
    """The same, deeper."""

    layers: tuple[Few, Few, Few] | tuple[Few, Few, Few, Few] = (3, 4, 6, 3)


class MsResNetTiny(MsResNet18):
    """A block in each of three stages."""

    base_channels: Width = 32
    layers: tuple[Few, Few, Few] | tuple[Few, Few, Few, Few] = (1, 1, 1)


class TransformerSizes(OwnSizes):
    """Base of all transformers, which have patches in place of a stem.

    `embed_dims`: width of the last block, of which the entry makes an eighth first.
    """

    embed_dims: Width = 384

    @field_validator("stem")
    @classmethod
    def _stem(cls, stem: str) -> str:
        # a setting without effect would be recorded as if it had one
        if stem != "auto":
            raise ValueError("a transformer has patches and no stem: leave it out")
        return stem

    @field_validator("embed_dims")
    @classmethod
    def _eighths(cls, width: int) -> int:
        if width % 8:
            raise ValueError(f"{width} is not divisible by 8: try {width - width % 8}")
        return width


def check_heads(width: int, heads: int) -> None:
    """Raise ValueError where `heads` do not share `width` channels alike."""
    if width % heads:
        fitting = [number for number in (1, 2, 3, 4, 6, 8, 12, 16) if width % number == 0]
        raise ValueError(
            f"{heads} heads can't share {width} channels alike; these can: "
            + ", ".join(map(str, fitting))
        )


class OfEqualBlocks(TransformerSizes):
    """One width for all blocks: `depths` of them, each with `num_heads`."""

    num_heads: Few = 8
    depths: Few = 2

    @model_validator(mode="after")
    def _heads(self) -> OfEqualBlocks:
        check_heads(self.embed_dims, self.num_heads)
        return self


class SpikformerSizes(OfEqualBlocks):
    """`patch_size`: side of a token in pixels; the class has these two."""

    num_heads: Few = 12
    depths: Few = 4
    patch_size: Literal[4, 16] = 4

    def check_image(self, height: int, width: int) -> None:
        """Raise ConfigError for images that patches do not cover."""
        if height % self.patch_size or width % self.patch_size:
            fitting = [size for size in (4, 16) if height % size == 0 and width % size == 0]
            fits = f"{fitting[0]} does" if fitting else "nor does the other that there is, 4 or 16"
            raise ConfigError(
                f"model.patch_size = {self.patch_size} does not divide images of {height} x "
                f"{width}; {fits}"
            )


class SpikformerTiny(SpikformerSizes):
    """A block of 64 channels."""

    embed_dims: Width = 64
    num_heads: Few = 4
    depths: Few = 1


class SdtSizes(OfEqualBlocks):
    """`pooling_stat`: after which of the entry's four convolutions a max-pool halves the map."""

    embed_dims: Width = 512
    pooling_stat: Annotated[str, Field(pattern="^[01]{4}$")] = "0011"

    def check_image(self, height: int, width: int) -> None:
        """Raise ConfigError for images with fewer pixels a side than a token has."""
        pools, most = self.pooling_stat.count("1"), min(height, width).bit_length() - 1
        if pools > most:
            raise ConfigError(
                f"model.pooling_stat = {self.pooling_stat}: {pools} pools make tokens of "
                f"{2**pools} x {2**pools} pixels, larger than images of {height} x {width}; at "
                f"most {most} fit, as in {'1' * most:0>4}"
            )


class SdtTiny(SdtSizes):
    """Two blocks of 96 channels."""

    embed_dims: Width = 96


class MaxformerSizes(TransformerSizes):
    """`depths`: blocks of the three stages, of a quarter, a half and all of `embed_dims`.

    The class has eight heads.
    """

    depths: Three = (1, 1, 2)


class MaxformerTiny(MaxformerSizes):
    """A block of 16, 32 and 64 channels."""

    embed_dims: Width = 64
    depths: Three = (1, 1, 1)


class QkformerSizes(MaxformerSizes):
    """`num_heads`: of the three stages.

    The entry of spikingjelly's class, which is the one for ImageNet, makes tokens of 4 x 4 pixels;
    the authors' for CIFAR keeps single pixels.
    """

    num_heads: Three = (8, 8, 8)

    @model_validator(mode="after")
    def _heads(self) -> QkformerSizes:
        for part, heads in zip((4, 2, 1), self.num_heads, strict=True):
            check_heads(self.embed_dims // part, heads)
        return self


class QkformerTiny(QkformerSizes):
    """A block of 32, 64 and 128 channels."""

    embed_dims: Width = 128
    num_heads: Three = (2, 2, 4)
    depths: Three = (1, 1, 1)
