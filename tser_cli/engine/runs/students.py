"""Trained students that come with the package: listed, and copied by name to where runs are.

Each is a run's folder, `recipes/DATASET/students/NAME`, with weights in half precision.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tser_cli.base import files
from tser_cli.base.errors import CheckpointError, warn_once
from tser_cli.engine.runs.folder import MODEL_FILE, PACKAGED, Run
from tser_cli.engine.runs.record import read_record
from tser_cli.settings import recipe

STATUS = "status.json"


def available() -> list[str]:
    """Return the names of the packaged students, such as `fashion-mnist/sew_resnet20`."""
    found = recipe.recipes_dir().glob(f"*/students/*/{MODEL_FILE}")
    return sorted(f"{path.parts[-4]}/{path.parts[-2]}" for path in found)


def packaged(name: str) -> Run:
    """Return the run's folder of a packaged student; it may not be written to."""
    dataset, student = name.split("/")
    return Run(recipe.recipes_dir() / dataset / "students" / student)


def copied(name: str, runs_dir: Path) -> Run:
    """Return the copy of a packaged student under `runs_dir`, which is made where there is none.

    Raises CheckpointError where the packaged weights are not those that were measured.
    """
    source, (dataset, student) = packaged(name), name.split("/")
    # no beginning of a run's own name: a student of yours is never taken for the packaged one
    run = Run(runs_dir / "student" / dataset / f"packaged_{student}")
    expected = source.status().get("sha256")
    if files.is_file(run.folder / STATUS):
        if run.status().get("sha256") != expected:
            warn_once(
                f"{run.folder} is a copy of another version of the packaged {name}; tser runs "
                "remove deletes it, and the next command copies this version's"
            )
        return run
    contents = {path.name: path.read_bytes() for path in sorted(source.folder.iterdir())}
    # the copy would outlive the damage: an installation that is mended would not mend it
    if files.sha256(contents[MODEL_FILE]) != expected:
        raise CheckpointError(
            f"{source.model_file} is not the file that was packaged: its SHA-256 is not the one in "
            f"{STATUS}. Install tser-cli again"
        )
    files.make_folder(run.folder)
    # last: a folder is a run's to others as soon as it has a status
    contents[STATUS] = contents.pop(STATUS)
    files.write_together({run.folder / file: content for file, content in contents.items()})
    return run


def rows() -> list[dict[str, Any]]:
    """Return what `tser list students` shows of each: accuracies are of the file as it is."""
    found = []
    for name in available():
        run = packaged(name)
        record = read_record(run)
        energy = files.read_json(run.folder / "energy.json", types={"profile": dict})
        found.append(
            {
                "name": name,
                "accuracy": record.accuracy,
                "teacher": record.teacher_accuracy,
                "T": record.timesteps,
                "energy_pj": record.energy_pj,
                "profile": energy["profile"]["name"],
                "size": run.model_file.stat().st_size,
                "parameters": record.environment[PACKAGED]["parameters"],
            }
        )
    return found
