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
BELOW["engine"] = SIBLINGS | {"base"}
BELOW["cli"] = BELOW["engine"] | {"engine"}
# What a subcommand may load only once it has work to do.
HEAVY = {
    *("torch", "torchvision", "spikingjelly", "accelerate", "sklearn", "numpy", "pandas"),
    *("matplotlib", "tensorboard", "safetensors", "scipy", "PIL"),
}
HEAVY_LAYERS = {"engine", "data", "models", "losses", "energy"}


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def layer_of(module: str) -> str:
    """`tser_cli.models.base` -> models; files beside the folders are the base, __main__ is cli."""
    parts = module.split(".")
    if parts[1:] == ["__main__"]:
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


@pytest.mark.parametrize(
    ("layer", "module", "breaks"),
    [
        ("models", "tser_cli.losses.base", True),
        ("models", "tser_cli.engine.commands.distill", True),
        ("base", "tser_cli.models", True),
        ("engine", "tser_cli.cli.app", True),
        ("engine", "tser_cli.models.base", False),
        ("models", "tser_cli.config", False),
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
    assert statistics.median(lengths.values()) <= 15, longest
    assert statistics.quantiles(lengths.values(), n=10)[-1] <= 40, longest
    assert max(lengths.values()) < 120, longest


def may_print(path: Path) -> bool:
    return layer_of_file(path) == "cli" or name_of(path) == str(Path("report", "console.py"))


@pytest.mark.parametrize("path", [path for path in FILES if not may_print(path)], ids=name_of)
def test_only_the_terminal_s_own_files_print(path: Path) -> None:
    calls = [node for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    prints = [c.lineno for c in calls if isinstance(c.func, ast.Name) and c.func.id == "print"]
    assert prints == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(tree_of(path))
