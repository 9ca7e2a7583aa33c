"""What `tser energy` tells beyond one table: conventions, memory, and the fair rival."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tser_cli.energy import Counts, Profile, lemaire
from tser_cli.energy.auxiliary import Auxiliary
from tser_cli.energy.comparison import Compared, compare, matching
from tser_cli.energy.rival import Rival, fair_rival
from tser_cli.quantities import parse_energy
from tser_cli.report.csv_files import CONVENTIONS, write_csv


@dataclass(frozen=True)
class Wanted:
    """What was asked for: the table of conventions, a figure to match, the fair rival."""

    conventions: bool = False
    match: str = ""
    fair_rival: bool = False
    assume_int8: bool = False

    @property
    def any(self) -> bool:
        """Return whether anything of it takes more than the plain counts."""
        return self.conventions or bool(self.match) or self.fair_rival


@dataclass(frozen=True)
class Memory:
    """The energy of the network and of the ANN of its shape on the model of Lemaire et al."""

    snn: lemaire.LemaireEnergy
    ann: lemaire.LemaireEnergy


@dataclass(frozen=True)
class Beyond:
    """What was found of it; empty or None where it was not asked for.

    `matched`: the conventions within 5 % of the figure that was to be matched, None without one.
    """

    conventions: tuple[Compared, ...] = ()
    matched: tuple[Compared, ...] | None = None
    match: str = ""
    memory: Memory | None = None
    rival: Rival | None = None
    written: tuple[Path, ...] = ()

    def document(self) -> dict[str, Any]:
        """Return the part of the sidecar."""
        found: dict[str, Any] = {}
        if self.conventions:
            found["conventions"] = [one.row() for one in self.conventions]
        if self.memory is not None:
            found["lemaire"] = {
                name: {**asdict(energy), "memory_pj": energy.memory_pj, "total_pj": energy.total_pj}
                for name, energy in (("snn", self.memory.snn), ("ann", self.memory.ann))
            }
        if self.rival is not None:
            found["fair_rival"] = asdict(self.rival)
        return found


def go_beyond(
    output: Path, counts: Counts, others: Auxiliary, profile: Profile, wanted: Wanted
) -> Beyond:
    """Make what was asked for from counts with details; the table goes beside `output`.

    Raises ConfigError for a figure that is no energy.
    """
    figure = parse_energy(wanted.match) if wanted.match else None
    compared: tuple[Compared, ...] = ()
    written: tuple[Path, ...] = ()
    if wanted.conventions or figure is not None:
        compared = tuple(compare(counts, profile, others))
    if wanted.conventions:
        table = output.with_name(f"{output.stem}_conventions.csv")
        write_csv(table, [one.row() for one in compared], CONVENTIONS)
        written = (table,)
    memory = None
    if profile.model or wanted.fair_rival:
        memory = Memory(lemaire.snn_energy(counts), lemaire.ann_energy(counts))
    return Beyond(
        conventions=compared,
        matched=None if figure is None else tuple(matching(compared, figure)),
        match=wanted.match,
        memory=memory,
        rival=fair_rival(counts, profile) if wanted.fair_rival else None,
        written=written,
    )
