"""One pass over images: accuracy at each time step, operation counts, early exit."""
