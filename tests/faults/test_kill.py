"""kill -9 anywhere, as often as one likes: the result is the undisturbed run's, to the bit.

Compared are model.safetensors, per_timestep.csv, energy.csv and metrics.csv without its columns
images_per_second and seconds, which are measurements of the clock, and which files there are.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import Bench, Job, Reference, Result, kills_asked_for, wait_for, workers

Fault = dict[str, Any]
SAVE = ("write", "fsync", "rename", "prune")
# How many of each there are in a whole run, of six saves.
MOMENTS = {"write": 18, "fsync": 36, "rename": 24, "prune": 4}
# The renames of other files; those of the last line come when the training is over.
FILES = (
    *("config.toml", "environment.json", "status.json", "metrics.csv"),
    *("model.safetensors", "per_timestep.csv"),
)

# Every epoch sees the same images, so that the teacher is asked once, before the first step.
UNCHANGED = ("--set", "augment.flip=false", "--set", "augment.crop_padding=0")


def kill_at(moment: str, number: int, **more: Any) -> list[Fault]:
    return [{"at": moment, "number": number, "do": "SIGKILL", "group": True, **more}]


def killed_after(bench: Bench, argv: tuple[str, ...], seconds: float) -> bool:
    """Start, kill the process group after so long; whether that was before the run's end."""
    job = bench.start(*argv)
    time.sleep(seconds)
    if job.family():
        job.kill()
    assert_killed_or_done(job)
    return not bench.is_finished()


def killed_at(bench: Bench, argv: tuple[str, ...], moment: str, number: int, **more: Any) -> bool:
    """Start, let the process kill its group at that moment; whether it came to it."""
    job = bench.start(*argv, faults=kill_at(moment, number, **more))
    assert_killed_or_done(job)
    return bool(job.wait())


def assert_killed_or_done(job: Job) -> None:
    assert job.wait() in (-signal.SIGKILL, 0), job.messages
    job.assert_no_orphans()


@pytest.mark.parametrize(
    ("verb", "loaders", "moments", "flags"),
    [
        pytest.param("train-teacher", 0, ("write", "prune"), (), marks=pytest.mark.long),
        pytest.param("train-teacher", 2, ("fsync", "rename"), (), marks=pytest.mark.long),
        pytest.param("distill", 0, ("rename", "fsync"), UNCHANGED, marks=pytest.mark.long),
        ("distill", 1, ("prune", "write"), ()),
    ],
)
def test_killed_again_and_again(
    bench: Bench,
    undisturbed: Reference,
    verb: str,
    loaders: int,
    moments: tuple[str, ...],
    flags: tuple[str, ...],
    record_property: Callable[[str, object], None],
) -> None:
    """Five kills: two inside a save, one anywhere in the training, two as the end is written."""
    draw = random.Random()  # another moment each time; the result may not depend on it
    reference = undisturbed(verb, *flags)
    argv = (*reference.argv, *workers(loaders))
    anywhere = draw.randint(1, 4)
    kills = killed_at(bench, argv, "step", anywhere, later=draw.uniform(0.0, 0.1))
    for moment in moments:
        # within the first saves that follow, so that the run is not at its end before the last kill
        kills += killed_at(bench, argv, moment, 1 if moment == "prune" else draw.randint(1, 4))
    kills += killed_at(bench, argv, draw.choice(FILES[-2:]), 1)
    kills += killed_at(bench, argv, "environment.json", 2 + (verb == "distill"))  # nearly the end
    assert kills == 5
    record_property("kills", kills)
    bench.run(*argv)
    assert Result.of(bench.the_run()) == reference.result


def test_a_killed_process_takes_its_loaders_with_it(bench: Bench) -> None:
    """As the system kills for lack of memory: one process, not its group.

    The loaders stand still, so that they can't notice by themselves, as they would in five seconds.
    """
    fault = {"at": "step", "number": 4, "do": "SIGSTOP"}  # by then both have sent images
    job = bench.start("train-teacher", *workers(2), faults=[fault])
    saved = "*/*/*/checkpoints/manifest.json"
    wait_for(lambda: any(bench.runs.glob(saved)), lambda: job.messages)
    for loader in job.workers(2):
        os.kill(loader, signal.SIGSTOP)
    job.kill(group=False)
    assert_killed_or_done(job)


@pytest.fixture
def student_killed(bench: Bench, undisturbed: Reference) -> Any:
    """A bench with the reference teacher and a student of it, named by architecture, killed."""
    teacher = undisturbed("train-teacher").run
    shutil.copytree(teacher, bench.runs / "teacher" / "digits" / teacher.name)
    assert killed_at(bench, ("distill",), "step", 5)
    return bench


@pytest.mark.long
def test_a_student_keeps_its_teacher(student_killed: Bench, undisturbed: Reference) -> None:
    """A newer teacher of the same name, with other weights, has come meanwhile."""
    student_killed.run("train-teacher", "--seed", "1", "--epochs", "1")
    job = student_killed.run("distill", "--resume", "must")
    assert "instead, which the run began with" in job.messages
    reference = undisturbed("distill").result
    (found,) = student_killed.runs.glob("student/*/*")
    assert Result.of(found) == reference


def test_a_student_whose_teacher_has_changed_is_not_gone_on_with(student_killed: Bench) -> None:
    (path,) = student_killed.runs.glob("teacher/*/*/model.safetensors")
    student_killed.run("train-teacher", "--seed", "1", "--epochs", "1")
    (other,) = set(student_killed.runs.glob("teacher/*/*/model.safetensors")) - {path}
    shutil.copy(other, path)
    job = student_killed.run("distill", code=2)
    assert "has changed since that run began" in job.messages
    path.unlink()
    job = student_killed.run("distill", code=2)
    assert str(path) in job.messages


def moments_of(config: pytest.Config, *named: str) -> list[str | float]:
    """Two moments by name; the long form has ten: each name, and shares of the time it takes."""
    drawn: list[str | float] = [random.random() for _ in range(10 - len(named))]
    return [*named, *drawn] if kills_asked_for(config) else list(named[-2:])


def killed_on_the_way(
    bench: Bench, argv: tuple[str, ...], moment: str | float, seconds: float
) -> bool:
    """Kill where a file gets its name, or after a share of the time; whether it came to it."""
    if isinstance(moment, str):
        return killed_at(bench, argv, moment, 1)
    job = bench.start(*argv)
    time.sleep(moment * seconds)
    if job.family():
        job.kill()
    assert_killed_or_done(job)
    return job.wait() != 0


def timed(bench: Bench, argv: tuple[str, ...]) -> float:
    began = time.monotonic()
    bench.run(*argv)
    return time.monotonic() - began


@pytest.fixture
def student_trained(bench: Bench, undisturbed: Reference) -> Bench:
    """A bench with the reference student, finished."""
    run = undisturbed("distill").run
    shutil.copytree(run, bench.runs / "student" / "digits" / run.name)
    return bench


@pytest.mark.timeout(0)
def test_a_killed_quantize_is_written_anew_and_never_trained(
    student_trained: Bench, pytestconfig: pytest.Config, record_property: Callable[..., None]
) -> None:
    parent = student_trained.the_run()
    argv = ("quantize", "--run", str(parent), "--images", "32", "--device", "cpu")
    seconds = timed(student_trained, argv)
    (made,) = set(parent.parent.iterdir()) - {parent}
    reference, kills = files_of(made), 0
    for moment in moments_of(pytestconfig, "energy.csv", "model.safetensors", "energy.json"):
        shutil.rmtree(made)
        kills += killed_on_the_way(student_trained, argv, moment, seconds)
        same = ("--set", "model.weight_bits=8", "--set", "energy.budget=none")
        job = student_trained.run("distill", "--resume", "must", "--dry-run", *same, code=2)
        assert "is no training" in job.messages or "no unfinished student" in job.messages
        student_trained.run(*argv)
        # the name has the time: killed after its end, there are two
        for found in set(parent.parent.iterdir()) - {parent}:
            assert files_of(found) == reference
            made = found
    record_property("kills of quantize", kills)


def files_of(run: Path) -> dict[str, bytes]:
    """The weights and tables of a run, its name left out, and which other files there are."""
    told = {path.relative_to(run): path for path in run.rglob("*") if path.is_file()}
    same = ("model.safetensors", "per_timestep.csv", "energy.csv", "energy.json", "predictions.npz")
    return {
        str(name): path.read_bytes().replace(run.name.encode(), b"") if path.name in same else b""
        for name, path in told.items()
    }


@pytest.mark.timeout(0)
def test_a_killed_export_leaves_no_file_without_its_card(
    student_trained: Bench, pytestconfig: pytest.Config, record_property: Callable[..., None]
) -> None:
    path = student_trained.folder / "out" / "x.safetensors"
    argv = ("export", "--format", "safetensors", "--output", str(path), "--no-verify")
    seconds, kills = timed(student_trained, argv), 0
    reference = {found.name: found.read_bytes() for found in path.parent.iterdir()}
    card = f"{path.name}.md"
    assert reference.keys() == {card, path.name, f"{path.name}.verified.json"}
    moments = moments_of(pytestconfig, card, f"{path.name}.verified.json", path.name)
    for moment in moments:
        shutil.rmtree(path.parent)
        kills += killed_on_the_way(student_trained, argv, moment, seconds)
        left = {found.name for found in path.parent.glob("*")}
        assert path.name not in left or reference.keys() <= left
        student_trained.run(*argv)
        assert {found.name: found.read_bytes() for found in path.parent.iterdir()} == reference
    record_property("kills of export", kills)


@pytest.mark.long
@pytest.mark.timeout(0)
def test_kills_by_the_hundred(
    bench: Bench,
    undisturbed: Reference,
    pytestconfig: pytest.Config,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    """The long form: so many kills in all, over runs of both verbs, with 0 and with 2 workers."""
    draw = random.Random()
    asked = pytestconfig.getoption("--faults")
    began, kills, finished = time.monotonic(), Counter[str](), 0
    while kills.total() < asked:
        verb, loaders = draw.choice(("train-teacher", "distill")), draw.choice((0, 2))
        reference = undisturbed(verb, *draw.choice(((), UNCHANGED)))
        argv = (*reference.argv, *workers(loaders))
        folder = Bench(bench.zygote, bench.folder / str(finished))
        folder.folder.mkdir()
        for _ in range(draw.randint(3, 9)):
            kind, killed = kill_somewhere(folder, argv, draw, reference.seconds)
            kills[kind] += killed
            if folder.is_finished():
                break
        else:
            folder.run(*argv)
        assert Result.of(folder.the_run()) == reference.result
        shutil.rmtree(folder.folder)
        finished += 1
        with capsys.disabled():
            minutes = (time.monotonic() - began) / 60
            print(f"{kills.total()} kills {dict(kills)}, {finished} runs, {minutes:.1f} minutes")
    record_property("kills", f"{kills.total()} {dict(kills)} in {finished} runs, all equal")


def kill_somewhere(
    bench: Bench, argv: tuple[str, ...], draw: random.Random, seconds: float
) -> tuple[str, bool]:
    """Kill a run at a moment of one of four kinds; which kind, and whether it came to it."""
    kind = draw.choice(("save", "save", "step", "file", "anywhere"))
    if kind == "anywhere":
        return kind, killed_after(bench, argv, draw.uniform(0.0, 1.0) * seconds)
    if kind == "step":
        number, later = draw.randint(1, 9), draw.uniform(0.0, 0.1)
        return kind, killed_at(bench, argv, "step", number, later=later)
    if kind == "file":
        name = draw.choice(FILES)
        return name, killed_at(bench, argv, name, draw.randint(1, 2) if name in FILES[:4] else 1)
    moment = draw.choice(SAVE)
    return moment, killed_at(bench, argv, moment, draw.randint(1, max(1, MOMENTS[moment] // 3)))
