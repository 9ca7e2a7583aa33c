"""AutoAugment on whole batches: to each image exactly what torchvision does to it alone.

The policy learnt on CIFAR-10 (Cubuk et al., CVPR 2019, arXiv 1805.09501), its magnitudes and its
operations are those of torchvision.transforms.v2.AutoAugment, which is imported when it is used.
The images of a batch that get the same operation get it together, on whatever device they are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.nn import functional

from tser_cli.data.devices import CPU, sent

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
