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
