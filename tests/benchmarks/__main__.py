"""Measure what this machine can of the table in docs/performance.md, and print it.

    python -m tests.benchmarks [--rounds 7] [--only GROUP] [--scaling] [--gpu]

Groups: step, bf16, beside, memory, evaluate, counting, library (the classes of spikingjelly), job,
start, telling, events. What is compared alternates in one process; shown are the median of the
ratios of neighbours and their range.
`--scaling` adds step time and memory against T and against the batch size. `--gpu`: the rows for
a GPU, see gpu.py.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys

import spikingjelly
import torch
from rich.console import Console
from rich.table import Table

from tests.benchmarks.gpu import gpu_rows
from tests.benchmarks.measures import Row, rows
from tests.benchmarks.memory import peak_megabytes
from tests.benchmarks.subjects import Size, floor_step, training_step
from tests.benchmarks.timing import alternate
from tser_cli.base.system import cores

T_VALUES, BATCHES = (1, 2, 3, 4, 6, 8), (8, 16, 32, 64)


def machine() -> str:
    """Versions and device, for the head of the table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return (
        f"{platform.processor() or platform.machine()}, {cores()} cores, "
        f"{torch.get_num_threads()} threads, {device}; Python {platform.python_version()}, "
        f"torch {torch.__version__}, spikingjelly {getattr(spikingjelly, '__version__', '2')}"
    )


def show(console: Console, table_rows: list[Row], rounds: int) -> None:
    """Measure row by row."""
    table = Table("what", "aim", "measured", "reached", title=machine())
    for row in table_rows:
        print(row.what, file=sys.stderr, flush=True)
        if row.group == "gpu" and not torch.cuda.is_available():
            row.measure(1)
            table.add_row(row.what, row.aim, "not measured: needs a GPU (it runs)", "")
            continue
        found = row.measure(rounds)
        reached = {True: "yes", False: "no", None: ""}[row.reached(found)]
        table.add_row(row.what, row.aim, found.text(), reached)
    console.print(table)


def show_scaling(console: Console, rounds: int) -> None:
    """Step time and peak memory against T and against the batch size."""
    table = Table("T", "batch", "step (s)", "step / floor", "peak MB", "floor MB")
    sizes = [Size(steps, 16) for steps in T_VALUES] + [Size(2, batch) for batch in BATCHES]
    for size in sizes:
        print(f"T = {size.timesteps}, batch {size.batch}", file=sys.stderr, flush=True)
        works = {"step": training_step(size), "floor": floor_step(size)}
        spent = {name: statistics.median(s) for name, s in alternate(works, rounds).items()}
        peaks = [peak_megabytes(kind, size) for kind in ("step", "floor")]
        table.add_row(
            str(size.timesteps),
            str(size.batch),
            f"{spent['step']:.3f}",
            f"{spent['step'] / spent['floor']:.2f}",
            *(f"{peak:.0f}" for peak in peaks),
        )
    console.print(table)


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", help="one group of rows")
    parser.add_argument("--scaling", action="store_true")
    parser.add_argument("--gpu", action="store_true", help="the rows for a GPU alone")
    options = parser.parse_args()
    console = Console(width=120)
    table = gpu_rows() if options.gpu else rows()
    chosen = [row for row in table if options.only in (None, row.group)]
    if not chosen and options.only != "none":
        parser.error(f"no group {options.only}")
    show(console, chosen, options.rounds)
    if options.scaling:
        show_scaling(console, max(3, options.rounds // 2))


if __name__ == "__main__":
    main()
