"""Real runs of the command line on digits, in processes that can be broken and killed.

`pytest tests/faults --faults 200` adds the long form: so many kills, and thousands of steps. What
was measured on the way (seconds, growth) is listed at the end.

No test waits by the clock: it polls for what is to happen, and gives up after minutes. Where a
limit is the thing tested, it counts from the event, and grows with the load of the machine.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ZYGOTE = Path(__file__).with_name("zygote.py")
RECIPE = """
[data]
name = "digits"
[augment]
crop_padding = 1
flip = true
[model]
teacher = "resnet20"
student = "resnet20"
timesteps = 2
[optimizer]
lr = 0.05
[training]
epochs = 2
batch_size = 144
device = "cpu"
tensorboard = false
checkpoint_every = "3steps"
"""
STEPS = 18  # two epochs of nine
VERBS = ("train-teacher", "distill")
FIRST_HALF = ("test_kill", "test_damage", "test_disk", "test_nan", "test_launchers")
# What the clock writes. All other columns are functions of the settings.
MEASURED = ("images_per_second", "seconds")
GIVE_UP = 300.0  # seconds; for what takes one or two on an idle machine


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--faults", type=int, default=0, help="kills of the long form, as 200")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: of the long form alone, --faults N")


def allowed(seconds: float) -> float:
    """`seconds` on an idle machine; more where processes wait for a core."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    asked = kills_asked_for(config)
    for item in items:
        if here in item.path.parents:
            if not asked and item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="long: by hand, with --faults N"))
            item.add_marker(pytest.mark.integration)
            # two halves that take about as long: each builds its references once
            half = "a" if item.path.stem in FIRST_HALF else "b"
            item.add_marker(pytest.mark.xdist_group(f"faults-{half}"))
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


def kills_asked_for(config: pytest.Config) -> int:
    """N of `--faults N`; 0 means the short form."""
    asked: int = config.getoption("--faults", default=0)
    return asked


class Zygote:
    """The process that all others are forked from."""

    def __init__(self) -> None:
        single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("TSER_")}
        self.process = subprocess.Popen(
            [sys.executable, str(ZYGOTE)],
            env={**kept, **single, "MPLBACKEND": "Agg", "PYTHONWARNINGS": "default"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{json.dumps(request)}\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        # not by closing its input: loader workers that this process forked hold that open too
        with self.process:
            self.process.kill()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


@dataclass
class Job:
    """One process that runs the command line, and the files it writes its messages to."""

    zygote: Zygote
    pid: int
    out: Path
    err: Path
    code: int | None = None

    def wait(self, seconds: float = GIVE_UP) -> int:
        """The exit code (negative: a signal)."""
        if self.code is None:
            self.code = self.zygote.ask(wait=self.pid, seconds=seconds)
        if self.code is None:
            os.kill(self.pid, signal.SIGUSR1)  # it tells where it is
            time.sleep(1.0)
            pytest.fail(f"still running after {seconds} s:\n{self.messages}")
        return self.code

    def kill(self, number: int = signal.SIGKILL, group: bool = True) -> None:
        """Signal the whole process group, or the process alone."""
        (os.killpg if group else os.kill)(self.pid, number)

    def kill_one(self, pid: int) -> None:
        """Kill one process of the family."""
        assert pid in self.family()
        os.kill(pid, signal.SIGKILL)

    @property
    def messages(self) -> str:
        return self.err.read_text()

    @property
    def output(self) -> str:
        return self.out.read_text()

    def until(self, text: str, seconds: float = GIVE_UP) -> None:
        """Wait for a message."""
        end = time.monotonic() + seconds
        while text not in self.messages:
            assert time.monotonic() < end, f"no {text!r} in {self.messages}"
            time.sleep(0.01)

    def workers(self, number: int) -> list[int]:
        """The pids of the data loader's processes, once so many are there."""
        end = time.monotonic() + GIVE_UP
        while len(found := [pid for pid in self.family() if pid != self.pid]) < number:
            assert time.monotonic() < end, self.messages
            time.sleep(0.01)
        return found

    def family(self) -> list[int]:
        """The living processes of this job's session."""
        pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
        return [pid for pid in pids if self._has(pid)]

    def _has(self, pid: int) -> bool:
        try:
            state, _, _, session = (
                Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:4]
            )
        except OSError:
            return False
        return int(session) == self.pid and state != "Z"

    def assert_no_orphans(self) -> None:
        """None of its processes lives on; the last may still be on its way out.

        A data loader's process would notice by itself, after five seconds: that is too late.
        """
        end = time.monotonic() + allowed(2.0)
        while left := self.family():
            assert time.monotonic() < end, f"orphans: {left}"
            time.sleep(0.01)


@dataclass
class Bench:
    """A folder of runs and the command lines that work on it."""

    zygote: Zygote
    folder: Path
    jobs: list[Job] = field(default_factory=list)

    allowed = staticmethod(allowed)

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def write_recipe(self) -> Path:
        """The settings of every training here."""
        file = self.folder / "recipe.toml"
        file.write_text(RECIPE)
        return file

    def start(
        self,
        *argv: str,
        faults: list[dict[str, Any]] | None = None,
        env: dict[str, str] | None = None,
        launcher: bool = False,
    ) -> Job:
        """Start `tser ARGV` with the recipe, on this folder's runs."""
        file = self.write_recipe()
        number = len(self.jobs)
        out, err = self.folder / f"{number}.out", self.folder / f"{number}.err"
        for path in (out, err):
            path.touch(mode=0o666)
            path.chmod(0o666)
        more = ["--runs-dir", str(self.runs)]
        if argv[0] in VERBS:
            more += ["--recipe", str(file)]
        pid = self.zygote.ask(
            argv=[*argv, *more],
            cwd=str(self.folder),
            stdout=str(out),
            stderr=str(err),
            faults=faults or [],
            env=env or {},
            launcher=launcher,
        )
        self.jobs.append(Job(self.zygote, pid, out, err))
        return self.jobs[-1]

    def run(self, *argv: str, code: int = 0, **more: Any) -> Job:
        """Start and wait; the exit code must be `code`."""
        job = self.start(*argv, **more)
        assert job.wait() == code, job.messages
        return job

    def the_run(self) -> Path:
        """The only run folder."""
        (found,) = self.runs.glob("*/*/*/status.json")
        return found.parent

    def start_processes(
        self, world: int, *argv: str, faults: list[dict[str, Any]] | None = None, **more: Any
    ) -> list[Job]:
        """Start `world` processes of one job, as a launcher such as Slurm's would.

        A fault with a "rank" happens in that process alone.
        """
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        jobs = []
        for rank in range(world):
            env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own = [fault for fault in faults or [] if fault.get("rank", rank) == rank]
            strings = {name: str(value) for name, value in env.items()}
            jobs.append(self.start(*argv, faults=own, env=strings, **more))
        return jobs

    def run_processes(self, world: int, *argv: str, code: int = 0, **more: Any) -> list[Job]:
        """Start and wait for all; the exit code of each must be `code`."""
        jobs = self.start_processes(world, *argv, **more)
        messages = "".join(f"\n{job.wait()}: {job.messages}" for job in jobs)
        assert [job.code for job in jobs] == [code] * world, messages
        return jobs

    @property
    def checkpoints(self) -> Path:
        return self.the_run() / "checkpoints"

    @staticmethod
    def timeless(table: Path) -> list[str]:
        """The lines of metrics.csv without the columns that are measured times."""
        header, *rows = (line.split(",") for line in table.read_text().splitlines())
        keep = [number for number, name in enumerate(header) if name not in MEASURED]
        assert len(header) - len(keep) == len(MEASURED)
        return [",".join(row[number] for number in keep) for row in (header, *rows)]

    def is_finished(self) -> bool:
        """Whether there is a run and it came to its end."""
        found = self.runs.glob("*/*/*/status.json")
        return any(json.loads(path.read_text())["state"] == "finished" for path in found)

    def status(self) -> dict[str, Any]:
        return json.loads((self.the_run() / "status.json").read_text())  # type: ignore[no-any-return]


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


@dataclass(frozen=True)
class Result:
    """All that a finished run leaves behind, but for times and the run's own name."""

    model: bytes
    metrics: list[str]
    tables: dict[str, bytes]
    files: list[str]

    @classmethod
    def of(cls, run: Path) -> Result:
        assert json.loads((run / "status.json").read_text())["state"] == "finished"
        name = run.name.encode()
        return cls(
            (run / "model.safetensors").read_bytes(),
            Bench.timeless(run / "metrics.csv"),
            {p.name: p.read_bytes().replace(name, b"NAME") for p in sorted(run.glob("[pe]*.csv"))},
            sorted(str(path.relative_to(run)) for path in run.rglob("*")),
        )


@dataclass(frozen=True)
class Undisturbed:
    """What a verb's run leaves where nothing goes wrong, the command, and its seconds."""

    argv: tuple[str, ...]
    result: Result
    run: Path
    seconds: float


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
