"""Gather what a report page says of runs and ablations, and write the page.

First the request and the page, then a run part by part, then what the network must be run for
(early exit, answers image by image), then what a student's energy is compared with.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tser_cli.base.errors import ConfigError, DataError, RunError, TserError, nearest
from tser_cli.base.files import check_folder, is_file, is_folder, write_whole
from tser_cli.base.progress import Progress
from tser_cli.base.version import __version__
from tser_cli.data.image_files import thumbnail
from tser_cli.energy.joules import INT8, MEMORY, SAME, SKIPPING, against_ann, energy_up_to
from tser_cli.energy.prices import INT8_PROFILE, PROFILES, Profile
from tser_cli.engine.commands.network_energy import detailed_counts, go_beyond
from tser_cli.engine.evaluation.early_exit import CONFIDENCE, Rule, offline_exits, row
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, answered, evaluate_split
from tser_cli.engine.page import files
from tser_cli.engine.page.files import (
    MOST_STEPS,
    ablation_report,
    is_ablation,
    label,
    mistakes,
    number,
    part,
    predictions,
    teacher_energy,
    thinned,
)
from tser_cli.engine.page.page import render
from tser_cli.engine.page.values import (
    AblationReport,
    Accuracy,
    Answer,
    Energy,
    EnergyPair,
    ExitPoint,
    Gallery,
    Missing,
    Mistakes,
    Page,
    Picture,
    RunFacts,
    RunReport,
    Tradeoff,
)
from tser_cli.engine.runs.find import find_run
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.engine.training.budget import profile_of
from tser_cli.report.comparison import Disagreement, disagreement
from tser_cli.report.figures import EnergyPoint
from tser_cli.report.predictions import Predictions
from tser_cli.report.words import headline
from tser_cli.settings.options import Wanted
from tser_cli.settings.wing_options import ReportRequest

MOST_SUBJECTS = 12
MOST_PICTURES = 40  # on a page
FEWEST_PICTURES = 8  # of a run
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class ReportResult:
    """The page's values, where it was written, its size in bytes, and which parts it lacks."""

    page: Page
    output: Path
    bytes: int
    missing: tuple[str, ...]


def make_report(request: ReportRequest) -> ReportResult:
    """Gather what is known of the runs and ablations, and write the page.

    Raises ConfigError or RunError before anything is written.
    """
    if request.output.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(
            f"{request.output}: the report is a web page; call it {request.output.stem}.html"
        )
    check_folder(request.output)
    runs, ablations = _subjects(request)
    each = max(FEWEST_PICTURES, MOST_PICTURES // max(1, len(runs)))
    wanted = MeasureRequest(request.images, each, request.changes, request.progress)
    found = [run_report(run, request.measure, wanted) for run in runs]
    page = Page(
        runs=tuple(one.report for one in found),
        ablations=tuple(ablation_report(folder) for folder in ablations),
        same_images=tuple(_on_same_images(found)),
        version=__version__,
    )
    content = render(page).encode(errors="backslashreplace")
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"the page would have {len(content):,} bytes, more than {MOST_BYTES:,}; "
            "name fewer runs at once"
        )
    write_whole(request.output, content)
    return ReportResult(page, request.output, len(content), tuple(_missing(page)))


def _subjects(request: ReportRequest) -> tuple[list[Run], list[Path]]:
    """Return the runs and the folders of ablations, in the order in which they were named."""
    if not request.subjects:
        return [select_run(None, request.runs_dir)], []
    if len(request.subjects) > MOST_SUBJECTS:
        raise ConfigError(
            f"{len(request.subjects)} runs are too many for one page; name at most {MOST_SUBJECTS}"
        )
    named = list(dict.fromkeys(request.subjects))
    ablations = [path for path in named if not _is_run(path) and is_ablation(path)]
    return [_open(path, request.runs_dir) for path in named if path not in ablations], ablations


def _is_run(path: Path) -> bool:
    return is_file(path / "status.json")


def _open(path: Path, runs_dir: Path) -> Run:
    """Return the run that `path` means, by its folder or name, finished or not. Raises RunError."""
    if is_folder(path) and not _is_run(path):
        beside = [entry.name for entry in path.parent.iterdir()] if is_folder(path.parent) else []
        raise RunError(
            f"{path} is neither a run folder nor that of an ablation{nearest(path.name, beside)}: "
            "it has no status.json, ablation.csv or plan.json"
        )
    run = find_run(path, runs_dir)
    files.existing(run.folder, "status.json")
    run.status()
    return run


def _on_same_images(found: Sequence[RunFound]) -> list[tuple[str, Disagreement]]:
    """Compare the first run with each other one that answered the same images."""
    compared = []
    for other in found[1:]:
        one, two = found[0].predictions, other.predictions
        if isinstance(one, Missing) or isinstance(two, Missing):
            continue
        apart = disagreement(one, two)
        if apart is not None and found[0].report.facts.dataset == other.report.facts.dataset:
            compared.append((other.report.name, apart))
    return compared


def _missing(page: Page) -> list[str]:
    """Return a line for each part that a report lacks."""
    everything: list[RunReport | AblationReport] = [*page.runs, *page.ablations]
    return [
        f"{one.name}: {part.name}: {found.why}"
        for one in everything
        for part in fields(one)
        if isinstance(found := getattr(one, part.name), Missing) and one.has(part.name)
    ]


Sidecar = Mapping[str, Any]  # energy.json, as a stranger may have written it


@dataclass(frozen=True)
class RunFound:
    """A run's report, with what each of its test images was answered."""

    report: RunReport
    predictions: Predictions | Missing


def run_report(run: Run, measured_too: bool, request: MeasureRequest) -> RunFound:
    """Return all that a page says of a run; `measured_too`: its network is run as well."""
    known = part("config.toml", lambda: files.stated_settings(run))
    around = part("environment.json", lambda: files.surroundings(run))
    stated = {} if isinstance(known, Missing) else known
    surroundings = {} if isinstance(around, Missing) else around
    measured = _measured(run, measured_too, request)
    accuracy = part("per_timestep.csv", lambda: files.accuracy(run))
    energy = part("energy.csv", lambda: files.energy(run))
    # as recorded, else as measured now
    answered = part("predictions.npz", lambda: predictions(run))
    if isinstance(answered, Missing) and isinstance(measured, CountedPass):
        answered = measured.predictions
    facts = files.facts(run, stated, surroundings)
    document = files.sidecar(run)
    cases = _cases(document, energy, measured)
    report = RunReport(
        name=label(run.name),
        folder=str(run.folder),
        title=_title(run, facts),
        kind=run.kind,
        state=label(run.status().get("state", "of no known state")),
        said=tuple(_said(run, measured)),
        facts=facts,
        accuracy=accuracy,
        curves=part("metrics.csv", lambda: files.curves(run)),
        mistakes=_mistakes(answered, measured),
        energy=energy,
        headline=_headline(cases),
        pairs=_pairs(document, energy, cases, measured),
        tradeoff=part("energy.csv", lambda: _tradeoff(run, document, accuracy, energy, measured)),
        gallery=measured if isinstance(measured, Missing) else measured.gallery,
        all_settings=files.in_words(stated),
        settings=known if isinstance(known, Missing) else files.settings(stated),
        environment=around if isinstance(around, Missing) else files.environment(around),
        commands=files.commands(run, surroundings),
    )
    return RunFound(report, answered)


def _measured(run: Run, asked: bool, request: MeasureRequest) -> CountedPass | Missing:
    if run.status().get("state") != "finished":
        return Missing("the run is not finished")
    if not asked:
        return Missing("the network was not run (--no-measure)")
    return part("the run", lambda: measure(run, request))


def _title(run: Run, facts: RunFacts) -> str:
    if run.kind == "teacher":
        return f"{facts.model}, a teacher on {facts.dataset}"
    steps = f", T = {facts.timesteps}" if facts.timesteps else ""
    return f"{facts.model} on {facts.dataset}{steps}"


def _said(run: Run, measured: CountedPass | Missing) -> list[str]:
    status = run.status()
    state, why = status.get("state"), str(status.get("why") or "")
    if state == "finished":
        without = [measured.why] if isinstance(measured, Missing) else []
        return [f"Without early exit and pictures: {why}" for why in without]
    because = f" ({label(why)})" if why else ""
    return [
        f"This run is {label(state or 'of no known state')}{because}, not finished. The page shows "
        "what it has written so far; the command that began it resumes it"
    ]


def _mistakes(
    answered: Predictions | Missing, measured: CountedPass | Missing
) -> Mistakes | Missing:
    if isinstance(answered, Missing):
        return answered
    names = () if isinstance(measured, Missing) else measured.classes
    return part("predictions.npz", lambda: mistakes(answered, names))


def _cases(
    document: Sidecar, energy: Energy | Missing, measured: CountedPass | Missing
) -> Assumptions:
    if isinstance(energy, Missing):
        return {}
    known = {} if isinstance(measured, Missing) else measured.assumptions
    return assumptions(document, known, energy)


def _headline(cases: Assumptions) -> tuple[str, ...]:
    return tuple(headline({"assumptions": cases, "steps_pj": (), "accuracy": ()})) if cases else ()


def _pairs(
    document: Sidecar,
    energy: Energy | Missing,
    cases: Assumptions,
    measured: CountedPass | Missing,
) -> tuple[EnergyPair, ...]:
    if isinstance(energy, Missing):
        return ()
    more = () if isinstance(measured, Missing) else measured.pairs
    return (*energy_pairs(energy, cases, document), *more)


def _tradeoff(
    run: Run,
    document: Sidecar,
    accuracy: Accuracy | Missing,
    energy: Energy | Missing,
    measured: CountedPass | Missing,
) -> Tradeoff:
    """Return accuracy against energy: as measured, else from the run's tables. Raises RunError."""
    if isinstance(energy, Missing):
        raise RunError(energy.why)
    if isinstance(accuracy, Missing):
        raise RunError(accuracy.why)
    teacher_pj = files.teacher_energy(document)
    taught = None
    if teacher_pj is not None and accuracy.teacher is not None:
        taught = EnergyPoint("teacher", teacher_pj, accuracy.teacher)
    ann_pj = energy.ann_energy_pj
    if isinstance(measured, CountedPass) and measured.steps:
        return Tradeoff(measured.steps, measured.exits, taught, ann_pj, measured.images)
    spent_T = itertools.accumulate(energy.steps_pj)
    steps = (
        EnergyPoint(f"t = {step.t}", spent, step.accuracy)
        for spent, step in zip(spent_T, accuracy.steps, strict=True)
    )
    return Tradeoff(tuple(steps), files.early_exit(run), taught, ann_pj)


THRESHOLDS = (
    *(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99),
    *(0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999),
)
SIDE = 64  # pixels of the longer side of a picture on the page
RIGHT_TO_WRONG = 3  # so many errors are shown for each right answer


@dataclass(frozen=True)
class MeasureRequest:
    """How to measure for a report; `images` 0: all. `pictures`: how many are to be shown."""

    images: int
    pictures: int
    changes: Mapping[str, Any]
    progress: Progress


@dataclass(frozen=True)
class CountedPass:
    """What one counted pass over the test images gave.

    `images`: how many; `classes`: their names. `steps` and `exits`: see `Tradeoff`; () for an ANN.
    `assumptions`: see `energy.headline.against_ann`. `pairs`: those of more detailed counts.
    """

    images: int
    classes: tuple[str, ...]
    predictions: Predictions
    steps: tuple[EnergyPoint, ...]
    exits: tuple[ExitPoint, ...]
    assumptions: Assumptions
    pairs: tuple[EnergyPair, ...]
    gallery: Gallery | Missing


def measure(run: Run, request: MeasureRequest) -> CountedPass:
    """Run the network of a finished run over its test images. Raises TserError."""
    opened = open_finished(run, dict(request.changes), request.progress)
    model, context = opened.loaded.model, opened.context
    steps = opened.config.model.timesteps if model.spiking else 1
    request.progress.say(f"running {run.name} over the test images")
    full = evaluate_split(model, context, "test", steps, count=True, images=request.images)
    assert full.answers is not None and full.counts is not None, "a counted pass"
    classes = opened.loaded.classes or context.dataset.spec.classes
    profile = profile_of(opened.config)
    spent_T = energy_up_to(full.counts, profile).mean(axis=1)
    spiking = model.spiking
    return CountedPass(
        images=full.images,
        classes=tuple(classes),
        predictions=answered(full, can_stop=False),
        steps=tuple(
            EnergyPoint(f"t = {t + 1}", float(spent_T[t]), full.correct_cumulative[t] / full.images)
            for t in range(steps)
            if spiking
        ),
        exits=tuple(_exits(full, profile) if spiking and model.steps_alone else ()),
        assumptions=against_ann(full.counts, profile, None)["assumptions"] if spiking else {},
        pairs=tuple(pairs_beyond(opened, profile) if spiking else ()),
        gallery=_gallery(opened, full.answers, classes, request.pictures),
    )


def _exits(full: Evaluation, profile: Profile) -> list[ExitPoint]:
    """Return early exit at a range of thresholds, without those that repeat.

    Where an image would stop is known from the full pass, which early exit agrees with.
    """
    if full.timesteps < 2:
        return []
    assert full.answers is not None, "a counted pass"
    rules = [Rule(CONFIDENCE, threshold) for threshold in THRESHOLDS]
    rows = [row(rule, offline_exits(full.answers, rule), full, profile) for rule in rules]
    # of several thresholds that stop the same images, the lowest
    unlike = {(line["mean_steps"], line["correct"]): line for line in reversed(rows)}
    return [files.exit_point(line) for line in reversed(unlike.values())]


def _gallery(
    opened: FinishedRun, answers: Answers, classes: Sequence[str], most: int
) -> Gallery | Missing:
    right_I = answers.correct_cumulative_TI[-1]
    sure_I = answers.confidence_cumulative_TI[-1]
    wrong = _ranked(~right_I, -sure_I)
    few_right = _ranked(right_I, sure_I)[: max(1, most // (RIGHT_TO_WRONG + 1))]
    names = [label(name) for name in classes]
    try:
        shown = [
            tuple(_picture(opened, answers, names, place) for place in chosen)
            for chosen in (wrong[: most - len(few_right)], few_right)
        ]
    except DataError as error:
        return Missing(str(error))
    return Gallery(shown[0], shown[1], len(wrong), len(right_I))


def _ranked(chosen_I: Tensor, key_I: Tensor) -> list[int]:
    """Return the places of the chosen images, by their keys."""
    order = torch.argsort(key_I, stable=True)
    return [int(place) for place in order if chosen_I[place]]


def _picture(opened: FinishedRun, answers: Answers, names: Sequence[str], place: int) -> Picture:
    index = int(answers.index_I[place])
    image_CHW = opened.context.dataset.test.image(index).cpu()
    steps = thinned(range(len(answers.prediction_TI)), MOST_STEPS)
    prediction_T = answers.prediction_TI[:, place]
    confidence_T, correct_T = answers.confidence_TI[:, place], answers.correct_TI[:, place]
    final = int(answers.prediction_cumulative_TI[-1, place])
    return Picture(
        source="data:image/png;base64," + base64.b64encode(thumbnail(image_CHW, SIDE)).decode(),
        index=index,
        label=names[int(answers.labels_I[place])],
        answers=tuple(
            Answer(t + 1, names[int(prediction_T[t])], float(confidence_T[t]), bool(correct_T[t]))
            for t in steps
        ),
        final=Answer(
            len(answers.prediction_TI),
            names[final],
            float(answers.confidence_cumulative_TI[-1, place]),
            bool(answers.correct_cumulative_TI[-1, place]),
        ),
    )


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
    return measured or {SAME: {"snn_pj": found.energy_pj, "ann_pj": found.ann_energy_pj}}


def _sound(item: tuple[str, Any]) -> bool:
    name, case = item
    needed = ("snn_pj", "ann_pj", *(["skipped"] if name == SKIPPING else []))
    if name not in NAMES or not isinstance(case, dict):
        return False
    numbers = [number(case.get(key)) for key in needed]
    return all(value is not None and value > 0 for value in numbers)


def energy_pairs(found: Energy, cases: Assumptions, document: Sidecar) -> list[EnergyPair]:
    """Return the student beside the ANN of its shape, under each assumption, and its teacher."""
    made = [
        EnergyPair(NAMES[name], case["snn_pj"], case["ann_pj"], _how(name, case, found))
        for name, case in cases.items()
    ]
    teacher_pj = teacher_energy(document)
    if teacher_pj is not None:
        name = f"its teacher, {label(document['teacher'].get('name'))}"
        how = _how(SAME, {}, found)
        made.append(EnergyPair(name, found.energy_pj, teacher_pj, how, in_range=False))
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


def pairs_beyond(opened: FinishedRun, profile: Profile) -> list[EnergyPair]:
    """Return the comparisons that take more detailed counts: they are made on a few images."""
    try:
        details = detailed_counts(opened, DETAILED)
    except TserError as error:  # a network whose details can't be counted has its other figures
        opened.context.progress.warn(f"the fair rival is left out: {error}")
        return []
    found = go_beyond(Path(), details, profile, Wanted(fair_rival=True))
    assert found.memory is not None and found.rival is not None, "asked for"
    snn, ann, rival = found.memory.snn.total_pj, found.memory.ann.total_pj, found.rival
    on = f"on {details.counts.images} test images"
    yan, lemaire = "Yan et al., arXiv 2409.08290", "Lemaire et al., arXiv 2210.13107"
    plain, memory = rival.arithmetic, rival.with_memory
    name, addressing = f"{rival.bits}-bit ANN", "with memory and addressing"
    both = f"{addressing} ({lemaire}; {on})"
    how = f"arithmetic alone ({yan}; {on})"
    return [
        EnergyPair(name, plain.snn_pj, plain.rival_pj, how, False),
        EnergyPair("that ANN, memory by layer", snn, ann, f"arithmetic, {both}", False),
        EnergyPair(
            f"{name}, memory by layer", memory.snn_pj, memory.rival_pj, f"both, {both}", False
        ),
    ]
