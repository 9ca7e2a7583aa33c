"""predictions.npz: which class a network answered for each image at each time step.

Small (a few bytes an image), and enough to compare two networks image by image.
"""

from __future__ import annotations

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile, ZipFile

from tser_cli.errors import RunError
from tser_cli.files import write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREDICTIONS = "predictions.npz"
MOST_CLASSES = 2**16
MOST_BYTES = 2**30  # unpacked


@dataclass(frozen=True)
class Predictions:
    """Classes of I images, in the order of the test set, at T steps; all of them uint16.

    `at_t_IT`: by the logits of step t alone. `cumulative_IT`: by the mean of steps 1..t.
    """

    labels_I: NDArray[np.uint16]
    at_t_IT: NDArray[np.uint16]
    cumulative_IT: NDArray[np.uint16]

    def right(self) -> NDArray[np.bool_]:
        """Return whether the answer of all steps together is right, [I]."""
        right_I: NDArray[np.bool_] = self.cumulative_IT[:, -1] == self.labels_I
        return right_I


def write_predictions(
    path: Path,
    labels_I: NDArray[np.integer],
    at_t_IT: NDArray[np.integer],
    cumulative_IT: NDArray[np.integer],
) -> None:
    """Write class indices of any integer type; the same ones give the same bytes. Raises RunError.

    `labels_I` [I]; `at_t_IT` and `cumulative_IT` [I, T].
    """
    import numpy as np

    arrays = {"labels_I": labels_I, "at_t_IT": at_t_IT, "cumulative_IT": cumulative_IT}
    assert at_t_IT.shape == cumulative_IT.shape == (len(labels_I), at_t_IT.shape[1])
    for name, array in arrays.items():
        assert array.size == 0 or 0 <= array.min() <= array.max() < MOST_CLASSES, name
    buffer = io.BytesIO()
    small = {name: array.astype(np.uint16) for name, array in arrays.items()}
    np.savez_compressed(buffer, allow_pickle=False, **small)
    write_whole(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions | None:
    """Return what `path` holds; None where there is no such file, as in runs of older versions.

    Raises RunError for a damaged file.
    """
    import numpy as np

    if not path.is_file():
        return None
    try:
        content = io.BytesIO(path.read_bytes())
        _check_size(content)
        with np.load(content, allow_pickle=False) as stored:
            found = Predictions(stored["labels_I"], stored["at_t_IT"], stored["cumulative_IT"])
        _check_shapes(found)
    except (OSError, EOFError, ValueError, KeyError, BadZipFile, zlib.error) as error:
        raise RunError(
            f"{path} is damaged ({error}). Remove it: the statistics then do without it"
        ) from error
    return found


def _check_size(content: io.BytesIO) -> None:
    # a small file can hold zeros by the gigabyte
    with ZipFile(content) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > MOST_BYTES:
        raise ValueError(f"it would unpack to {unpacked:,} bytes")


def _check_shapes(found: Predictions) -> None:
    shape = found.cumulative_IT.shape
    alike = found.labels_I.shape == shape[:1] and found.at_t_IT.shape == shape
    if len(shape) != 2 or not shape[1] or not alike:
        raise ValueError("its arrays are no images by steps")
