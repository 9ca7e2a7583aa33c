"""`python -m tser_cli`, and so `torchrun -m tser_cli`."""

import sys
from pathlib import Path

from tser_cli.cli.start import main

if __name__ == "__main__":
    # -m puts the current folder first, where a file would stand in for any module; `tser` does not.
    # A checkout that is not installed is found there alone.
    if sys.path[0] == str(Path.cwd()) != str(Path(__file__).parents[1]):
        del sys.path[0]
    main()
