"""The house: layers, sizes of files and functions, imports that stay lazy."""

from __future__ import annotations

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tser_cli

PACKAGE = Path(tser_cli.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
SIBLINGS = {"data", "models", "losses", "energy", "report"}
BELOW: dict[str, set[str]] = {"base": set(), **{sibling: {"base"} for sibling in SIBLINGS}}
BELOW["export"] = {"models", "base"}  # it reads networks, and stands on the models alone
BELOW["engine"] = SIBLINGS | {"export", "base"}
BELOW["cli"] = BELOW["engine"] | {"engine"}
# The rooms of engine/, from the lowest floor up: each imports from the floors below it alone.
FLOORS = (
    {"runtime"},
    {"runs"},
    {"evaluation", "teachers"},
    {"training", "ablation"},
    {"commands"},
)
# What a subcommand may load only once it has work to do.
HEAVY = {
    *("torch", "torchvision", "spikingjelly", "accelerate", "sklearn", "numpy", "pandas"),
    *("matplotlib", "tensorboard", "safetensors", "scipy", "PIL"),
}
HEAVY_LAYERS = {"engine", "export", "data", "models", "losses", "energy"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def layer_of(module: str) -> str:
    """`tser_cli.models.base` -> models; files beside the folders are the base.

    The faces of the package, __init__ for Python and __main__ for the shell, stand above all.
    """
    parts = module.split(".")
    if parts[1:] in (["__main__"], ["__init__"]):
        return "cli"
    return parts[1] if len(parts) > 1 and parts[1] in BELOW else "base"


def layer_of_file(path: Path) -> str:
    return layer_of(".".join(["tser_cli", *path.relative_to(PACKAGE).with_suffix("").parts]))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports; `from tser_cli import x` counts as tser_cli.x."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return []
    if node.module == "tser_cli":
        return [f"tser_cli.{alias.name}" for alias in node.names]
    return [node.module]


def at_module_level(node: ast.AST) -> Iterator[ast.AST]:
    """Everything that runs on import: not the bodies of functions, nor what is for types alone."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from at_module_level(child)


def breaks_layers(layer: str, module: str) -> bool:
    if module.split(".")[0] != "tser_cli":
        return False
    return layer_of(module) not in {layer, *BELOW[layer]}


def room_of(module: str) -> str:
    """`tser_cli.engine.runs.result` -> runs; "" outside the engine."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["tser_cli", "engine"] and len(parts) > 2 else ""


def room_of_file(path: Path) -> str:
    return room_of(".".join(["tser_cli", *path.relative_to(PACKAGE).with_suffix("").parts]))


def floor_of(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def breaks_rooms(room: str, module: str) -> bool:
    other = room_of(module)
    if not room or not other or room == other:
        return False
    return floor_of(other) >= floor_of(room)


@pytest.mark.parametrize(
    ("room", "module", "breaks"),
    [
        ("runs", "tser_cli.engine.evaluation.per_timestep", True),
        ("training", "tser_cli.engine.ablation.grid", True),
        ("evaluation", "tser_cli.engine.teachers.find", True),
        ("ablation", "tser_cli.engine.commands.distill", True),
        ("commands", "tser_cli.engine.training.loop", False),
        ("teachers", "tser_cli.engine.runs.model_files", False),
        ("runs", "tser_cli.engine.runs.result", False),
        ("runtime", "tser_cli.data.base", False),
    ],
)
def test_the_rule_of_rooms_tells_right_from_wrong(room: str, module: str, breaks: bool) -> None:
    assert breaks_rooms(room, module) is breaks


ROOMS = sorted((PACKAGE / "engine").glob("*/*.py"))


@pytest.mark.parametrize("path", ROOMS, ids=name_of)
def test_rooms_import_from_the_floors_below_alone(path: Path) -> None:
    modules = [module for node in ast.walk(tree_of(path)) for module in imported(node)]
    assert [m for m in modules if breaks_rooms(room_of_file(path), m)] == []


def test_every_file_of_the_engine_is_in_a_room() -> None:
    beside = [path.name for path in (PACKAGE / "engine").glob("*.py")]
    rooms = {path.parent.name for path in ROOMS}
    assert beside == ["__init__.py"]
    assert rooms == set().union(*FLOORS)


@pytest.mark.parametrize(
    ("layer", "module", "breaks"),
    [
        ("models", "tser_cli.losses.base", True),
        ("models", "tser_cli.engine.commands.distill", True),
        ("base", "tser_cli.models", True),
        ("engine", "tser_cli.cli.app", True),
        ("engine", "tser_cli.models.base", False),
        ("models", "tser_cli.config", False),
        ("export", "tser_cli.models.base", False),
        ("export", "tser_cli.data.base", True),
        ("models", "tser_cli.export.graph", True),
        ("models", "tser_cli.models.base", False),
        ("data", "torch", False),
    ],
)
def test_the_rule_of_layers_tells_right_from_wrong(layer: str, module: str, breaks: bool) -> None:
    assert breaks_layers(layer, module) is breaks


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down_the_layers(path: Path) -> None:
    layer = layer_of_file(path)
    modules = [module for node in ast.walk(tree_of(path)) for module in imported(node)]
    assert [module for module in modules if breaks_layers(layer, module)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_import_is_relative(path: Path) -> None:
    relative = [n for n in ast.walk(tree_of(path)) if isinstance(n, ast.ImportFrom) and n.level]
    assert relative == []


@pytest.mark.parametrize("path", sorted((PACKAGE / "cli").rglob("*.py")), ids=name_of)
def test_the_command_line_imports_nothing_heavy(path: Path) -> None:
    modules = [module for node in at_module_level(tree_of(path)) for module in imported(node)]
    heavy = [m for m in modules if m.split(".")[0] in HEAVY or layer_of(m) in HEAVY_LAYERS]
    assert heavy == []


def test_loading_the_command_line_loads_nothing_heavy() -> None:
    program = (
        "import importlib, pkgutil, sys, tser_cli.cli\n"
        "for module in pkgutil.iter_modules(tser_cli.cli.__path__, 'tser_cli.cli.'):\n"
        "    importlib.import_module(module.name)\n"
        f"print(sorted({HEAVY!r} & sys.modules.keys()))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_stays_under_300_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 300


def function_lengths() -> dict[str, int]:
    return {
        f"{name_of(path)}:{node.name}:{node.lineno}": node.end_lineno - node.lineno + 1
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    }


def test_functions_are_short() -> None:
    lengths = function_lengths()
    longest = sorted(lengths.items(), key=lambda item: -item[1])[:10]
    assert statistics.median(lengths.values()) <= 10, longest
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 25, longest
    assert max(lengths.values()) <= 60, longest


def prints(node: ast.AST) -> bool:
    """A call of print(), or of the print method of anything, as a rich console's."""
    if not isinstance(node, ast.Call):
        return False
    named = isinstance(node.func, ast.Name) and node.func.id == "print"
    return named or (isinstance(node.func, ast.Attribute) and node.func.attr == "print")


SILENT = [path for path in FILES if layer_of_file(path) != "cli"]


@pytest.mark.parametrize("path", SILENT, ids=name_of)
def test_only_the_command_line_prints(path: Path) -> None:
    nodes = list(ast.walk(tree_of(path)))
    assert [node.lineno for node in nodes if prints(node)] == []
    assert [m for node in nodes for m in imported(node) if m == "rich.console"] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))
