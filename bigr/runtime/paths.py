"""Paths of dvc.yaml and of settings."""

import os
import re

_BRACES = re.compile(r"\{[^{}]*(\.\.|,)[^{}]*\}")


def is_code(path: str) -> bool:
    """Whether a dep of dvc.yaml is code of this project (a package or a module), not data."""
    return path.startswith("bigr/") or path.endswith(".py")


def is_url(where: str) -> bool:
    """Whether it is an address that fsspec opens, and not a path of this machine. file:// is a path."""
    return "://" in where and not where.startswith("file://")


def local_path(where: str) -> str:
    """The path that a file:// address names; else `where`."""
    return where.removeprefix("file://")


def normal(where: str) -> str:
    """A path without what it could do without, as `./` and `//`; a URL as it is."""
    return where if is_url(where) else os.path.normpath(where)


def has_pattern(source: str) -> bool:
    """Whether it names many files by braces, as in `train-{0000..0099}.tar`."""
    return _BRACES.search(source) is not None


def printable(path: str) -> str:
    """A file name as valid text in one line: bytes that are not UTF-8, and control characters, become escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").translate(_ESCAPES)


_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
