"""Several processes on one machine, over gloo: the results of one, and one end for all."""

from __future__ import annotations

import csv
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.faults.bench import Bench, Job, Reference, Result, Zygote, workers

FLOAT64 = {"float64": True}
SHORT = ("--epochs", "1", "-T", "1")
LONG = pytest.mark.long


def losses(jobs: list[Job]) -> list[float]:
    """The loss of each step, as the first process wrote it."""
    return [float(value) for value in re.findall(r"^loss (.*)$", jobs[0].output, re.MULTILINE)]


def table(path: Path) -> list[dict[str, str]]:
    with path.open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def one_process(zygote: Zygote, undisturbed: Reference, make_bench: Bench) -> Any:
    """A student in float64 whose norms are in eval mode, trained by one process."""
    bench = make_bench("one")
    argv = (*undisturbed("distill").argv, *SHORT)
    return argv, bench, losses([bench.run(*argv, faults=[FLOAT64])])


@LONG  # of two processes `test_on_one_process_from_two_and_back` holds it too
@pytest.mark.parametrize("world", [2, 3])
def test_the_losses_of_one_process(bench: Bench, one_process: Any, world: int) -> None:
    """The same global batch, to 1e-12: nine steps with optimizer, schedule and teacher."""
    argv, single, expected = one_process
    jobs = bench.run_processes(world, *argv, faults=[FLOAT64])
    assert len(expected) == 9
    assert losses(jobs) == pytest.approx(expected, rel=1e-12, abs=0)
    assert max(expected) - min(expected) > 1e-3
    for ours, theirs in zip(
        *(table(b.the_run() / "per_timestep.csv") for b in (bench, single)), strict=True
    ):
        for name in ("correct_at_t", "correct_cumulative", "images", "teacher_accuracy"):
            assert ours[name] == theirs[name]


@LONG
def test_an_energy_budget_presses_as_it_does_on_one_process(
    bench: Bench, make_bench: Bench, undisturbed: Reference
) -> None:
    budget = ("--energy-budget", "0.5%")  # an image costs almost as much without a spike
    argv = (*undisturbed("distill").argv, *SHORT, *budget)
    single = make_bench("priced")
    expected = losses([single.run(*argv, code=4, faults=[FLOAT64])])
    jobs = bench.run_processes(2, *argv, code=4, faults=[FLOAT64])
    assert losses(jobs) == pytest.approx(expected, rel=1e-9, abs=0)
    (ours,), (theirs,) = (table(b.the_run() / "metrics.csv") for b in (bench, single))
    for name in ("energy_pj", "energy_budget_pj", "energy_multiplier"):
        assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-9)
        assert float(ours[name]) > 0


PLUGIN = """
from tser_cli.losses.base import Supervised, mean_cross_entropy
from tser_cli.settings.registry import add_method

class Settings(Supervised):
    summary = "an example"
    name: str = "mine"

@add_method(Settings)
def loss(outputs, settings):
    ce = 2 * mean_cross_entropy(outputs, settings)
    return {"loss": ce, "doubled": ce}
"""


def test_a_method_of_a_plug_in_trains_in_every_process_and_the_first_alone_writes(
    bench: Bench, undisturbed: Reference
) -> None:
    (bench.folder / "mine_method.py").write_text(PLUGIN)
    plugin = ("--plugin", "mine_method.py", "--method", "mine")
    jobs = bench.run_processes(2, *undisturbed("distill").argv, *SHORT, *plugin)
    assert "accuracy" in jobs[0].output
    assert "epoch 1/1" in jobs[0].messages
    assert (jobs[1].output, jobs[1].messages) == ("", "")
    assert bench.is_finished()
    assert bench.status()["pid"] == jobs[0].pid
    run = bench.the_run()
    (row,) = table(run / "metrics.csv")
    assert float(row["doubled"]) == float(row["loss"]) > 0
    assert (run / "code" / "mine_method.py").read_text() == PLUGIN
    # the statistics that were saved are those that all evaluated with
    by_two = table(run / "per_timestep.csv")
    bench.run("evaluate", "--run", str(run), *plugin[:2])
    for ours, theirs in zip(by_two, table(run / "per_timestep.csv"), strict=True):
        for name in ("correct_at_t", "correct_cumulative"):
            assert ours[name] == theirs[name]
        assert float(ours["loss_at_t"]) == pytest.approx(float(theirs["loss_at_t"]), rel=1e-6)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=LONG)])
def test_evaluation_counts_each_image_once(
    bench: Bench, undisturbed: Reference, tmp_path: Path, world: int
) -> None:
    """A sampler that pads would count 42 of 41 with two processes or three."""
    run = undisturbed("distill").run
    outputs = [tmp_path / "one.csv", tmp_path / "several.csv"]
    for processes, output in zip((1, world), outputs, strict=True):
        argv = ("evaluate", "--run", str(run), "--batch-size", "8", "--output", str(output))
        bench.run_processes(processes, *argv)
    ours, theirs = (table(output) for output in outputs)
    for a, b in zip(ours, theirs, strict=True):
        assert a["images"] == b["images"] == "41"
        for name in ("correct_at_t", "correct_cumulative"):
            assert a[name] == b[name]
        assert float(a["loss_at_t"]) == pytest.approx(float(b["loss_at_t"]), rel=1e-12)


@pytest.fixture(scope="module")
def several(undisturbed: Reference, make_bench: Bench) -> Callable[[int], Any]:
    """`several(world)`: what so many processes make of a teacher where nothing goes wrong."""
    known: dict[int, Any] = {}

    def make(world: int) -> Any:
        if world not in known:
            reference = undisturbed("train-teacher")
            bench = make_bench(f"of-{world}")
            bench.run_processes(world, *reference.argv)
            known[world] = Result.of(bench.the_run())
        return known[world]

    return make


@pytest.mark.parametrize(
    ("world", "rank", "step"),
    [(2, 0, 5), pytest.param(2, 1, 2, marks=LONG), pytest.param(3, 1, 8, marks=LONG)],
)
def test_a_killed_process_ends_all_and_they_go_on_to_the_same_bits(
    bench: Bench,
    several: Callable[[int], Result],
    world: int,
    rank: int,
    step: int,
) -> None:
    argv = ("train-teacher", *workers(1))
    fault = {"at": "step", "number": step, "do": "SIGKILL", "rank": rank}
    jobs = bench.start_processes(world, *argv, faults=[fault])
    assert jobs[rank].wait() == -signal.SIGKILL
    for job in jobs:
        assert job.wait() != 0
        job.assert_no_orphans()
    other = jobs[1 if rank == 0 else 0]
    assert other.code == 1
    assert "lost the connection to another process" in other.messages
    bench.run_processes(world, *argv, "--resume", "must")
    expected = several(world)
    assert Result.of(bench.the_run()) == expected


@pytest.mark.slow
def test_on_one_process_from_two_and_back(bench: Bench, one_process: Any) -> None:
    argv, single, expected = one_process
    kill = {"at": "step", "number": 5, "do": "SIGKILL"}
    seen = []
    for world, faults in ((2, [kill]), (1, [kill]), (2, [])):
        jobs = bench.start_processes(world, *argv, faults=[FLOAT64, *faults])
        for job in jobs:
            job.wait()
        seen.append(losses(jobs))
    # checkpoints lie at steps 3 and 6: what came after them is done again
    first, second, third = seen
    assert [len(part) for part in seen] == [4, 4, 3]
    assert first[:3] + second[:3] + third == pytest.approx(expected, rel=1e-12, abs=0)
    rows, others = (table(b.the_run() / "metrics.csv") for b in (bench, single))
    for row, other in zip(rows, others, strict=True):
        for name in ("loss", "ce", "kd", "entropy", "train_accuracy"):
            assert float(row[name]) == pytest.approx(float(other[name]), rel=1e-12)


@pytest.mark.parametrize(
    ("name", "moment", "number", "code"),
    [
        ("SIGTERM", "step", 4, 143),
        pytest.param("SIGINT", "write", 2, 130, marks=LONG),
        pytest.param("SIGTERM", "evaluate", 2, 143, marks=LONG),
    ],
)
def test_a_signal_to_one_process_stops_all(
    bench: Bench, several: Callable[[int], Result], name: str, moment: str, number: int, code: int
) -> None:
    argv = ("train-teacher",)
    rank = 0 if moment == "write" else 1
    fault = {"at": moment, "number": number, "do": name, "rank": rank}
    jobs = bench.run_processes(2, *argv, code=code, faults=[fault])
    assert "the state is saved" in jobs[0].messages
    assert jobs[1].messages == ""
    assert bench.status()["state"] == "stopped"
    bench.run_processes(2, *argv, "--resume", "must")
    expected = several(2)
    assert Result.of(bench.the_run()) == expected


@pytest.mark.parametrize("what", ["loss", pytest.param("gradient", marks=LONG)])
def test_nan_in_one_process_ends_all(bench: Bench, what: str) -> None:
    fault = {"nan": what, "step": 5, "rank": 1}
    jobs = bench.run_processes(2, "train-teacher", code=1, faults=[fault])
    (line,) = [line for line in jobs[0].messages.splitlines() if line.startswith("error:")]
    assert "not finite at epoch 1, step 5" in line
    assert ("process 1 of 2" if what == "loss" else "layer2.0.conv1.weight") in line
    assert jobs[1].messages == ""
    names = sorted(path.name for path in bench.checkpoints.glob("step-*"))
    assert names == ["step-000000003.pt"]
    assert bench.status()["resumable"] is False


@LONG
def test_an_error_of_the_first_process_is_told_once(bench: Bench, undisturbed: Reference) -> None:
    argv = undisturbed("distill").argv
    for faults, code, message in (
        ([{"limit": 2**20, "rank": 0}], 2, "File too large"),
        ([], 2, "can't be split evenly over 2 process"),
    ):
        more = [] if faults else ["--batch-size", "37"]
        jobs = bench.run_processes(2, *argv, *more, code=code, faults=faults)
        assert jobs[0].messages.count("error:") == 1
        assert message in jobs[0].messages
        assert jobs[1].messages == ""
        assert "Traceback" not in jobs[0].messages


def test_an_error_of_another_process_names_it(bench: Bench) -> None:
    jobs = bench.start_processes(2, "train-teacher", faults=[{"lost_image": True, "rank": 1}])
    assert jobs[1].wait() == 2
    assert re.search(r"error: process 1 of 2 on \S+: the image is lost", jobs[1].messages)
    assert jobs[0].wait() == 1


@LONG
def test_a_teacher_is_trained_first_by_all(bench: Bench) -> None:
    recipe = bench.folder / "teacher.toml"
    recipe.write_text("[training]\nepochs = 1\nbatch_size = 54\n")
    argv = ("distill", "--set", f"model.teacher_recipe={recipe}", "--epochs", "1")
    jobs = bench.run_processes(2, *argv)
    assert "training one first" in jobs[0].messages
    kinds = sorted(path.parts[-4] for path in bench.runs.glob("*/*/*/model.safetensors"))
    assert kinds == ["student", "teacher"]


@LONG
@pytest.mark.timeout(0)
def test_ranks_killed_again_and_again(
    bench: Bench,
    several: Callable[[int], Result],
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    """A tenth of the kills of the long form: either of two processes, three times a run."""
    draw, expected, slowest, kills = random.Random(), several(2), 0.0, 0
    argv = ("train-teacher", *workers(1))
    for number in range(-(-pytestconfig.getoption("--faults") // 30)):
        folder = Bench(bench.zygote, bench.folder / str(number))
        folder.folder.mkdir()
        for step in (draw.randint(1, 8), draw.randint(1, 4), draw.randint(1, 3)):
            rank, later = draw.randint(0, 1), draw.uniform(0.0, 0.1)
            fault = {"at": "step", "number": step, "do": "SIGKILL", "rank": rank, "later": later}
            jobs = folder.start_processes(2, *argv, faults=[fault])
            assert jobs[rank].wait() == -signal.SIGKILL, jobs[rank].messages
            began = time.monotonic()
            assert jobs[1 - rank].wait() == 1, jobs[1 - rank].messages
            seconds = time.monotonic() - began
            for job in jobs:
                job.assert_no_orphans()
            slowest, kills = max(slowest, seconds), kills + 1
        folder.run_processes(2, *argv, "--resume", "must")
        assert Result.of(folder.the_run()) == expected
    record_property("kills of one of two processes", kills)
    record_property("seconds until the other has ended, at most", round(slowest, 2))
