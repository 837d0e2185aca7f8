"""`bigr lineage`: an artifact is followed back to the raw images, for any version, by DVC's and MLflow's records.

The first tests read records made by hand: a dvc.lock of three stages, and a store with the runs that such stages would
leave. The last ones run the real pipeline, small, and ask for what it wrote.
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from bigr.pipeline.lineage import chain
from bigr.pipeline.lineage import chain_page as page
from bigr.pipeline.lineage.code import compare
from bigr.pipeline.lineage.records import Content
from bigr.runtime.errors import BigrError
from bigr.runtime.paths import is_code
from bigr.tracking.store import Store, read_tags
from tests import mini_project, scratch, tiny
from tests.mini_project import run

PARAMS = {"shards": {"source": "pictures"}, "seed": 0, "samples": {"count": 2, "order": "entropy"}}
DVC = """\
stages:
  shards:
    cmd: bigr run shards
    deps: [step.py, "${shards.source}"]
    outs: [data/shards]
  transcoder:
    cmd: bigr run transcoder
    deps: [step.py, data/shards]
    outs: [models/bigr]
  samples:
    cmd: bigr run samples
    deps: [step.py, models/bigr, data/shards]
    outs: [outputs/samples.npz]
"""
CODE = "print('step')\n"
CODE_MD5 = "f7f9f000b4b720a33e498e91a352b40b"
HASHES = {
    "step.py": CODE_MD5,
    "pictures": "11111111aaaaaaaaaaaaaaaaaaaaaaaa.dir",
    "data/shards": "22222222aaaaaaaaaaaaaaaaaaaaaaaa.dir",
    "models/bigr": "33333333aaaaaaaaaaaaaaaaaaaaaaaa.dir",
    "outputs/samples.npz": "44444444aaaaaaaaaaaaaaaaaaaaaaaa",
}
STAGES: dict[str, tuple[list[str], str, dict[str, Any]]] = {
    "shards": (["step.py", "pictures"], "data/shards", {"seed": 0, "shards": PARAMS["shards"]}),
    "transcoder": (["step.py", "data/shards"], "models/bigr", {"seed": 0}),
    "samples": (["step.py", "models/bigr", "data/shards"], "outputs/samples.npz", {"samples": PARAMS["samples"]}),
}

AS_ADA = ("git", "-c", "user.name=Ada", "-c", "user.email=ada@localhost")


def entry(path: str, md5: str) -> dict[str, Any]:
    """A path in dvc.lock."""
    folder = {"nfiles": 12} if md5.endswith(".dir") else {}
    return {"path": path, "hash": "md5", "md5": md5, "size": 3400, **folder}


def write_lock(project: Path, changed: Mapping[str, str] = {}) -> dict[str, str]:
    """Write dvc.lock; `changed`: hashes that are not those of HASHES. All hashes."""
    hashes = HASHES | dict(changed)
    stages = {
        name: {
            "cmd": f"bigr run {name}",
            "deps": [entry(dep, hashes[dep]) for dep in deps],
            "params": {"params.yaml": params},
            "outs": [entry(out, hashes[out])],
        }
        for name, (deps, out, params) in STAGES.items()
    }
    with (project / "dvc.lock").open("w") as file:
        YAML().dump({"schema": "2.0", "stages": stages}, file)
    return hashes


def write_runs(project: Path, hashes: dict[str, str], *, dirty: bool = False, **more: str) -> dict[str, str]:
    """Leave in MLflow what an execution with these hashes leaves: stage → id. more: inputs beside those, for all."""
    store = Store(project)
    parent = store.client.create_run(
        store.experiment, run_name="calm-heron", tags={"bigr.kind": "pipeline"}
    ).info.run_id
    about = {
        "mlflow.source.git.commit": run(project, "git", "rev-parse", "HEAD").strip(),
        "git.dirty": str(dirty).lower(),
    }
    ids = {}
    for name, (deps, out, _) in STAGES.items():
        read = {dep: hashes[dep] for dep in deps} | more
        tags = {**about, **read_tags(read), f"dvc.out.{out}": hashes[out]}
        ids[name] = store.child(parent, name, tags)
        store.params(ids[name], {f"{name}.count": 2})
        store.code(ids[name], read)
        store.client.set_terminated(ids[name], "FINISHED")
    return ids | {"": parent}


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without runs: making one takes seconds, so that the tests copy it."""
    folder = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Store(folder)
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Path:
    """A committed project with a dvc.lock, and nothing in MLflow."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    root = tmp_path / "project"
    (root / ".dvc").mkdir(parents=True)
    (root / ".dvc/config").write_text(f"[core]\n    analytics = false\n    site_cache_dir = {tmp_path / 'site'}\n")
    (root / ".gitignore").write_text("/.dvc/cache\n/.dvc/tmp\n/mlflow.db\n")
    (root / "dvc.yaml").write_text(DVC)
    (root / "step.py").write_text(CODE)
    with (root / "params.yaml").open("w") as file:
        YAML().dump(PARAMS, file)
    write_lock(root)
    mini_project.commit(root)
    shutil.copy(empty_store, root)
    return root


def commit(project: Path) -> None:
    """Commit all that there is."""
    mini_project.commit(project)


def paths(traced: chain.Chain) -> list[str]:
    """The artifacts of a chain, in its order."""
    return [step.artifact.path for step in traced.steps]


def test_the_chain_goes_back_to_the_raw_images_with_all_that_dvc_and_mlflow_know(project: Path) -> None:
    ids = write_runs(project, HASHES)
    traced = chain.trace(project, "outputs/samples.npz")
    assert paths(traced) == ["outputs/samples.npz", "models/bigr", "data/shards", "pictures"]
    assert {step.artifact.path: step.artifact.md5 for step in traced.steps}.items() <= HASHES.items()
    samples, _, shards, pictures = traced.steps
    assert (samples.stage, samples.command) == ("samples", "bigr run samples")
    assert samples.settings == {"samples.count": 2, "samples.order": "entropy"}
    assert samples.recorded_in == ("dvc.lock", "MLflow")
    assert samples.run is not None and samples.run.id == ids["samples"] and samples.run.status == "FINISHED"
    assert samples.run.commit == run(project, "git", "rev-parse", "HEAD").strip() and not samples.run.dirty
    assert (samples.execution, samples.subject) == ("calm-heron", "first")
    assert [content.path for content in samples.inputs] == ["models/bigr", "data/shards"]
    assert shards.inputs == (Content("pictures", HASHES["pictures"], 3400, 12),)
    assert (pictures.stage, pictures.inputs, pictures.notes) == ("", (), ("given: no stage writes it",))


def test_the_tree_is_legible_and_tells_each_artifact_once(project: Path) -> None:
    ids = write_runs(project, HASHES, dirty=True)
    lines = list(page.tree(chain.trace(project, "outputs/samples.npz"), project))
    assert max(map(len, lines)) <= 100
    date, commit = lines[3].split(", ")[1], run(project, "git", "rev-parse", "HEAD")[:10]
    assert lines[:6] == [
        "outputs/samples.npz  md5:44444444aa, 3.4 kB",
        "│  stage     samples (bigr run samples)",
        "│  settings  samples: count 2, order entropy",
        f'│  run       {ids["samples"]} of "calm-heron", {date}, finished',
        f"│  commit    {commit}, with uncommitted changes: first",
        "│  record    dvc.lock and MLflow",
    ]
    assert lines[6] == "│  note      not in the folder now; `dvc checkout outputs/samples.npz` brings it"
    assert lines[7] == "├─ models/bigr  md5:33333333aa.dir, 3.4 kB, 12 files"
    assert "│  └─ data/shards  md5:22222222aa.dir, 3.4 kB, 12 files" in lines
    assert lines[-1] == "└─ data/shards  md5:22222222aa.dir, 3.4 kB, 12 files (above)"
    assert [line.strip("│└─ ") for line in lines if "pictures" in line and "md5" in line] == [
        "pictures  md5:11111111aa.dir, 3.4 kB, 12 files"
    ]
    assert max(map(len, lines)) <= page.WIDTH


def test_a_long_setting_is_never_torn_from_its_value(project: Path) -> None:
    settings = {f"samples.number_{n}": [n, n + 1] for n in range(40)}
    traced = chain.trace(project, "outputs/samples.npz")
    step = dataclasses.replace(traced.steps[0], settings=settings)
    lines = list(page.tree(dataclasses.replace(traced, steps=(step, *traced.steps[1:])), project))
    assert sum(f"number_{n} [{n}, {n + 1}]" in line for n in range(40) for line in lines) == 40


def test_machines_get_whole_hashes_and_all_code(project: Path) -> None:
    ids = write_runs(project, HASHES)
    told = json.loads(json.dumps(page.as_json(chain.trace(project, "outputs/samples.npz"), project)))
    assert told["artifacts"] == [{"path": "outputs/samples.npz", "md5": HASHES["outputs/samples.npz"]}]
    by_path = {step["path"]: step for step in told["steps"]}
    assert {path: step["md5"] for path, step in by_path.items()}.items() <= HASHES.items()
    assert by_path["data/shards"]["inputs"] == [{"path": "pictures", "md5": HASHES["pictures"]}]
    assert by_path["data/shards"]["run"]["id"] == ids["shards"]
    assert by_path["data/shards"]["run"]["execution_id"] == ids[""]
    assert by_path["data/shards"]["code"] == [
        {"path": "step.py", "md5": CODE_MD5, "as_committed": True, "as_now": True}
    ]
    assert by_path["pictures"]["files"] == 12 and by_path["pictures"]["run"] is None


def test_an_older_version_is_followed_by_mlflow_alone(project: Path) -> None:
    old = write_lock(project, {"data/shards": "5" * 32 + ".dir", "models/bigr": "6" * 32 + ".dir"})
    ids = write_runs(project, old, weights="7" * 32)
    write_lock(project)
    run(project, "git", "checkout", "-q", "dvc.lock")
    traced = chain.trace(project, "md5:666666")
    assert [(step.artifact.path, step.artifact.md5[:2]) for step in traced.steps[:2]] == [
        ("models/bigr", "66"),
        ("data/shards", "55"),
    ]
    bigr = traced.steps[0]
    assert bigr.run is not None and bigr.run.id == ids["transcoder"]
    assert bigr.recorded_in == ("MLflow",) and bigr.settings == {"transcoder.count": "2"}
    assert "weights" in [content.path for content in bigr.inputs]  # what settings name, DVC does not watch
    assert paths(traced)[-1] == "pictures" or paths(traced)[-1] == "weights"


def test_of_runs_that_wrote_the_same_the_one_that_read_the_same_counts(project: Path) -> None:
    right = write_runs(project, HASHES)
    other = write_runs(project, HASHES | {"models/bigr": "8" * 32 + ".dir"})
    samples = chain.trace(project, "outputs/samples.npz").steps[0]
    assert samples.run is not None and samples.run.id == right["samples"]
    asked = chain.trace(project, other["samples"]).steps[0]
    assert asked.run is not None and asked.run.id == other["samples"]
    assert "8" * 32 + ".dir" in [content.md5 for content in asked.inputs]


def test_a_missing_run_is_said_and_dvc_suffices(project: Path) -> None:
    write_runs(project, HASHES | {"data/shards": "9" * 32 + ".dir"})
    traced = chain.trace(project, "outputs/samples.npz", "HEAD")
    assert paths(traced) == ["outputs/samples.npz", "models/bigr", "data/shards", "pictures"]
    assert "wrote the same from other inputs" in traced.steps[0].notes[0] and traced.steps[0].run is None
    assert traced.steps[2].notes == ("MLflow has no run that wrote it",)
    assert "│  commit    unknown: only the run in MLflow has it" in list(page.tree(traced, project))


@pytest.mark.parametrize(
    ("uri", "said"),
    [("", "MLflow has no records here"), ("http://127.0.0.1:9", "MLflow (http://127.0.0.1:9) does not")],
)
def test_without_mlflow_the_chain_is_dvcs_and_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch, uri: str, said: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    (project / "mlflow.db").unlink()
    traced = chain.trace(project, "outputs/samples.npz")
    assert paths(traced) == ["outputs/samples.npz", "models/bigr", "data/shards", "pictures"]
    assert next(page.tree(traced, project)).startswith(said)
    assert "what follows is from DVC alone" in traced.trouble and not (project / "mlflow.db").exists()


def test_where_nobody_recorded_the_maker_the_chain_says_that_it_ends(project: Path) -> None:
    write_runs(project, HASHES)
    lock = YAML(typ="safe").load(project / "dvc.lock")
    del lock["stages"]["shards"]
    (project / "dvc.lock").write_text(json.dumps(lock))
    run(project, "git", "rm", "-q", "--cached", "dvc.lock")
    run(project, *AS_ADA, "commit", "-q", "--amend", "-m", "without")
    store = Store(project)
    for found in store.runs(bigr__stage="shards"):
        store.client.delete_run(found.info.run_id)
    last = chain.trace(project, "outputs/samples.npz").steps[-1]
    assert last.artifact.path == "data/shards" and not last.stage
    assert last.notes == ("who wrote this version is not recorded: neither DVC nor MLflow has it; the chain ends here",)


def test_a_revision_and_an_experiment_have_versions_of_their_own(project: Path) -> None:
    write_lock(project, {"outputs/samples.npz": "a" * 32})
    commit(project)
    write_lock(project, {"outputs/samples.npz": "b" * 32})
    tree = run(project, *AS_ADA, "stash", "create").strip()
    run(project, "git", "update-ref", f"refs/exps/12/{'0' * 38}/calm-heron", tree)
    run(project, "git", "checkout", "-q", ".")

    def md5(revision: str | None) -> str:
        return chain.trace(project, "outputs/samples.npz", revision).steps[0].artifact.md5[:2]

    assert (md5("HEAD~1"), md5("HEAD"), md5("calm-heron"), md5(None)) == ("44", "aa", "bb", "aa")
    assert chain.trace(project, f"md5:{'4' * 8}", "HEAD~1").steps[0].recorded_in == ("dvc.lock at HEAD~1",)


def test_a_file_elsewhere_is_known_by_its_content(project: Path, tmp_path: Path) -> None:
    (tmp_path / "copy.npz").write_bytes(b"samples")
    md5 = hashlib.md5(b"samples").hexdigest()
    write_lock(project, {"outputs/samples.npz": md5})
    step = chain.trace(project, str(tmp_path / "copy.npz")).steps[0]
    assert (step.artifact.path, step.artifact.md5) == ("outputs/samples.npz", md5)
    assert step.notes[0] == f"{tmp_path / 'copy.npz'} is a copy of it"


def test_a_copy_of_a_name_that_mlflow_cannot_be_asked_for_is_no_trouble(project: Path, tmp_path: Path) -> None:
    (tmp_path / "Ada's `copy`.npz").write_bytes(b"samples")
    write_lock(project, {"outputs/samples.npz": hashlib.md5(b"samples").hexdigest()})
    traced = chain.trace(project, str(tmp_path / "Ada's `copy`.npz"))
    assert (traced.starts[0].path, traced.trouble) == ("outputs/samples.npz", "")


def test_a_version_in_the_registry_is_known_by_its_models_hash(project: Path) -> None:
    ids = write_runs(project, HASHES)
    client = Store(project).client
    client.create_registered_model("bigr")
    tags = {"dvc.models/bigr": HASHES["models/bigr"]}
    client.create_model_version("bigr", (project / "package").as_uri(), run_id=ids["transcoder"], tags=tags)
    client.set_registered_model_alias("bigr", "champion", "1")
    for text in ("models:/bigr@champion", "models:/bigr/1"):
        step = chain.trace(project, text).steps[0]
        assert (step.artifact.path, step.artifact.md5) == ("models/bigr", HASHES["models/bigr"])
        assert step.notes == ("version 1 of bigr in the registry",)
    with pytest.raises(BigrError, match=r"models:/bigr/2: MLflow's registry has no such version of this"):
        chain.trace(project, "models:/bigr/2")


def test_code_is_compared_with_the_commit_and_with_the_folder(project: Path) -> None:
    write_runs(project, HASHES)
    traced = chain.trace(project, "models/bigr")
    (code,) = compare(project, traced.steps[0])
    assert code.as_committed and code.as_now
    (project / "step.py").write_text("print('changed')\n")
    (code,) = compare(project, traced.steps[0])
    assert code.as_committed and not code.as_now
    assert "│  code      step.py md5:f7f9f000b4, changed since" in list(page.tree(traced, project, code=True))
    run(project, "git", "checkout", "-q", "step.py")

    write_lock(project, {"step.py": "c" * 32})
    write_runs(project, HASHES | {"step.py": "c" * 32}, dirty=True)
    traced = chain.trace(project, "models/bigr")
    assert "│  code      step.py md5:cccccccccc, not as in the commit" in list(page.tree(traced, project, code=True))
    (code,) = compare(project, chain.trace(project, "data/shards").steps[0])
    assert code.as_committed is False


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["README.md"], "README.md: neither DVC nor MLflow knows this content (md5:"),
        (["nothing.npz"], "nothing.npz: no such file, and no artifact in dvc.lock; name a path, md5:HASH"),
        (["md5:xyz"], "md5:xyz: not a hash of DVC; give at least 6 of its hexadecimal digits"),
        (["md5:ffffff"], "md5:ffffff: neither DVC nor MLflow has an output with this hash"),
        (["f" * 32], f"{'f' * 32}: no run of a stage or of the pipeline in MLflow; for a hash, write md5:{'f' * 32}"),
        (
            ["models:/bigr@hero"],
            "models:/bigr@hero: MLflow's registry has no such version of this pipeline; `bigr pro",
        ),
        (["outputs/samples.npz", "nonsense"], "--rev: nonsense is neither a revision of git nor an experiment"),
        (
            ["outputs/other.npz", "HEAD"],
            "outputs/other.npz: not an artifact of dvc.lock at HEAD, which has data/shards",
        ),
    ],
)
def test_a_users_mistake_is_one_line(project: Path, words: list[str], complaint: str) -> None:
    (project / "README.md").write_text("no artifact")
    with pytest.raises(BigrError) as error:
        chain.trace(project, *words)
    assert str(error.value).startswith(complaint) and "\n" not in str(error.value)


def test_a_run_cannot_be_looked_up_without_mlflow(project: Path) -> None:
    (project / "mlflow.db").unlink()
    with pytest.raises(BigrError, match=r"f{32}: cannot be looked up: MLflow has no records here"):
        chain.trace(project, "f" * 32)


def test_a_revision_without_a_lock_and_an_ambiguous_hash_are_one_line(project: Path) -> None:
    write_runs(project, HASHES)
    write_lock(project, {"outputs/samples.npz": "4444444bb" + "b" * 23})
    with pytest.raises(BigrError, match=r"md5:444444: more than one artifact; give more digits: .* md5:4444444bb"):
        chain.trace(project, "md5:444444")
    run(project, "git", "rm", "-q", "--cached", "dvc.lock")
    run(project, *AS_ADA, "commit", "-q", "-m", "no lock")
    with pytest.raises(BigrError, match=r"--rev: HEAD has no dvc\.lock; commit it after `dvc repro`"):
        chain.trace(project, "outputs/samples.npz", "HEAD")


@pytest.fixture(scope="module")
def real(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole pipeline on 72 pictures of a user's, committed; then the samples again with more guidance."""
    folder = tmp_path_factory.mktemp("real") / "copy"
    project = scratch.copy(trained, folder, records=True)
    scratch.run(project, "git", "add", "dvc.lock")
    scratch.run(project, "git", "commit", "-q", "-m", "The first samples")
    shutil.copy(project / "outputs/samples.npz", folder / "first.npz")
    tiny.apply(project / "params.yaml", {"samples.guidance_scale": 3.0})
    scratch.run(project, "dvc", "repro", "samples")
    return project


def asked(project: Path, artifact: str, revision: str | None = None) -> dict[str, Any]:
    """What `bigr lineage … --json` says."""
    return dict(json.loads(json.dumps(page.as_json(chain.trace(project, artifact, revision), project))))


def facts(told: dict[str, Any], *keys: str) -> dict[str, list[Any]]:
    """Path → some of what is told of it."""
    return {step["path"]: [step[key] for key in keys] for step in told["steps"]}


CHAIN = {"outputs/samples.npz", "models/bigr", "models/generator", "data/codes", "models/tokenizer", "data/shards"}
CHAIN |= {"data/text", "models/text"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_artifact_of_the_real_pipeline_leads_back_to_the_pictures(real: Path) -> None:
    told = json.loads(scratch.run(real, "bigr", "lineage", "outputs/samples.npz", "--json"))
    by_path = {step["path"]: step for step in told["steps"]}
    assert set(by_path) == CHAIN | {"pictures"} and told["trouble"] is None
    assert by_path["pictures"]["files"] == 72 and by_path["pictures"]["stage"] is None
    head, first = (scratch.run(real, "git", "rev-parse", rev).strip() for rev in ("HEAD", "HEAD~1"))
    locked = YAML(typ="safe").load(real / "dvc.lock")["stages"]
    for path in CHAIN:
        step = by_path[path]
        (out,) = [out for out in locked[step["stage"]]["outs"] if out["path"] == path]
        assert step["md5"] == out["md5"] and step["recorded_in"] == ["dvc.lock", "MLflow"]
        assert [step["commit"], step["dirty"]] == ([head, True] if step["stage"] == "samples" else [first, False])
        assert all(file["as_committed"] and file["as_now"] for file in step["code"]) and len(step["code"]) > 1
        deps = {dep["md5"] for dep in locked[step["stage"]]["deps"] if not is_code(dep["path"])}
        assert {content["md5"] for content in step["inputs"]} == deps
    assert by_path["outputs/samples.npz"]["settings"]["samples.guidance_scale"] == 3.0
    tree = scratch.run(real, "bigr", "lineage", "outputs/samples.npz")
    assert "  data/dataset" not in tree and "pictures  md5:" in tree and "72 files" in tree


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_first_version_is_found_by_revision_by_its_file_and_by_either_record_alone(
    real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    first = str(real.parent / "first.npz")
    by_revision, by_file = asked(real, "outputs/samples.npz", "HEAD"), asked(real, first)
    assert by_revision["steps"][0]["settings"]["samples.guidance_scale"] == 1.5
    told = facts(by_revision, "md5", "commit", "run")
    assert told == facts(by_file, "md5", "commit", "run")
    assert told["outputs/samples.npz"] != facts(asked(real, "outputs/samples.npz"), "md5", "commit", "run")
    assert by_file["steps"][0]["notes"] == [f"{first} is a copy of it"]
    assert facts(asked(real, by_file["steps"][0]["run"]["id"]), "md5")["outputs/samples.npz"]

    hashes = facts(by_file, "md5", "stage")
    (real / "mlflow.db").rename(real / "mlflow.away")
    try:
        alone = asked(real, first)
        assert facts(alone, "md5", "stage") == hashes and "from DVC alone" in alone["trouble"]
        assert alone["steps"][-1]["commit"] is None
    finally:
        (real / "mlflow.away").rename(real / "mlflow.db")
    for path in ("dvc.lock", ".dvc/cache", ".git"):
        (real / path).rename(real / f"{path}.away")
    scratch.run(real, "git", "init", "-q")  # another history
    try:
        alone = asked(real, first)
        assert facts(alone, "md5", "stage") == hashes
        assert {tuple(step["recorded_in"]) for step in alone["steps"] if step["stage"]} == {("MLflow",)}
    finally:
        shutil.rmtree(real / ".git")
        shutil.rmtree(real / ".dvc/cache", ignore_errors=True)
        for path in ("dvc.lock", ".dvc/cache", ".git"):
            (real / f"{path}.away").rename(real / path)
