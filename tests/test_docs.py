"""docs/settings.md and params.yaml speak of the same keys, choices and stages.

docs/choices.md names settings and tests that are there. Every page, and section of docs/method.md, that a file names is
there.
"""

import re
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from bigr import config
from bigr.pipeline import dvcfile
from bigr.pipeline.stage_table import NAMES

ROOT = Path(__file__).parents[1]
VALUES = config.read(ROOT / "params.yaml")
PAGE = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
PAPER = (ROOT / "docs" / "choices.md").read_text(encoding="utf-8")
SECTIONS = {text.split("\n", 1)[0]: text for text in PAGE.split("\n## ")[1:]}
ROWS = {
    cells[0].strip("`"): cells
    for cells in (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")
    )
}
"""The cells of each key's row: key, meaning, unit, allowed, paper."""


def keys(values: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of a mapping, in its order."""
    found = []
    for key, value in values.items():
        named = isinstance(value, dict) and key not in ("targets", "presets")  # metrics; settings of the section
        found += keys(value, f"{prefix}{key}.") if named else [prefix + key]
    return found


def choices(model: type[BaseModel], prefix: str = "") -> dict[str, tuple[str, ...]]:
    """The dotted keys that allow a few words, and those words."""
    found: dict[str, tuple[str, ...]] = {}
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if get_origin(annotation) is list and get_origin(get_args(annotation)[0]) is Literal:
            (annotation,) = get_args(annotation)
        if name == "presets":
            continue
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            found |= choices(annotation, f"{prefix}{name}.")
        elif get_origin(annotation) is Literal:
            found[prefix + name] = get_args(annotation)
    return found


def test_every_setting_is_explained_once_and_nothing_else_is() -> None:
    explained = re.findall(r"^\| `([\w.]+)` \|", PAGE, flags=re.MULTILINE)
    assert sorted(explained) == sorted(keys(VALUES))


@pytest.mark.parametrize("section", VALUES)
def test_each_section_of_the_page_explains_its_own_keys(section: str) -> None:
    explained = re.findall(r"^\| `([\w.]+)` \|", SECTIONS[section], flags=re.MULTILINE)
    assert {key.split(".")[0] for key in explained} == {section}


def test_each_row_has_meaning_unit_allowed_values_and_the_papers_value() -> None:
    assert {len(cells) for cells in ROWS.values()} == {5}
    assert all(cells[1] and cells[3] and cells[4] for cells in ROWS.values())  # some numbers have no unit


@pytest.mark.parametrize(("key", "words"), choices(config.Settings).items())
def test_the_choices_named_are_those_that_the_settings_take(key: str, words: tuple[str, ...]) -> None:
    assert tuple(re.findall(r"`([\w.-]+)`", ROWS[key][3]))[: len(words)] == words


@pytest.mark.parametrize("section", ["seed", *NAMES])
def test_reruns_names_the_stages_that_dvc_would_run_again(section: str) -> None:
    stages = dvcfile.stages(ROOT, VALUES)
    again: list[str] = []
    written: list[str] = []
    for name, stage in stages.items():  # dvc.yaml is in the order of the pipeline
        reads = any(Path(dep).is_relative_to(out) for dep in stage.deps for out in written)
        if reads or any(param.split(".")[0] == section for param in stage.params):
            again.append(name)
            written += stage.outs
    (line,) = re.findall(r"^Reruns: (.*)$", SECTIONS[section], flags=re.MULTILINE)
    assert re.findall(r"`(\w+)`", line) == again


def test_every_setting_that_the_papers_choices_name_is_one_that_takes_the_value() -> None:
    named = re.findall(rf"`((?:{'|'.join(VALUES)})\.\w+)(?:: (\w+))?`", PAPER)
    words = choices(config.Settings)
    assert {key for key, _ in named} <= set(keys(VALUES))
    assert all(value in words[key] for key, value in named if key in words and value)


CHOSEN = ("tokenizer.quantizer", "generator.target", "samples.order", "samples.guidance_schedule")


@pytest.mark.parametrize("key", [*CHOSEN, "samples.gumbel_schedule"])
def test_the_papers_choices_have_every_alternative(key: str) -> None:
    rows = "\n".join(line for line in PAPER.splitlines() if key in line)
    words = {word for word in choices(config.Settings)[key] if f"`{word}` (not in the paper)" not in ROWS[key][3]}
    assert {word for word in words if not re.search(rf"\b{word}`", rows)} == set()


def test_each_row_of_the_papers_choices_names_a_setting_and_a_test_that_is_there() -> None:
    rows = [line.split(" | ") for line in PAPER.splitlines() if line.startswith("| ") and "---" not in line]
    rows = [cells for cells in rows if cells[0] != "| the paper's choice"]
    assert {len(cells) for cells in rows} == {5}
    for cells in rows:
        assert re.search(r"`\w+\.\w+", cells[1]), cells[0]
        tests = re.findall(r"`(test_\w+\.py)::(test_\w+)`", cells[4])
        assert tests, cells[0]
        for file, test in tests:
            assert f"\ndef {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8"), f"{file}::{test}"


def texts() -> dict[str, str]:
    """The code, tests, settings and pages of the project, on one line each: comments are wrapped anywhere."""
    folders = [ROOT / name for name in ("bigr", "flows", "tests", "benchmarks", "recipes", "docs")]
    paths = [*ROOT.glob("*"), *(path for folder in folders for path in folder.rglob("*"))]
    chosen = [path for path in paths if path.suffix in (".md", ".py", ".yaml") or path.name == "Makefile"]
    return {str(path.relative_to(ROOT)): re.sub(r"\n[\s#]*", " ", path.read_text(encoding="utf-8")) for path in chosen}


def test_every_page_and_every_section_of_the_method_that_a_file_names_is_there() -> None:
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\d+)\. ", method, flags=re.MULTILINE)
    assert [path for path in re.findall(r"`((?:bigr|tests)/[\w/.]+)`", method) if not (ROOT / path).exists()] == []
    named = 0
    for name, text in texts().items():
        for page in set(re.findall(r"\bdocs/\w+\.(?:md|json)\b", text)):
            assert (ROOT / page).is_file(), f"{name}: {page}"
        for sections in re.findall(r"docs/method\.md, sections? ([\d, and]+)", text):
            numbers = re.findall(r"\d+", sections)
            assert set(numbers) <= set(headings), f"{name}: docs/method.md, section {sections}"
            named += len(numbers)
        if name == "docs/choices.md":
            assert set(re.findall(r"§(\d+)", text)) <= set(headings)
    assert named > 0
