"""Dataclasses from settings, whose fields have the names of the settings."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

D = TypeVar("D")


def described(cls: type[D], section: object, **given: object) -> D:
    """`cls` with the fields `given`; every other field is the attribute of `section` of that name.

    A section's lists become tuples.
    """
    names: set[str] = {field.name for field in fields(cls)} - given.keys()  # type: ignore[arg-type]
    return from_values(cls, {**given, **{name: getattr(section, name) for name in sorted(names)}})


def from_values(cls: type[D], values: Mapping[str, Any]) -> D:
    """`cls` with fields as a file holds them; lists become tuples. Raises `TypeError` where a name is no field."""
    return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
