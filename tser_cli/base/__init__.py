"""What every room stands on: errors, files, the machine, progress, the version."""
