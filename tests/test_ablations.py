"""The study of the paper's tables: its runs, its page from made-up results, and its execution in a project."""

import csv
import io
import json
import os
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bigr import config
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.pipeline.study import results, study_page, tables
from bigr.pipeline.study.results import Results
from bigr.runtime.errors import BigrError
from bigr.tracking.store import Store
from flows import execution, workspace
from flows.study import Study
from tests import mini_project, scratch, tiny

SEEDS = tables.SEEDS
BETTER = {"base": (10.0, 0.90), "table2-x0": (12.0, 0.85), "table2-direct": (20.0, 0.95)}
"""Made-up figures, variant → distance, top-1; the others have the first's."""


def made_up(**distances: tuple[float, ...]) -> Results:
    """Results in which each seed adds its number to the distance; `distances` gives a variant's (`_` for -) by seed."""
    figures: dict[str, dict[int, dict[str, float]]] = {}
    for variant in tables.VARIANTS:
        distance, top1 = BETTER.get(variant.name, BETTER["base"])
        own = distances.get(variant.name.replace("-", "_"), tuple(distance + seed for seed in SEEDS))
        figures[variant.name] = {
            seed: {tables.FID: own[seed], tables.TOP1: top1, tables.AGREEMENT: 0.9} for seed in SEEDS
        }
    seconds = {name: 1e-3 * n * s for (n, s), name in tables.POINTS.items()}
    return Results(figures, seconds, tables.MINIATURE, 60.0, 2, "abc1234", "2 CPU cores")


def values(project: Path) -> dict[str, Any]:
    return config.read(project / "params.yaml")


def test_every_run_is_of_valid_settings_and_has_a_name_of_its_own() -> None:
    runs = tables.runs()
    settings = [config.validate(workspace.merge(values(mini_project.ROOT), run.settings)) for run in runs]
    assert len({run.name for run in runs}) == len({one.model_dump_json() for one in settings}) == len(runs)
    assert {run.seed for run in runs} == set(SEEDS)


def test_every_row_and_every_point_of_figure_3_is_a_variant() -> None:
    names = {variant.name for variant in tables.VARIANTS}
    assert {row.variant.name for table in tables.TABLES for row in table.rows} | set(tables.POINTS.values()) == names
    assert tables.tables_of("base") == [*(table.name for table in tables.TABLES), "Figure 3"]


def test_variants_of_one_model_differ_in_sampling_alone() -> None:
    trained = {}
    for run in tables.runs():
        merged = workspace.merge(values(mini_project.ROOT), run.settings)
        del merged["samples"]
        assert trained.setdefault((run.variant.model, run.seed), merged) == merged
    assert len(trained) == 8 * len(SEEDS)


def test_the_digest_changes_with_settings_and_code_and_not_with_where_it_runs(tmp_path: Path) -> None:
    project = mini_project.make(tmp_path / "project")
    plain = values(project)
    first = tables.digest(project, plain)
    assert tables.digest(project, {**plain, "run": {**plain["run"], "workers": 7}}) == first
    assert tables.digest(project, {**plain, "samples": {**plain["samples"], "count": 7}}) != first
    (project / "step.py").write_text((project / "step.py").read_text() + "# changed\n")
    assert tables.digest(project, plain) != first


TABLE_2, TABLE_3 = (next(table for table in tables.TABLES if table.name == name) for name in ("Table 2", "Table 3"))


def test_an_order_is_decided_only_where_chance_would_seldom_make_it() -> None:
    def verdicts(found: Results) -> dict[str, str]:
        return {claim.worse: claim.verdict for claim in results.claims(TABLE_3, found)}

    found = made_up(
        table3_raster=(11.0, 12.0, 13.0, 14.0, 15.0, 16.0), table3_random=(10.0, 11.0, 12.0, 13.0, 14.0, 15.0)
    )
    assert verdicts(found) == {"raster": "as in the paper", "random": "the other way round"}
    assert {claim.p for claim in results.claims(TABLE_3, found)} == {2 / 2**6}
    assert verdicts(made_up(table3_raster=(9.0, 14.0, 15.0, 16.0, 17.0, 18.0)))["raster"] == "undecided"
    assert verdicts(made_up())["raster"] == "undecided"  # no difference is neither


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1.0, 1.0, 1.0], 0.25),
        ([1.0, 2.0, 3.0, 4.0, 5.0, -0.5], 4 / 64),  # as far: all signs alike, and the least one turned
        ([1.0, -1.0], 1.0),
        ([0.0, 0.0, 0.0], 1.0),
        ([3.0], 1.0),
    ],
)
def test_p_is_the_share_of_signs_with_as_large_a_mean(differences: list[float], p: float) -> None:
    assert results.p_value(differences) == pytest.approx(p)
    assert results.p_value([-one for one in differences]) == pytest.approx(p)


def test_sizes_are_as_many_parameters_as_they_say() -> None:
    base = values(mini_project.ROOT)
    for millions, variant in tables.SIZES.items():
        settings = config.validate(workspace.merge(base, {**tables.MINIATURE, **variant.settings}))
        with torch.device("meta"):
            model = BiGR(BiGRConfig.of(settings.generator, code_bits=16, grid=4, num_classes=10))
        assert sum(one.numel() for one in model.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


def test_a_larger_top1_is_better_and_a_smaller_distance() -> None:
    claims = results.claims(TABLE_2, made_up())
    assert [(c.better.split(", ")[-1], c.worse.split(", ")[-1], c.agree) for c in claims] == [
        ("predicts the flip", "predicts x₀", len(SEEDS)),
        ("predicts x₀", "no diffusion", len(SEEDS)),
        ("predicts the flip", "no diffusion", 0),
        ("no diffusion", "predicts x₀", len(SEEDS)),
    ]


def test_the_page_has_mean_and_deviation_beside_the_papers_figures() -> None:
    text = study_page.text(made_up())
    assert "| diffusion, predicts x₀ | 4.39 | 14.50 ± 1.87 | 0.031 | 62.0 | 85.0 ± 0.0 | 0.031 |" in text
    assert "| without labels | 68.3 | 90.0 ± 0.0 | 1.000 |" in text
    assert f"| {tables.STEPS[0]} | {tables.ITERATIONS[0]} | 20.0 | 12.50 ± 1.87 |" in text
    assert "**the other way round**" in text
    single = {name: {0: runs[0]} for name, runs in made_up().figures.items()}
    assert "| diffusion, predicts x₀ | 4.39 | 12.00 | 1.000 | 62.0 | 85.0 | 1.000 |" in study_page.text(
        replace(made_up(), figures=single)
    )


def test_what_no_other_point_beats_is_named() -> None:
    front = re.findall(r"at least as near: (.*)\.", study_page.text(made_up()))
    assert front == [f"(n {tables.ITERATIONS[0]}, S {tables.STEPS[0]})"]  # all as near: the fastest


def test_the_page_and_its_plots_are_a_function_of_the_json(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    results.save(tmp_path / "a/ablations.json", made_up())
    for name in ("a", "b"):
        study_page.write(tmp_path / name, results.load(tmp_path / "a/ablations.json"))
    for file in ("ablations.md", "images/ablations-figure3.png", "images/ablations-sizes.png"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    links = re.findall(r"\]\((images/[^)]*)\)", (tmp_path / "a/ablations.md").read_text())
    assert links and all((tmp_path / "a" / link).is_file() for link in links)


def test_the_page_in_docs_is_that_of_the_figures_in_docs() -> None:
    docs = mini_project.ROOT / "docs"
    if not (docs / "ablations.json").exists():
        pytest.skip("the study has not been run")
    assert (docs / "ablations.md").read_text(encoding="utf-8") == study_page.text(results.load(docs / "ablations.json"))


def test_missing_results_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(BigrError, match=r"ablations.json: no such file; run `make ablations`"):
        results.load(tmp_path / "ablations.json")


def test_only_the_embedded_digits_are_studied(tmp_path: Path) -> None:
    project = mini_project.make(tmp_path / "project")
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("source: data/dataset", "source: pictures"))
    with pytest.raises(BigrError, match=r"^the study is of the embedded digits"):
        Study(project, tables.runs())


@pytest.fixture(scope="module")
def chosen() -> list[tables.StudyRun]:
    """Two samplings of one model and one of another, under one seed."""
    names = ("base", "table8-thresholded", "table2-x0")
    return tables.runs((0,), tuple(v for v in tables.VARIANTS if v.name in names), {"samples.count": 20})


def test_what_is_done_is_not_done_again_and_a_lost_experiment_is_found_in_the_cache(
    tmp_path: Path, chosen: list[tables.StudyRun], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = mini_project.make(tmp_path / "project")
    spec = (project / "dvc.yaml").read_text()
    codes = "  codes:\n    cmd: python step.py codes data/codes/code\n    deps: [step.py, data/shards]\n"
    codes += "    params: [seed]\n    outs: [data/codes]\n"
    text = "  text:\n    cmd: python step.py text data/text/text\n    deps: [step.py, data/shards]\n"
    text += "    outs: [data/text]\n"
    (project / "dvc.yaml").write_text(spec.replace("  samples:\n", codes + text + "  samples:\n", 1))
    mini_project.run(project, "git", "-c", "user.name=A", "-c", "user.email=a@b", "commit", "-qam", "codes")
    said: list[str] = []
    first = Study(project, chosen)
    assert [(group.name, len(group.runs)) for group in first.open_groups()] == [("flip-seed0", 2), ("x0-seed0", 1)]
    first.run_group(first.groups[0], said.append, lambda line: None)
    assert [line.split(":")[0] for line in said] == ["ablations-base-seed0", "ablations-table8-thresholded-seed0"]
    assert [group.name for group in Study(project, chosen).open_groups()] == ["x0-seed0"]
    assert first.result(chosen[0]) == Study(project, chosen).result(chosen[0])

    mini_project.run(project, "dvc", "exp", "remove", "ablations-base-seed0")
    again: list[str] = []
    second = Study(project, chosen)
    detail: list[str] = []
    second.run_group(second.groups[0], again.append, detail.append)
    assert [line.split(":")[0] for line in again] == ["ablations-base-seed0"]
    assert not any(line.startswith("Running stage") for line in detail)
    assert not list((project / workspace.FOLDER).iterdir())
    assert mini_project.run(project, "git", "status", "--porcelain", "--untracked-files=no") == ""


def test_files_that_are_the_same_for_every_seed_are_stored_by_one_group_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = mini_project.make(tmp_path / "project")
    study = Study(project, tables.runs((0, 1), (tables.BASE,), {}))
    met: dict[str, list[bool]] = {"text": [], "codes": []}
    patience = {"text": 1, "codes": 60}
    ready, both = threading.Barrier(2), {stage: threading.Barrier(2) for stage in met}
    monkeypatch.setattr("flows.study.workspace.change", lambda *_: ready.wait(60))

    def execute(stage: str, *_: Any, **__: Any) -> None:
        if stage == "evaluation":
            raise BigrError("far enough")
        try:
            both[stage].wait(patience[stage])
        except threading.BrokenBarrierError:
            met[stage].append(False)
        else:
            met[stage].append(True)

    monkeypatch.setattr("flows.study.execute", execute)
    with ThreadPoolExecutor(2) as lanes:
        ended = [lanes.submit(study.run_group, group, print, print) for group in study.groups]
    assert [str(one.exception()) for one in ended] == ["far enough"] * 2
    assert met == {"text": [False, False], "codes": [True, True]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_variants_of_one_seed_share_what_they_can_and_are_experiments_and_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = scratch.make(tmp_path, real=True)
    for name, value in scratch.environment(project).items():
        monkeypatch.setenv(name, value)
    paths = execution._paths
    monkeypatch.setattr(execution, "_paths", lambda folder: paths(folder) | {"PATH": os.environ["PATH"]})
    small = {**tiny.OVERRIDES, "samples.iterations": 4}
    names = ("base", "table2-x0")
    some = Study(project, tables.runs((0,), tuple(v for v in tables.VARIANTS if v.name in names), small))
    lines: list[str] = []
    for group in some.open_groups():
        some.run_group(group, lines.append, lines.append)
    ran = [match[1] for line in lines if (match := re.match(r"Running stage '(\w+)'", line))]
    trained = ["generator", "transcoder", "samples", "evaluation"]
    assert ran == ["dataset", "shards", "text", "tokenizer", "codes", *trained, *trained]

    shown = mini_project.run(project, "dvc", "exp", "show", "--csv")
    rows = {row["Experiment"]: row for row in csv.DictReader(io.StringIO(shown))}
    assert rows["ablations-table2-x0-seed0"]["generator.target"] == "x0"
    store = Store(project)
    marked = {run.info.run_name: run.data for run in store.search("tags.`bigr.study` = 'ablations'")}
    assert set(marked) == {"ablations-base-seed0", "ablations-table2-x0-seed0"}
    figures = json.loads((project / ".dvc/tmp/ablations/ablations-base-seed0.json").read_text())["figures"]
    assert marked["ablations-base-seed0"].metrics[tables.FID] == pytest.approx(figures[tables.FID])
