"""Reads settings files. `params.yaml` holds every setting; a recipe holds what differs from the file it extends."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from bigr.config.settings import Settings
from bigr.runtime.errors import BigrError
from bigr.runtime.explain import explain_all, show

EXTENDS = "extends"
"""The key of a recipe that names the file with all other settings, relative to the recipe's folder."""

WHOLE = ("targets", "promotion")
"""Sections that a recipe replaces as a whole, since their entries are a list of the user's own."""


def load(path: Path) -> Settings:
    """Read and validate a settings file. Raises `BigrError` with one line per invalid setting, each naming its key."""
    return validate(read(path), path.name)


def read(path: Path) -> dict[str, Any]:
    """Every setting in a file, and in the files that it extends. Raises `BigrError` where one cannot be read."""
    values: dict[str, Any] = {}
    for file in reversed(chain(path)):
        merge(values, parse(file))
    return values


def chain(path: Path) -> list[Path]:
    """The file and those that it extends, itself first. Raises `BigrError` where one extends itself."""
    files = [path]
    while (base := parse(files[-1]).get(EXTENDS)) is not None:
        if files[-1].name == "params.yaml":
            raise BigrError(
                f"{files[-1]}: {EXTENDS}: params.yaml must hold every setting, since DVC reads it as it is; "
                "`bigr recipe FILE` writes all of a recipe's"
            )
        if not isinstance(base, str):
            raise BigrError(f"{files[-1]}: {EXTENDS} must name one file, got {show(base)}")
        files.append(files[-1].parent / base)
        if files[-1].resolve() in [file.resolve() for file in files[:-1]]:
            raise BigrError(f"{files[-2]}: {EXTENDS}: {base} extends this file, in a circle")
    return files


def merge(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Put a recipe's settings over `values`, in place: key by key in a section; lists are replaced."""
    for name, section in changes.items():
        if name == EXTENDS:
            continue
        if isinstance(section, dict) and isinstance(values.get(name), dict) and name not in WHOLE:
            values[name] = {**values[name], **section}
        else:
            values[name] = section


def parse(path: Path) -> dict[str, Any]:
    """A YAML mapping (YAML 1.2, as DVC reads it). Raises `BigrError` where the file holds none."""
    try:
        value = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BigrError(f"{path}: no such file; run in the project's folder, or name another") from None
    except (OSError, UnicodeDecodeError) as error:
        raise BigrError(f"{path}: cannot be read: {error}") from None
    except MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1}, column {mark.column + 1}:" if mark else ""
        raise BigrError(f"{path.name}:{where} not valid YAML: {error.problem}") from None
    except YAMLError as error:
        raise BigrError(f"{path.name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict):
        raise BigrError(f"{path.name}: must hold a mapping of sections, got {show(value)}")
    return value


def validate(values: dict[str, Any], name: str = "params.yaml") -> Settings:
    """Settings from plain values; where `samples.preset` names a preset, its values are in the section's place.

    Raises `BigrError`; `name` is the file to name in the message.
    """
    settings = _settings(values, name)
    return _settings(_under_preset(values), name, settings.samples.preset) if settings.samples.preset else settings


def _settings(values: dict[str, Any], name: str, preset: str | None = None) -> Settings:
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        lines = explain_all(error.errors(include_url=False), values, Settings)
    if preset:
        lines = [_of_preset(line, preset, values["samples"]["presets"][preset]) for line in lines]
    raise BigrError("\n".join(f"{name}: {line}" for line in lines))


def _of_preset(line: str, preset: str, named: dict[str, Any]) -> str:
    """An error of the settings under a preset, with the preset's own key where it names the setting."""
    key = line.split(" ")[0].removeprefix("samples.")
    return f"samples.presets.{preset}.{line.removeprefix('samples.')}" if key in named else f"{line}, preset {preset}"


def _under_preset(values: dict[str, Any]) -> dict[str, Any]:
    """The settings with the preset's values in the section `samples`; what it replaces stays in the other presets."""
    section = values["samples"]
    chosen = section["presets"][section["preset"]]
    own = {key: section[key] for key in chosen}
    presets = {name: {**own, **preset} for name, preset in section["presets"].items()}
    return {**values, "samples": {**section, **chosen, "presets": presets}}
