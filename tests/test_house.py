"""The rules of docs/architecture.md: floors, trunk and wings, sizes, names, who may print."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import tser_cli

PACKAGE = Path(tser_cli.__file__).parent
# A wheel has the recipes inside the package: their scripts are run by hand, and are not its code.
FILES = sorted(
    path.relative_to(PACKAGE).as_posix()
    for path in PACKAGE.rglob("*.py")
    if path.relative_to(PACKAGE).parts[0] != "recipes"
)

# From the ground up: a room imports from the floors below it, never from its own or one above.
FLOORS = (
    {"base"},
    {"settings"},
    {"data", "models", "losses", "report"},
    {"energy", "export"},
    {"engine"},
    {"cli"},
    {""},  # __init__.py and __main__.py
)
# The same inside engine/.
ENGINE = ({"runs"}, {"evaluation"}, {"training", "ablation"}, {"commands"}, {"page"})
WINGS = (
    "energy/any_network/",
    "energy/audit.py",
    "energy/conventions/",
    "engine/ablation/",
    "engine/commands/ablate.py",
    "engine/commands/audit.py",
    "engine/commands/compare.py",
    "engine/commands/doctor.py",
    "engine/commands/dry_run.py",
    "engine/commands/export.py",
    "engine/commands/network_energy.py",
    "engine/commands/predict.py",
    "engine/commands/quantize.py",
    "engine/commands/runs.py",
    "engine/page/",
    "export/",
    "report/ablation_figures.py",
)
HEAVY = {"torch", "torchvision", "numpy", "pandas", "matplotlib", "spikingjelly", "sklearn"}
HEAVY |= {"scipy", "accelerate", "tensorboard", "safetensors"}
MOST_LINES, MOST_LINES_OF_A_FUNCTION, MOST_FILES = 600, 60, 14


@cache
def tree_of(file: str) -> ast.Module:
    return ast.parse((PACKAGE / file).read_text(encoding="utf-8"))


@cache
def imports_of(file: str, at_import: bool = False) -> frozenset[str]:
    """The files of the package that a file imports; those for types alone do not count.

    `at_import`: only those that are loaded with it, not the ones inside functions.
    """
    found: set[str] = set()
    for node in _running(tree_of(file), at_import):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tser_cli"):
            for alias in node.names:
                found |= _file_of(f"{node.module}.{alias.name}") or _file_of(str(node.module))
        if isinstance(node, ast.Import):
            for alias in node.names:
                found |= _file_of(alias.name)
    return frozenset(found - {file})


def _running(node: ast.AST, at_import: bool) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from _running(child, at_import)


def _file_of(module: str) -> set[str]:
    if module.split(".")[0] != "tser_cli":
        return set()
    path = "/".join(module.split(".")[1:])
    return {name for name in (f"{path}.py", f"{path}/__init__.py") if name in FILES}


def room_of(file: str) -> str:
    return file.split("/")[0] if "/" in file else ""


def inner_room_of(file: str) -> str:
    return file.split("/")[1] if file.count("/") > 1 else ""


def floor_of(room: str, floors: tuple[set[str], ...]) -> int:
    return next(number for number, rooms in enumerate(floors) if room in rooms)


def goes_down(file: str, other: str) -> bool:
    if room_of(file) != room_of(other):
        return floor_of(room_of(other), FLOORS) < floor_of(room_of(file), FLOORS)
    here, there = inner_room_of(file), inner_room_of(other)
    if room_of(file) != "engine" or here == there:
        return True
    return bool(there) and floor_of(there, ENGINE) < floor_of(here, ENGINE)


def is_wing(file: str) -> bool:
    return file.startswith(WINGS)


@pytest.mark.parametrize(
    ("file", "other", "allowed"),
    [
        ("models/resnet.py", "losses/base.py", False),
        ("models/resnet.py", "settings/config.py", True),
        ("base/files.py", "settings/config.py", False),
        ("engine/runs/folder.py", "engine/evaluation/evaluate.py", False),
        ("engine/training/loop.py", "engine/ablation/grid.py", False),
        ("engine/commands/train.py", "engine/training/loop.py", True),
        ("engine/commands/train.py", "cli/app.py", False),
        ("export/graph.py", "energy/counts.py", False),
    ],
)
def test_the_rule_of_floors_tells_right_from_wrong(file: str, other: str, allowed: bool) -> None:
    assert goes_down(file, other) is allowed


def test_imports_go_down_and_the_trunk_imports_no_wing() -> None:
    arrows = [(file, other) for file in FILES for other in sorted(imports_of(file))]
    assert [arrow for arrow in arrows if not goes_down(*arrow)] == []
    trunk = [arrow for arrow in arrows if room_of(arrow[0]) != "cli" and not is_wing(arrow[0])]
    assert [(file, other) for file, other in trunk if is_wing(other)] == []


def test_files_import_each_other_in_no_circle() -> None:
    left = {file: set(imports_of(file, at_import=True)) for file in FILES}
    while left:
        free = {file for file, others in left.items() if not others & left.keys()}
        assert free, f"a circle among {sorted(left)}"
        left = {file: others for file, others in left.items() if file not in free}


def test_every_wing_is_there() -> None:
    assert [wing for wing in WINGS if not any(file.startswith(wing) for file in FILES)] == []


def test_files_functions_and_rooms_are_small_enough() -> None:
    lengths = {file: (PACKAGE / file).read_text(encoding="utf-8").count("\n") for file in FILES}
    assert {k for k, length in lengths.items() if length > MOST_LINES} == set()
    functions = {
        f"{file}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {k: v for k, v in functions.items() if v > MOST_LINES_OF_A_FUNCTION} == {}
    rooms = Counter(str(Path(file).parent) for file in FILES if not file.endswith("__init__.py"))
    assert {room for room, count in rooms.items() if count > MOST_FILES} <= {"cli"}


def test_a_class_name_has_one_meaning() -> None:
    names = Counter(
        node.name
        for file in FILES
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.ClassDef) and node.name != "Settings"
    )
    assert {name for name, count in names.items() if count > 1} == set()


def test_a_file_says_what_it_is() -> None:
    assert [file for file in FILES if not ast.get_docstring(tree_of(file))] == []


def prints(node: ast.AST) -> bool:
    """A call of print(), or of the print method of anything, as a rich console's."""
    if not isinstance(node, ast.Call):
        return False
    named = isinstance(node.func, ast.Name) and node.func.id == "print"
    return named or (isinstance(node.func, ast.Attribute) and node.func.attr == "print")


def test_only_the_command_line_prints() -> None:
    for file in [file for file in FILES if room_of(file) != "cli"]:
        assert [node.lineno for node in ast.walk(tree_of(file)) if prints(node)] == [], file
        assert "rich.console" not in (PACKAGE / file).read_text(encoding="utf-8"), file


# Completion, `tser list`, Ray's driver and the starter of cells rest on these.
LIGHT = (
    "__init__",
    "base.__init__",
    "base.errors",
    "base.files",
    "base.progress",
    "base.system",
    "settings.config",
    "settings.fields",
    "settings.plugins",
    "settings.recipe",
    "settings.registry",
    "losses.ladder",
    "losses.base",
    "models.sizes",
    "energy.prices",
    "report.style",
)


def test_these_files_load_without_torch() -> None:
    cli = [f"cli.{Path(file).stem}" for file in FILES if room_of(file) == "cli"]
    names = [f"tser_cli.{name}".removesuffix(".__init__") for name in (*LIGHT, *cli)]
    program = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    assert not {HEAVY!r} & sys.modules.keys(), name\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
