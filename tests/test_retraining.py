"""Scheduled retraining, shown for real: Prefect's server, worker and schedule; the whole pipeline on a user's images.

Three runs that the schedule starts: the first trains and has its model made champion; images are added, and the second
trains on them and lets its model compete; the third finds nothing to do. Then a run with a setting of its own.
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
from bigr.tracking.store import Store
from tests import mini_project, tiny
from tests.services import Services, copy_of_this_project, rows, started

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(2400)]

FIRST, ADDED = 72, 24
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


def fire(services: Services, *tasks: str) -> Seen:
    """Have the schedule start a run in a few seconds, and wait for its end and that of `tasks`."""
    before = len(services.scheduled())
    with services.schedule("FREQ=SECONDLY;COUNT=1"):
        (run,) = services.wait_for(lambda: services.scheduled()[before:], patience_s=900)
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
    """What was seen after each of the three runs, and the services, which still run."""

    services: Services
    seen: list[Seen]


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """The three runs."""
    folder = tmp_path_factory.mktemp("retraining")
    project = copy_of_this_project(folder / "project")
    params, pictures = project / "params.yaml", project / "pictures"
    draw(pictures, range(FIRST))
    draw(folder / "new", range(FIRST, FIRST + ADDED))
    tiny.apply(params, tiny.OVERRIDES | {"shards.source": "pictures"})
    set_limit(params, None)
    with (project / ".gitignore").open("a") as file:
        file.write("/pictures/\n")
    mini_project.commit(project)
    with pytest.MonkeyPatch.context() as patch, started(folder, project) as services:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
        stages = (*NAMES, "promote")
        first = fire(services, *stages)
        shutil.copytree(folder / "new", pictures, dirs_exist_ok=True)
        set_limit(params, UNREACHABLE)
        second = fire(services, *stages)
        third = fire(services, *NAMES)
        yield Story(services, [first, second, third])


def images(seen: Seen) -> int:
    """How many files of images the shards were made from."""
    (source,) = [dep for dep in seen.lock["shards"]["deps"] if dep["path"] == "pictures"]
    return int(source["nfiles"])


def test_the_first_scheduled_run_trains_and_its_model_becomes_champion(story: Story) -> None:
    first = story.seen[0]
    assert first.run["state_type"] == "COMPLETED" and first.run["auto_scheduled"], first.run["state"]
    assert first.message.startswith("8 stages ran, 0 cached; version 1 is the champion now: ")
    assert first.tasks == {**dict.fromkeys(NAMES, "Ran"), "promote": "Promoted"}
    assert list(first.versions) == [1] and first.aliases == {"champion": 1, "challenger": 1}
    assert images(first) == FIRST


def test_added_images_are_picked_up_and_what_depends_on_them_runs_again(story: Story) -> None:
    first, second, _ = story.seen
    assert images(second) == FIRST + ADDED
    assert second.run["state_type"] == "COMPLETED" and second.message.startswith("7 stages ran, 1 cached; ")
    ran = dict.fromkeys(NAMES, "Ran") | {"digits": "Cached"}
    assert {name: state for name, state in second.tasks.items() if name in ran} == ran
    assert any(row.startswith("| digits | cached |") for row in rows(second.page))
    assert sum("| ran |" in row for row in rows(second.page)) == 7
    same = [name for name in NAMES if second.lock[name]["outs"] == first.lock[name]["outs"]]
    assert same == ["digits"]


def test_the_challenger_is_compared_and_the_run_says_what_was_decided(story: Story) -> None:
    second = story.seen[1]
    assert sorted(second.versions) == [1, 2] and second.aliases == {"champion": 1, "challenger": 2}
    (shards,) = second.lock["shards"]["outs"]
    assert [second.versions[number]["dvc.data/shards"] == shards["md5"] for number in (1, 2)] == [False, True]
    decided = "version 2 is not promoted, version 1 stays the champion: samples.label_agreement is "
    assert f"; {decided}" in second.message
    assert second.tasks["promote"] == "NotPromoted"
    assert f"V{decided[1:]}" in second.page and any("| samples.label_agreement |" in row for row in rows(second.page))
    assert second.versions[2]["bigr.gate"].startswith(decided)


def test_with_no_change_a_scheduled_run_is_up_to_date_and_starts_no_stage(story: Story) -> None:
    _, second, third = story.seen
    assert third.run["state_type"] == "COMPLETED"
    assert third.message == "up to date: 0 stages ran, 8 cached"
    assert third.tasks == dict.fromkeys(NAMES, "Cached")  # and no task for the gate
    assert sum("| cached | 0.0 s |" in row for row in rows(third.page)) == 8
    assert (third.versions, third.aliases, third.lock) == (second.versions, second.aliases, second.lock)


def test_a_run_with_a_setting_of_its_own_competes_when_asked_and_becomes_an_experiment(story: Story) -> None:
    services, project = story.services, story.services.project
    params, status = (project / "params.yaml").read_bytes(), mini_project.run(project, "git", "status", "--porcelain")
    run = services.watch(settings={"samples.guidance_scale": 2.0}, promote=True)
    assert run["state_name"] == "Completed", run["state"]
    decided = (
        "2 stages ran, 6 cached; version 3 is not promoted, version 1 stays the champion: samples.label_agreement is "
    )
    assert run["state"]["message"].startswith(decided)
    page = services.page(run)
    assert "## Promotion" in page and "| samples.guidance_scale | **2.0** |" in page
    assert "label_agreement" in page and "](data:image/png;base64,iVBOR" in page and "/#/experiments/" in page
    assert f"\n{run['name']}," in mini_project.run(project, "dvc", "exp", "show", "--csv")
    assert (project / "params.yaml").read_bytes() == params
    assert mini_project.run(project, "git", "status", "--porcelain") == status
