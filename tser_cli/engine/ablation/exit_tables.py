"""Write an ablation's tables of early exit and its frontier."""

from __future__ import annotations

from tser_cli.engine.ablation.equal_accuracy import equal_accuracy, summarise_exits
from tser_cli.engine.ablation.exit_runs import exit_runs
from tser_cli.engine.ablation.folder import AblationFolder
from tser_cli.engine.ablation.frontier import frontier
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.ablation.summary import Rows
from tser_cli.report.csv_files import (
    ablation_exit_schema,
    exit_summary_schema,
    frontier_schema,
    read_ablation,
    write_csv,
)
from tser_cli.report.progress import Progress


def write_exit_tables(request: Request, place: AblationFolder, progress: Progress) -> Rows:
    """Write frontier.csv, early_exit.csv and early_exit_summary.csv; return the rows of the last.

    The latter two need images held out, and more than one time step. Needs ablation.csv. Raises
    RunError.
    """
    runs = exit_runs(request, place, progress)
    if not runs:
        return []
    table = read_ablation(place.folder / "ablation.csv", request.axes)
    finished: Rows = table.to_dict("records")  # type: ignore[assignment]
    points = frontier(finished, request.axes, runs)
    write_csv(place.folder / "frontier.csv", points, frontier_schema(request.axes))
    steps = max(cell.config.model.timesteps for cell in request.cells)
    rows = equal_accuracy(request, runs) if steps > 1 else []
    if not rows:
        return []
    summary = summarise_exits(rows, request.axes, request.baseline)
    schema = ablation_exit_schema(request.axes, steps)
    write_csv(place.folder / "early_exit.csv", rows, schema)
    write_csv(place.folder / "early_exit_summary.csv", summary, exit_summary_schema(request.axes))
    return summary
