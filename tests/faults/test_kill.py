"""kill -9 anywhere, as often as one likes: the result is the undisturbed run's, to the bit.

Compared are model.safetensors, per_timestep.csv, energy.csv and metrics.csv without its columns
images_per_second and seconds, which are measurements of the clock, and which files there are.
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

Fault = dict[str, Any]
SAVE = ("write", "fsync", "rename", "prune")
# How many of each there are in a whole run: seven saves.
MOMENTS = {"write": 21, "fsync": 42, "rename": 28, "prune": 5}


def workers(number: int) -> tuple[str, str]:
    return "--set", f"data.workers={number}"


def kill_at(moment: str, number: int) -> list[Fault]:
    return [{"at": moment, "number": number, "do": "SIGKILL", "group": True}]


def killed_after(bench: Any, argv: tuple[str, ...], seconds: float) -> bool:
    """Start, kill the process group after so long; whether that was before the run's end."""
    job = bench.start(*argv)
    time.sleep(seconds)
    if job.family():
        job.kill()
    assert_killed_or_done(job)
    return not bench.is_finished()


def killed_at(bench: Any, argv: tuple[str, ...], moment: str, number: int) -> bool:
    """Start, let the process kill its group at that moment; whether it came to it."""
    job = bench.start(*argv, faults=kill_at(moment, number))
    assert_killed_or_done(job)
    return bool(job.wait())


def assert_killed_or_done(job: Any) -> None:
    assert job.wait() in (-signal.SIGKILL, 0), job.messages
    job.assert_no_orphans()


@pytest.mark.parametrize("loaders", [0, 2])
@pytest.mark.parametrize("verb", ["train-teacher", "distill"])
def test_killed_again_and_again(
    bench: Any, undisturbed: Callable[..., Any], verb: str, loaders: int
) -> None:
    """Five kills: one inside a save at each of write, fsync, rename and prune, one at a step."""
    draw = random.Random(f"{verb} {loaders}")
    reference = undisturbed(verb)
    argv = (*reference.argv, *workers(loaders))
    kills = killed_at(bench, argv, "step", draw.randint(1, 7))
    for moment in draw.sample(SAVE, len(SAVE)):
        # within the first two saves, so that the run is not at its end before the last kill
        kills += killed_at(bench, argv, moment, 1 if moment == "prune" else draw.randint(1, 5))
    assert kills == 5
    bench.run(*argv)
    assert type(reference.result).of(bench.the_run()) == reference.result


@pytest.fixture
def student_killed(bench: Any, undisturbed: Callable[..., Any]) -> Any:
    """A bench with the reference teacher and a student of it, named by architecture, killed."""
    teacher = undisturbed("train-teacher").run
    shutil.copytree(teacher, bench.runs / "teacher" / "digits" / teacher.name)
    assert killed_at(bench, ("distill",), "step", 5)
    return bench


def test_a_student_keeps_its_teacher(student_killed: Any, undisturbed: Callable[..., Any]) -> None:
    """A newer teacher of the same name, with other weights, has come meanwhile."""
    student_killed.run("train-teacher", "--seed", "1", "--epochs", "1")
    job = student_killed.run("distill", "--resume", "must")
    assert "instead, which the run began with" in job.messages
    reference = undisturbed("distill").result
    (found,) = student_killed.runs.glob("student/*/*")
    assert type(reference).of(found) == reference


def test_a_student_whose_teacher_has_changed_is_not_gone_on_with(student_killed: Any) -> None:
    (path,) = student_killed.runs.glob("teacher/*/*/model.safetensors")
    student_killed.run("train-teacher", "--seed", "1", "--epochs", "1")
    (other,) = set(student_killed.runs.glob("teacher/*/*/model.safetensors")) - {path}
    shutil.copy(other, path)
    job = student_killed.run("distill", code=2)
    assert "has changed since that run began" in job.messages
    path.unlink()
    job = student_killed.run("distill", code=2)
    assert str(path) in job.messages


@pytest.mark.timeout(0)
def test_kills_by_the_hundred(
    bench: Any,
    undisturbed: Callable[..., Any],
    long_form: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The long form: so many kills in all, over runs of both verbs, with 0 and with 2 workers."""
    draw = random.Random(long_form)
    began, kills, finished = time.monotonic(), dict.fromkeys((*SAVE, "anywhere"), 0), 0
    while sum(kills.values()) < long_form:
        verb, loaders = draw.choice(("train-teacher", "distill")), draw.choice((0, 2))
        reference = undisturbed(verb)
        argv = (*reference.argv, *workers(loaders))
        folder = type(bench)(bench.zygote, bench.folder / str(finished))
        folder.folder.mkdir()
        for _ in range(draw.randint(3, 9)):
            moment = draw.choice((*SAVE, "anywhere", "anywhere"))
            if moment == "anywhere":
                killed = killed_after(folder, argv, draw.uniform(0, 1) * reference.seconds)
            else:
                number = draw.randint(1, max(1, MOMENTS[moment] // 3))
                killed = killed_at(folder, argv, moment, number)
            kills[moment] += killed
            if folder.is_finished():
                break
        else:
            folder.run(*argv)
        assert type(reference.result).of(folder.the_run()) == reference.result
        finished += 1
        with capsys.disabled():
            minutes = (time.monotonic() - began) / 60
            print(f"{sum(kills.values())} kills {kills}, {finished} runs, {minutes:.1f} minutes")
