"""Writes the whole params.yaml of a recipe: the lines of the file it extends, with the recipe's own in their place.

Settings files are in block style, one setting a line, as `dvc exp run -S` writes them.
"""

import re
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from bigr.config.reading import WHOLE, chain, load, read
from bigr.runtime.errors import BigrError

_SECTION = re.compile(r"(\w+):")
_SETTING = re.compile(r"  (\w+):")
_COMMENT = re.compile(r"\s#\s.*")


def composed(path: Path) -> str:
    """The text of a params.yaml with every setting of the recipe `path`.

    A setting brings its comment; without one it keeps that of the file which the recipe extends. The comment at the
    top is the recipe's. Raises `BigrError` where the settings are not valid.
    """
    load(path)
    base, *recipes = (file.read_text(encoding="utf-8") for file in reversed(chain(path)))
    for recipe in recipes:
        base = _over(base, recipe)
    try:
        written = YAML(typ="safe", pure=True).load(base)
    except YAMLError:
        written = None
    if written != read(path):
        raise BigrError(f"{path}: must be in block style, one setting a line, to be written as params.yaml")
    return base


def names(folder: Path) -> dict[str, str]:
    """The recipes of a folder, each with its first line: what it is for."""
    files = sorted(folder.glob("*.yaml"))
    return {file.stem: file.read_text(encoding="utf-8").splitlines()[0].lstrip("# ") for file in files}


def _over(base: str, recipe: str) -> str:
    changes = dict(_blocks(recipe))
    lines: list[str] = []
    for name, block in _blocks(base):
        new = (name and changes.get(name)) or block
        if comment := not _COMMENT.search(new[0]) and _COMMENT.search(block[0]):
            new = [new[0] + comment.group(), *new[1:]]
        lines += new
    return "\n".join(lines) + "\n"


def _blocks(text: str) -> list[tuple[str, list[str]]]:
    """The lines of each setting by its dotted name, in order; "#": the comment at the top; "": other lines between."""
    blocks: list[tuple[str, list[str]]] = [("#", [])]
    section = ""
    for line in text.splitlines():
        if not line or (blocks[-1][0] != "#" and line.lstrip().startswith("#")):
            blocks.append(("", [line]))
        elif found := _SECTION.match(line):
            section = found.group(1)
            blocks.append((section, [line]))
        elif section not in WHOLE and (found := _SETTING.match(line)):
            blocks.append((f"{section}.{found.group(1)}", [line]))
        else:
            blocks[-1][1].append(line)
    return blocks
