"""`digits`: scikit-learn's 1,797 images of hand-written digits, 8 x 8; comes with scikit-learn.

Source: UCI, Optical Recognition of Handwritten Digits (E. Alpaydin and C. Kaynak, 1998).
"""

from __future__ import annotations

import base64
import importlib.util
from pathlib import Path

import numpy as np
import torch

from tser_cli.config import DataConfig
from tser_cli.data.base import Dataset, DataSpec, TensorSource

# Which images are for testing, a bit each: scikit-learn's train_test_split(range(1797),
# test_size=360, stratify=labels, random_state=0), written down so that it never changes.
TEST_IMAGES = (
    "000DtH6#!~00uz-lR^am8UP3Z03-"
    "k?1}qW)5CD`40FW6H1R(gJ0)Y^q00;_*AVd`;NkTxN3IG5AKm^zT0D*uY07wPI01!Y3pb!8BKu7>E5C8%W#0dZbB"
    "!mEir~y16rkDx<000XJKnMh&7)SyFKtaI(fCNBBgg0t|0u}&7fB-;3prjZIPymDrg<-"
    "}B5P%2(On|^31O|=(0SJNsfdDuN1HcFw000mU0RV&$pdkP=C@BQMM8JS(4gms#0D=IBBBnqrBm^M{s9=DQfuIZmf"
    "&xMk0XU=;00"
)

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
    table_M65 = _table()
    images_MHW = np.round(table_M65[:, :64] * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    bits = np.frombuffer(base64.b85decode(TEST_IMAGES), dtype=np.uint8)
    is_test_M = np.unpackbits(bits, count=len(table_M65)).astype(bool)

    def source(chosen_M: np.ndarray) -> TensorSource:
        return TensorSource(
            torch.from_numpy(images_MHW[chosen_M, None]),
            torch.from_numpy(table_M65[chosen_M, 64].astype(np.int64)),
        )

    return Dataset(SPEC, source(~is_test_M), source(is_test_M))


def _table() -> np.ndarray:
    """scikit-learn's table: 64 pixels and the label of each image, [1797, 65]."""
    found = importlib.util.find_spec("sklearn")
    assert found is not None and found.origin is not None, "it is a dependency"
    path = Path(found.origin).parent / "datasets" / "data" / "digits.csv.gz"
    # read without importing scikit-learn, which takes seconds
    if path.is_file():
        return np.loadtxt(path, delimiter=",")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target])
