"""Named tensors to and from files, with suspicion: nothing in a file is run. Weights from elsewhere
are recognised by their names and shapes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor

from tser_cli.base.errors import CheckpointError, ConfigError, reason
from tser_cli.base.files import foreign, read_regular, sha256, write_whole
from tser_cli.data.base import DataSpec
from tser_cli.engine.runs.checkpoints import read_tensors
from tser_cli.models.base import Classifier, build_model
from tser_cli.settings import registry

State = Mapping[str, Tensor]
LARGEST_FILE = 2**40  # bytes
DEEPEST = 3  # levels of a checkpoint in which weights are looked for


def save_model(path: Path, state: dict[str, Tensor], metadata: dict[str, str]) -> str:
    """Write the final weights as safetensors; returns the file's SHA-256. Raises RunError."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    content = save_safetensors(tensors, metadata)
    write_whole(path, content)
    return sha256(content)


def load_model(
    path: Path, fits: Callable[[State], bool] | None = None, key: str = ""
) -> tuple[dict[str, Tensor], dict[str, str], str]:
    """Weights, metadata and SHA-256 of a model file: safetensors, or a torch file of tensors.

    Of a torch file with several dicts of tensors: the one at the dotted `key`, else the only one
    that `fits`, else the usual one. Raises CheckpointError for a file that is missing, damaged or
    would run code, and where several dicts fit.
    """
    try:
        content = read_regular(path, LARGEST_FILE)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"model file {path} can't be read: {reason(error)}") from error
    if not_ours := foreign(path, content[:8]):
        raise CheckpointError(f"{not_ours}. Give a run, or weights: safetensors or a state dict")
    if path.suffix == ".safetensors":
        state, metadata = _parse_safetensors(content, path)
    else:
        state, metadata = _state_dict(read_tensors(content, path), path, fits, key), {}
    for name, value in state.items():
        dense = value.layout == torch.strided and not value.is_quantized
        if not dense or value.is_meta or value.is_complex():
            raise CheckpointError(f"{path}: {name} is no plain tensor of numbers; save it dense")
    # The SHA-256 is of the content that was read: of the file it may be another's by now.
    return state if "tser" in metadata else unwrapped(state), metadata, sha256(content)


def _parse_safetensors(content: bytes, path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        state = load_safetensors(content)
        (length,) = struct.unpack("<Q", content[:8])
        metadata = json.loads(content[8 : 8 + length]).get("__metadata__", {})
    except (SafetensorError, ValueError, struct.error) as error:
        raise CheckpointError(
            f"model file {path} is no valid safetensors file ({error}). It is truncated or "
            "damaged; train again or restore it from a copy"
        ) from error
    return state, metadata


def _state_dict(
    document: dict[str, Any], path: Path, fits: Callable[[State], bool] | None, key: str
) -> dict[str, Tensor]:
    if "format" in document and "optimizer" in document:
        raise CheckpointError(
            f"{path} is a state to resume a run from, not a model; name the run's folder instead"
        )
    found = _state_dicts(document)
    listed = ", ".join(name for name in found if name)
    if key:
        if key not in found:
            raise CheckpointError(f"{path} holds no state dict {key}; it has {listed or 'none'}")
        return found[key]
    # An optimizer, or averaged weights, may stand before the network's own in a checkpoint.
    fitting = [name for name, part in found.items() if fits is not None and fits(unwrapped(part))]
    if len(fitting) > 1:
        raise CheckpointError(
            f"{path} holds several state dicts that fit the network: {', '.join(fitting)}; name "
            f"one of them: --weights {path}::{fitting[0]}"
        )
    usual = [*fitting, *(name for name in ("", "model", "state_dict", *found) if name in found)]
    if not usual:
        raise CheckpointError(f"{path} holds no state dict of named tensors")
    return found[usual[0]]


def _state_dicts(document: Any, name: str = "") -> dict[str, dict[str, Tensor]]:
    """Return each dict of named tensors in a checkpoint, by its dotted key; "" is the whole."""
    if _is_state_dict(document):
        return {name: document}
    found: dict[str, dict[str, Tensor]] = {}
    if isinstance(document, dict) and name.count(".") < DEEPEST:
        for key, part in document.items():
            found |= _state_dicts(part, f"{name}.{key}" if name else str(key))
    return found


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


# What wraps a network that was saved: DataParallel, torch.compile, Lightning.
WRAPPERS = ("module.", "_orig_mod.", "model.", "net.", "network.")
COUNTER = "num_batches_tracked"  # of a norm; files from before torch 0.4.1 do not have it
NAMES_SHOWN = 3


def unwrapped(state: State) -> dict[str, Tensor]:
    """Return the weights without the prefixes that all their names share with a wrapper."""
    names = dict(state)
    # twice: one may wrap another, as DataParallel a compiled network
    for prefix in WRAPPERS * 2:
        if names and all(name.startswith(prefix) for name in names):
            names = {name.removeprefix(prefix): value for name, value in names.items()}
    return names


def recognise(
    state: State, spec: DataSpec, stem: str, path: Path
) -> tuple[str, Classifier, dict[str, Tensor]]:
    """Return the built-in ANN that has these weights, its name, and the weights to load.

    Any stem will do, the settings' `stem` before others. Raises CheckpointError.
    """
    build = partial(
        build_model,
        channels=spec.channels,
        height=spec.height,
        width=spec.width,
        num_classes=spec.num_classes,
    )
    # A medium stem has the weights of a small one, so that only the settings can ask for it.
    for tried in dict.fromkeys((stem, "small", "large")):
        for name, entry in registry.MODELS.items():
            if entry.spiking_only:
                continue
            with suppress(ConfigError):  # no network for images of this size
                # Ours are built without memory; a plug-in's may compute while it is built.
                ours = registry.is_built_in(entry.target)
                place = torch.device("meta") if ours else nullcontext()
                with place, torch.random.fork_rng(devices=[]):
                    expected = build(name, stem=tried).state_dict()
                counters = {key for key in expected if key.endswith(COUNTER)} - state.keys()
                whole = {**state, **{key: torch.tensor(0) for key in counters}}
                shapes = {key: value.shape for key, value in expected.items()}
                if shapes == {key: value.shape for key, value in whole.items()}:
                    return name, build(name, stem=tried), whole
    raise CheckpointError(
        f"{path} holds {len(state)} weights ({', '.join(list(state)[:NAMES_SHOWN])}, ...), which "
        f"by names and shapes are no network of ours for {spec.name}: {spec.channels} channels, "
        f"{spec.num_classes} classes. Name another teacher, train one on this data set (tser "
        "train-teacher), or build the file's own network: --teacher MODULE:FUNCTION "
        "--teacher-weights FILE"
    )
