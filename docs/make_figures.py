"""Draw docs/figures/ablations/ from the CSVs in recipes/ablations/results/.

    python docs/make_figures.py

NAME_per_timestep, NAME_accuracy and NAME_energy, as PNG and as SVG; of a search on validation
images NAME_accuracy alone.
"""

from __future__ import annotations

from pathlib import Path

from tser_cli.config import short_name
from tser_cli.report.ablation_plots import draw_tables
from tser_cli.report.csv_files import axes_of, read_ablation, read_summary
from tser_cli.report.style import save_figure

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
        figures = draw_tables(runs, summary, names)
        if summary["measure"].iloc[0] != "accuracy":  # a search on validation images
            figures = {"accuracy": figures["accuracy"]}
        for kind, figure in figures.items():
            save_figure(figure, FIGURES / f"{name}_{kind}")


if __name__ == "__main__":
    main()
