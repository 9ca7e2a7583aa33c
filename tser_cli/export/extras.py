"""Packages that only an export needs."""

from __future__ import annotations

import importlib
from typing import Any

from tser_cli.errors import ExportError


def needs(package: str, extra: str) -> Any:
    """Return the module `package`. Raises ExportError with the pip line where it is not
    installed.
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise ExportError(
            f"the package {error.name} is not installed, which --format {extra} needs: "
            f"{pip_line(extra)}"
        ) from error


def pip_line(extra: str) -> str:
    """Return the command that installs an extra."""
    return f"pip install 'tser-cli[{extra}]'"
