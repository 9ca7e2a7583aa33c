"""Which teacher a student learns from, and whether it fits."""
