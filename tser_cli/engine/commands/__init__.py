"""One file a command; each returns a result and prints nothing."""
