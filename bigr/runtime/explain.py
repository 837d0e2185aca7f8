"""Explains an invalid setting in one line: its key, what it must be, and its value."""

import difflib
import math
import re
from typing import Any, get_args


class InvalidSetting(ValueError):
    """A setting that does not fit others.

    key: the setting to name, below the section that raises; allowed: what it must be, in words that follow "must be".
    """

    def __init__(self, key: str, allowed: str) -> None:
        super().__init__(allowed)
        self.key, self.allowed = key, allowed


def explain_all(details: list[Any], values: dict[str, Any], model: Any) -> list[str]:
    """A line for each error that pydantic found, but for a missing key whose misspelt form has one already."""
    meant = {_meant(tuple(detail["loc"]), model) for detail in details if detail["type"] == "extra_forbidden"}
    others = (detail for detail in details if detail["type"] != "missing" or tuple(detail["loc"]) not in meant)
    return list(dict.fromkeys(explain(detail, values, model) for detail in others))


def explain(detail: Any, values: dict[str, Any], model: Any) -> str:
    """One line on an error that pydantic found in `values`, settings of the class `model`."""
    location, kind = tuple(detail["loc"]), detail["type"]
    error = detail.get("ctx", {}).get("error")
    if isinstance(error, InvalidSetting):
        path = (*location, *error.key.split("."))
        return f"{_key(path)} must be {error.allowed}, got {show(_at(values, path))}"
    if kind == "missing":
        return f"{_key(location)} is missing; add it (docs/settings.md explains every key)"
    if kind == "extra_forbidden":
        meant = _meant(location, model)
        hint = f"did you mean {_key(meant)}?" if meant else f"known here: {', '.join(_known(model, location[:-1]))}"
        return f"{_key(location)} is not a setting; {hint}"
    if location and location[-1] == "[key]":  # of a mapping whose names the user chooses
        return f"{_key(location[:-2])}: names must be of letters, digits and _, got {show(location[-2])}"
    # As "Input should be greater than 0", "List should have at least 1 item after validation, not 0".
    rule = re.sub(r"^(Value error, )?\w+ should | after validation, not \d+$", "", detail["msg"])
    if location and location[-1] == "device":
        rule = "be auto, cpu, mps, cuda or cuda:N"
    if kind == "model_type":
        rule = f"be a section with {', '.join(_known(model, location))}"
    return f"{_key(location)} must {rule}, got {show(detail['input'])}"


def _meant(location: tuple[Any, ...], model: Any) -> tuple[Any, ...] | None:
    close = difflib.get_close_matches(str(location[-1]), _known(model, location[:-1]), n=1)
    return (*location[:-1], close[0]) if close else None


def _known(model: Any, location: tuple[Any, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):  # an entry of a list of sections
            (model,) = get_args(model)
        else:
            model = model.model_fields[part].annotation
    return [field.alias or name for name, field in model.model_fields.items()]


def _key(location: tuple[Any, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _at(values: Any, path: tuple[Any, ...]) -> Any:
    for part in path:
        values = values[part]
    return values


def show(value: Any) -> str:
    """A value for a message, cut where it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 60 else text[:57] + "…"


def some(values: list[int]) -> str:
    """The first eight of the numbers up to 64, for a message."""
    shown = [str(v) for v in values if v <= 64][:8]
    return ", ".join(shown)
