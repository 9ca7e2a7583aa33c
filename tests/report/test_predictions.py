"""predictions.npz: what is written comes back, small and whole."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from tser_cli.base.errors import RunError
from tser_cli.report import predictions
from tser_cli.report.predictions import PREDICTIONS, Steps, read_predictions, write_predictions

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
    assert read_predictions(tmp_path / "none.npz") is None
    # the same classes, of whatever type, give the same bytes
    write_predictions(tmp_path / "b.npz", LABELS.astype(np.int32), AT_T, CUMULATIVE)
    assert (tmp_path / "b.npz").read_bytes() == (tmp_path / PREDICTIONS).read_bytes()


STEPS = Steps(
    np.array([[0.5, 0.9]] * 4, np.float32),
    np.array([7, 7]),
    np.arange(8).reshape(4, 2) * 2**33,
    np.arange(8).reshape(4, 2),
)


@pytest.mark.parametrize("steps", [STEPS, replace(STEPS, narrow_IT=None)], ids=["now", "older"])
def test_what_early_exit_needs_comes_back(tmp_path: Path, steps: Steps) -> None:
    write_predictions(tmp_path / PREDICTIONS, LABELS, AT_T, CUMULATIVE, steps)
    found = read_predictions(tmp_path / PREDICTIONS)
    assert found is not None and found.steps is not None
    for name, written in vars(steps).items():
        array = getattr(found.steps, name)
        if written is None:
            assert array is None
        else:
            assert (array.dtype, array.tolist()) == (written.dtype, written.tolist())
    write_predictions(tmp_path / PREDICTIONS, LABELS, AT_T, CUMULATIVE)
    found = read_predictions(tmp_path / PREDICTIONS)
    assert found is not None and found.steps is None


@pytest.mark.parametrize(
    "steps",
    [
        replace(STEPS, macs_T=np.array([7])),
        replace(STEPS, confidence_IT=STEPS.confidence_IT[:3]),
        replace(STEPS, accumulates_IT=STEPS.accumulates_IT.T),
        replace(STEPS, narrow_IT=STEPS.macs_T),
    ],
)
def test_steps_of_other_images_are_damage(tmp_path: Path, steps: Steps) -> None:
    write_predictions(tmp_path / PREDICTIONS, LABELS, AT_T, CUMULATIVE, steps)
    with pytest.raises(RunError, match="its arrays are no images by steps"):
        read_predictions(tmp_path / PREDICTIONS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"macs_T": STEPS.macs_T}, r"predictions\.npz is damaged"),  # a part of the steps
        ({"labels_I": LABELS.astype(str), "cumulative_IT": CUMULATIVE.astype(str)}, "no integers"),
    ],
)
def test_arrays_that_are_none_of_ours_are_damage(
    tmp_path: Path, changes: dict[str, np.ndarray], said: str
) -> None:
    arrays = {"labels_I": LABELS, "at_t_IT": AT_T, "cumulative_IT": CUMULATIVE}
    np.savez(tmp_path / PREDICTIONS, **{**arrays, **changes})
    with pytest.raises(RunError, match=said):
        read_predictions(tmp_path / PREDICTIONS)


@pytest.mark.parametrize("content", [b"", b"not a zip file", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / PREDICTIONS).write_bytes(content)
    with pytest.raises(RunError, match=r"predictions\.npz is damaged"):
        read_predictions(tmp_path / PREDICTIONS)


@pytest.mark.parametrize("label", [-1, 65536])
def test_a_class_that_does_not_fit_is_a_defect(tmp_path: Path, label: int) -> None:
    with pytest.raises(AssertionError):
        write_predictions(tmp_path / PREDICTIONS, np.array([label]), AT_T[:1], CUMULATIVE[:1])


def test_what_unpacks_into_too_much_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes = np.random.default_rng(0).integers(0, 10, (10_000, 4))
    write_predictions(tmp_path / PREDICTIONS, classes[:, 0], classes, classes)
    assert (tmp_path / PREDICTIONS).stat().st_size < 100_000  # and so small as a rule
    zeros = np.zeros((10_000, 4), np.uint16)
    write_predictions(tmp_path / PREDICTIONS, zeros[:, 0], zeros, zeros)
    assert (tmp_path / PREDICTIONS).stat().st_size < 10_000
    monkeypatch.setattr(predictions, "MOST_BYTES", 100_000)
    with pytest.raises(RunError, match="unpacks into more than 100,000 bytes"):
        read_predictions(tmp_path / PREDICTIONS)


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': '<u2', 'fortran_order': False, 'shape': (4611686018427387904,), }",
        b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }",
        b"__import__('os').system('touch ran')",
        b"((((((((((((",
    ],
)
def test_a_hostile_header_is_damage_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, header: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    with ZipFile(tmp_path / PREDICTIONS, "w") as packed:
        for name in ("labels_I", "at_t_IT", "cumulative_IT"):
            text = header.ljust(117) + b"\n"
            packed.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + bytes([118, 0]) + text)
    with pytest.raises(RunError, match="is damaged"):
        read_predictions(tmp_path / PREDICTIONS)
    assert [path.name for path in tmp_path.iterdir()] == [PREDICTIONS]
