"""What a student's energy is compared with on a report page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tser_cli.energy import INT8_PROFILE, PROFILES, Profile
from tser_cli.energy.headline import INT8, MEMORY, SAME, SKIPPING
from tser_cli.engine.commands.beyond import Wanted, go_beyond
from tser_cli.engine.commands.energy import detailed_counts
from tser_cli.engine.commands.report_files import label, number, teacher_energy
from tser_cli.engine.runs.finished_run import FinishedRun
from tser_cli.errors import TserError
from tser_cli.report.page_values import Duel, Energy

DETAILED = 64  # images whose memory accesses are counted
INT8_PJ = PROFILES[INT8_PROFILE].mac_pj
# Under which assumption, what stands on the page: see `energy.headline.against_ann`.
NAMES = {
    SAME: "the ANN of the same shape",
    SKIPPING: "that ANN, skipping its zeros",
    MEMORY: "that ANN, with memory traffic",
    INT8: "that ANN in 8-bit integers",
}
Assumptions = Mapping[str, Mapping[str, float]]


def assumptions(document: Mapping[str, Any], measured: Assumptions, found: Energy) -> Assumptions:
    """Return the energies of student and ANN by assumption: as energy.json has them, else as
    measured now, else those of energy.csv alone.
    """
    against = document.get("against_ann")
    stated = against.get("assumptions") if isinstance(against, dict) else None
    if isinstance(stated, dict) and SAME in stated and all(map(_sound, stated.items())):
        return stated
    total = found.total
    plain = {"snn_pj": total["energy_pj"], "ann_pj": total["ann_energy_pj"]}
    return measured or {SAME: plain}


def _sound(item: tuple[str, Any]) -> bool:
    name, case = item
    needed = ("snn_pj", "ann_pj", *(["skipped"] if name == SKIPPING else []))
    if name not in NAMES or not isinstance(case, dict):
        return False
    numbers = [number(case.get(key)) for key in needed]
    return all(value is not None and value > 0 for value in numbers)


def duels(found: Energy, cases: Assumptions, document: Mapping[str, Any]) -> list[Duel]:
    """Return the student beside the ANN of its shape, under each assumption, and its teacher."""
    made = [
        Duel(NAMES[name], float(case["snn_pj"]), float(case["ann_pj"]), _how(name, case, found))
        for name, case in cases.items()
    ]
    teacher_pj = teacher_energy(document)
    if teacher_pj is not None:
        name = f"its teacher, {label(document['teacher'].get('name'))}"
        spent = float(found.total["energy_pj"])
        made.append(Duel(name, spent, teacher_pj, _how(SAME, {}, found), in_range=False))
    return made


def _how(name: str, case: Mapping[str, float], found: Energy) -> str:
    if name == SKIPPING:
        return (
            f"arithmetic alone; the ANN leaves out {100 * case['skipped']:.0f} % of its "
            "multiply-accumulates, which meet a zero in the teacher"
        )
    if name == MEMORY:
        return f"arithmetic by {found.profile}, and the traffic of weights and potentials"
    if name == INT8:
        return f"arithmetic alone; the ANN's multiply-accumulates at {INT8_PJ:g} pJ"
    return f"arithmetic alone, both priced by {found.profile}"


def duels_beyond(opened: FinishedRun, profile: Profile) -> list[Duel]:
    """Return the comparisons that take more detailed counts: they are made on a few images."""
    try:
        counts, others = detailed_counts(opened, DETAILED)
    except TserError as error:  # a network whose details can't be counted has its other figures
        opened.context.progress.warn(f"the fair rival is left out: {error}")
        return []
    found = go_beyond(Path(), counts, others, profile, Wanted(fair_rival=True))
    assert found.memory is not None and found.rival is not None, "asked for"
    snn, ann, rival = found.memory.snn.total_pj, found.memory.ann.total_pj, found.rival
    on = f"on {counts.images} test images"
    yan, lemaire = "Yan et al., arXiv 2409.08290", "Lemaire et al., arXiv 2210.13107"
    plain, memory = rival.arithmetic, rival.with_memory
    name, addressing = f"{rival.bits}-bit ANN", "with memory and addressing"
    both = f"{addressing} ({lemaire}; {on})"
    return [
        Duel(name, plain.snn_pj, plain.rival_pj, f"arithmetic alone ({yan}; {on})", False),
        Duel("that ANN, memory by layer", snn, ann, f"arithmetic, {both}", False),
        Duel(f"{name}, memory by layer", memory.snn_pj, memory.rival_pj, f"both, {both}", False),
    ]
