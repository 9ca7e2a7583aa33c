"""Memory and open files stay flat over many steps, epochs, validations and saves."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

import pytest

from tests.faults.bench import Bench, Job, Reference

SETTINGS = ("--checkpoint-every", "40steps")
VALIDATED = ("--set", "data.validation_fraction=0.1", "--set", "data.workers=1")
GROWTH = 0.02


def assert_flat(job: Job, steps: int, record_property: Callable[[str, object], None]) -> None:
    found = re.findall(r"^at step: (\d+) bytes, (\d+) files$", job.output, re.MULTILINE)
    assert len(found) >= steps
    size, files = ([int(row[column]) for row in found] for column in (0, 1))
    # by then every cache is full
    warm, some = slice(2 * steps // 5, 3 * steps // 5), slice(-steps // 5, None)
    early, late = (statistics.mean(size[part]) for part in (warm, some))
    sizes = f"{early / 2**20:.1f} -> {late / 2**20:.1f} MiB"
    record_property(f"resident memory over {len(found)} steps", sizes)
    record_property(f"open files over {len(found)} steps", f"{files[warm][0]} -> {files[-1]}")
    assert late <= early * (1 + GROWTH), sizes
    assert max(files[some]) <= max(files[warm])


@pytest.mark.slow
def test_flat(bench: Bench, record_property: Callable[[str, object], None]) -> None:
    argv = ("train-teacher", *SETTINGS, *VALIDATED, "--batch-size", "4", "--epochs", "3")
    assert_flat(bench.run(*argv, faults=[{"watch": True}]), 100, record_property)


@pytest.mark.timeout(0)
@pytest.mark.long
@pytest.mark.parametrize("verb", ["train-teacher", "distill"])
def test_flat_over_2000_steps(
    bench: Bench,
    undisturbed: Reference,
    record_property: Callable[[str, object], None],
    verb: str,
) -> None:
    argv = (*undisturbed(verb).argv, *SETTINGS, *VALIDATED, "--batch-size", "4")
    job = bench.start(*argv, "--epochs", "56", faults=[{"watch": True}])
    assert job.wait(3600) == 0, job.messages
    assert_flat(job, 2000, record_property)
