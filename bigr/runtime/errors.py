"""The exception for errors that the user can correct: a setting, a file, a sample.

Its message is one line that names what is wrong, its value, and the remedy. The command line prints it without a
traceback and exits with `EXIT_USER_ERROR`, after which the Prefect flow does not retry.
"""

EXIT_USER_ERROR = 2
EXIT_STOPPED = 75
"""Of work that was asked to end and has saved its state: EX_TEMPFAIL of sysexits.h, "try again later"."""


class BigrError(Exception):
    """An error that the user can correct; `str()` is one line that names it and the remedy."""
