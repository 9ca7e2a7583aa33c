"""torchrun itself: it works end to end, and no end of it leaves anything behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.bench import GIVE_UP, Bench, wait_for


class Torchrun:
    """`torchrun --nproc-per-node 2 -m tser_cli ARGV` and the processes it has started."""

    def __init__(self, folder: Path, *argv: str) -> None:
        self.log = folder / "log"
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        command += ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
        with self.log.open("a") as stream:
            self.process = subprocess.Popen(
                [*command, "-m", "tser_cli", *argv, "--runs-dir", str(folder / "runs")],
                cwd=folder,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    @property
    def messages(self) -> str:
        return self.log.read_text()

    def until(self, text: str) -> None:
        wait_for(
            lambda: text in self.messages or self.process.poll() is not None, lambda: self.messages
        )
        assert text in self.messages

    def ranks(self) -> dict[int, int]:
        """The pid of each rank."""
        found = {}
        for process in Path("/proc").glob("[0-9]*"):
            try:
                stat = (process / "stat").read_text().rpartition(")")[2].split()
                environment = (process / "environ").read_text()
            except OSError:
                continue
            if int(stat[1]) == self.process.pid and "\0RANK=" in environment:
                rank = int(environment.split("\0RANK=")[1].split("\0")[0])
                found[rank] = int(process.name)
        return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def torchrun(bench: Bench) -> Iterator[Callable[..., Torchrun]]:
    made: list[Torchrun] = []

    def start(*argv: str) -> Torchrun:
        made.append(Torchrun(bench.folder, *argv))
        return made[-1]

    yield start
    for job in made:
        for pid in job.ranks().values():
            os.kill(pid, signal.SIGKILL)
        job.process.kill()
        job.process.wait()


def endless(bench: Bench) -> tuple[str, ...]:
    """A training that does not end before it is ended."""
    return ("train-teacher", "--recipe", str(bench.write_recipe()), "--epochs", "3000")


@pytest.mark.long
def test_a_rank_that_is_killed_ends_torchrun(
    bench: Bench,
    torchrun: Callable[..., Torchrun],
    record_property: Callable[[str, object], None],
) -> None:
    """What the rank leaves behind, one process takes up."""
    job = torchrun(*endless(bench))
    job.until("epoch 2/3000")
    ranks = job.ranks()
    assert sorted(ranks) == [0, 1]
    began = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)
    assert job.process.wait(GIVE_UP) != 0
    record_property("seconds until torchrun has ended after kill -9 of a rank", elapsed(began))
    assert not any(map(is_alive, ranks.values()))
    culprit = job.messages[job.messages.index("Root Cause") :]
    assert f"rank      : 1 (local_rank: 1)\n  exitcode  : -9 (pid: {ranks[1]})" in culprit
    epoch = bench.status()["epoch"] + 1
    resumed = bench.run("train-teacher", "--resume", "must", "--epochs", str(epoch))
    assert "resumed at epoch" in resumed.messages
    assert bench.is_finished()


@pytest.mark.long
def test_torchrun_that_is_asked_to_stop(
    bench: Bench,
    torchrun: Callable[..., Torchrun],
    record_property: Callable[[str, object], None],
) -> None:
    """It passes the signal on; the state is saved, and the same command goes on."""
    argv = endless(bench)
    first = torchrun(*argv)
    first.until("epoch 1/3000")
    ranks = first.ranks()
    began = time.monotonic()
    first.process.send_signal(signal.SIGTERM)
    assert first.process.wait(GIVE_UP) != 0
    record_property("seconds until torchrun has ended after SIGTERM", elapsed(began))
    assert not any(map(is_alive, ranks.values()))
    assert "the state is saved. Repeat the command to resume it" in first.messages
    assert bench.status()["state"] == "stopped"
    second = torchrun(*argv, "--resume", "must")
    second.until("resumed at epoch")


def elapsed(began: float) -> float:
    return round(time.monotonic() - began, 2)


def test_a_launcher_that_is_killed_takes_its_processes_with_it(bench: Bench) -> None:
    env = {"TORCHELASTIC_RUN_ID": "any"}
    job = bench.start("train-teacher", env=env, launcher=True, faults=[{"sleep": 600.0}])
    job.until("run folder:")
    assert len(job.family()) == 2
    job.kill(group=False)
    assert job.wait() == -signal.SIGKILL
    job.assert_no_orphans()
