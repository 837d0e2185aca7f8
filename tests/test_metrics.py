"""`bigr metrics`: results beside their targets, in a table that a terminal can show; the headline that DVC compares."""

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bigr import config
from bigr.cli import program
from bigr.evaluation.headline import HEADLINE, headline
from bigr.runtime.metric_directions import COMPARED_METRICS
from tests import scratch

METRICS: dict[str, dict[str, float]] = {
    "samples": {
        "fd_classifier": 5.047650001,
        "kd_classifier": 9.29934,
        "is_classifier": 9.29494,
        "precision": 0.852,
        "recall": 0.771747,
        "images": 1000,
        "label_agreement": 0.976,
        "over_floor": 2.0471,
    },
    "reconstructions": {"psnr": 26.2312, "label_agreement": 0.981},
    "val_against_train": {"fd_classifier": 2.6},
    "classifier": {"val_accuracy": 0.9972},
    "codes": {"bit_entropy": 0.9941, "dead_bits": 0, "unique_share": 0.999},
    "probe": {"best_layer": 6, "best_top1": 0.9139, "best_top5": 0.99, "top1_layer_06": 0.9139},
    "knn": {"best_layer": 5, "best_top1": 0.85, "best_top5": 0.98, "top1_layer_05": 0.85},
    "zero_shot": {
        "images": 200.0,
        "inpaint_psnr": 16.15,
        "mean_fill_psnr": 15.28,
        "inpaint_label_agreement": 0.99,
        "edit_label_agreement": 0.955,
        "enrich_label_agreement": 1.0,
        "interpolation_agreement": 0.885,
    },
}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with the project's settings, and what the evaluation has measured."""
    (tmp_path / "params.yaml").write_text((scratch.ROOT / "params.yaml").read_text())
    write(tmp_path, METRICS)
    return tmp_path


def write(project: Path, metrics: Any) -> None:
    """Put `metrics` where the stage `evaluation` writes them."""
    (project / "outputs").mkdir(exist_ok=True)
    (project / "outputs/metrics.json").write_text(json.dumps(metrics))


def bigr(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`bigr metrics` in the project, run in this process."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(project),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(SystemExit) as ended,
    ):
        patch.setattr(sys, "argv", ["bigr", "metrics", *words])
        program.main()
    return subprocess.CompletedProcess(words, int(ended.value.code or 0), out.getvalue(), err.getvalue())


def table(project: Path, *words: str) -> list[str]:
    """The lines that `bigr metrics` prints."""
    done = bigr(project, *words)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def row(lines: list[str], part: str, name: str) -> str:
    """The line of a metric, which stands below the line of its part."""
    start = next(i for i, line in enumerate(lines) if line.split()[:1] == [part])
    return next(line for line in lines[start + 1 :] if line.split()[:1] == [name])


def targets(project: Path, of: dict[str, dict[str, float]]) -> None:
    """Put these targets in place of those of params.yaml."""
    values = config.read(project / "params.yaml") | {"targets": of}
    (project / "params.yaml").write_text(json.dumps(values))


def test_each_result_stands_beside_its_target_and_whether_it_is_met(project: Path) -> None:
    targets(project, {"samples": {"label_agreement": 0.97, "over_floor": 2.0}, "reconstructions": {"psnr": 26.2312}})
    lines = table(project)
    assert row(lines, "samples", "label_agreement").split()[:6] == ["label_agreement", "97.60", "%", "≥", "97", "%"]
    assert "met" in row(lines, "samples", "label_agreement").split()
    assert "missed" in row(lines, "samples", "over_floor").split()
    assert "26.23 dB" in row(lines, "reconstructions", "psnr")
    assert "met" in row(lines, "reconstructions", "psnr").split()
    assert not {"met", "missed"} & set(row(lines, "samples", "recall").split())
    assert any("2 of 3 targets" in line and "samples.over_floor" in line for line in lines)


def test_every_row_says_what_it_is_also_beside_a_target_that_is_missed(project: Path) -> None:
    targets(project, config.read(scratch.ROOT / "params.yaml")["targets"])
    write(project, METRICS | {"samples": METRICS["samples"] | {"label_agreement": 0.5}})
    lines = table(project)
    assert row(lines, "samples", "label_agreement").endswith("missed  seen as their class")
    assert row(lines, "samples", "precision").endswith("that lie among real ones")


def test_a_metric_is_shown_where_it_has_a_target(project: Path) -> None:
    with pytest.raises(StopIteration):
        row(table(project), "samples", "kd_classifier")
    targets(project, {"samples": {"kd_classifier": 9.0}})
    assert " missed" in row(table(project), "samples", "kd_classifier")


def test_the_table_fits_80_columns_whatever_was_measured_and_wanted(project: Path) -> None:
    wanted: dict[str, dict[str, float]] = {}
    for part, metrics in METRICS.items():
        for name in metrics:
            if f"{part}.{name}" in COMPARED_METRICS:
                wanted.setdefault(part, {})[name] = 0.12345 if "psnr" not in name else 12.345
    targets(project, wanted)
    for words in ([], ["--all"]):
        lines = table(project, *words)
        assert len(lines) > 20
        assert [line for line in lines if len(line) > 80] == []


def test_metrics_of_texts_are_shown_in_percent_where_they_were_measured(project: Path) -> None:
    assert not any(line.split()[:1] in (["retrieval"], ["attributes"]) for line in table(project))
    own = {
        "retrieval": {"top1": 0.91, "train_top1": 0.95, "judge_accuracy": 0.99, "clip_score": 27.5},
        "attributes": {"reader_accuracy": 0.98, "all": 0.7, "seen_all": 0.8, "held_out_all": 0.6},
    }
    write(project, METRICS | own)
    targets(project, {"retrieval": {"train_top1": 0.8}, "attributes": {"held_out_all": 0.7}})
    lines = table(project)
    assert row(lines, "retrieval", "train_top1").split()[:7] == ["train_top1", "95.00", "%", "≥", "80", "%", "met"]
    assert "60.00 %" in row(lines, "attributes", "held_out_all") and " missed" in row(
        lines, "attributes", "held_out_all"
    )
    assert "27.5" in row(lines, "retrieval", "clip_score") and "%" not in row(lines, "retrieval", "clip_score")
    assert all(len(line) <= 80 for line in table(project, "--all"))
    shown = headline(METRICS | own)
    assert (shown["caption_top1"], shown["attributes"]) == (0.91, 0.7)
    assert {"caption_top1", "attributes"} <= set(list(shown)[:5])  # which the flow's page shows


def test_numbers_of_images_are_whole_numbers(project: Path) -> None:
    write(project, METRICS | {"samples": METRICS["samples"] | {"images": 50_000.0}})
    lines = table(project, "--all")
    assert row(lines, "samples", "images").split() == ["images", "50,000"]
    assert any(line.startswith("zero_shot ") and " 200 held-out images" in line for line in lines)


def test_what_was_not_measured_is_said_so_and_nothing_fails(project: Path) -> None:
    left: dict[str, Any] = {part: METRICS[part] for part in ("samples", "codes")}
    left["samples"] = {name: value for name, value in left["samples"].items() if name != "over_floor"}
    left["codes"] = {"bit_entropy": float("nan"), "dead_bits": None}
    write(project, left)
    targets(project, {"samples": {"over_floor": 2.0}, "probe": {"best_top1": 0.9}})
    lines = table(project)
    assert "not measured" in row(lines, "samples", "over_floor")
    assert "not measured" in row(lines, "codes", "bit_entropy")
    assert "not measured" in row(lines, "probe", "best_top1")
    assert any(line.startswith("zero_shot ") and "not measured" in line for line in lines)
    assert "0 of 2 targets met; samples.over_floor not measured; probe.best_top1 not measured" in " ".join(lines)


def test_a_part_or_metric_that_the_table_does_not_know_harms_nothing(project: Path) -> None:
    write(project, {**METRICS, "later": {"new": 3.5}, "samples": METRICS["samples"] | {"note": "text"}, "figure": 1})
    table(project)
    assert "3.5" in row(table(project, "--all"), "later", "new")


def test_all_names_every_metric_once(project: Path) -> None:
    lines = table(project, "--all")
    for part, metrics in METRICS.items():
        for name in metrics:
            assert row(lines, part, name)
    assert sum(line.startswith("  ") for line in lines) == sum(map(len, METRICS.values()))


def test_it_ends_with_where_to_look(project: Path) -> None:
    said = "\n".join(table(project))
    assert all(place in said for place in ("outputs/samples.png", "bigr metrics --all", "dvc plots show", "make ui"))


@pytest.mark.parametrize(("content", "named"), [(None, "dvc repro"), ("{", "dvc repro"), ("[1]", "dvc repro")])
def test_without_metrics_one_line_says_what_makes_them(project: Path, content: str | None, named: str) -> None:
    file = project / "outputs/metrics.json"
    file.unlink() if content is None else file.write_text(content)
    done = bigr(project)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "outputs/metrics.json" in done.stderr and named in done.stderr


def test_the_table_needs_no_torch(project: Path) -> None:
    code = "import sys; from bigr.cli.program import app; app(['metrics'], standalone_mode=False); "
    code += "print('torch' in sys.modules)"
    environment = scratch.environment(project) | {"PYTHONPATH": str(scratch.ROOT)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_headline_is_of_metrics_that_tell_a_better_model_and_few_enough_for_a_terminal() -> None:
    assert set(HEADLINE.values()) <= set(COMPARED_METRICS)
    of_classes = [name for name in HEADLINE.values() if not name.startswith(("retrieval.", "attributes."))]
    assert len(of_classes) <= 8 and len(HEADLINE) <= 10 and all(len(short) <= 15 for short in HEADLINE)


def test_the_headline_lacks_what_was_not_measured() -> None:
    full = headline(METRICS)
    assert full["label_agreement"] == 0.976 and full["probe_top1"] == 0.9139 and "fid" not in full
    left = {part: metrics for part, metrics in METRICS.items() if part != "probe"}
    assert headline(left) == {short: value for short, value in full.items() if short != "probe_top1"}
    assert headline({**METRICS, "probe": {}, "knn": {"best_top1": float("nan")}}).keys() == full.keys() - {
        "probe_top1",
        "knn_top1",
    }
    assert headline({}) == {}
