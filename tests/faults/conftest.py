"""Real runs of the command line on digits, in processes that can be broken and killed.

`pytest tests/faults --faults 200` adds the long form: so many kills, and thousands of steps. What
was measured on the way (seconds, growth) is listed at the end.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import Bench, Result, Undisturbed, Zygote, kills_asked_for


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=0, help="kills of the long form, as 200")


DEAR = ("test_kill", "test_processes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: of the long form alone, --faults N")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    asked = kills_asked_for(config)
    for item in items:
        if here in item.path.parents:
            if not asked and item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: by hand, with --faults N"))
            item.add_marker(pytest.mark.integration)
            # the long form is asked for by --faults alone; slow ones stay with -m slow alone
            if item.path.stem in DEAR and not asked and not item.get_closest_marker("slow"):
                item.add_marker(pytest.mark.dear)
            # one process that all runs are forked from, and references that are trained once
            item.add_marker(pytest.mark.xdist_group("faults"))
            if sys.platform != "linux":
                item.add_marker(pytest.mark.skip(reason="forks, and reads /proc"))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [report for found in terminalreporter.stats.values() for report in found]
    called = [report for report in reports if getattr(report, "when", "") == "call"]
    figures = [pair for report in called for pair in report.user_properties]
    if figures:
        terminalreporter.section("measured")
        for name, value in figures:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@pytest.fixture
def bench(zygote: Zygote, tmp_path: Path) -> Iterator[Bench]:
    """An empty folder to run in; what still runs at the end is killed."""
    made = Bench(zygote, tmp_path)
    yield made
    for job in made.jobs:
        if job.code is None:
            for pid in job.family():
                os.kill(pid, signal.SIGKILL)
            job.wait()


@pytest.fixture(scope="session")
def make_bench(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Bench]:
    """`make_bench("name")`: a bench that outlives a test."""
    return lambda name: Bench(zygote, tmp_path_factory.mktemp(name))


@pytest.fixture(scope="session")
def undisturbed(
    zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Undisturbed]:
    """`undisturbed("distill")`: the reference that a disturbed run must equal to the bit.

    The student learns from the reference teacher, whatever the bench. More flags may follow.
    """
    known: dict[tuple[str, ...], Undisturbed] = {}

    def make(verb: str, *flags: str) -> Undisturbed:
        if (verb, *flags) not in known:
            teacher = make("train-teacher").run if verb == "distill" else None
            argv = (verb, *(("--teacher", str(teacher)) if teacher else ()), *flags)
            bench = Bench(zygote, tmp_path_factory.mktemp(verb))
            began = time.monotonic()
            bench.run(*argv)
            seconds = time.monotonic() - began
            run = bench.the_run()
            known[verb, *flags] = Undisturbed(argv, Result.of(run), run, seconds)
        return known[verb, *flags]

    return make


@pytest.fixture(scope="session")
def killed_run(zygote: Zygote, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of a teacher that was killed at its eighth step, with checkpoints 3 and 6."""
    bench = Bench(zygote, tmp_path_factory.mktemp("killed"))
    fault = {"at": "step", "number": 8, "do": "SIGKILL"}
    bench.run("train-teacher", code=-signal.SIGKILL, faults=[fault])
    return bench.runs


@pytest.fixture
def killed(bench: Bench, killed_run: Path) -> Bench:
    """A bench with a copy of that run."""
    shutil.copytree(killed_run, bench.runs)
    return bench
