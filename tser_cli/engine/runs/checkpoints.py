"""Resumable checkpoints that notice their own damage.

A checkpoint is tensors and plain values, serialised in memory, written whole and listed in a
manifest with its SHA-256 and size; torch.load alone does not notice flipped bits. The last two
are kept, so that a damaged newest one falls back to the one before.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from tser_cli.base import files
from tser_cli.base.errors import CheckpointError, DamagedError, DamagedFileError, reason

FORMAT = 1
KEPT = 2
MANIFEST = "manifest.json"
NAME = re.compile(r"step-\d{9,18}\.pt")
KEYS = {"file", "step", "size", "sha256"}


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> Path:
    """Write `state` as the checkpoint of step `number`, then drop all but the last two.

    The order survives a kill at any point: the content lies on disk under a waiting name before
    the manifest speaks of it, and `load_latest` also takes a listed file by that name. The new
    file is read back and compared before an older one goes. Raises RunError or CheckpointError.
    """
    files.make_folder(folder)
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    content = buffer.getvalue()
    path = folder / f"step-{number:09d}.pt"
    waiting = path.with_suffix(".new")
    # Not yet under its own name: a file of that name that no manifest lists counts as damaged.
    files.write_whole(waiting, content)
    digest = files.sha256(content)
    entries = [entry for entry in _entries(folder) if entry["file"] != path.name]
    entries.append({"file": path.name, "step": number, "size": len(content), "sha256": digest})
    files.write_json(folder / MANIFEST, {"checkpoints": entries})
    waiting.replace(path)
    # A disk that is failing may take what it can't give back: the older ones still stand here.
    if files.sha256(path.read_bytes()) != digest:
        raise CheckpointError(f"{path} does not read back as it was written: the disk is failing")
    _prune(folder, entries)
    return path


def _prune(folder: Path, entries: list[dict[str, Any]]) -> None:
    kept = sorted(entries, key=lambda entry: entry["step"])[-KEPT:]
    names = {entry["file"] for entry in kept}
    # first the manifest: a kill in between then leaves a file that nobody asks for
    files.write_json(folder / MANIFEST, {"checkpoints": kept})
    for path in folder.glob("step-*"):
        if path.name not in names:
            path.unlink(missing_ok=True)


def _entries(folder: Path) -> list[dict[str, Any]]:
    # A damaged entry is as good as none: its checkpoint is then one that the manifest lacks.
    try:
        manifest = files.read_json(folder / MANIFEST, types={"checkpoints": list})
    except DamagedFileError:
        return []
    return [
        entry
        for entry in manifest.get("checkpoints", [])
        if isinstance(entry, dict)
        and entry.keys() >= KEYS
        and all(isinstance(entry[key], str) for key in ("file", "sha256"))
        and all(type(entry[key]) is int for key in ("step", "size"))
        and NAME.fullmatch(entry["file"])
    ]


def load_latest(folder: Path, warn: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the newest sound checkpoint of `folder`, or None where none was ever written.

    A damaged one is named through `warn` and passed over. What a killed save left undone is done
    now. Raises DamagedError where there are checkpoints but none is sound.
    """
    entries = _entries(folder)
    manifest = {entry["file"]: entry for entry in entries}
    # One without a file counts too: that a checkpoint is lost is damage, and no fresh start.
    present = {path.name for path in folder.glob("step-*.pt")} if folder.is_dir() else set()
    names = sorted(present | manifest.keys(), reverse=True)
    if not names and not (folder / MANIFEST).exists():
        return None
    problems: list[str] = []
    for name in names:
        try:
            state = _load_verified(folder / name, manifest.get(name))
            if len(names) > KEPT and not problems:
                _prune(folder, entries)
            return state
        except CheckpointError as error:
            problems.append(str(error))
            warn(f"{error}; trying the one before")
    raise DamagedError(
        f"no intact checkpoint is left in {folder}: "
        f"{'; '.join(problems) or 'the manifest is empty'}. "
        "Start afresh with --resume never, or restore the folder from a copy"
    )


def _load_verified(path: Path, entry: dict[str, Any] | None) -> dict[str, Any]:
    if entry is None:
        raise CheckpointError(f"checkpoint {path} is not in its manifest")
    content, waiting = b"", path.with_suffix(".new")
    # There is such a file where a save was killed: before its last rename, and then the manifest
    # lists it, or before the manifest spoke of it.
    with suppress(OSError, ValueError):
        content = files.read_regular(waiting, entry["size"])
    try:
        if files.sha256(content) == entry["sha256"]:
            waiting.replace(path)
        else:
            content = files.read_regular(path, entry["size"])
    except (OSError, ValueError) as error:
        raise CheckpointError(f"checkpoint {path} can't be read: {reason(error)}") from error
    if files.sha256(content) != entry["sha256"]:
        raise CheckpointError(f"checkpoint {path} is damaged: its SHA-256 is not the manifest's")
    state = read_tensors(content, path)
    if state.get("format") != FORMAT:
        raise CheckpointError(f"checkpoint {path} has format {state.get('format')}, not {FORMAT}")
    return state


def read_tensors(content: bytes, path: Path) -> dict[str, Any]:
    """Return the named values of a torch file without running code from it.

    Raises CheckpointError.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of foreign pickles, which the error below tells
            state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # damage can make the reader fail in any way
        raise CheckpointError(_why_unread(path, error)) from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds a {type(state).__name__}, not named tensors")
    return state


def _why_unread(path: Path, error: Exception) -> str:
    # torch's own text names the first class that it refuses, among advice and escape codes
    named = re.search(r"nsupported (?:global: )?(?:GLOBAL|class) ([\w.]+)", str(error))
    if named:
        return (
            f"{path} holds more than tensors: a pickled object, made of {named[1]}. Code in a file "
            "is never run. Where it was made, save the weights alone: "
            "torch.save(network.state_dict(), FILE)"
        )
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).strip() or "no content"
    return (
        f"{path} is not a file of tensors ({type(error).__name__}: {text.splitlines()[0][:160]}). "
        "It is damaged, or it holds code, which is never run"
    )
