"""Masks passwords in messages, logs, pages and records.

A tracking URI may have them (`http://user:password@host`), and libraries repeat the URI in their errors.
"""

import logging
import os
import re

MASK = "***"
_WORDS = r"[^\s'\"<>]*"
_NOT_WEB = r"(?<![a-z0-9+.\-])(?!https?:)[a-z][a-z0-9+.\-]*://"
_BEFORE_HOST = re.compile(rf"([a-z][a-z0-9+.\-]*://)[^\s'\"<>/]*@|({_NOT_WEB})[^\s'\"<>/:@]*:{_WORDS}@", re.IGNORECASE)
"""User and password; in the URI of a database the password may have a slash."""
_PARAMETER = re.compile(r"([?&](?:password|passwd|pwd|token)=)[^\s'\"<>&]*", re.IGNORECASE)


def masked(text: str, mask: str = f"{MASK}@") -> str:
    """`text` with user and password of every URI in it replaced by `mask`, which "" leaves out for a link."""
    scheme, found, rest = os.environ.get("MLFLOW_TRACKING_URI", "").partition("://")
    known, at, _ = rest.rpartition("@")
    if found and at and not scheme.startswith("sqlite"):  # its password may have any characters
        text = text.replace(f"{scheme}://{known}@", f"{scheme}://{mask}")
    text = _BEFORE_HOST.sub(lambda match: f"{match[1] or match[2]}{mask}", text)
    return _PARAMETER.sub(rf"\1{MASK}", text)


class MaskingFormatter(logging.Formatter):
    """Masks whole lines: also those of other libraries, and tracebacks."""

    def format(self, record: logging.LogRecord) -> str:
        """The masked line."""
        return masked(super().format(record))


def in_one_line(error: Exception, limit: int = 300) -> str:
    """The message of an error in one line of at most `limit` characters, masked; its type where it is empty."""
    text = masked(" ".join(str(error).split())) or type(error).__name__
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
