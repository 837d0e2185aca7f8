"""The command line: `program.py`, and a module for each command that is more than a call."""

from typing import NoReturn


def main() -> NoReturn:
    """What `bigr` runs."""
    from bigr.cli import program

    program.main()
