"""Gather what a report page says of runs and ablations, and write the page.

First the request and the page, then a run part by part, then what the network must be run for
(early exit, answers image by image), then what a student's energy is compared with.
"""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tser_cli.base import __version__
from tser_cli.base.errors import ConfigError, DataError, RunError, TserError, nearest
from tser_cli.base.files import check_folder, is_file, is_folder, write_whole
from tser_cli.data.image_files import side_by_side, thumbnail
from tser_cli.energy.joules import FRAMES, INT8, MEMORY, SAME, SKIPPING, against_ann, energy_up_to
from tser_cli.energy.prices import INT8_PROFILE, PROFILES, Profile
from tser_cli.engine.commands.network_energy import detailed_counts, go_beyond
from tser_cli.engine.evaluation import early_exit
from tser_cli.engine.evaluation.evaluate import Answers, Evaluation, answered, evaluate_split
from tser_cli.engine.page import files, values
from tser_cli.engine.page.files import Assumptions, Sidecar, label, part
from tser_cli.engine.page.page import render
from tser_cli.engine.page.values import Accuracy, Energy, EnergyPair, Missing
from tser_cli.engine.runs.find import find_run
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.opened import FinishedRun, open_finished, select_run
from tser_cli.engine.training.budget import profile_of
from tser_cli.report.comparison import Disagreement, disagreement
from tser_cli.report.figures import EnergyPoint
from tser_cli.report.predictions import Predictions
from tser_cli.report.verdict import verdict
from tser_cli.settings.options import Wanted
from tser_cli.settings.wing_options import ReportRequest

MOST_SUBJECTS = 12
MOST_PICTURES = 40  # on a page
PICTURE_BYTES = 80_000  # of all of them: photographs are fewer than digits
FEWEST_PICTURES = 8  # of a run
MOST_BYTES = 5_000_000


@dataclass(frozen=True)
class ReportResult:
    """The page's values, where it was written, its size in bytes, and which parts it lacks."""

    page: values.Page
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
    # before the networks are run, which may take minutes
    check_folder(request.output)
    runs, ablations = _subjects(request)
    # many runs share the pictures: a page has to load at once
    pictures = max(FEWEST_PICTURES, MOST_PICTURES // max(1, len(runs)))
    found = [run_report(run, request, pictures) for run in runs]
    page = values.Page(
        runs=tuple(report for report, _ in found),
        ablations=tuple(files.ablation_report(folder) for folder in ablations),
        same_images=tuple(_on_same_images(found)),
        version=__version__,
    )
    # half a surrogate pair, as in a broken file name, has no UTF-8
    content = render(page).encode(errors="backslashreplace")
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"the page would have {len(content):,} bytes, more than {MOST_BYTES:,}; "
            "name fewer runs at once"
        )
    write_whole(request.output, content)
    shown: list[values.RunReport | values.AblationReport] = [*page.runs, *page.ablations]
    missing = tuple(
        f"{one.name}: {part.name}: {lost.why}"
        for one in shown
        for part in fields(one)
        if isinstance(lost := getattr(one, part.name), Missing)
        and (isinstance(one, values.AblationReport) or one.has(part.name))
    )
    return ReportResult(page, request.output, len(content), missing)


def _subjects(request: ReportRequest) -> tuple[list[Run], list[Path]]:
    """Return the runs and the folders of ablations, in the order in which they were named.

    A run is named by its folder or name, finished or not. Raises ConfigError, RunError.
    """
    if not request.subjects:
        return [select_run(None, request.runs_dir)], []
    if len(request.subjects) > MOST_SUBJECTS:
        raise ConfigError(
            f"{len(request.subjects)} runs are too many for one page; name at most {MOST_SUBJECTS}"
        )
    runs, ablations = list[Run](), list[Path]()
    for path in dict.fromkeys(request.subjects):
        is_run = is_file(path / "status.json")
        # an ablation that has only begun has a plan and no tables: it can be shown as that
        if not is_run and any(is_file(path / name) for name in (*files.TABLES, "plan.json")):
            ablations.append(path)
            continue
        if is_folder(path) and not is_run:
            beside = [one.name for one in path.parent.iterdir()] if is_folder(path.parent) else []
            raise RunError(
                f"{path} is neither a run folder nor that of an ablation"
                f"{nearest(path.name, beside)}: it has no status.json, ablation.csv or plan.json"
            )
        runs.append(find_run(path, request.runs_dir))
        # a link that leads elsewhere is refused here
        files.existing(runs[-1].folder, "status.json")
        runs[-1].status()  # a damaged one is no run that could be shown
    return runs, ablations


def _on_same_images(found: Sequence[RunFound]) -> Iterator[tuple[str, Disagreement]]:
    """Compare the first run with each other one that answered the same images."""
    for report, others in found[1:]:
        first, answers = found[0]
        if isinstance(answers, Predictions) and isinstance(others, Predictions):
            apart = disagreement(answers, others)
            # equal labels alone may be chance: two data sets can be in the same order
            if apart is not None and first.facts.dataset == report.facts.dataset:
                yield report.name, apart


# A run's report, with what each of its test images was answered.
RunFound = tuple[values.RunReport, Predictions | Missing]


def run_report(run: Run, request: ReportRequest, pictures: int) -> RunFound:
    """Return all that a page says of a run, with so many pictures; see `CountedPass`."""
    known = part("config.toml", lambda: files.stated_settings(run))
    around = part("environment.json", lambda: files.surroundings(run))
    stated = {} if isinstance(known, Missing) else known
    surroundings = {} if isinstance(around, Missing) else around
    measured: CountedPass | Missing = Missing("the network was not run (--no-measure)")
    status = run.status()
    if status.get("state") != "finished":
        measured = Missing("the run is not finished")
    elif request.measure:
        measured = part("the run", lambda: measure(run, request, pictures))
    counted = None if isinstance(measured, Missing) else measured
    accuracy = part("per_timestep.csv", lambda: files.accuracy(run))
    energy = part("energy.csv", lambda: files.energy(run))
    # as the run recorded it, since the network may have been run on fewer images now
    answers = part("predictions.npz", lambda: files.predictions(run))
    if isinstance(answers, Missing) and counted:
        answers = counted.predictions
    mistakes: values.Mistakes | Missing = answers if isinstance(answers, Missing) else Missing("")
    if isinstance(answers, Predictions):
        names = counted.classes if counted else ()
        mistakes = part("predictions.npz", lambda: files.mistakes(answers, names))
    document, cases, pairs = files.sidecar(run), Assumptions(), list[EnergyPair]()
    if isinstance(energy, Energy):
        alone = {SAME: {"snn_pj": energy.energy_pj, "ann_pj": energy.ann_energy_pj}}
        # as energy.json has them, else as measured now, else those of energy.csv alone
        cases = document.assumptions or (counted and counted.assumptions) or alone
        pairs = [*energy_pairs(energy, cases, document), *(counted.pairs if counted else ())]
    found = verdict(
        None if isinstance(accuracy, Missing) else accuracy.row,
        {"assumptions": cases, "steps_pj": (), "accuracy": ()} if cases else None,
    )
    facts = files.facts(run, stated, surroundings)
    steps = f", T = {facts.timesteps}" if facts.timesteps else ""
    on = f"{facts.dataset}, {facts.events}" if facts.events else facts.dataset
    report = values.RunReport(
        name=label(run.name),
        folder=str(run.folder),
        title=f"{facts.model}, a teacher on {on}"
        if run.kind == "teacher"
        else f"{facts.model} on {on}{steps}",
        kind=run.kind,
        state=label(status.get("state", "of no known state")),
        said=tuple(_said(status, measured)),
        facts=facts,
        accuracy=accuracy,
        curves=part("metrics.csv", lambda: files.curves(run)),
        mistakes=mistakes,
        energy=energy,
        verdict=found,
        pairs=() if found.guessing else tuple(pairs),
        tradeoff=part("energy.csv", lambda: _tradeoff(run, document, accuracy, energy, counted)),
        gallery=measured if isinstance(measured, Missing) else measured.gallery,
        all_settings=files.in_words(stated),
        settings=known if isinstance(known, Missing) else files.settings(stated, run.kind),
        environment=around if isinstance(around, Missing) else files.environment(around),
        commands=files.commands(run, surroundings),
    )
    return report, answers


def _said(status: Mapping[str, Any], measured: CountedPass | Missing) -> list[str]:
    state, why = status.get("state"), str(status.get("why") or "")
    if state == "finished":
        lost = [measured.why] if isinstance(measured, Missing) else []
        return [f"Without early exit and pictures: {why}" for why in lost]
    because = f" ({label(why)})" if why else ""
    return [
        f"This run is {label(state or 'of no known state')}{because}, not finished. The page shows "
        "what it has written so far; the command that began it resumes it"
    ]


def _tradeoff(
    run: Run,
    document: Sidecar,
    accuracy: Accuracy | Missing,
    energy: Energy | Missing,
    counted: CountedPass | None,
) -> values.Tradeoff:
    """Return accuracy against energy: as measured, else from the run's tables. Raises RunError."""
    if isinstance(energy, Missing):
        raise RunError(energy.why)
    if isinstance(accuracy, Missing):
        raise RunError(accuracy.why)
    taught = None
    if document.teacher_pj is not None and accuracy.teacher is not None:
        taught = EnergyPoint("teacher", document.teacher_pj, accuracy.teacher)
    ann_pj = energy.ann_energy_pj
    if counted and counted.steps:
        return values.Tradeoff(counted.steps, counted.exits, taught, ann_pj, counted.images)
    spent_T = itertools.accumulate(energy.steps_pj)
    steps = (
        EnergyPoint(f"t = {step.t}", spent, step.accuracy)
        for spent, step in zip(spent_T, accuracy.steps, strict=True)
    )
    return values.Tradeoff(tuple(steps), files.early_exit(run), taught, ann_pj)


# denser towards 1, where most confidences of a trained network lie
THRESHOLDS = (
    *(0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99),
    *(0.995, 0.998, 0.999, 0.9995, 0.9999, 0.99999),
)
SIDE = 64  # pixels of the longer side of a picture on the page
MOST_FRAMES, A_ROW = 6, 3  # of a sample with a time axis
RIGHT_TO_WRONG = 3  # so many errors are shown for each right answer
BARELY = 0.8  # confidence below which a right answer was close to a wrong one


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
    exits: tuple[values.ExitPoint, ...]
    assumptions: Assumptions
    pairs: tuple[EnergyPair, ...]
    gallery: values.Gallery | Missing


def measure(run: Run, request: ReportRequest, pictures: int) -> CountedPass:
    """Run the network of a finished run over its test images. Raises TserError."""
    opened = open_finished(run, dict(request.changes), request.progress)
    model, context = opened.loaded.model, opened.context
    steps = opened.config.model.timesteps if model.spiking else 1
    request.progress.say(f"running {run.name} over the test images")
    # one counted pass gives the answers, the energies, and where early exit would stop
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
        # a network that computes all its steps at once can't stop between them
        exits=tuple(_exits(full, profile) if spiking and model.steps_alone else ()),
        assumptions=against_ann(full.counts, profile, None)["assumptions"] if spiking else {},
        pairs=tuple(pairs_beyond(opened, profile) if spiking else ()),
        gallery=_gallery(opened, full.answers, classes, pictures),
    )


def _exits(full: Evaluation, profile: Profile) -> list[values.ExitPoint]:
    """Return early exit at a range of thresholds, without those that repeat.

    Where an image would stop is known from the full pass, which early exit agrees with.
    """
    if full.timesteps < 2:
        return []
    assert full.answers is not None, "a counted pass"
    rules = [early_exit.Rule(early_exit.CONFIDENCE, threshold) for threshold in THRESHOLDS]
    rows = [
        early_exit.row(rule, early_exit.offline_exits(full.answers, rule), full, profile)
        for rule in rules
    ]
    # of several thresholds that stop the same images, the lowest
    unlike = {(line["mean_steps"], line["correct"]): line for line in reversed(rows)}
    return [files.exit_point(line) for line in reversed(unlike.values())]


def _gallery(
    opened: FinishedRun, answers: Answers, classes: Sequence[str], most: int
) -> values.Gallery | Missing:
    """Return the first errors and right answers, with fewer right ones: they teach less."""

    def ranked(chosen_I: Tensor, key_I: Tensor) -> list[int]:
        # stable: equal confidences stay in the order of the images
        return [int(place) for place in torch.argsort(key_I, stable=True) if chosen_I[place]]

    right_I = answers.correct_cumulative_TI[-1]
    sure_I = answers.confidence_cumulative_TI[-1]
    wrong = ranked(~right_I, -sure_I)
    few_right = ranked(right_I & (sure_I < BARELY), sure_I)[: max(1, most // (RIGHT_TO_WRONG + 1))]
    names = [label(name) for name in classes]
    try:
        shown = [
            tuple(_picture(opened, answers, names, place) for place in chosen)
            for chosen in (wrong[: most - len(few_right)], few_right)
        ]
    # images that can't be read cost the pictures alone
    except DataError as error:
        return Missing(str(error))
    # by size, not by number: a photograph has many times the bytes of a digit
    room, kept = PICTURE_BYTES * most // MOST_PICTURES, list[tuple[values.Picture, ...]]()
    for pictures, share in zip(shown, (RIGHT_TO_WRONG, 1), strict=True):
        sizes = itertools.accumulate(len(one.source) for one in pictures)
        most_bytes = room * share // (RIGHT_TO_WRONG + 1)
        fitting = sum(size <= most_bytes for size in sizes)
        # at least one, however large: none at all would look as if there were no errors
        kept.append(pictures[: max(1, fitting)])
    return values.Gallery(kept[0], kept[1], len(wrong), len(right_I))


def _picture(
    opened: FinishedRun, answers: Answers, names: Sequence[str], place: int
) -> values.Picture:
    index = int(answers.index_I[place])
    image_CHW, side = opened.context.dataset.test.image(index).cpu(), SIDE
    if frames := image_CHW.dim() == 4:
        shown = files.thinned(list(image_CHW), MOST_FRAMES)
        image_CHW, side = side_by_side(torch.stack(shown), A_ROW), A_ROW * SIDE
    steps = files.thinned(range(len(answers.prediction_TI)), files.MOST_STEPS)
    prediction_T = answers.prediction_TI[:, place]
    confidence_T, correct_T = answers.confidence_TI[:, place], answers.correct_TI[:, place]
    final = int(answers.prediction_cumulative_TI[-1, place])
    return values.Picture(
        source="data:image/png;base64," + base64.b64encode(thumbnail(image_CHW, side)).decode(),
        index=index,
        label=names[int(answers.labels_I[place])],
        answers=tuple(
            values.Answer(
                t + 1, names[int(prediction_T[t])], float(confidence_T[t]), bool(correct_T[t])
            )
            for t in steps
        ),
        final=values.Answer(
            len(answers.prediction_TI),
            names[final],
            float(answers.confidence_cumulative_TI[-1, place]),
            bool(answers.correct_cumulative_TI[-1, place]),
        ),
        frames=frames,
    )


DETAILED = 64  # images whose memory accesses are counted


def energy_pairs(found: Energy, cases: Assumptions, document: Sidecar) -> list[EnergyPair]:
    """Return the student beside the ANN of its shape, under each assumption, and its teacher."""
    plain = f"arithmetic alone, both priced by {found.profile}"
    how = {
        SAME: plain + (", the ANN on the mean frame" if FRAMES in cases else ""),
        FRAMES: "arithmetic alone; the ANN computes each frame",
        MEMORY: f"arithmetic by {found.profile}, and the traffic of weights and potentials",
        INT8: "arithmetic alone; the ANN's multiply-accumulates at "
        f"{PROFILES[INT8_PROFILE].mac_pj:g} pJ",
    }
    if SKIPPING in cases:
        how[SKIPPING] = (
            f"arithmetic alone; the ANN leaves out {100 * cases[SKIPPING]['skipped']:.0f} % of its "
            "multiply-accumulates, which meet a zero in the teacher"
        )
    made = [
        EnergyPair(files.ANNS[name], case["snn_pj"], case["ann_pj"], how[name])
        for name, case in cases.items()
    ]
    if document.teacher_pj is not None:
        name = f"its teacher, {document.teacher}"
        made.append(EnergyPair(name, found.energy_pj, document.teacher_pj, plain, in_range=False))
    return made


def pairs_beyond(opened: FinishedRun, profile: Profile) -> list[EnergyPair]:
    """Return the comparisons that take more detailed counts: they are made on a few images."""
    # each memory access is counted, which takes long: a few images have to do
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
    how = f"arithmetic alone ({yan}; {on})"
    return [
        EnergyPair(name, plain.snn_pj, plain.rival_pj, how, False),
        EnergyPair("that ANN, memory by layer", snn, ann, f"arithmetic, {both}", False),
        EnergyPair(
            f"{name}, memory by layer", memory.snn_pj, memory.rival_pj, f"both, {both}", False
        ),
    ]
