"""Which images a run learns from and tests on: recorded in its folder, and held to."""

from __future__ import annotations

from tser_cli.data.base import Dataset
from tser_cli.data.fingerprint import fingerprint
from tser_cli.engine.runs.run_folder import IMAGES, Run
from tser_cli.engine.runtime.context import Context
from tser_cli.errors import DataError
from tser_cli.files import read_json, write_json

FILE = "split.json"
LIMIT = 2**28  # bytes


def keep_images(run: Run, context: Context) -> None:
    """Record which images the run has, or hold the data to what it began with. Raises DataError."""
    _keep_test_images(run, context)
    before, now = run.status().get(IMAGES), fingerprint(context.dataset)
    if before is None and now:
        run.update_status(**{IMAGES: now})
    elif before not in (None, now):
        raise DataError(
            f"{run.folder} began with other images than those of {context.dataset.spec.name} now: "
            "put them back, or begin a new run (--resume never)"
        )


def _keep_test_images(run: Run, context: Context) -> None:
    if not context.dataset.test_images:
        return
    if (run.folder / FILE).exists():
        check_test_images(run, context.dataset)
    else:
        write_json(run.folder / FILE, {"test_images": _names(context.dataset)})
        run.update_status(test_fraction=context.config.data.test_fraction)


def check_test_images(run: Run, dataset: Dataset) -> None:
    """Raise DataError where the data set would be tested on other images than the run's.

    Images that came or went move others over, so that what the run learned from would be tested.
    """
    if not dataset.test_images or not (run.folder / FILE).exists():
        return
    kept = read_json(run.folder / FILE, LIMIT, {"test_images": list}).get("test_images", [])
    now = _names(dataset)
    if kept != now:
        changed = sum(name not in now for name in kept)
        raise DataError(
            f"the folder of images is not the one of {run.folder}: {changed} of its {len(kept)} "
            f"test images ({FILE}) would now be others. Put the images back as they were, or train "
            "again (--resume never)"
        )


def _names(dataset: Dataset) -> list[str]:
    # as JSON can hold them
    return [name.encode(errors="replace").decode() for name in dataset.test_images]
