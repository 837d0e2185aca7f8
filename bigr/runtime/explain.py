"""Says in one line what is wrong with a setting: its key, what it was, what is allowed."""

import difflib
import math
from typing import Any, get_args


class InvalidSetting(ValueError):
    """A combination of settings that cannot be: `key` is the setting to name, below the section that raises."""

    def __init__(self, key: str, allowed: str) -> None:
        super().__init__(allowed)
        self.key, self.allowed = key, allowed


def explain_all(details: list[Any], values: dict[str, Any], model: Any) -> list[str]:
    """A line on each error that pydantic found; a key that is missing since another is misspelt has none of its own."""
    meant = {_meant(tuple(detail["loc"]), model) for detail in details if detail["type"] == "extra_forbidden"}
    others = (detail for detail in details if detail["type"] != "missing" or tuple(detail["loc"]) not in meant)
    return list(dict.fromkeys(explain(detail, values, model) for detail in others))


def explain(detail: Any, values: dict[str, Any], model: Any) -> str:
    """One line on an error that pydantic found in `values`, settings of the class `model`."""
    location, kind, context = tuple(detail["loc"]), detail["type"], detail.get("ctx", {})
    error = context.get("error")
    if isinstance(error, InvalidSetting):
        path = (*location, *error.key.split("."))
        return f"{_key(path)} is {show(_at(values, path))}; allowed: {error.allowed}"
    if kind == "missing":
        return f"{_key(location)} is missing; add it (docs/settings.md explains every key)"
    if kind == "extra_forbidden":
        meant = _meant(location, model)
        hint = f"did you mean {_key(meant)}?" if meant else f"known here: {', '.join(_known(model, location[:-1]))}"
        return f"{_key(location)} is not a setting; {hint}"
    if location and location[-1] == "[key]":  # of a mapping whose names the user chooses
        return f"{_key(location[:-2])} names {show(location[-2])}; allowed: a name of letters, digits and _"
    if location and location[-1] == "device":
        return f"{_key(location)} is {show(detail['input'])}; allowed: auto, cpu, mps, cuda or cuda:N"
    if kind == "model_type":
        return (
            f"{_key(location)} is {show(detail['input'])}; allowed: a section with {', '.join(_known(model, location))}"
        )
    message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{_key(location)} is {show(detail['input'])}; allowed: {message}"


def _meant(location: tuple[Any, ...], model: Any) -> tuple[Any, ...] | None:
    """The key that is most like an unknown one, if any is."""
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
    """A value as a message shows it, cut where it is long."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value}"
    text = repr(value) if value is not None else "null"
    return text if len(text) <= 60 else text[:57] + "…"


def some(values: list[int]) -> str:
    """The first few of numbers up to 64."""
    shown = [str(v) for v in values if v <= 64][:8]
    return ", ".join(shown)
