"""`bigr`: it explains the stages, validates without running, runs one as DVC does, and says mistakes in one line."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigr import config
from bigr.cli import program
from bigr.pipeline import check, runner
from bigr.pipeline.stage_table import NAMES, STAGES
from bigr.runtime.context import Context, Report
from bigr.runtime.errors import BigrError
from tests import scratch, tiny

DVC_YAML = """\
stages:
  dataset:
    cmd: bigr run dataset
    params: [dataset]
    outs: [data/dataset]
  shards:
    cmd: bigr run shards
    deps: ["${shards.source}"]
    params: [seed, shards]
    outs: [data/shards]
  tokenizer:
    cmd: bigr run tokenizer
    deps: [data/shards]
    params: [tokenizer]
    outs: [models/tokenizer]
"""


class Silent(Report):
    """Takes the tracker's place and remembers how the stage ended."""

    ended: list[tuple[str, dict[str, str]]]
    inputs: object

    def __init__(self, *about: object) -> None:
        Silent.ended, Silent.inputs = [], about[3]

    def finish(self, status: str, outputs: dict[str, str] | None = None) -> None:
        """What `Tracker.finish` is called with."""
        Silent.ended.append((status, outputs or {}))


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: a DVC project of three stages without tracking."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(f"[core]\n    no_scm = true\n    site_cache_dir = {tmp_path / 'site'}\n")
    (tmp_path / "dvc.yaml").write_text(DVC_YAML)
    (tmp_path / "params.yaml").write_text((scratch.ROOT / "params.yaml").read_text())
    tiny.apply(tmp_path / "params.yaml")
    monkeypatch.setattr(runner, "Tracker", Silent)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def stage(monkeypatch: pytest.MonkeyPatch, name: str, run: Callable[[config.Settings, Context], Any]) -> None:
    """Put `run` in a stage's place."""
    path = f"bigr.stages.{STAGES[name].module}"
    module = types.ModuleType(path)
    module.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, path, module)


def bigr(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of the command line."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sys, "argv", ["bigr", *words])
    with pytest.raises(SystemExit) as ended:
        program.main()
    signal.signal(signal.SIGTERM, handler)
    return int(ended.value.code or 0)


def write_digits(settings: config.Settings, context: Context) -> None:
    """A stage that writes what dvc.yaml says."""
    (context.root / "data/dataset").mkdir(parents=True)
    (context.root / "data/dataset/image").write_text("an image")


def test_help_explains_every_stage_in_order(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert bigr(monkeypatch, "--help") == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n    {name} ") for name in NAMES]
    assert places == sorted(places)
    assert all(stage.help for stage in STAGES.values())


@pytest.mark.parametrize("users", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}, {"GOMP_SPINCOUNT": "7"}])
def test_threads_spin_briefly_and_sleep_unless_the_user_says_otherwise(users: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in program.WAITING} | users
    code = """
import os, sys
from bigr.cli.program import WAITING, main
assert "torch" not in sys.modules, "torch reads the policy when it is loaded"
try:
    main()
finally:
    print("policy", {name: os.environ[name] for name in WAITING if name in os.environ})
"""
    done = subprocess.run(
        [sys.executable, "-c", code, "--help"], env=environment, cwd=scratch.ROOT, capture_output=True, text=True
    )
    assert f"policy {users or program.WAITING}" in done.stdout, done.stdout + done.stderr


def test_the_list_of_commands_is_not_cut_on_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert bigr(monkeypatch, "--help") == 0
    listed = capsys.readouterr().out.split("Commands:\n")[1].splitlines()
    assert len(listed) > 15
    assert not [line for line in listed if "..." in line]


def test_usage_names_the_command_however_it_was_started(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["/somewhere/bigr/__main__.py", "plan", "--help"])
    with pytest.raises(SystemExit):
        program.main()
    assert capsys.readouterr().out.startswith("Usage: bigr plan")


def test_check_says_what_the_settings_amount_to(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(scratch.ROOT)
    assert bigr(monkeypatch, "check") == 0
    settings = config.load(scratch.ROOT / "params.yaml")
    grid, bits = settings.grid, settings.tokenizer.code_bits
    assert f"{grid}×{grid} = {grid**2} an image, {bits} bits each" in capsys.readouterr().out


def test_check_refuses_settings_that_do_not_fit(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    shutil.copy("params.yaml", "other.yaml")
    tiny.apply(project / "other.yaml", {"generator.dim": 128, "generator.heads": 5})
    assert bigr(monkeypatch, "check", "--params", "other.yaml") == 2
    error = capsys.readouterr().err
    assert error.startswith("other.yaml: generator.heads must be a divisor of generator.dim = 128")
    assert error.count("\n") == 1


def test_check_refuses_a_dvc_yaml_that_lacks_stages_or_names_unknown_settings(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert bigr(monkeypatch, "check") == 2
    assert "dvc.yaml: has no stage codes" in capsys.readouterr().err.splitlines()
    (project / "dvc.yaml").write_text(DVC_YAML.replace("[dataset]", "[dataset.size]"))
    assert bigr(monkeypatch, "check") == 2
    line = "dvc.yaml: stage dataset names the setting dataset.size, which params.yaml does not have\n"
    assert capsys.readouterr().err == line


def test_a_misspelt_stage_gets_a_suggestion(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert bigr(monkeypatch, "run", "tokeniser") == 2
    assert capsys.readouterr().err == "tokeniser is not a stage; did you mean tokenizer?\n"


def test_a_stage_outside_a_project_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bigr(monkeypatch, "run", "dataset") == 2
    assert "params.yaml: no such file; run in the project's folder" in capsys.readouterr().err


def test_a_stage_gets_settings_root_and_fingerprint_and_its_outputs_are_hashed(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    stage(monkeypatch, "dataset", lambda settings, context: (seen.append((settings, context)), write_digits(*seen[-1])))
    assert bigr(monkeypatch, "run", "dataset") == 0
    ((settings, context),) = seen
    assert settings.dataset.image_size == 16
    assert context.root == project
    assert len(context.fingerprint) == 64
    ((status, outputs),) = Silent.ended
    assert status == "FINISHED"
    assert list(outputs) == ["data/dataset"]
    assert outputs["data/dataset"].endswith(".dir")


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("tokenizer", {"tokenizer.perceptual_weight": 1.0, "tokenizer.perceptual_weights": "vgg.safetensors"}),
        (
            "evaluation",
            {"evaluation.extractor": "inception-v3-compat", "evaluation.extractor_weights": "inception.pth"},
        ),
    ],
)
def test_weights_that_a_setting_names_count_as_input_where_they_are_used(
    project: Path, monkeypatch: pytest.MonkeyPatch, name: str, changes: dict[str, object]
) -> None:
    prints = []
    stage(monkeypatch, name, lambda settings, context: (prints.append(context.fingerprint), write_output(context)))
    output = "models/tokenizer"
    (project / "dvc.yaml").write_text(f"stages:\n  {name}:\n    cmd: x\n    params: [{name}]\n    outs: [{output}]\n")

    def write_output(context: Context) -> None:
        (context.root / output).mkdir(parents=True, exist_ok=True)

    *_, file = map(str, changes.values())
    tiny.apply(project / "params.yaml", changes)
    for content in ("one", "two"):
        (project / file).write_text(content)
        runner.run_stage(name, project, project / "params.yaml")
        assert Silent.inputs == {file: hashlib.md5(content.encode()).hexdigest()}
    assert len(set(prints)) == 2
    unused = dict.fromkeys(changes) | {
        key: 0 if key.endswith("weight") else "classifier" for key in changes if not key.endswith("weights")
    }
    tiny.apply(project / "params.yaml", {**unused, list(changes)[1]: file})
    runner.run_stage(name, project, project / "params.yaml")
    assert Silent.inputs == {}


@pytest.mark.parametrize(
    ("device", "here", "refused"), [("cuda:0", "2", True), ("cpu", "2", False), ("cuda:1", "1", False)]
)
def test_processes_that_torchrun_started_do_not_share_a_gpu(
    project: Path, monkeypatch: pytest.MonkeyPatch, device: str, here: str, refused: bool
) -> None:
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": here}.items():
        monkeypatch.setenv(name, value)
    tiny.apply(project / "params.yaml", {"run.device": device})
    with pytest.raises(BigrError) as caught:  # where nothing else is wrong, that there are no shards, or no such GPU
        runner.run_stage("tokenizer", project, project / "params.yaml")
    assert ("run.device is cuda:0, which the 2 processes" in str(caught.value)) is refused
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("tokenizer", "stage tokenizer reads data/shards, which does not exist; run `dvc repro tokenizer`"),
        ("shards", "stage shards reads data/dataset, which does not exist; run `dvc repro shards`"),
    ],
)
def test_a_missing_input_is_named_with_the_remedy(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, line: str
) -> None:
    assert bigr(monkeypatch, "run", name) == 2
    assert capsys.readouterr().err == f"{line}\n"


def test_a_missing_image_folder_is_named_with_its_setting(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    tiny.apply(project / "params.yaml", {"shards.source": "my/images"})
    assert bigr(monkeypatch, "run", "shards") == 2
    expected = (
        "shards.source is my/images, which does not exist; put the folder or file of images there, or name another\n"
    )
    assert capsys.readouterr().err == expected


NAMED = [
    ("shards", {"shards.source": "mine"}),
    ("tokenizer", {"tokenizer.perceptual_weights": "mine", "tokenizer.perceptual_weight": 1.0}),
    ("evaluation", {"evaluation.extractor_weights": "mine", "evaluation.extractor": "inception-v3-compat"}),
]


@pytest.mark.parametrize(("name", "changes"), NAMED)
def test_a_file_that_a_setting_names_is_looked_for_before_anything_runs(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, name: str, changes: dict[str, object]
) -> None:
    shutil.copy(scratch.ROOT / "dvc.yaml", "dvc.yaml")
    tiny.apply(project / "params.yaml", changes)
    ran: list[str] = []
    stage(monkeypatch, "dataset", lambda settings, context: (ran.append("dataset"), write_digits(settings, context)))
    first = f"{next(iter(changes))} is mine, which "
    for words in (["check"], ["run", "dataset"], ["run", name]):
        assert bigr(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert error.startswith(f"{first}does not exist; put the ") and error.count("\n") == 1
    if name == "shards":
        (project / "mine").write_text("no images")
    else:
        (project / "mine").mkdir()
    assert bigr(monkeypatch, "check") == 2
    error = capsys.readouterr().err
    if name == "shards":
        assert error.startswith(
            f"shards.source: {project / 'mine'} is a file of no known kind; name a folder of images"
        )
    else:
        assert error == f"{first}is not a file; name another\n"
    assert error.count("\n") == 1
    settings = config.load(project / "params.yaml")
    after = NAMES[NAMES.index(name) + 1 :]
    check.check_files(project, settings, after)  # done with it
    assert ran == []


def test_a_mistake_found_by_a_stage_is_one_line_and_status_2(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def run(settings: config.Settings, context: Context) -> None:
        raise BigrError("image 7.png cannot be decoded; remove it")

    stage(monkeypatch, "dataset", run)
    assert bigr(monkeypatch, "run", "dataset") == 2
    assert capsys.readouterr().err == "image 7.png cannot be decoded; remove it\n"
    assert Silent.ended == [("FAILED", {})]


def test_an_interrupted_stage_says_how_to_go_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    stage(monkeypatch, "dataset", lambda settings, context: os.kill(os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
    try:
        assert bigr(monkeypatch, "run", "dataset") == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted; `dvc repro` continues from the last checkpoint\n"
    assert Silent.ended == [("KILLED", {})]


def test_a_terminated_stage_is_recorded_as_killed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch, "dataset", lambda settings, context: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(10)))
    assert bigr(monkeypatch, "run", "dataset") == 143
    assert Silent.ended == [("KILLED", {})]


def test_a_stage_that_lacks_an_output_is_no_success(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(monkeypatch, "dataset", lambda settings, context: None)
    with pytest.raises(RuntimeError, match="stage dataset did not write data/dataset"):
        runner.run_stage("dataset", project, project / "params.yaml")
    assert Silent.ended == [("FAILED", {})]


def test_a_second_run_of_a_stage_waits_for_the_first(
    project: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hold = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a+'); fcntl.flock(file, fcntl.LOCK_EX); file.write('4711');"
        "file.flush(); print('held', flush=True); sys.stdin.read()"
    )
    (project / ".dvc/tmp").mkdir()
    first = subprocess.Popen(
        [sys.executable, "-c", hold, str(project / ".dvc/tmp/bigr-dataset.lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert first.stdin and first.stdout and first.stdout.readline() == b"held\n"
    monkeypatch.setattr(runner.log, "warning", lambda *words: (caplog.records.append(words), first.stdin.close()))
    stage(monkeypatch, "dataset", write_digits)
    runner.run_stage("dataset", project, project / "params.yaml")
    assert caplog.records == [(caplog.records[0][0], "dataset", "4711")]
    assert first.wait() == 0


def test_a_copy_of_the_project_runs_the_copys_code(tmp_path: Path) -> None:
    """As in the folder that DVC makes for an experiment, whatever `bigr` is installed."""
    project = scratch.make(tmp_path, real=True)
    text = (project / "bigr/cli/program.py").read_text()
    (project / "bigr/cli/program.py").write_text(text.replace('"BiGR: image generation', '"The copy: image generation'))
    code = f"import sys; sys.path.insert(0, {str(scratch.ROOT)!r}); sys.argv = ['bigr', '--help']; "
    code += "from bigr.cli.program import main; main()"
    assert "The copy: image generation" in scratch.run(project, sys.executable, "-P", "-c", code)


TWO_PROCESSES = """\
import torch.distributed as dist
from bigr.runtime.errors import BigrError
def run(settings, context):
    if settings.seed == 1:
        raise BigrError("the batch does not divide; make it even")
    total = __import__("torch").ones(1)
    dist.all_reduce(total)
    folder = context.root / "data" / "codes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"process-{dist.get_rank()}").write_text(f"{int(total)} {context.fingerprint}")
    dist.barrier()
"""


@pytest.mark.slow
def test_a_stage_works_in_the_processes_that_the_settings_ask_for(tmp_path: Path) -> None:
    project = scratch.make(tmp_path, real=True)
    (project / "bigr/stages/encode_codes.py").write_text(TWO_PROCESSES)
    for folder in ("data/shards", "models/tokenizer"):
        (project / folder).mkdir(parents=True)
        (project / folder / "file").write_text("content")
    params = project / "params.yaml"
    tiny.apply(params, {"run.processes": 2})
    scratch.run(project, "bigr", "run", "codes")
    written = [(project / f"data/codes/process-{rank}").read_text().split() for rank in (0, 1)]
    assert [words[0] for words in written] == ["2", "2"]
    assert written[0][1] == written[1][1]

    params.write_text(params.read_text().replace("seed: 0", "seed: 1"))
    done = subprocess.run(
        ["bigr", "run", "codes"], cwd=project, env=scratch.environment(project), capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("the batch does not divide; make it even") == 1
    assert "Traceback" not in done.stderr
