"""Checkpoints that were damaged, and files that would run code, told by the command line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tser_cli.base.errors import DamagedError
from tser_cli.engine.runs.checkpoints import load_latest

NEWEST, BEFORE = "step-000000006.pt", "step-000000003.pt"
FLIPS = 200


class Bomb:
    """Unpickling this makes a folder: proof that code was run."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.proof),)


def truncate(path: Path, size: int) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:size] if size >= 0 else content[: len(content) // 2])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 16
    path.write_bytes(content)


def flipped(path: Path, draw: random.Random) -> Iterator[int]:
    """Flip a random bit of the file, give its position, and flip it back; `FLIPS` times."""
    sound = path.read_bytes()
    for _ in range(FLIPS):
        position = draw.randrange(len(sound))
        content = bytearray(sound)
        content[position] ^= 1 << draw.randrange(8)
        path.write_bytes(content)
        yield position
    path.write_bytes(sound)


def step_of(state: dict[str, Any] | None) -> int:
    """The step, of nine an epoch, at which the state was saved."""
    assert state is not None, "no checkpoint was seen"
    return int(state["epoch"]) * 9 + int(state["step"])


def test_no_truncation_is_overlooked(killed: Any) -> None:
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
    killed: Any, record_property: Callable[[str, object], None]
) -> None:
    """Of a checkpoint that is the only one."""
    newest, readable = killed.checkpoints / NEWEST, 0
    (killed.checkpoints / BEFORE).unlink()
    for position in flipped(newest, random.Random(5)):
        told: list[str] = []
        with pytest.raises(DamagedError):
            load_latest(killed.checkpoints, told.append)
        assert f"{NEWEST} is damaged" in told[0], position
        readable += opens(newest)
    assert readable > FLIPS // 2  # what would have been resumed from
    assert step_of(load_latest(killed.checkpoints, pytest.fail)) == 6
    record_property(f"of {FLIPS} flipped bits, noticed", FLIPS)
    record_property(f"of {FLIPS} flipped bits, noticed by torch.load alone", FLIPS - readable)


def opens(path: Path) -> bool:
    """Whether torch reads the file without an error."""
    try:
        torch.load(path, weights_only=True)
    except Exception:
        return False
    return True


def test_no_bit_of_the_manifest_leads_to_a_fresh_start(killed: Any) -> None:
    """Whatever it says, a state that was saved is taken up, or the damage is told."""
    seen = set()
    for position in flipped(killed.checkpoints / "manifest.json", random.Random(6)):
        try:
            seen.add(step_of(load_latest(killed.checkpoints, lambda text: None)))
        except DamagedError:
            seen.add(0)
        assert (killed.checkpoints / NEWEST).exists(), position
        assert (killed.checkpoints / BEFORE).exists(), position
    assert seen == {0, 3, 6}


DAMAGES: dict[str, Callable[[Path], None]] = {
    "half": lambda path: truncate(path, -1),
    "a bit": flip_a_bit,
    "deleted": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_goes_on(
    killed: Any, undisturbed: Callable[..., Any], damage: str
) -> None:
    DAMAGES[damage](killed.checkpoints / NEWEST)
    job = killed.run("train-teacher")
    assert f"{NEWEST}" in job.messages
    assert "trying the one before" in job.messages
    assert "resumed at epoch 1, step 4" in job.messages
    reference = undisturbed("train-teacher").result
    assert type(reference).of(killed.the_run()) == reference


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_all_damaged_is_exit_code_3_and_no_fresh_start(killed: Any) -> None:
    DAMAGES["half"](killed.checkpoints / NEWEST)
    DAMAGES["a bit"](killed.checkpoints / BEFORE)
    before = contents(killed.checkpoints)
    job = killed.run("train-teacher", code=3)
    assert "no sound checkpoint is left" in job.messages
    assert NEWEST in job.messages and BEFORE in job.messages
    assert "Traceback" not in job.messages
    assert contents(killed.checkpoints) == before
    assert not (killed.the_run() / "model.safetensors").exists()


@pytest.mark.parametrize("content", [None, b'{"checkpoints": ['])
def test_without_a_sound_manifest_nothing_is_trusted(killed: Any, content: bytes | None) -> None:
    manifest = killed.checkpoints / "manifest.json"
    if content is None:
        manifest.unlink()
    else:
        manifest.write_bytes(content)
    job = killed.run("train-teacher", code=3)
    assert "is not in its manifest" in job.messages


def test_a_checkpoint_that_would_run_code_is_not_loaded(killed: Any, tmp_path: Path) -> None:
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


@pytest.mark.parametrize("how", ["pickle", "torch", "state dict"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_teacher_that_would_run_code_is_refused(
    bench: Any, tmp_path: Path, how: str, suffix: str
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


def test_a_data_cache_that_would_run_code_is_refused(bench: Any, tmp_path: Path) -> None:
    proof, folder = tmp_path / "proof", tmp_path / "data" / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(pickle.dumps({b"data": Bomb(proof)}))
    where = ("--dataset", "cifar10", "--data-dir", str(folder.parent))
    job = bench.run("train-teacher", *where, code=2)
    assert "its MD5 sum is not that of the published file" in job.messages
    assert "Traceback" not in job.messages
    assert not proof.exists()
