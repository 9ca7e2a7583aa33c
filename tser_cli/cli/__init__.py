"""The command line: parses, makes a Config, calls one verb of the engine."""
