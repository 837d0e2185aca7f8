"""Prompts in a file: a text in each line."""

from pathlib import Path

from bigr.runtime.errors import BigrError


def read_prompts(path: Path, named: str) -> list[str]:
    """The lines of a UTF-8 file, without empty ones at the end; an empty line in between is no text.

    named: what the error calls it. Raises `BigrError` where it cannot be read, or has no line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BigrError(f"{named}: {path} cannot be read ({reason}); it must have a prompt in each line") from None
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise BigrError(f"{named}: {path} has no prompt; write one in each line")
    return lines
