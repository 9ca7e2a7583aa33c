"""predictions.npz: which class a network answered for each image at each time step.

Small (a few bytes an image and step), and enough to compare two networks image by image. What early
exit would do with them is computed from the same file.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import ZipFile

from tser_cli.base.errors import RunError
from tser_cli.base.files import read_regular, write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PREDICTIONS = "predictions.npz"
HELD_OUT = "predictions_validation.npz"
# uint16 for all of them: two bytes an image and step
MOST_CLASSES = 2**16
MOST_BYTES = 2**30  # 1,000 steps of half a million images


@dataclass(frozen=True)
class Steps:
    """What stopping at each of T steps rests on, and what it takes.

    `confidence_IT`, float32: the largest probability of the mean of the logits of steps 1..t.
    `macs_T`, `accumulates_IT`, int64: multiply-accumulates and accumulates of an image up to and
    with step t. `narrow_IT`: the accumulates whose sums 16 bits hold; older files have none.
    `milliseconds_I`, float32: how long the events of a sample last, where frame t shows what came
    up to t / T of it.
    """

    confidence_IT: NDArray[np.float32]
    macs_T: NDArray[np.int64]
    accumulates_IT: NDArray[np.int64]
    narrow_IT: NDArray[np.int64] | None = None
    milliseconds_I: NDArray[np.float32] | None = None


@dataclass(frozen=True)
class Predictions:
    """Classes of I images, in the order of their split, at T steps; all of them uint16.

    `at_t_IT`: by the logits of step t alone. `cumulative_IT`: by the mean of steps 1..t. `steps`:
    None of a network that can't stop between its steps.
    """

    labels_I: NDArray[np.uint16]
    at_t_IT: NDArray[np.uint16]
    cumulative_IT: NDArray[np.uint16]
    steps: Steps | None = None

    def right(self) -> NDArray[np.bool_]:
        """Return whether the answer of all steps together is right, [I]."""
        right_I: NDArray[np.bool_] = self.cumulative_IT[:, -1] == self.labels_I
        return right_I


def write_predictions(
    path: Path,
    labels_I: NDArray[np.integer],
    at_t_IT: NDArray[np.integer],
    cumulative_IT: NDArray[np.integer],
    steps: Steps | None = None,
) -> None:
    """Write class indices of any integer type; the same ones give the same bytes. Raises RunError.

    `labels_I` [I]; `at_t_IT` and `cumulative_IT` [I, T].
    """
    import numpy as np

    arrays = {"labels_I": labels_I, "at_t_IT": at_t_IT, "cumulative_IT": cumulative_IT}
    assert at_t_IT.shape == cumulative_IT.shape == (len(labels_I), at_t_IT.shape[1])
    # a class that does not fit would wrap round to another one without a word
    for name, array in arrays.items():
        assert array.size == 0 or 0 <= array.min() <= array.max() < MOST_CLASSES, name
    # in memory first, so that the file is written whole
    buffer = io.BytesIO()
    small = {name: array.astype(np.uint16) for name, array in arrays.items()}
    more = (
        {} if steps is None else {k: array for k, array in vars(steps).items() if array is not None}
    )
    np.savez_compressed(buffer, allow_pickle=False, **small, **more)
    write_whole(path, buffer.getvalue())


def read_predictions(path: Path) -> Predictions | None:
    """Return what `path` holds; None where there is no such file, as in a teacher's run.

    Raises RunError for a damaged file.
    """
    import numpy as np

    if not path.is_file():
        return None
    try:
        content = read_regular(path, MOST_BYTES)
        with ZipFile(io.BytesIO(content)) as packed:
            # a small file may unpack into more than there is memory for
            if sum(member.file_size for member in packed.infolist()) > MOST_BYTES:
                raise ValueError(f"it unpacks into more than {MOST_BYTES:,} bytes")
        # a pickle could run code, and a run folder may come from anybody
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            steps = {f.name: stored[f.name] for f in fields(Steps) if f.name in stored}
            found = Predictions(
                stored["labels_I"],
                stored["at_t_IT"],
                stored["cumulative_IT"],
                Steps(**steps) if steps else None,
            )
        _check_shapes(found)
    except Exception as error:  # parsing runs into anything: bad zips, bad headers, no memory
        raise RunError(
            f"{path} is damaged ({error}). Remove it: the statistics then do without it"
        ) from error
    return found


def _check_shapes(found: Predictions) -> None:
    shape = found.cumulative_IT.shape
    alike = found.labels_I.shape == shape[:1] and found.at_t_IT.shape == shape
    if found.steps is not None:
        wanted = {"macs_T": shape[1:], "milliseconds_I": shape[:1]}
        given = ((k, a.shape) for k, a in vars(found.steps).items() if a is not None)
        alike = alike and all(of == wanted.get(name, shape) for name, of in given)
    # arrays of other images could be compared all the same, and say what is not true
    if len(shape) != 2 or not shape[1] or not alike:
        raise ValueError("its arrays are no images by steps")
    if any(array.dtype.kind not in "iu" for array in (found.labels_I, found.cumulative_IT)):
        raise ValueError("its classes are no integers")
