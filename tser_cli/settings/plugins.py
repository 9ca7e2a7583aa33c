"""Plug-ins: your own methods, networks and data sets beside the built-in ones.

A plug-in is a module that adds to the registries when it is imported (`tser_cli.add_method`,
`add_model` and `add_dataset`). It is named by `--plugin`, `TSER_PLUGIN` or a
recipe's `plugins`. Installed packages add by entry points, and are not imported before they are
used. A run keeps a plug-in's file and those beside it that it imports, or its whole package, with
a hash of each file.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from tser_cli.base.errors import ConfigError, RunError, nearest
from tser_cli.base.files import is_file, make_folder, sha256, write_whole
from tser_cli.base.system import process_unchanged
from tser_cli.settings import registry

VARIABLE = "TSER_PLUGIN"
# Plug-ins were written against these modules of the package, and runs keep copies of plug-ins.
OLD_MODULES = ("registry", "fields", "config")
GROUPS: dict[str, tuple[str, Callable[[str], registry.Entry]]] = {
    "tser.methods": ("method", registry.MethodEntry),
    "tser.models": ("model", registry.ModelEntry),
    "tser.datasets": ("data set", registry.DatasetEntry),
}
INIT = "__init__.py"
FUNCTION = re.compile(r"([\w.]+|.+\.py):\w+")
# What a run keeps of plug-ins: the folder in the run, and how much of a package goes into it.
CODE = "code"
MOST_FILES = 1000
MOST_BYTES = 16 * 2**20
LARGE_BYTES = 2**20  # a file of this size that is no Python is data; a run says that it was there


@dataclass(frozen=True)
class Plugin:
    """A plug-in that was imported: `stated` names it in a recipe, from any folder unless installed.

    `adds`: the names that it added to the registries. `sources`: its files as they were then.
    `offered`: by the entry points of an installed package, not on the command line.
    """

    stated: str
    module: str
    file: Path
    sources: Sources
    adds: tuple[str, ...]
    offered: bool = False


class MissingPluginError(RunError):
    """A run uses what a plug-in adds that is not loaded."""


_loaded: dict[str, Plugin] = {}


def stated() -> list[str]:
    """Return the plug-ins that were imported, as config.toml keeps them."""
    return [plugin.stated for plugin in _loaded.values()]


def asked_for(flags: Iterable[str] | None) -> list[str]:
    """Return the names in `TSER_PLUGIN` (separated as in PATH) and those of the flags."""
    listed = os.environ.get(VARIABLE, "").split(os.pathsep)
    return [name for name in [*listed, *(flags or [])] if name]


def is_loaded(name: str) -> bool:
    """Return whether a plug-in of this module's name was imported, from this place or another.

    So `--plugin` can say where one is that a recipe expects elsewhere.
    """
    if not _is_path(name):
        return name in _loaded
    parts = Path(name).with_suffix("").parts
    modules = [tuple(module.split(".")) for module in _loaded]
    return any(parts[-len(module) :] == module for module in modules)


def load(names: Iterable[str]) -> None:
    """Import plug-ins: files, or modules found from the current folder. Raises ConfigError."""
    for name in names:
        _load(name)


def _load(name: str) -> ModuleType:
    # what it adds is seen from outside: it may register in any module of its own
    before = set(registry.names())
    module = _import(name)
    if module.__name__ not in _loaded:
        added = tuple(sorted(set(registry.names()) - before))
        _loaded[module.__name__] = _described(name, module, added)
    return module


def is_function(name: str) -> bool:
    """Return whether a network is named MODULE:NAME or FILE.py:NAME."""
    return FUNCTION.fullmatch(name) is not None


def add_network(name: str) -> str:
    """Register the network MODULE:NAME or FILE.py:NAME; return it as MODULE:NAME.

    The module counts as a plug-in from then on. Any other name is returned as it is. Raises
    ConfigError.
    """
    if not is_function(name):
        return name
    place, _, made = name.rpartition(":")
    module = _load(place)
    if not hasattr(module, made):
        raise ConfigError(f"{name}: {place} has no {made}{nearest(made, vars(module))}")
    target = f"{module.__name__}:{made}"
    # an SNN, whatever its neurons are: it is named as a student
    registry.MODELS.setdefault(target, registry.ModelEntry(target, spiking_only=True, own=True))
    plugin = _loaded[module.__name__]
    adds = tuple(sorted({*plugin.adds, f"model {target}"}))
    _loaded[module.__name__] = replace(plugin, adds=adds)
    return target


def _described(name: str, module: ModuleType, adds: tuple[str, ...]) -> Plugin:
    file = Path(str(module.__file__)).resolve()
    installed = Path(sysconfig.get_paths()["purelib"]).resolve() in file.parents
    try:
        sources = read_sources(file, module.__name__, alone=installed)
    except ConfigError as error:
        raise ConfigError(f"plug-in {name}: {error}") from error
    # what is installed, and a part of a folder that is no package, are only found by their names
    found_by_name = installed or dotted(file) != module.__name__
    stated = file.parent if file.name == INIT else file
    return Plugin(name if found_by_name else str(stated), module.__name__, file, sources, adds)


def _is_path(name: str) -> bool:
    return name.endswith(".py") or os.sep in name


def _import(name: str) -> ModuleType:
    offer_old_modules()
    try:
        with process_unchanged():
            module = import_file(name) if _is_path(name) else _import_module(name)
        if module.__file__ is None:
            raise ConfigError(f"it is a folder without {INIT}; name a module in it, as {name}.mine")
    except ConfigError as error:
        raise ConfigError(f"plug-in {name}: {error}") from error
    # SystemExit: a script that ends itself would end the command too, as if all were done
    except (Exception, SystemExit) as error:
        raise ConfigError(f"plug-in {name} can't be imported: {last_line(error)}") from error
    return module


def offer_old_modules() -> None:
    """Let plug-ins and scripts import modules of settings/ by old names, as `tser_cli.fields`."""
    for old in OLD_MODULES:
        # not before it is asked for: settings.config takes longer to import than most of --help
        module = importlib.import_module(f"tser_cli.settings.{old}")
        sys.modules.setdefault(f"tser_cli.{old}", module)


def look_here() -> str:
    """Let modules be found in the current folder too, and return that folder.

    It is searched last, so that nothing in it stands in for an installed package.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    return here


def _import_module(name: str) -> ModuleType:
    here = look_here()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # what the plug-in itself imports is missing
        beside = [path.stem for path in Path.cwd().glob("*.py")]
        raise ConfigError(
            f"there is no such module{nearest(name, beside)}, neither in {here} nor installed"
        ) from None


def import_file(name: str) -> ModuleType:
    """Import a file or a folder with __init__.py by its path. Raises ConfigError."""
    file = Path(name).expanduser().resolve()
    if file.is_dir() and not (file / INIT).is_file():
        raise ConfigError(f"it is a folder without {INIT}; name a file in it")
    file = file / INIT if file.is_dir() else file
    if not file.is_file():
        beside = [str(path) for path in Path(name).parent.glob("*.py") if path.is_file()]
        looked = "" if Path(name).is_absolute() else f" in {Path.cwd()}"
        raise ConfigError(f"there is no such file{nearest(name, beside)}{looked}")
    if file.stat().st_size > MOST_BYTES:
        raise ConfigError(f"it has more than {MOST_BYTES // 2**20} MiB, and is no module")
    package = package_of(file)
    folder = str(file.parent if package is None else package.parent)
    if folder not in sys.path:
        # last, so that nothing beside it stands in for what is installed
        sys.path.append(folder)
    if package is None:
        return _import_alone(file)
    top = importlib.import_module(package.name)
    if Path(str(top.__file__)).resolve() != package / INIT:
        raise ConfigError(
            f"there is another module {package.name} ({top.__file__}); rename the folder"
        )
    return importlib.import_module(dotted(file))


def _import_alone(file: Path) -> ModuleType:
    module = file.stem
    known = sys.modules.get(module)
    if known is not None and getattr(known, "__file__", None) == str(file):
        return known
    found = importlib.util.find_spec(module) if known is None else known.__spec__
    origin = str(found.origin) if found is not None else "built in"
    # one that only lies beside it or in the current folder is not hidden from anybody
    beside = (file.parent, Path.cwd())
    if known is not None or (found is not None and Path(origin).parent not in beside):
        raise ConfigError(f"there is another module {module} ({origin}); rename the file")
    imported_beside(file)  # for its errors: one that is not found is another's by the same name
    specification = importlib.util.spec_from_file_location(module, file)
    assert specification is not None and specification.loader is not None
    made = importlib.util.module_from_spec(specification)
    sys.modules[module] = made  # as import does: dataclasses, for one, look it up there
    try:
        specification.loader.exec_module(made)
    except BaseException:
        del sys.modules[module]
        raise
    return made


def last_line(error: BaseException) -> str:
    """Return the last line of an error's traceback, with its file and line."""
    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{text} ({error.filename}, line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    return f"{text} ({frames[-1].filename}, line {frames[-1].lineno})" if frames else text


def add_entry_points() -> None:
    """Add what installed packages offer; nothing of them is imported. Raises ConfigError."""
    from importlib.metadata import entry_points  # too slow for --help

    for group, (kind, make) in GROUPS.items():
        for point in entry_points(group=group):
            # the command line adds them once for the options and once for a shell's completion
            known = registry.TABLES[kind].get(point.name)
            if known is not None and known.target == point.value:
                continue  # added before
            offer_old_modules()  # it is imported when it is used, by then nobody knows by whom
            package = point.dist.name if point.dist is not None else point.value
            try:
                registry.add(kind, point.name, make(point.value))
            except ConfigError as error:
                raise ConfigError(f"the installed package {package}: {error}") from error


def keep(folder: Path, targets: Mapping[str, str]) -> list[dict[str, Any]]:
    """Copy the plug-ins' files into a run's code/; return what environment.json says of them.

    `targets`: what the run uses, by name (`registry.targets_of`); modules that are not the
    package's own are kept, however they were imported. Raises RunError.
    """
    # what the run uses that no plug-in on the command line added: an installed package offers it
    added = {name for plugin in _loaded.values() for name in plugin.adds}
    modules = {name: target.partition(":")[0] for name, target in targets.items()}
    others = {module for name, module in modules.items() if name not in added}
    installed = []
    for module in sorted(m for m in others - _loaded.keys() if not registry.is_built_in(m)):
        adds = tuple(name for name, target in modules.items() if target == module)
        made = _described(module, importlib.import_module(module), adds)
        installed.append(replace(made, stated=module, offered=True))
    records = []
    # all that were imported, used or not: a plug-in may change what another one does
    for plugin in [*_loaded.values(), *installed]:
        plugin.sources.write(folder / CODE)
        place = {"name": plugin.stated, "module": plugin.module, "file": str(plugin.file)}
        copy = {**plugin.sources.record(), "copy": f"{CODE}/{plugin.sources.name}"}
        offered = {"offered": True} if plugin.offered else {}
        records.append({**place, **copy, **offered, "adds": list(plugin.adds)})
    return records


def check_loaded(records: Iterable[Mapping[str, Any]], used: Iterable[str], folder: Path) -> None:
    """Raise MissingPluginError where a run uses what a plug-in adds that is not loaded.

    `used` are names as `registry.names` gives them. A run's copy is never imported unasked: it is
    code from wherever the run comes from.
    """
    missing = set(used) - set(registry.names())
    for record in records:
        name, module = str(record.get("name")), str(record.get("module"))
        lacking = sorted(missing & set(map(str, record.get("adds") or [])))
        if lacking and module in _loaded:
            for one in lacking:  # a network MODULE:NAME, which no code of the module registers
                add_network(one.partition(" ")[2])
            lacking = sorted(set(lacking) - set(registry.names()))
        if lacking:
            part = folder.joinpath(CODE, *module.split(".")).with_suffix(".py")
            copy = shlex.quote(str(part if is_file(part) else folder / str(record.get("copy"))))
            kept = f"--plugin {copy} (kept in the run, as it was when the run began)"
            if record.get("offered"):
                kept = f"install the package that offers it. Its code is kept in {copy}"
            elif Path(name).exists() or not _is_path(name):
                kept = f"--plugin {shlex.quote(name)}, or {kept}"
            needed = " and the ".join(lacking)
            raise MissingPluginError(f"{folder} needs a plug-in for the {needed}: {kept}")


def changes(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a line for each plug-in of a run whose files are different now."""
    now = {plugin.sources.name: plugin.sources for plugin in _loaded.values()}
    lines = []
    for record in records:
        sources = now.get(Path(str(record.get("copy"))).name)
        if sources is not None and sources.sha256() != record.get("sha256"):
            files, hashes, differing = record.get("files"), sources.hashes(), "its file has"
            if isinstance(files, Mapping):  # a package's
                names = sorted(n for n in {*files, *hashes} if files.get(n) != hashes.get(n))
                more = f" and {len(names) - 3} more" if len(names) > 3 else ""
                differing = f"{', '.join(names[:3])}{more} ha{'s' if len(names) == 1 else 've'}"
            lines.append(f"plug-in {record.get('name')}: {differing} changed since")
    return lines


@dataclass(frozen=True)
class Sources:
    """The files of a plug-in as they were when it was imported, by their paths inside code/.

    `name`: the file or folder of it there. `left_out`: large files that are no Python.
    """

    name: str
    files: dict[str, bytes]
    left_out: tuple[str, ...] = ()

    def hashes(self) -> dict[str, str]:
        """Return the SHA-256 of each file."""
        return {path: sha256(content) for path, content in self.files.items()}

    def sha256(self) -> str:
        """Return the SHA-256 of the file; of a package, that of the list of its files' hashes."""
        # of one file the hash is what sha256sum says, so that a copy can be compared by hand
        if list(self.files) == [self.name]:
            return sha256(self.files[self.name])
        return sha256("".join(f"{h}  {path}\n" for path, h in self.hashes().items()).encode())

    def record(self) -> dict[str, Any]:
        """Return what environment.json says of the files."""
        found: dict[str, Any] = {"sha256": self.sha256()}
        if list(self.files) != [self.name]:
            found["files"] = self.hashes()
        return {**found, "left_out": list(self.left_out)} if self.left_out else found

    def write(self, folder: Path) -> None:
        """Write the files below `folder`. Raises RunError."""
        for path, content in self.files.items():
            make_folder((folder / path).parent)
            write_whole(folder / path, content)


def package_of(file: Path) -> Path | None:
    """Return the outermost folder of the package that a file is in, None for a file by itself."""
    outermost = None
    for folder in file.parents:
        if not is_file(folder / INIT):
            break
        outermost = folder
    return outermost


def dotted(file: Path) -> str:
    """Return the name by which a file is imported from beside its package: mypackage.methods.mine.

    That of a package itself is its folder's.
    """
    package = package_of(file)
    within = file.relative_to(package.parent if package else file.parent).with_suffix("")
    return ".".join(within.parts[:-1] if within.name == "__init__" else within.parts)


def read_sources(file: Path, module: str, alone: bool = False) -> Sources:
    """Return the files of a plug-in whose module is in `file`, unless that is meant `alone`.

    They are its package's, or those beside it that it imports. Raises ConfigError for a package of
    too many files, or too large ones.
    """
    package = None if alone else package_of(file)
    files: dict[str, bytes] = {}
    if package is None:
        for path in [] if alone else imported_beside(file):
            files[path.relative_to(file.parent).as_posix()] = path.read_bytes()
        return Sources(f"{module}.py", {f"{module}.py": file.read_bytes(), **files})
    left_out, found, size = [], [], 0
    for place, folders, names in os.walk(package):
        # neither caches nor hidden files
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        found += [Path(place, name) for name in names if name[0] != "."]
    for path in sorted(path for path in found if path.suffix != ".pyc" and is_file(path)):
        name = path.relative_to(package.parent).as_posix()
        if path.suffix != ".py" and path.stat().st_size > LARGE_BYTES:
            left_out.append(name)
            continue
        size += path.stat().st_size
        if len(files) == MOST_FILES or size > MOST_BYTES:
            raise ConfigError(
                f"{package} holds more than {MOST_FILES:,} files or {MOST_BYTES // 2**20} MiB, and "
                "a run keeps a copy of its plug-ins: move what is no code out of it"
            )
        files[name] = path.read_bytes()
    return Sources(package.name, files, tuple(left_out))


def imported_beside(file: Path) -> list[Path]:
    """Return the modules beside `file` that it imports, anywhere in it, and those that they import.

    Of a folder all its modules. Raises ConfigError where one from elsewhere has the name of one
    that lies there: which of them is meant is not to be guessed.
    """
    folder, reading, places = file.parent, [file], set[Path]()
    for path in reading:  # it grows
        for name in _imports(path) - {"tser_cli", "__main__", file.stem}:
            found = importlib.util.find_spec(name)
            if found is None:
                continue  # the import itself says so
            searched = [*(found.submodule_search_locations or [])]
            place = Path(searched[0] if searched else str(found.origin))
            if place in places:
                continue
            if place.parent == folder:
                places.add(place)
                reading += [place] if place.suffix else sorted(place.rglob("*.py"))
            elif is_file(there := folder / f"{name}.py") or is_file(there := folder / name / INIT):
                raise ConfigError(f"there is another module {name} ({place}); rename {there}")
    return sorted({*reading} - {file})


def _imports(file: Path) -> set[str]:
    """Return the first parts of the modules that a file imports by whole names."""
    found = list(ast.walk(ast.parse(file.read_bytes(), str(file))))
    named = [alias.name for one in found if isinstance(one, ast.Import) for alias in one.names]
    named += [str(one.module) for one in found if isinstance(one, ast.ImportFrom) and not one.level]
    return {name.partition(".")[0] for name in named}
