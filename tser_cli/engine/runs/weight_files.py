"""Named tensors to and from files, with suspicion: nothing in a file is run."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tser_cli.engine.runs.checkpoints import read_tensors
from tser_cli.engine.runs.foreign_weights import unwrapped
from tser_cli.errors import CheckpointError
from tser_cli.files import read_regular, sha256, write_whole

LARGEST_FILE = 2**40  # bytes


def save_model(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Write the final weights as safetensors; returns the file's SHA-256. Raises RunError."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    content = save_safetensors(tensors, metadata)
    write_whole(path, content)
    return sha256(content)


def load_model(path: Path) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Weights, metadata and SHA-256 of a model file: safetensors, or a torch file of tensors.

    Raises CheckpointError for a file that is missing, damaged or would run code.
    """
    content = _content(path)
    if path.suffix == ".safetensors":
        state, metadata = _parse_safetensors(content, path)
    else:
        state, metadata = _state_dict(read_tensors(content, path), path), {}
    return state if "tser" in metadata else unwrapped(state), metadata, sha256(content)


def _content(path: Path) -> bytes:
    try:
        return read_regular(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"model file {path} can't be read: {reason}") from error


def _parse_safetensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state = load_safetensors(content)
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"model file {path} is not sound safetensors ({error}). It is truncated or damaged; "
            "train again or restore it from a copy"
        ) from error
    return state, metadata


def _state_dict(document: dict[str, Any], path: Path) -> dict[str, Tensor]:
    if "format" in document and "optimizer" in document:
        raise CheckpointError(
            f"{path} is a state to resume a run from, not a model; name the run's folder instead"
        )
    nested = (document.get(key) for key in ("model", "state_dict", *document))
    inner = next((part for part in nested if _is_state_dict(part)), None)
    state = document if _is_state_dict(document) else inner
    if state is None:
        raise CheckpointError(f"{path} holds no state dict of named tensors")
    return state


def _is_state_dict(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and bool(document)
        and all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in document.items()
        )
    )


def check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    """Raise CheckpointError, which names the first, where weights are NaN or infinite."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise CheckpointError(
                f"model file {path} holds weights that are NaN or infinite ({name}). Train again, "
                "or restore it from a copy"
            )
