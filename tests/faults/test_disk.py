"""A disk that is full, or closed: it is told, and what lay there before is untouched."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.bench import Bench, Job, Reference, Result

NOBODY = 65534


def assert_told_and_unharmed(job: Job, bench: Bench, before: dict[str, bytes], reason: str) -> None:
    (line,) = [line for line in job.messages.splitlines() if line.startswith("error:")]
    assert str(bench.the_run()) in line
    assert reason in line
    # what helps is told, and nothing else
    assert ("MiB are free there" in line) is (reason == "No space left on device")
    assert ("permissions" in line) is (reason == "Permission denied")
    assert "Traceback" not in job.messages
    assert bench.saved() == before


def test_a_file_that_may_not_grow(killed: Bench, undisturbed: Reference) -> None:
    before = killed.saved()
    job = killed.run("train-teacher", code=2, faults=[{"limit": 2**20}])
    assert_told_and_unharmed(job, killed, before, "File too large")
    assert killed.status()["state"] == "failed"
    killed.run("train-teacher", "--resume", "must")
    reference = undisturbed("train-teacher").result
    assert Result.of(killed.the_run()) == reference


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 5 MiB: two checkpoints fit, and half of a third."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a file system can't be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk(
    bench: Bench, killed_run: Path, small_disk: Path, undisturbed: Reference
) -> None:
    bench.runs.symlink_to(small_disk / "runs")
    shutil.copytree(killed_run, small_disk / "runs")
    before = bench.saved()
    job = bench.run("train-teacher", code=1)
    assert_told_and_unharmed(job, bench, before, "No space left on device")
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    bench.run("train-teacher", "--resume", "must")
    reference = undisturbed("train-teacher").result
    assert Result.of(bench.the_run()) == reference


@pytest.fixture
def open_folder(bench: Bench) -> Iterator[Path]:
    """A folder that every user can look into, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="tser-faults-"))
    folder.chmod(0o755)
    yield folder
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)


def test_a_folder_closed_to_this_user(bench: Bench, killed_run: Path, open_folder: Path) -> None:
    """Root may write anywhere: the process becomes another user before its first step."""
    bench.folder = open_folder
    shutil.copytree(killed_run, bench.runs)
    before = bench.saved()
    fault = {"closed": str(open_folder), "uid": NOBODY if os.getuid() == 0 else os.getuid()}
    job = bench.run("train-teacher", code=2, faults=[fault])
    assert_told_and_unharmed(job, bench, before, "Permission denied")


def test_a_runs_folder_that_can_t_be_made(bench: Bench) -> None:
    bench.runs.write_text("a file")
    job = bench.run("train-teacher", code=2)
    assert f"{bench.runs}" in job.messages
    assert "can't be written" in job.messages
    assert "Traceback" not in job.messages
