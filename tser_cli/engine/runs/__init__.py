"""The run folder on disk: settings, status, checkpoints, model files."""
