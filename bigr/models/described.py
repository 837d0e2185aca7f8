"""Shapes from settings: a dataclass whose fields are named as the settings of a section are."""

from dataclasses import fields
from typing import Any, TypeVar

D = TypeVar("D")


def described(cls: type[D], section: object, **given: object) -> D:
    """`cls` with the fields `given`, and every other from the attribute of `section` that has its name.

    A section of params.yaml holds lists where a shape, which does not change, holds tuples.
    """
    names: set[str] = {field.name for field in fields(cls)} - given.keys()  # type: ignore[arg-type]
    values: dict[str, Any] = {name: getattr(section, name) for name in sorted(names)}
    return cls(**given, **{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})
