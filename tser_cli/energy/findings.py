"""What an audit finds, and the network that it looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from tser_cli.energy.find_layout import Signature, observe
from tser_cli.energy.layouts import Presentation, fresh_copy
from tser_cli.energy.plan import Plan

FINDING, NOTE = "finding", "note"


@dataclass(frozen=True)
class Finding:
    """One thing found: where, how much of it (`evidence`, of which `unit`), and what to do.

    `severity`: finding, or note where it may be meant.
    """

    check: str
    layer: str
    evidence: float
    unit: str
    advice: str
    severity: str = FINDING


@dataclass(frozen=True)
class Subject:
    """A network to audit: copies of it, how it is given `images` images, and what it is known by.

    `declared`: what a network of tser's own says feeds each layer, None for others.
    """

    network: nn.Module
    presentation: Presentation
    plan: Plan
    declared: dict[str, str] | None = None

    def run(self, presentation: Presentation) -> tuple[Signature, list[Any]]:
        """Return what the calls of a fresh copy are fed with, and its outputs."""
        return observe(fresh_copy(self.network), self.plan, presentation)


@dataclass(frozen=True)
class Audit:
    """Everything found, and the checks that could not be made, with why."""

    findings: tuple[Finding, ...]
    skipped: tuple[tuple[str, str], ...]

    @property
    def clean(self) -> bool:
        """Return whether nothing but notes was found."""
        return all(finding.severity == NOTE for finding in self.findings)


class Unchecked(Exception):  # noqa: N818  (no fault: a check that does not apply)
    """A check that can't be made on this network; the message says why."""
