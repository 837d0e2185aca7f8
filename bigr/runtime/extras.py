"""The extras of the distribution, `pip install 'bigr[evaluation]'`: one clear error where one is needed and missing."""

import re
from functools import cache
from importlib import metadata

from bigr.runtime.errors import BigrError

DISTRIBUTION = "bigr"


class MissingExtra(BigrError, ImportError):
    """A part of the package was used whose optional dependencies are not installed."""


def require(extra: str, what: str) -> None:
    """Raise `MissingExtra` where a distribution of `extra` is not installed.

    what: the part that needs it, as the message names it. The distributions are those in the metadata of `bigr`; where
    `bigr` runs from a folder that no distribution describes, nothing is checked.
    """
    if missing := _missing(extra):
        raise MissingExtra(
            f"{what} needs the extra `{extra}`: pip install '{DISTRIBUTION}[{extra}]' "
            f"(not installed: {', '.join(missing)})"
        )


@cache
def _missing(extra: str) -> list[str]:
    return [name for name in distributions(extra) if not _installed(name)]


def distributions(extra: str) -> list[str]:
    """Names of the distributions that `extra` adds, those of the extras in it included."""
    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []
    names: list[str] = []
    for requirement in requirements:
        found = re.match(r"([\w.-]+)(?:\[([\w,-]+)\])?.*\bextra == ['\"]([\w-]+)['\"]", requirement)
        if found and found[3] == extra:
            inner = found[2].split(",") if found[1] == DISTRIBUTION else None
            names += [found[1]] if inner is None else [name for part in inner for name in distributions(part)]
    return list(dict.fromkeys(names))


def _installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True
