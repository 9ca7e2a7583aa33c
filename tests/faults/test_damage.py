"""Checkpoints that were damaged, and files that would run code, told by the command line."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.faults.attacks import Bomb, flipped
from tests.faults.bench import Bench, Reference, Result, kills_asked_for
from tser_cli.base.errors import DamagedError
from tser_cli.engine.runs.checkpoints import load_latest

NEWEST, BEFORE = "step-000000006.pt", "step-000000003.pt"


def flips(path: Path, draw: random.Random, number: int) -> Iterator[str]:
    """Flip a random bit of the file, give its place, and flip it back; so many times."""
    sound = path.read_bytes()
    for _ in range(number):
        path.write_bytes(flipped(draw, sound))
        yield f"of {number} flips, in {path}"
    path.write_bytes(sound)


def step_of(state: dict[str, Any] | None) -> int:
    """The step, of nine an epoch, at which the state was saved."""
    assert state is not None, "no checkpoint was seen"
    return int(state["epoch"]) * 9 + int(state["step"])


@pytest.mark.slow
def test_no_truncation_is_overlooked(killed: Bench) -> None:
    newest = killed.checkpoints / NEWEST
    sound = newest.read_bytes()
    for size in (0, 1, len(sound) // 2, len(sound) - 1):
        newest.write_bytes(sound[:size])
        told: list[str] = []
        assert step_of(load_latest(killed.checkpoints, told.append)) == 3
        assert len(told) == 1
        assert NEWEST in told[0]
    newest.write_bytes(sound)
    assert step_of(load_latest(killed.checkpoints, pytest.fail)) == 6


def test_no_flipped_bit_is_overlooked(
    killed: Bench,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    """Of a checkpoint that is the only one."""
    newest, readable = killed.checkpoints / NEWEST, 0
    number = 200 if kills_asked_for(pytestconfig) else 20
    (killed.checkpoints / BEFORE).unlink()
    for place in flips(newest, random.Random(5), number):
        told: list[str] = []
        with pytest.raises(DamagedError):
            load_latest(killed.checkpoints, told.append)
        assert f"{NEWEST} is damaged" in told[0], place
        readable += opens(newest)
    assert readable > number // 2  # what would have been resumed from
    assert step_of(load_latest(killed.checkpoints, pytest.fail)) == 6
    record_property(f"of {number} flipped bits, noticed by torch.load alone", number - readable)


def opens(path: Path) -> bool:
    """Whether torch reads the file without an error."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def test_no_bit_of_the_manifest_leads_to_a_fresh_start(killed: Bench) -> None:
    """Whatever it says, a state that was saved is taken up, or the damage is told."""
    seen = set()
    for place in flips(killed.checkpoints / "manifest.json", random.Random(6), 50):
        try:
            seen.add(step_of(load_latest(killed.checkpoints, lambda text: None)))
        except DamagedError:
            seen.add(0)
        assert (killed.checkpoints / NEWEST).exists(), place
        assert (killed.checkpoints / BEFORE).exists(), place
    assert seen == {0, 3, 6}


def halve(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    path.write_bytes(flipped(random.Random(7), path.read_bytes()))


LONG = pytest.mark.long


@pytest.mark.parametrize(
    "damage", [flip_a_bit, pytest.param(halve, marks=LONG), pytest.param(Path.unlink, marks=LONG)]
)
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_goes_on(
    killed: Bench, undisturbed: Reference, damage: Callable[[Path], None]
) -> None:
    damage(killed.checkpoints / NEWEST)
    job = killed.run("train-teacher")
    assert f"{NEWEST}" in job.messages
    assert "trying the one before" in job.messages
    assert "resumed at epoch 1, step 4" in job.messages
    reference = undisturbed("train-teacher").result
    assert Result.of(killed.the_run()) == reference


def test_all_damaged_is_exit_code_3_and_no_fresh_start(killed: Bench) -> None:
    halve(killed.checkpoints / NEWEST)
    flip_a_bit(killed.checkpoints / BEFORE)
    before = killed.saved()
    job = killed.run("train-teacher", code=3)
    assert "no intact checkpoint is left" in job.messages
    assert NEWEST in job.messages and BEFORE in job.messages
    assert "Traceback" not in job.messages
    assert killed.saved() == before
    assert not (killed.the_run() / "model.safetensors").exists()


@pytest.mark.parametrize("content", [None, b'{"checkpoints": ['])
def test_without_a_sound_manifest_nothing_is_trusted(killed: Bench, content: bytes | None) -> None:
    manifest = killed.checkpoints / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content)
    job = killed.run("train-teacher", code=3)
    assert "is not in its manifest" in job.messages


def test_a_checkpoint_that_would_run_code_is_not_loaded(killed: Bench, tmp_path: Path) -> None:
    """Its manifest vouches for it, as an attacker's would."""
    proof = tmp_path / "proof"
    manifest = killed.checkpoints / "manifest.json"
    document = json.loads(manifest.read_text())
    for entry in document["checkpoints"]:
        path = killed.checkpoints / entry["file"]
        torch.save({"format": 1, "model": Bomb(proof)}, path)
        content = path.read_bytes()
        entry.update(size=len(content), sha256=hashlib.sha256(content).hexdigest())
    manifest.write_text(json.dumps(document))
    job = killed.run("train-teacher", code=3)
    assert "never run" in job.messages
    assert not proof.exists()


@pytest.mark.parametrize(
    ("how", "suffix"),
    [
        ("pickle", ".pt"),
        ("torch", ".safetensors"),
        ("state dict", ".pt"),
        *(
            pytest.param(*more, marks=LONG)
            for more in (("pickle", ".safetensors"), ("torch", ".pt"))
        ),
    ],
)
def test_a_teacher_that_would_run_code_is_refused(
    bench: Bench, tmp_path: Path, how: str, suffix: str
) -> None:
    proof, path = tmp_path / "proof", tmp_path / f"teacher{suffix}"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(proof)))
    else:
        torch.save(Bomb(proof) if how == "torch" else {"conv1.weight": Bomb(proof)}, path)
    job = bench.run("distill", "--teacher", str(path), code=2)
    assert str(path) in job.messages
    assert "Traceback" not in job.messages
    assert not proof.exists()
    assert not bench.runs.exists()


def test_a_data_cache_that_would_run_code_is_refused(bench: Bench, tmp_path: Path) -> None:
    proof, folder = tmp_path / "proof", tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({b"data": Bomb(proof)}))
    where = ("--dataset", "cifar10", "--data-dir", str(folder.parent))
    job = bench.run("train-teacher", *where, code=2)
    assert "its MD5 sum is not that of the published file" in job.messages
    assert "Traceback" not in job.messages
    assert not proof.exists()
