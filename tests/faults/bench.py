"""Processes that run the command line on a few digits, and can be broken and killed.

No test rests on the clock: it waits for what is to happen, and gives up after minutes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
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
batch_size = 18
device = "cpu"
tensorboard = false
checkpoint_every = "3steps"
"""
VERBS = ("train-teacher", "distill")
# What the clock writes. All other columns are functions of the settings.
MEASURED = ("images_per_second", "seconds")
GIVE_UP = 300.0  # seconds; for what takes one or two on an idle machine


def workers(number: int) -> tuple[str, str]:
    """So many processes for the data loader."""
    return "--set", f"data.workers={number}"


def wait_for(event: Callable[[], bool], missed: Callable[[], str]) -> None:
    """Wait for an event; fail with what was missed where it does not come at all."""
    end = time.monotonic() + GIVE_UP
    while not event():
        assert time.monotonic() < end, missed()
        time.sleep(0.01)


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

    def until(self, text: str) -> None:
        """Wait for a message."""
        wait_for(lambda: text in self.messages, lambda: f"no {text!r} in {self.messages}")

    def workers(self, number: int) -> list[int]:
        """The pids of the data loader's processes, once so many are there."""
        wait_for(lambda: len(self.family()) > number, lambda: self.messages)
        return [pid for pid in self.family() if pid != self.pid]

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
        """None of its processes lives on; the last may still be on its way out."""
        wait_for(lambda: not self.family(), lambda: f"orphans: {self.family()}")


@dataclass
class Bench:
    """A folder of runs and the command lines that work on it."""

    zygote: Zygote
    folder: Path
    jobs: list[Job] = field(default_factory=list)

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

    def saved(self) -> dict[str, bytes]:
        """What lies in the folder of checkpoints."""
        return {path.name: path.read_bytes() for path in sorted(self.checkpoints.iterdir())}

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


Reference = Callable[..., Undisturbed]
