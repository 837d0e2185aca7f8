"""Shapes from settings: a dataclass whose fields have the names of a section's settings."""

from dataclasses import fields
from typing import Any, TypeVar

D = TypeVar("D")


def described(cls: type[D], section: object, **given: object) -> D:
    """`cls` with the fields `given`; every other field is the attribute of `section` of that name.

    A section's lists become tuples.
    """
    names: set[str] = {field.name for field in fields(cls)} - given.keys()  # type: ignore[arg-type]
    values: dict[str, Any] = {name: getattr(section, name) for name in sorted(names)}
    return cls(**given, **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
