"""Networks that a function of the user's builds, with weights from a file."""

from __future__ import annotations

import ast
import hashlib
import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tser_cli.base.errors import CheckpointError, ConfigError, TserError, error_line, out_of_memory
from tser_cli.base.files import foreign
from tser_cli.base.system import call_fault, process_unchanged
from tser_cli.engine.runs.weights import WRAPPERS, load_model
from tser_cli.models.base import differences
from tser_cli.settings.plugins import import_file, look_here


def build_network(spec: str, arguments: tuple[str, ...] = (), flag: str = "--network") -> nn.Module:
    """Return what MODULE:NAME or FILE.py:NAME makes: a function or class is called, a module taken.

    Modules are found from the current folder. Raises ConfigError, naming the flag.
    """
    said = f"{flag} {spec}"
    module_name, colon, name = spec.rpartition(":")
    if not colon or not module_name or not name:
        raise ConfigError(
            foreign(Path(spec))
            or f'{flag} "{spec}": write MODULE:NAME, as mypackage.models:build, or FILE.py:NAME'
        )
    function = getattr(_import(module_name, said), name, None)
    if isinstance(function, nn.Module) and not arguments:
        return function
    if not callable(function):
        raise ConfigError(f"{said}: {module_name} has no function {name}")
    values = dict(_argument(text) for text in arguments)
    if fault := call_fault(function, **values):
        given = "with " + ", ".join(values) if values else "without arguments"
        raise ConfigError(f"{said}: it can't be called {given}: {fault}; give --arg key=value")
    try:
        with process_unchanged():
            network = function(**values)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{said}: the function fails: {error_line(error)}") from error
    if not isinstance(network, nn.Module):
        kind = type(network).__name__
        raise ConfigError(f"{said}: the function returns {kind}, not an nn.Module")
    return network


@contextmanager
def their_code(said: str) -> Iterator[None]:
    """Make whatever a network raises inside, an end of the process too, one ConfigError.

    Not so a message of ours, and memory that ran out.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, TserError) or out_of_memory(error):
            raise
        raise ConfigError(f"{said}: it fails: {error_line(error)}") from error


def _import(name: str, said: str) -> Any:
    here = look_here()
    try:
        with process_unchanged():
            return import_file(name) if name.endswith(".py") else importlib.import_module(name)
    except ConfigError as error:
        raise ConfigError(f"{said}: {error}") from error
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"{said}: {name} can't be imported from {here}: {error_line(error)}"
        ) from error


def _argument(text: str) -> tuple[str, Any]:
    """ "depth=4" -> ("depth", 4). Raises ConfigError."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise ConfigError(f'--arg "{text}": write key=value')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def load_weights(network: nn.Module, path: Path) -> None:
    """Load a safetensors file or a pickled state dict: FILE, or FILE::KEY for a part of it.

    Raises CheckpointError.
    """
    expected = network.state_dict()
    # a network whose weights all lie in a part called so was not wrapped in it to be saved
    prefix = next((p for p in WRAPPERS if expected and all(n.startswith(p) for n in expected)), "")

    def named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {f"{prefix}{name}": value for name, value in state.items()}

    file, _, key = str(path).partition("::")
    found, _, _ = load_model(Path(file), lambda state: not differences(expected, named(state)), key)
    problems = differences(expected, named(found))
    if problems:
        raise CheckpointError(f"{file} does not fit the network: {problems}")
    network.load_state_dict(named(found))


def digest(network: nn.Module) -> str:
    """SHA-256 of the weights, in the order of their names."""
    made = hashlib.sha256()
    # by name: in which order a module registers its parts changes nothing of what it computes
    for name, value in sorted(network.state_dict().items()):
        made.update(name.encode())
        if isinstance(value, Tensor):
            made.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            )
    return made.hexdigest()
