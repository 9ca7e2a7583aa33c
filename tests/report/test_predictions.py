"""predictions.npz: what is written comes back, small and whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tser_cli.errors import RunError
from tser_cli.report import predictions
from tser_cli.report.predictions import PREDICTIONS, read_predictions, write_predictions

LABELS = np.array([0, 1, 999, 65535])
AT_T = np.array([[0, 1], [1, 1], [7, 999], [0, 0]])
CUMULATIVE = np.array([[0, 0], [1, 1], [7, 7], [0, 65535]])


def test_classes_come_back(tmp_path: Path) -> None:
    write_predictions(tmp_path / PREDICTIONS, LABELS, AT_T, CUMULATIVE)
    found = read_predictions(tmp_path / PREDICTIONS)
    assert found is not None
    for array, written in (
        (found.labels_I, LABELS),
        (found.at_t_IT, AT_T),
        (found.cumulative_IT, CUMULATIVE),
    ):
        assert array.dtype == np.uint16
        assert array.tolist() == written.tolist()
    assert found.right().tolist() == [True, True, False, True]
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]


def test_the_same_classes_give_the_same_bytes(tmp_path: Path) -> None:
    write_predictions(tmp_path / "a.npz", LABELS, AT_T, CUMULATIVE)
    write_predictions(tmp_path / "b.npz", LABELS.astype(np.int32), AT_T, CUMULATIVE)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_ten_thousand_images_are_small(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    classes = generator.integers(0, 10, (10_000, 4))
    write_predictions(tmp_path / PREDICTIONS, classes[:, 0], classes, classes)
    assert (tmp_path / PREDICTIONS).stat().st_size < 100_000


def test_a_run_without_them(tmp_path: Path) -> None:
    assert read_predictions(tmp_path / PREDICTIONS) is None


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PREDICTIONS).write_bytes(content)
    with pytest.raises(RunError, match=r"predictions\.npz is damaged"):
        read_predictions(tmp_path / PREDICTIONS)


@pytest.mark.parametrize("label", [-1, 65536])
def test_a_class_that_does_not_fit_is_a_defect(tmp_path: Path, label: int) -> None:
    with pytest.raises(AssertionError):
        write_predictions(tmp_path / PREDICTIONS, np.array([label]), AT_T[:1], CUMULATIVE[:1])


def test_an_archive_that_would_unpack_to_gigabytes_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "MOST_BYTES", 1000)
    many = np.zeros(600, int)  # 1,200 bytes as uint16
    write_predictions(tmp_path / PREDICTIONS, many, many[:, None], many[:, None])
    with pytest.raises(RunError, match=r"would unpack to [\d,]+ bytes"):
        read_predictions(tmp_path / PREDICTIONS)
