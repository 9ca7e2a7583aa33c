"""`digits`: scikit-learn's 1,797 images of hand-written digits, 8 x 8; comes with scikit-learn.

Source: UCI, Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998).
"""

from __future__ import annotations

import numpy as np
import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import Dataset, DataSpec, TensorSource

TEST_IMAGES = 360
SPLIT_SEED = 0

SPEC = DataSpec(
    name="digits",
    channels=1,
    height=8,
    width=8,
    classes=tuple("0123456789"),
    # of the 1,437 training images
    mean=(0.305434,),
    std=(0.375957,),
)


def load(config: DataConfig) -> Dataset:
    """1,437 training and 360 test images, a fixed stratified split. Grey 0..16 becomes 0..255."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images_MHW = np.round(bunch.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(
        np.arange(len(images_MHW)),
        test_size=TEST_IMAGES,
        stratify=bunch.target,
        random_state=SPLIT_SEED,
    )

    def source(indices: np.ndarray) -> TensorSource:
        return TensorSource(
            torch.from_numpy(images_MHW[indices, None]),
            torch.from_numpy(bunch.target[indices].astype(np.int64)),
        )

    return Dataset(SPEC, source(train), source(test))
