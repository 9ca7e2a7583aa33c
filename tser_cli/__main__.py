"""`python -m tser_cli`, and so `torchrun -m tser_cli`."""

from tser_cli.cli.app import main

if __name__ == "__main__":
    main()
