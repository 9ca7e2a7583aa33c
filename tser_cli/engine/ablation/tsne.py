"""t-SNE of what teacher and students see: two coordinates an image, in a table to draw from."""

from __future__ import annotations

import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tser_cli.base.errors import CheckpointError
from tser_cli.base.progress import Progress
from tser_cli.data.loaders import build_eval_loader
from tser_cli.engine.ablation.folder import find_cell
from tser_cli.engine.ablation.grid import Cell
from tser_cli.engine.runs.folder import Run
from tser_cli.engine.runs.networks import freeze
from tser_cli.engine.runs.opened import Context, open_finished
from tser_cli.engine.runs.teachers import TEACHER, read_run_teacher
from tser_cli.models.base import Classifier, penultimate
from tser_cli.report.csv_files import TSNE, read_table, write_csv

TSNE_CSV = "tsne.csv"
IMAGES = 500
NETWORKS = 12
PERPLEXITY = 30.0  # van der Maaten and Hinton, JMLR 2008: results are stable for 5 to 50


def write(cells: list[Cell], folder: Path, progress: Progress) -> None:
    """Write tsne.csv of the first test images: the teacher, and a finished seed of each cell.

    Nothing is done where the table is there already, or where no cell has finished.
    """
    runs = first_runs(cells, folder)
    # t-SNE takes long: the table is made again only for a network that it lacks
    if not runs or set(runs) <= known_networks(folder / TSNE_CSV):
        return
    rows: list[dict[str, Any]] = []
    for label, run in runs.items():
        try:
            opened = open_finished(run, {}, progress)
        # one network less costs the others nothing
        except CheckpointError as error:
            progress.warn(f"{label} is left out of {TSNE_CSV}: {error}")
            continue
        # one stands for all cells, which share their teacher
        if not any(row["network"] == TEACHER for row in rows):
            rows += teacher_rows(run, opened.context)
        steps = opened.config.model.timesteps
        rows += embed(label, opened.loaded.model, opened.context, steps)
    # the teacher first, in the figure too; none where no network could be read
    rows.sort(key=lambda row: row["network"] != TEACHER)
    if rows:
        write_csv(folder / TSNE_CSV, rows, TSNE)


def first_runs(cells: list[Cell], folder: Path) -> dict[str, Run]:
    """Return a finished run of each cell by its label, those of the smallest seed, at most a
    dozen.
    """
    found: dict[str, Run] = {}
    for cell in sorted(cells, key=lambda cell: cell.seed):
        run = None if cell.label in found else find_cell(cell, folder)
        if run is not None and len(found) < NETWORKS:
            found[cell.label] = run
    # in the order of the cells, as in every other table
    return {cell.label: found[cell.label] for cell in cells if cell.label in found}


def known_networks(path: Path) -> set[str]:
    """Return the networks that a table has; none where there is no sound table."""
    with suppress(KeyError, OSError, OverflowError, ValueError):
        table = read_table(path, TSNE)
        # NaN would leave an empty panel, and the table would never be made again
        if np.isfinite(table[["x", "y"]].to_numpy()).all():
            return set(table["network"])
    return set()


def teacher_rows(run: Run, context: Context) -> list[dict[str, Any]]:
    """Return the rows of a run's teacher; none where it has none, or it can't be read any more."""
    try:
        teacher = read_run_teacher(run, context.dataset.spec)
    except CheckpointError as error:
        context.progress.warn(f"the teacher is left out of {TSNE_CSV}: {error}")
        return []
    if teacher is None:
        return []
    context.runtime.place(freeze(teacher.model))
    return embed(TEACHER, teacher.model, context, 1)


def embed(name: str, model: Classifier, context: Context, timesteps: int) -> list[dict[str, Any]]:
    """Return the rows of one network: t-SNE of its penultimate features, averaged over time."""
    features, labels, left = [], [], IMAGES
    # a loader for measuring does not shuffle: each network sees the same images
    for batch in build_eval_loader(context.dataset, "test", context.config):
        images = context.runtime.images(batch.images_NCHW[:left])
        features.append(penultimate(model, images, timesteps).float().cpu())
        labels += batch.labels_N[:left].tolist()
        left -= len(images)
        if not left:
            break
    points = coordinates(torch.cat(features))
    return [
        dict(zip(TSNE, (name, image, label, x, y), strict=True))
        for image, (label, (x, y)) in enumerate(zip(labels, points, strict=True))
    ]


def coordinates(features_NF: Tensor) -> list[list[float]]:
    """t-SNE (van der Maaten and Hinton, 2008): [N, F] -> N pairs, the same for the same input."""
    from sklearn.manifold import TSNE

    # scikit-learn looks at three neighbours for each unit of perplexity: so many there must be
    perplexity = min(PERPLEXITY, (len(features_NF) - 1) / 3)
    tsne = TSNE(init="random", perplexity=perplexity, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # features without variance, as of a silent network
        points = tsne.fit_transform(features_NF.numpy().astype(np.float64))
    return [[float(x), float(y)] for x, y in points]
