"""Make the page of a report: one file of HTML that asks for nothing from anywhere.

All that comes from a run may come from a stranger. The template escapes it, control characters are
made visible, and data for the charts cannot end the script that holds it. A content security policy
lets the browser run the page's own scripts alone, by their hashes, and open no connection.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

from tser_cli.quantities import joules
from tser_cli.report import page_charts, page_words
from tser_cli.report.ablation import accuracy_words, difference_words
from tser_cli.report.chart_library import NOTICE, library
from tser_cli.report.chart_parts import CONFIG, SERIES
from tser_cli.report.energy_report import quantity
from tser_cli.report.page_compare import compare_runs
from tser_cli.report.page_values import Missing, Page
from tser_cli.visible import visible

TEMPLATES = Path(__file__).with_name("templates")
PARTS = {
    **{"accuracy": "accuracy", "energy": "energy", "layers": "layers", "mistakes": "mistakes"},
    **{"images": "images", "training": "training", "settings": "settings"},
}
FILTERS = {
    "percent": page_words.percent,
    "duration": page_words.duration,
    "told": page_words.told,
    "joules": joules,
    "quantity": quantity,
    "accuracy_words": accuracy_words,
    "difference_words": difference_words,
    "reach": page_words.reach,
}
GLOBALS = {
    "tiles": page_words.tiles,
    "summary": page_words.summary,
    "named": page_words.named,
    "tradeoff_note": page_words.tradeoff_note,
    "ablation_lines": page_words.ablation_lines,
    "curves_of": page_charts.curves_of,
    "notice": NOTICE,
}


def render(page: Page) -> str:
    """Return the page as HTML."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= FILTERS
    environment.tests["missing"] = lambda value: isinstance(value, Missing)
    environment.globals |= {**GLOBALS, "colour_class": colour_class}
    charts = page_charts.charts_of(page)
    scripts = {"library": library(), "program": _text("page.js")}
    return environment.get_template("page.html").render(
        page=page,
        compared=compare_runs(page),
        title=_title(page),
        contents=_contents(page),
        heading="h1" if len(page.runs) + len(page.ablations) == 1 else "h2",
        charts=charts,
        data=_finite({"config": CONFIG, "charts": charts}),
        style=_own(_text("page.css")),
        scripts={name: _own(text) for name, text in scripts.items()},
        policy=_policy(list(scripts.values())),
    )


def _title(page: Page) -> str:
    names = [*(run.name for run in page.runs), *(one.name for one in page.ablations)]
    return f"{names[0]}{' and others' if len(names) > 1 else ''}: tser report"


def _contents(page: Page) -> list[tuple[str, str]]:
    """Return the links at the top: the parts of a single run, else the runs and ablations."""
    if len(page.runs) == 1 and not page.ablations:
        return [(f"r1-{end}", name) for end, name in PARTS.items() if page.runs[0].has(end)]
    beside = [("compare", "side by side")] if len(page.runs) > 1 else []
    runs = [
        (f"r{place}", f"{letter}: {run.title}")
        for place, (letter, run) in enumerate(zip(page.letters, page.runs, strict=True), start=1)
    ]
    ablations = [(f"a{place}", one.name) for place, one in enumerate(page.ablations, start=1)]
    return [*beside, *runs, *ablations]


def colour_class(letter: str) -> str:
    """Return the class of a run's letter: that of its colour in the charts."""
    return f"c{1 + (ord(letter) - ord('A')) % len(SERIES)}"


def _shown(value: Any) -> Any:
    """Make control characters of what the template shows visible; markup of its own stays."""
    return visible(value) if type(value) is str else value


def _text(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _own(text: str) -> Any:
    """Return text of ours that may stand in the page as it is."""
    import markupsafe

    assert "</script" not in text.lower() and "</style" not in text.lower() and "<!--" not in text
    return markupsafe.Markup(text)


def _policy(scripts: list[str]) -> str:
    """Return a content security policy that allows these inline scripts and pictures inside."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def _finite(value: Any) -> Any:
    """Return data for JSON: texts visible, and null for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if isinstance(value, float) and not -1e300 < value < 1e300:
        return None
    return visible(value) if isinstance(value, str) else value
