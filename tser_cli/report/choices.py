"""What there is to choose from, a row each: methods, models, data sets, recipes, cost profiles."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from tser_cli import recipe, registry
from tser_cli.registry import DatasetEntry

Rows = list[dict[str, Any]]
COMMAND = "# command:"


def methods() -> Rows:
    """Return the training methods, with the weights that each reads and their defaults."""
    return [
        {
            "name": name,
            "summary": entry.settings.summary,
            "source": entry.settings.source,
            "weights": entry.settings.weights(),
            "deviations": entry.settings.deviations,
            "needs_teacher": entry.needs_teacher,
            "from": origin(entry.target),
        }
        for name, entry in registry.METHODS.items()
    ]


def models() -> Rows:
    """Return the architectures, and as what each can be built."""
    return [
        {
            "name": name,
            "as": "SNN" if entry.spiking_only else "ANN, SNN",
            "from": origin(entry.target),
        }
        for name, entry in registry.MODELS.items()
    ]


def datasets() -> Rows:
    """Return the data sets, and the recipes that are taken where none is named."""
    return [
        {
            "name": name,
            "images": where_from(name, entry),
            "student recipe": entry.student_recipe,
            "teacher recipe": entry.teacher_recipe,
            "from": origin(entry.target),
        }
        for name, entry in registry.DATASETS.items()
    ]


def where_from(name: str, entry: DatasetEntry) -> str:
    """Return in a few words where the images come from."""
    if entry.own_images:
        return "your own, in --data-dir"
    known = {"digits": "with scikit-learn", "imagenet": "in --data-dir"}
    return known.get(name, "downloaded" if registry.is_built_in(entry.target) else "")


def recipes() -> Rows:
    """Return the packaged recipes, and what the head of each says beside its command."""
    return [{"name": name, "about": about(name)} for name in recipe.available()]


def about(name: str) -> str:
    """Return the comment at the head of a packaged recipe, without the command in it."""
    lines = recipe.find(name).read_text(encoding="utf-8").splitlines()
    head = lines[: next((n for n, line in enumerate(lines) if not line.startswith("#")), None)]
    return " ".join(line.removeprefix("# ") for line in head if not line.startswith(COMMAND))


def profiles(known: Iterable[Any]) -> Rows:
    """Return cost profiles (`tser_cli.energy.profiles`), with their constants and sources."""
    return [
        {
            "name": profile.name,
            "MAC pJ": profile.mac_pj,
            "AC pJ": profile.ac_pj,
            "technology": profile.technology,
            "source": profile.source,
        }
        for profile in known
    ]


def origin(target: str) -> str:
    """Return where the code of a name comes from: tser itself, or the module of a plug-in."""
    return "tser" if registry.is_built_in(target) else target.partition(":")[0]


ROWS: Mapping[str, Callable[[], Rows]] = {
    "methods": methods,
    "models": models,
    "datasets": datasets,
    "recipes": recipes,
}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Return a line a row."""
    shown = Table(box=SIMPLE_HEAD)
    for place, name in enumerate(rows[0]):
        shown.add_column(name, no_wrap=place == 0, overflow="fold")
    for row in rows:
        shown.add_row(*map(str, row.values()))
    return shown
