"""Scheduled retraining, shown for real: Prefect's server, worker and schedule; the whole pipeline on a user's images.

`dvc repro` has trained on the first images. Images are added, and a run that the schedule starts trains on all of them
and makes its model champion. The first model is made champion by hand, and one with a setting of its own competes with
it. A last scheduled run finds nothing to do.
"""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML

from bigr import config
from bigr.pipeline.stage_table import NAMES
from bigr.tracking.registry.versions import Registry
from bigr.tracking.store import Store
from tests import mini_project, preloaded, scratch, tiny
from tests.services import Services, rows, started

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(2400)]

FIRST, ADDED = 72, 24  # images: of `scratch.make_tiny`, and new ones
UNREACHABLE = 2.0
"""A share of labels that no model can reach."""


def draw(folder: Path, numbers: range) -> None:
    """Pictures of two classes, a third of them to validate on."""
    for number in numbers:
        path = folder / ("val" if number % 3 == 0 else "train") / f"class {number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels // (1 + number % 2)).save(path)


def set_limit(params: Path, limit: float | None) -> None:
    """Have the gate look at label agreement alone, and refuse what is below `limit`."""
    yaml = YAML()
    values = yaml.load(params)
    figure = {"name": "samples.label_agreement", "tolerance": 1.0, "relative": False, "limit": limit}
    values["promotion"]["metrics"] = [figure]
    yaml.dump(values, params)


@dataclass(frozen=True)
class Seen:
    """What there was after a run: the flow run, its tasks and page, dvc.lock, versions and aliases in the registry."""

    run: dict[str, Any]
    tasks: dict[str, str]
    page: str
    lock: dict[str, Any]
    versions: dict[int, dict[str, str]]
    aliases: dict[str, int]

    @property
    def message(self) -> str:
        """Of the flow run's state."""
        return str(self.run["state"]["message"])


def fire(services: Services) -> dict[str, Any]:
    """Have the schedule start a run in a few seconds, and wait for its end."""
    before = len(services.scheduled())
    with services.schedule("FREQ=SECONDLY;COUNT=1"):
        (run,) = services.wait_for(lambda: services.scheduled()[before:], patience_s=900)
    return dict(run)


def look(services: Services, run: dict[str, Any], *tasks: str) -> Seen:
    """What there is after `run`, once its `tasks` have ended."""
    client = Store(services.project).client
    versions = {int(v.version): dict(v.tags) for v in client.search_model_versions("name = 'bigr'")}
    return Seen(
        run,
        {name: task["state_name"] for name, task in services.tasks(run, *tasks).items()},
        services.page(run),
        config.read(services.project / "dvc.lock")["stages"],
        versions,
        {name: int(number) for name, number in client.get_registered_model("bigr").aliases.items()},
    )


@dataclass(frozen=True)
class Story:
    """What was seen after the three runs, and dvc.lock before them."""

    project: Path
    before: dict[str, Any]
    added: Seen
    competing: Seen
    idle: Seen


@pytest.fixture(scope="module")
def story(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The three runs."""
    folder = tmp_path_factory.mktemp("retraining")
    project = scratch.copy(trained, folder / "copy", records=True)
    shutil.copytree(mini_project.ROOT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "pyproject.toml", "Procfile"):
        shutil.copy(mini_project.ROOT / name, project / name)
    params, before = project / "params.yaml", config.read(project / "dvc.lock")["stages"]
    set_limit(params, None)
    mini_project.commit(project)
    draw(project / "pictures", range(FIRST, FIRST + ADDED))
    python = preloaded.environment(folder / "environment")
    preloading = {preloaded.VARIABLE: preloaded.start()}
    with pytest.MonkeyPatch.context() as patch, started(folder, project, python, **preloading) as services:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        stages = (*NAMES, "promote")
        added = look(services, fire(services), *stages)
        registry = Registry(Store(project))
        registry.promote(registry.named("models:/bigr/1"))
        set_limit(params, UNREACHABLE)
        competing = look(services, services.watch(settings={"samples.guidance_scale": 2.0}, promote=True), *stages)
        yield Story(project, before, added, competing, look(services, fire(services), *NAMES))


def images(lock: dict[str, Any]) -> int:
    """How many files of images the shards were made from."""
    (source,) = [dep for dep in lock["shards"]["deps"] if dep["path"] == "pictures"]
    return int(source["nfiles"])


def shards(lock: dict[str, Any]) -> str:
    """DVC's hash of the shards."""
    (out,) = lock["shards"]["outs"]
    return str(out["md5"])


def test_added_images_are_picked_up_by_a_scheduled_run_and_what_depends_on_them_runs_again(story: Story) -> None:
    added = story.added
    assert (images(story.before), images(added.lock)) == (FIRST, FIRST + ADDED)
    assert added.run["state_type"] == "COMPLETED" and added.run["auto_scheduled"], added.run["state"]
    assert added.message.startswith("8 stages ran, 1 cached; ")
    assert added.tasks == {**dict.fromkeys(NAMES, "Ran"), "dataset": "Cached", "promote": "Promoted"}
    assert any(row.startswith("| dataset | cached |") for row in rows(added.page))
    assert sum("| ran |" in row for row in rows(added.page)) == 8
    same = [name for name in NAMES if added.lock[name]["outs"] == story.before[name]["outs"]]
    assert same == ["dataset", "text"]  # no captions are read


def test_the_model_of_the_first_run_becomes_champion(story: Story) -> None:
    added = story.added
    assert "; version 2 is the champion now: " in added.message
    assert sorted(added.versions) == [1, 2] and added.aliases == {"champion": 2, "challenger": 2}
    assert [added.versions[number]["dvc.data/shards"] for number in (1, 2)] == [
        shards(story.before),
        shards(added.lock),
    ]


def test_the_challenger_is_compared_and_the_run_says_what_was_decided(story: Story) -> None:
    competing = story.competing
    assert sorted(competing.versions) == [1, 2, 3] and competing.aliases == {"champion": 1, "challenger": 3}
    decided = "version 3 is not promoted, version 1 stays the champion: samples.label_agreement is "
    assert competing.message.startswith(f"2 stages ran, 7 cached; {decided}")
    assert competing.tasks["promote"] == "NotPromoted"
    assert "## Promotion" in competing.page and f"V{decided[1:]}" in competing.page
    assert any("| samples.label_agreement |" in row for row in rows(competing.page))
    assert competing.versions[3]["bigr.gate"].startswith(decided)


def test_a_run_with_a_setting_of_its_own_becomes_an_experiment_and_leaves_the_project_alone(story: Story) -> None:
    competing = story.competing
    assert competing.run["state_name"] == "Completed", competing.run["state"]
    assert "| samples.guidance_scale | **2.0** |" in competing.page
    assert "](data:image/png;base64,iVBOR" in competing.page and "/#/experiments/" in competing.page
    assert f"\n{competing.run['name']}," in mini_project.run(story.project, "dvc", "exp", "show", "--csv")
    assert competing.lock == story.added.lock
    assert tiny.OVERRIDES["samples.guidance_scale"] == mini_project.guidance(story.project)


def test_with_no_change_a_scheduled_run_is_up_to_date_and_starts_no_stage(story: Story) -> None:
    idle = story.idle
    assert idle.run["state_type"] == "COMPLETED" and idle.run["auto_scheduled"]
    assert idle.message == "up to date: 0 stages ran, 9 cached"
    assert idle.tasks == dict.fromkeys(NAMES, "Cached")  # and no task for the gate
    assert sum("| cached | 0.0 s |" in row for row in rows(idle.page)) == 9
    last = story.competing
    assert (idle.versions, idle.aliases, idle.lock) == (last.versions, last.aliases, last.lock)
