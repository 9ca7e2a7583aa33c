"""One precision for all cells of an ablation that leave it to the machine."""

from __future__ import annotations

from dataclasses import replace

from tser_cli.engine.ablation.folder import AblationFolder, read_plan
from tser_cli.engine.ablation.grid import Request
from tser_cli.engine.runtime.context import prepare
from tser_cli.engine.training.precision import AUTO, choose_precision
from tser_cli.report.progress import Progress

PRECISION = "training.precision"


def with_one_precision(request: Request, place: AblationFolder, progress: Progress) -> Request:
    """Return the request with one precision for all cells whose settings leave it to the machine.

    It is that of the cells which the folder's plan knows, or is measured on the first cell: else
    some cells might get another one than the others.
    """
    left_open = [cell for cell in request.cells if cell.config.training.precision == AUTO]
    if not left_open:
        return request
    known = {cell.get(PRECISION) for cell in read_plan(place)["cells"].values()} - {None}
    if len(known) == 1:
        (precision,) = known
    else:
        precision = choose_precision("student", prepare(left_open[0].config, progress))
    settled = [
        replace(cell, config=cell.config.updated({PRECISION: precision}))
        if cell in left_open
        else cell
        for cell in request.cells
    ]
    return replace(request, cells=settled)
