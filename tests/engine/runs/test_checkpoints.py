"""Checkpoints: damage is noticed, and a kill at any point loses nothing."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
import torch

from tser_cli.base import files
from tser_cli.base.errors import DamagedError
from tser_cli.engine.runs.checkpoints import load_latest, save_checkpoint


def state(number: int) -> dict[str, object]:
    return {"model": {"w": torch.full((50,), float(number))}, "epoch": number, "rows": [{"a": 1.5}]}


def silent(text: str) -> None:
    raise AssertionError(f"unexpected warning: {text}")


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 3, state(3))
    loaded = load_latest(tmp_path, silent)
    assert loaded is not None and loaded["epoch"] == 3
    assert loaded["rows"] == [{"a": 1.5}]
    assert torch.equal(loaded["model"]["w"], torch.full((50,), 3.0))


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path, silent) is None
    assert load_latest(tmp_path / "missing", silent) is None


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for number in range(5):
        save_checkpoint(tmp_path, number, state(number))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["manifest.json", "step-000000003.pt", "step-000000004.pt"]


@pytest.mark.parametrize("length", [0, 100, -1])
def test_a_truncated_newest_falls_back(tmp_path: Path, length: int) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    newest = save_checkpoint(tmp_path, 2, state(2))
    newest.write_bytes(newest.read_bytes()[:length])
    warnings: list[str] = []
    loaded = load_latest(tmp_path, warnings.append)
    assert loaded is not None and loaded["epoch"] == 1
    assert len(warnings) == 1 and newest.name in warnings[0]


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1))
    content = bytearray(path.read_bytes())
    choose = random.Random(0)
    for _ in range(200):
        position, bit = choose.randrange(len(content)), 1 << choose.randrange(8)
        content[position] ^= bit
        path.write_bytes(bytes(content))
        with pytest.raises(DamagedError):
            load_latest(tmp_path, lambda text: None)
        content[position] ^= bit
    path.write_bytes(bytes(content))
    assert load_latest(tmp_path, silent) is not None


@pytest.mark.parametrize(
    ("file", "said"),
    [("manifest.json", "not in its manifest"), ("step-000000001.pt", "can't be read")],
)
def test_a_missing_file_is_damage_not_a_fresh_start(tmp_path: Path, file: str, said: str) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    (tmp_path / file).unlink()
    with pytest.raises(DamagedError, match=said):
        load_latest(tmp_path, lambda text: None)


def entry(**changes: object) -> str:
    found = {"file": "step-000000001.pt", "step": 1, "size": 1, "sha256": "0", **changes}
    return json.dumps({"checkpoints": [found]})


@pytest.mark.parametrize(
    "manifest",
    [
        *("[" * 200_000, '{"checkpoints": 3}', '{"checkpoints": [[]]}', '{"checkpoints": []}'),
        *(entry(step="x"), entry(size=True), entry(file="../step-000000001.pt")),
        *(entry(sha256=None), entry(size=-1)),
    ],
    ids=range(9),
)
def test_a_damaged_manifest_is_damage(tmp_path: Path, manifest: str) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    (tmp_path / "manifest.json").write_text(manifest)
    with pytest.raises(DamagedError, match="no intact checkpoint is left"):
        load_latest(tmp_path, lambda text: None)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_in_a_checkpoint_s_place_is_not_waited_for(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1))
    for name in (path, path.with_suffix(".new")):
        name.unlink(missing_ok=True)
        os.mkfifo(name)
    with pytest.raises(DamagedError, match="no regular file"):
        load_latest(tmp_path, lambda text: None)


class Killed(BaseException):
    """Stands for kill -9 in the middle of a save."""


@pytest.mark.parametrize("point", range(1, 4))
def test_a_kill_at_any_point_of_a_save_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: int
) -> None:
    save_checkpoint(tmp_path, 1, state(1))
    save_checkpoint(tmp_path, 2, state(2))
    calls = 0
    write = files.write_whole

    def stops(path: Path, content: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == point:
            raise Killed
        write(path, content)

    monkeypatch.setattr(files, "write_whole", stops)
    with pytest.raises(Killed):
        save_checkpoint(tmp_path, 3, state(3))
    loaded = load_latest(tmp_path, silent)
    assert loaded is not None
    assert loaded["epoch"] == (2 if point < 3 else 3)


def test_a_kill_before_the_rename_is_made_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Path.replace

    def killed(self: Path, target: Path) -> Path:
        if self.suffix == ".new":
            raise Killed
        return original(self, target)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "replace", killed)
        save_checkpoint(tmp_path, 1, state(1))
    loaded = load_latest(tmp_path, silent)
    assert loaded is not None and loaded["epoch"] == 1
    assert (tmp_path / "step-000000001.pt").is_file()
