"""Words that tables are told apart by: written by one room, looked for by another."""

ALL = "all"  # column t: the sum over all time steps
TOTAL = "TOTAL"  # column layer: the sum over all layers

# column point of frontier.csv
ALL_STEPS, EARLY_EXIT = "all_steps", "early_exit"
ANN, ANN_INT8, TEACHER = "ann", "ann_int8", "teacher"
