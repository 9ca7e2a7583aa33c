"""Words that stand for sums in tables: written by one room, looked for by another."""

ALL = "all"  # column t: the sum over all time steps
TOTAL = "TOTAL"  # column layer: the sum over all layers
