"""dvc.yaml: it names what each stage really uses, and so DVC runs again exactly what a change makes stale."""

import ast
import json
import shutil
import sys
from pathlib import Path

import pytest
from dvc.utils.hydra import apply_overrides

from bigr import config
from bigr.config import recipes
from bigr.pipeline import closure, dvcfile, stage_table
from bigr.pipeline.stage_table import NAMES
from bigr.runtime.errors import BigrError
from tests import scratch, tiny

ROOT = scratch.ROOT
VALUES = config.read(ROOT / "params.yaml")
STAGES = dvcfile.stages(ROOT, VALUES)
PLACE_ONLY = {
    "run.device",
    "run.compile",
    "run.workers",
    "run.cache_gb",
    "run.processes",
    "run.parallel",
    "run.max_restarts",
    "run.timeout_s",
    "run.checkpoint_every",
    "run.checkpoints",
}
"""Settings that say where a stage runs, not what comes out: no stage may name them."""
DERIVED = {
    "grid": {"shards.image_size", "tokenizer.channel_multipliers"},
    "shards.embedded": {"shards.source"},
    "generator.dropout_of_labels": {"generator.use_labels", "generator.label_dropout", "generator.text_dropout"},
}
"""Settings behind the properties of `Settings`."""


def test_every_stage_has_a_file_and_a_place_in_dvc_yaml() -> None:
    assert tuple(STAGES) == NAMES
    assert all((ROOT / stage_table.STAGES[name].path).is_file() for name in STAGES)


def test_deps_name_exactly_the_code_that_each_stage_imports() -> None:
    assert not closure.differences(ROOT), "run `make deps`:\n" + "\n".join(closure.differences(ROOT))


@pytest.mark.parametrize("path", [ROOT / "params.yaml", *ROOT.glob("recipes/*.yaml")], ids=lambda path: path.stem)
def test_an_experiment_changes_only_its_own_lines_of_the_settings(path: Path, tmp_path: Path) -> None:
    params = tmp_path / "params.yaml"
    params.write_text(recipes.composed(path))
    before = params.read_text().splitlines()
    apply_overrides(params, ["samples.count=77", "tokenizer.betas=[0.75, 0.875]"])
    after = params.read_text().splitlines()
    changed = [new.split(" #")[0] for old, new in zip(before, after, strict=True) if old != new]
    assert changed == ["  - 0.75", "  - 0.875", "  count: 77"]


@pytest.mark.parametrize("name", NAMES)
def test_params_name_exactly_the_settings_that_the_stage_reads(name: str) -> None:
    own = stage_table.STAGES[name].path
    given = {own, *(path for path in closure.modules(ROOT, own) if "import Settings\n" in (ROOT / path).read_text())}
    used, named = set().union(*(settings_read_by(ROOT / path) for path in given)), set(STAGES[name].params)
    assert not {key for key in used if not covered(key, named)}, "read, but not among the params of dvc.yaml"
    assert not {key for key in named if not (covers(key, used) or covered(key, used))}, "named, but never read"


def settings_read_by(path: Path) -> set[str]:
    """The keys behind every `settings.….…` in a stage's file; `settings.run` on its own stands for its precision."""
    tree = ast.parse(path.read_text())
    inner = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    chains = {
        ast.unparse(node)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and id(node) not in inner and ast.unparse(node).startswith("settings.")
    }
    keys: set[str] = set()
    for chain in chains:
        key = ".".join(chain.split(".")[1:3])
        section = key.split(".")[0]
        assert section in config.Settings.model_fields or section in DERIVED, chain
        keys |= DERIVED.get(section) or DERIVED.get(key) or {"run.precision" if key == "run" else key}
    return keys - PLACE_ONLY


def covered(key: str, by: set[str]) -> bool:
    """Whether `key` or a section above it is in `by`."""
    return key in by or key.split(".")[0] in by


def covers(key: str, keys: set[str]) -> bool:
    """Whether `key` or one below it is in `keys`."""
    return any(other == key or other.startswith(f"{key}.") for other in keys)


def test_params_name_no_setting_of_place() -> None:
    assert not [(spec.name, key) for spec in STAGES.values() for key in spec.params if key in PLACE_ONLY | {"run"}]


def test_closure_names_packages_of_imports_in_functions_too_but_not_for_types_nor_plumbing(tmp_path: Path) -> None:
    files = {
        "bigr/__init__.py": '"""Only words."""\n',
        "bigr/stages/__init__.py": "",
        "bigr/stages/a.py": "import bigr.runtime.e, bigr.runtime.seeds\nfrom bigr.room import x\nfrom . import b\n",
        "bigr/stages/b.py": "def f():\n    import bigr.c as c\n",
        "bigr/c.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from bigr.types_only import T\n",
        "bigr/types_only.py": "",
        "bigr/room/__init__.py": "from bigr.room.inner import x\n",
        "bigr/room/inner.py": "import torch\n",
        "bigr/runtime/e.py": "import bigr.after\n",
        "bigr/after.py": "",
        "bigr/runtime/seeds.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = closure.closure(tmp_path, "bigr/stages/a.py")
    assert found == ["bigr/c.py", "bigr/room", "bigr/runtime/seeds.py", "bigr/stages/a.py", "bigr/stages/b.py"]


def test_what_the_stage_measures_with_leaves_out_the_code_of_other_commands() -> None:
    code = closure.modules(ROOT, stage_table.STAGES["evaluation"].path)
    assert {"bigr/stages/evaluate_model.py", "bigr/evaluation/fidelity/distances.py"} <= code
    assert "bigr/evaluation/representation/folder_probe.py" not in code  # of `bigr probe`


def test_closure_writes_the_code_and_leaves_the_rest_of_dvc_yaml(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "bigr", tmp_path / "bigr", ignore=shutil.ignore_patterns("__pycache__"))
    text = (ROOT / "dvc.yaml").read_text()
    (tmp_path / "dvc.yaml").write_text(text.replace("      - bigr/stages/encode_codes.py\n", "      - bigr/gone.py\n"))
    assert closure.differences(tmp_path) == [
        "codes: add     - bigr/stages/encode_codes.py",
        "codes: remove  - bigr/gone.py",
    ]
    closure.write(tmp_path)
    assert (tmp_path / "dvc.yaml").read_text() == text


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project after its first `dvc repro`, with stages that take no time."""
    project = scratch.make(tmp_path_factory.mktemp("dvc"), real=False)
    scratch.run(project, "dvc", "repro", "-q")
    assert scratch.ran(project) == list(NAMES)
    return project


@pytest.fixture
def project(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of the reproduced project for a test to change."""
    return scratch.copy(reproduced, tmp_path / "copy")


def repro(project: Path) -> list[str]:
    """The stages that `dvc repro` runs."""
    scratch.run(project, "dvc", "repro", "-q")
    return scratch.ran(project)


def change(project: Path, key: str, value: object) -> None:
    """Change one setting of the project."""
    assert dvcfile.setting(VALUES, key) != value
    tiny.apply(project / "params.yaml", {key: value})


def from_stage(name: str) -> list[str]:
    """This stage and all that depend on it: texts are read from the shards, whatever the tokenizer is."""
    return [other for other in NAMES[NAMES.index(name) :] if not (other == "text" and name in ("tokenizer", "codes"))]


def test_second_repro_runs_nothing_and_leaves_only_the_lock_file_behind(project: Path) -> None:
    assert repro(project) == []
    assert scratch.run(project, "git", "status", "--short") == "?? dvc.lock\n"


def test_guidance_scale_reruns_samples_and_evaluation_only(project: Path) -> None:
    change(project, "samples.guidance_scale", 7.5)
    assert repro(project) == from_stage("samples")


def test_a_transcoder_setting_reruns_from_the_transcoder_on(project: Path) -> None:
    change(project, "transcoder.noise_draws", 77)
    assert repro(project) == from_stage("transcoder")


def test_where_it_runs_reruns_nothing(project: Path) -> None:
    change(project, "run.workers", 77)
    change(project, "run.device", "cpu")
    assert repro(project) == []


def test_the_code_of_a_model_reruns_the_stages_that_use_it(project: Path) -> None:
    with (project / "bigr/models/masked/backbone.py").open("a") as file:
        file.write("# changed\n")
    assert repro(project) == from_stage("generator")
    with (project / "bigr/models/autoencoder/tokenizer.py").open("a") as file:
        file.write("# changed\n")
    assert repro(project) == from_stage("tokenizer")


def test_plumbing_reruns_nothing(project: Path) -> None:
    """A progress bar, the text of an error, a comment: all of bigr/runtime but what results depend on."""
    progress = project / "bigr/runtime/progress.py"
    progress.write_text(progress.read_text().replace("dynamic_ncols=True", "ncols=60"))
    for path in (project / "bigr/runtime").glob("*.py"):
        if path.relative_to(project).as_posix() not in closure.DETERMINING:
            path.write_text(path.read_text().replace('BigrError(f"', 'BigrError(f"other words: ') + "# changed\n")
    assert repro(project) == []


def test_another_image_folder_is_read_in_place_of_the_digits(project: Path) -> None:
    (project / "mine").mkdir()
    (project / "mine" / "image").write_text("an image")
    change(project, "shards.source", "mine")
    assert repro(project) == from_stage("dataset")


def test_experiments_leave_the_settings_committed_and_show_their_figures(project: Path) -> None:
    """Also where dvc.lock is not committed, as in a fresh clone."""
    scratch.run(project, "dvc", "exp", "run", "-n", "longer", "-S", "generator.steps=7")
    assert scratch.ran(project) == from_stage("generator")
    shown = json.loads(scratch.run(project, "dvc", "exp", "show", "--json"))
    experiments = [e for baseline in shown for e in baseline["experiments"] or []]
    assert [e["name"] for e in experiments] == ["longer"]
    data = experiments[0]["revs"][0]["data"]
    assert data["params"]["params.yaml"]["data"]["generator"]["steps"] == 7
    assert data["metrics"]["outputs/headline.json"]["data"]["figure"] > 0
    assert list(data["metrics"]) == ["outputs/headline.json"], "all metrics would be a table that no terminal can show"
    assert "outputs/metrics.json" in data["outs"]
    table = scratch.run(project, "dvc", "exp", "show", "--only-changed", "--drop", "Created|.*/", "--md")
    columns = [name.strip() for name in table.partition("\n")[0].strip("|").split("|")]
    assert columns == ["Experiment", "figure", "generator.steps"], "what README recommends fits a terminal"


def test_metrics_diff_compares_with_the_commit_that_holds_dvc_lock(project: Path) -> None:
    before = json.loads((project / "outputs/metrics.json").read_text())["figure"]
    scratch.run(project, "git", "add", "dvc.lock")
    scratch.run(project, "git", "commit", "-q", "-m", "second")
    change(project, "samples.guidance_scale", 7.5)
    assert repro(project) == from_stage("samples")
    after = json.loads((project / "outputs/metrics.json").read_text())["figure"]
    diff = json.loads(scratch.run(project, "dvc", "metrics", "diff", "--json"))
    figure = diff["outputs/headline.json"]["figure"]
    assert (figure["old"], figure["new"]) == (before, after)
    every = json.loads(scratch.run(project, "dvc", "metrics", "diff", "--json", "--targets", "outputs/metrics.json"))
    figure = every["outputs/metrics.json"]["figure"]
    assert (figure["old"], figure["new"]) == (before, after)


def test_metrics_of_a_model_that_is_out_of_date_are_said_to_be_so(project: Path) -> None:
    words = (sys.executable, "-m", "bigr", "metrics")
    assert "out of date" not in scratch.run(project, *words).lower()
    change(project, "generator.steps", 2777)
    said = scratch.run(project, *words).split("\n\n")[-1]
    assert "Out of date: generator" in said and "dvc repro" in said
    repro(project)
    change(project, "targets.samples", {"recall": 0.7})
    assert "out of date" not in scratch.run(project, *words).lower()


def test_a_copy_without_git_is_told_what_to_do(tmp_path: Path) -> None:
    shutil.copytree(ROOT / ".dvc", tmp_path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp"))
    with pytest.raises(BigrError, match=r"not a git repository.*git init"):
        dvcfile.cache_folder(tmp_path)


def test_hashes_are_those_of_dvc_lock(reproduced: Path) -> None:
    locked = config.read(reproduced / "dvc.lock")["stages"]
    for name, spec in dvcfile.stages(reproduced, config.read(reproduced / "params.yaml")).items():
        entries = locked[name].get("deps", []) + locked[name]["outs"]
        expected = {entry["path"]: entry["md5"] for entry in entries}
        assert dvcfile.content_hashes(reproduced, [*spec.deps, *spec.outs]) == expected


def test_fingerprint_changes_with_code_inputs_and_settings_but_not_with_place(reproduced: Path) -> None:
    values = config.read(reproduced / "params.yaml")
    spec = STAGES["generator"]
    hashes = dict.fromkeys(spec.deps, "0")
    first = dvcfile.fingerprint(spec, values, hashes)
    moved = values | {"run": values["run"] | {"workers": 7}, "tokenizer": {}}
    assert dvcfile.fingerprint(spec, moved, hashes) == first
    others = [
        dvcfile.fingerprint(spec, values | {"seed": 1}, hashes),
        dvcfile.fingerprint(spec, values | {"generator": values["generator"] | {"steps": 1}}, hashes),
        dvcfile.fingerprint(spec, values, hashes | {"data/codes": "1"}),
        dvcfile.fingerprint(spec, values, hashes | {"bigr/stages/train_generator.py": "1"}),
    ]
    assert len({first, *others}) == 5
