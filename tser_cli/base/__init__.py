"""What every room stands on: errors, files, the machine, progress; and the version of tser."""

__version__ = "0.1.0"
