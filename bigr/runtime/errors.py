"""The one exception that a user of this project should ever see.

Raise `BigrError` for whatever the user can put right: a setting, a file, a sample. The message is one line that names
the thing at fault, what it was, and what to do about it. The command line prints it without a traceback and exits
with `EXIT_USER_ERROR`; the Prefect flow takes that exit code for final and does not retry.
"""

EXIT_USER_ERROR = 2


class BigrError(Exception):
    """A mistake that the user can put right; `str()` is one line that names it and the remedy."""
