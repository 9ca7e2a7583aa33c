"""SIGTERM and Ctrl-C at any time: the state is saved, the same command goes on to the same bits."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from tests.faults.bench import Bench, Job, Reference, Result, Zygote, workers

CODES = {"SIGTERM": 143, "SIGINT": 130}
LONG = pytest.mark.long


def assert_stopped(job: Job, bench: Bench, name: str) -> None:
    assert "stopping after this step" in job.messages
    assert "the state is saved. Repeat the command to resume it" in job.messages
    assert "Traceback" not in job.messages
    assert bench.status()["state"] == "stopped"
    job.assert_no_orphans()


@pytest.mark.parametrize(
    ("verb", "name", "loaders", "moment", "number"),
    [
        ("train-teacher", "SIGTERM", 2, "step", 5),
        pytest.param("train-teacher", "SIGINT", 2, "step", 18, marks=LONG),
        ("train-teacher", "SIGINT", 0, "write", 1),
        pytest.param("train-teacher", "SIGTERM", 2, "fsync", 4, marks=LONG),
        pytest.param("train-teacher", "SIGINT", 2, "prune", 1, marks=LONG),
        pytest.param("train-teacher", "SIGTERM", 2, "evaluate", 1, marks=LONG),
        ("distill", "SIGTERM", 2, "evaluate", 1),
    ],
)
def test_a_signal_to_the_process_group(
    bench: Bench,
    undisturbed: Reference,
    verb: str,
    name: str,
    loaders: int,
    moment: str,
    number: int,
) -> None:
    reference = undisturbed(verb)
    argv = (*reference.argv, *workers(loaders))
    fault = {"at": moment, "number": number, "do": name, "group": True}
    job = bench.run(*argv, code=CODES[name], faults=[fault])
    assert_stopped(job, bench, name)
    bench.run(*argv, "--resume", "must")
    assert Result.of(bench.the_run()) == reference.result


def test_a_signal_while_the_teacher_is_asked(bench: Bench, undisturbed: Reference) -> None:
    """All its answers are collected before the first step, where the images never change."""
    unchanged = ("--set", "augment.flip=false", "--set", "augment.crop_padding=0")
    argv = ("distill", "--teacher", str(undisturbed("train-teacher").run), *unchanged)
    fault = {"at": "teach", "number": 1, "do": "SIGTERM"}
    assert_stopped(bench.run(*argv, code=143, faults=[fault]), bench, "SIGTERM")
    bench.run(*argv, "--resume", "must")
    assert bench.is_finished()


def test_a_signal_during_validation(bench: Bench, zygote: Zygote) -> None:
    """The epoch is not counted before its validation: it is validated when the run goes on."""
    argv = ("train-teacher", "--set", "data.validation_fraction=0.5")
    whole = Bench(zygote, bench.folder / "whole")
    whole.folder.mkdir()
    whole.run(*argv)
    fault = {"at": "evaluate", "number": 2, "do": "SIGTERM"}
    job = bench.run(*argv, code=143, faults=[fault])
    assert_stopped(job, bench, "SIGTERM")
    document = json.loads((bench.checkpoints / "manifest.json").read_text())
    assert [entry["step"] for entry in document["checkpoints"]] == [3, 4]
    bench.run(*argv, "--resume", "must")
    for name in ("model.safetensors", "metrics.csv"):
        a, b = (folder.the_run() / name for folder in (bench, whole))
        assert a.stat().st_size > 0
        if name == "metrics.csv":
            assert bench.timeless(a) == bench.timeless(b)
        else:
            assert a.read_bytes() == b.read_bytes()


def test_a_second_ctrl_c_quits_at_once(bench: Bench) -> None:
    job = bench.start("train-teacher", *workers(2), faults=[{"sleep": 600.0}])
    job.until("run folder:")
    job.workers(2)  # they come with the first batch
    job.kill(signal.SIGINT)
    job.until("Ctrl-C again quits at once")
    assert job.family()
    job.kill(signal.SIGINT)
    assert job.wait() == 130  # the step would take longer than the wait
    job.assert_no_orphans()
    assert not (bench.checkpoints).exists()


def test_a_second_process_is_refused(bench: Bench) -> None:
    first = bench.start("train-teacher", faults=[{"sleep": 600.0}])
    first.until("run folder:")
    second = bench.run("train-teacher", code=2)  # while the first is in a step
    assert f"is in use by process {first.pid} on {socket.gethostname()}" in second.messages
    assert str(bench.the_run()) in second.messages
    first.kill()
    first.wait()
    third = bench.start("train-teacher", faults=[{"sleep": 600.0}])
    third.until("resuming")  # a killed holder's lock is free


def test_two_that_start_together(bench: Bench, undisturbed: Reference) -> None:
    """Whichever is first: one run each, or one is refused. Never two on one folder."""
    jobs = [bench.start("train-teacher") for _ in range(2)]
    codes = sorted(job.wait() for job in jobs)
    assert codes in ([0, 0], [0, 2])
    finished = list(bench.runs.glob("*/*/*/model.safetensors"))
    assert len(finished) == codes.count(0)
    reference = undisturbed("train-teacher").result
    for model in finished:
        assert Result.of(model.parent) == reference


def test_signals_to_an_evaluation_alone(bench: Bench, undisturbed: Reference) -> None:
    """There is nothing to save: it ends at once, and the table of before stays whole."""
    run = undisturbed("train-teacher").run
    table = run / "per_timestep.csv"
    before = table.read_bytes()
    for name, code in (("SIGTERM", -signal.SIGTERM), ("SIGINT", 130)):
        fault = {"at": "evaluate", "number": 1, "do": name, "group": True}
        bench.run("evaluate", "--run", str(run), code=code, faults=[fault])
    assert table.read_bytes() == before


def test_a_killed_loader_worker_ends_the_run(bench: Bench) -> None:
    job = bench.start("train-teacher", *workers(2), faults=[{"sleep": 0.2}])
    job.until("run folder:")
    worker = job.workers(2)[-1]
    job.kill_one(worker)
    assert job.wait() == 1
    (line,) = [line for line in job.messages.splitlines() if line.startswith("error:")]
    assert "a data loader worker was lost" in line
    assert str(worker) in job.messages
    job.assert_no_orphans()
    bench.run("train-teacher", "--resume", "must")
