"""Draw docs/figures/ablations/ from the CSVs in recipes/ablations/results/.

    python docs/make_figures.py

NAME_per_timestep, NAME_accuracy and NAME_energy, as PNG and as SVG, NAME_averaged from three time
steps on, NAME_frontier and NAME_tsne where there is a CSV of that name; of a search on validation
images NAME_accuracy alone.
"""

from __future__ import annotations

from pathlib import Path

from tser_cli.report.ablation_figures import cells_of, draw_frontier, draw_tables, draw_tsne
from tser_cli.report.csv_files import (
    FRONTIER,
    TEXT,
    TSNE,
    axes_of,
    read_ablation,
    read_summary,
    read_table,
)
from tser_cli.settings.names import short_name

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "recipes" / "ablations" / "results"
FIGURES = ROOT / "docs" / "figures" / "ablations"


def main() -> None:
    """Draw the figures of every ablation that is kept."""
    for path in sorted(RESULTS.glob("*_summary.csv")):
        name, summary = path.stem.removesuffix("_summary"), read_summary(path)
        axes = axes_of(summary)
        names = {axis: short_name(axis) for axis in axes}
        runs = read_ablation(RESULTS / f"{name}.csv", axes)
        drawn = draw_tables(runs, summary, names)
        points = RESULTS / f"{name}_frontier.csv"
        if points.is_file():
            table = read_table(points, FRONTIER, others=TEXT)
            drawn["frontier"] = draw_frontier(table, cells_of(runs, names), axes)
        features = RESULTS / f"{name}_tsne.csv"
        if features.is_file():
            drawn["tsne"] = draw_tsne(read_table(features, TSNE))
        if summary["measure"].iloc[0] != "accuracy":  # a search on validation images
            drawn = {"accuracy": drawn["accuracy"]}
        for kind, drawing in drawn.items():
            drawing.save(FIGURES / f"{name}_{kind}")


if __name__ == "__main__":
    main()
