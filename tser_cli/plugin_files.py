"""What a run keeps of a plug-in: its file, or its whole package, with a hash of each file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tser_cli.errors import ConfigError
from tser_cli.files import is_file, make_folder, sha256, write_whole

INIT = "__init__.py"
MOST_FILES = 1000
MOST_BYTES = 16 * 2**20
LARGE_BYTES = 2**20  # a file of this size that is no Python is data; a run says that it was there


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
    """Return the files of a plug-in whose module is in `file`: its package's, unless `alone`.

    Raises ConfigError for a package of too many files, or too large ones.
    """
    package = None if alone else package_of(file)
    if package is None:
        return Sources(f"{module}.py", {f"{module}.py": file.read_bytes()})
    files: dict[str, bytes] = {}
    left_out, size = [], 0
    for path in _files_below(package):
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


def _files_below(folder: Path) -> list[Path]:
    """Return the regular files of a package, without caches and hidden ones, in order of name."""
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and name != "__pycache__"]
        found += [Path(place, name) for name in names if name[0] != "."]
    return sorted(path for path in found if path.suffix != ".pyc" and is_file(path))
