"""Grids of runs. Nothing heavy is imported here: cells are started by module name."""
