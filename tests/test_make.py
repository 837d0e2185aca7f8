"""The Makefile: what it installs, in which order, and when it installs again. A stand-in notes what is asked of it."""

import itertools
import os
import shutil
import subprocess
from importlib.metadata import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]

PYTHON = """#!/bin/sh
# Stands in for Python and every program of the environment: notes how it was called, makes the environment.
case "$1 $2" in
-c*cuda*) exit ${NO_GPU:-0} ;;
-c*) exit 0 ;;
esac
echo "$(basename "$0") $*" >> "$CALLS"
case "$*" in
*"$FAIL_ON"*) [ -n "$FAIL_ON" ] && exit 1 ;;
esac
if [ "$2" = venv ]; then
    rm -rf .venv && mkdir -p .venv/bin
    for name in python pip bigr dvc ruff mypy honcho; do ln -s "$0" .venv/bin/$name; done
fi
exit 0
"""

VENV = "python3.11 -m venv --clear .venv"
INSTALL = [
    "python -m pip install --quiet -c requirements.lock torch==2.13.0",
    "python -m pip install --quiet -r requirements.lock",
    "python -m pip install --quiet --no-deps --no-build-isolation -e .",
]


class Project:
    """A folder with the Makefile in it, and a Python that only takes notes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder / "a project", folder / "calls"
        self.folder.mkdir()
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            shutil.copy(ROOT / name, self.folder / name)
        self.python = folder / "bin" / "python3.11"
        self.python.parent.mkdir()
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)

    def make(self, *words: str, fail_on: str = "", status: int = 0, **environment: str) -> list[str]:
        """What was called, in order, by `make` with these words."""
        self.calls.unlink(missing_ok=True)
        path = os.pathsep.join([str(self.python.parent), "/usr/bin", "/bin"])
        own = {"PATH": path, "CALLS": str(self.calls), "FAIL_ON": fail_on, "HOME": "/nonexistent"}
        done = subprocess.run(
            ["make", *words], cwd=self.folder, env=own | environment, capture_output=True, text=True, check=False
        )
        assert bool(done.returncode) == bool(status), done.stdout + done.stderr
        return self.calls.read_text().splitlines() if self.calls.exists() else []


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_pipeline_installs_torch_first_and_runs_dvc(project: Project) -> None:
    assert project.make("pipeline") == [VENV, *INSTALL, "bigr check", "dvc repro", "bigr metrics"]


def test_nothing_is_installed_twice(project: Project) -> None:
    project.make("test")
    assert project.make("pipeline") == ["bigr check", "dvc repro", "bigr metrics"]
    assert project.make("test") == ["python -m pytest -n auto --maxprocesses 4 --dist loadfile -m not faults"]
    assert project.make("lint") == ["ruff check .", "ruff format --check .", "mypy "]


def test_a_changed_lock_installs_into_the_same_environment(project: Project) -> None:
    project.make("install")
    lock = project.folder / "requirements.lock"
    later = (project.folder / ".venv/.installed").stat().st_mtime + 10
    os.utime(lock, (later, later))
    assert project.make("install") == INSTALL


@pytest.mark.parametrize("step", ["-c requirements.lock", "-r requirements.lock", "-e ."])
def test_a_broken_installation_is_started_over(project: Project, step: str) -> None:
    project.make("install", fail_on=step, status=2)
    assert project.make("install") == [VENV, *INSTALL]
    assert project.make("install") == []


def test_an_environment_made_by_hand_is_kept(project: Project) -> None:
    project.make("install")
    (project.folder / ".venv/.installed").unlink()
    assert project.make("install") == INSTALL


def test_another_environment_in_force_does_not_matter(project: Project, tmp_path: Path) -> None:
    other = tmp_path / "other"
    assert project.make("install", VIRTUAL_ENV=str(other), PYTHONHOME=str(other)) == [VENV, *INSTALL]


def test_without_python_3_11_the_remedy_is_said(project: Project) -> None:
    done = subprocess.run(
        ["make", "install", "PYTHON="], cwd=project.folder, capture_output=True, text=True, check=False
    )
    assert done.returncode and "make install PYTHON=/path/to/python3.11" in done.stderr


def test_clean_leaves_running_services_their_database(project: Project) -> None:
    database, pid = project.folder / ".prefect/prefect.db", project.folder / ".prefect/services.pid"
    database.parent.mkdir()
    database.touch()
    with subprocess.Popen(["honcho", "60"], executable="/bin/sleep") as process:
        pid.write_text(f"{process.pid}\n")
        project.make("clean", status=2)
        process.kill()
    assert database.exists()
    project.make("clean")  # whatever has the number now
    assert not database.parent.exists()


def test_clean_keeps_the_records_of_what_dvc_still_holds(project: Project) -> None:
    mine = {"data/imagenet/image", "data/imagenet.arrow"}  # images that shards.source may name
    kept = {*mine, ".credentials/file", ".dvc/cache/file", ".venv/file", "dvc.lock", "mlartifacts/file", "mlflow.db"}
    clone = ".dvc/tmp/flows/1/.dvc/config.local"  # of a flow run that was killed; the user's passwords may be in it
    data = {f"data/{name}" for name in ("dataset", "shards", "codes", "text", ".shards.1a2b3c4d")}
    made = {*data, "models", "outputs", "checkpoints", ".prefect"}
    for name in {*kept, clone, *(f"{folder}/file" for folder in made)}:
        (project.folder / name).parent.mkdir(parents=True, exist_ok=True)
        (project.folder / name).touch()
    project.make("clean")
    left = {str(path.relative_to(project.folder)) for path in project.folder.rglob("*") if path.is_file()}
    assert left == kept | {"Makefile", "requirements.lock", "pyproject.toml"}


def test_without_a_gpu_its_tests_say_so(project: Project) -> None:
    project.make("install")
    assert project.make("test-gpu") == ["python -m pytest -m gpu -rs tests/test_gpu.py"]
    path = os.pathsep.join([str(project.python.parent), "/usr/bin", "/bin"])
    done = subprocess.run(
        ["make", "test-gpu"],
        cwd=project.folder,
        env={"PATH": path, "CALLS": str(project.calls), "FAIL_ON": "", "NO_GPU": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode and "There is no GPU" in done.stderr and "pytest" not in done.stdout


def test_help_lists_every_target_that_is_meant_for_people(project: Project) -> None:
    done = subprocess.run(
        ["make", "--no-print-directory"], cwd=project.folder, capture_output=True, text=True, check=True
    )
    makefile = (project.folder / "Makefile").read_text()
    described = [line.partition(":")[0] for line in makefile.splitlines() if ": " in line and " ## " in line]
    listed = [line.split()[1] for line in done.stdout.splitlines()]
    assert "test-gpu" in listed
    assert listed == described


def test_the_lock_names_versions_and_nothing_else() -> None:
    lines = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    assert "torch==2.13.0" in lines
    for line in lines:
        pin, _, only_for = line.partition("; ")
        name, _, version = pin.partition("==")
        assert name and version and not set(pin) & set(" @/+;"), line
        assert not only_for or only_for.startswith("python_version"), line


def test_every_locked_package_installs_on_the_oldest_python_that_pyproject_allows() -> None:
    # A patch version counts: Debian 12 has 3.11.2, and pymdown-extensions 13 asks for 3.11.5.
    import tomllib

    oldest = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    found = 0
    for pin in map(Requirement, pins):
        if pin.marker is None or pin.marker.evaluate():
            allowed = metadata(pin.name).get("Requires-Python")
            assert allowed is None or f"{oldest}.0" in SpecifierSet(allowed), f"{pin} needs Python {allowed}"
            found += allowed is not None
    assert found > 100


def test_the_lock_holds_a_version_that_pyproject_allows_of_all_that_it_names() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]
    lock = {canonicalize_name(pin.name): str(pin.specifier)[2:] for pin in map(Requirement, pins)}
    extras = {name: texts for name, texts in project["optional-dependencies"].items() if name != "gs"}  # not tested
    for text in itertools.chain(project["dependencies"], *extras.values()):
        requirement = Requirement(text)
        if requirement.name != "bigr":  # an extra names others
            assert lock[canonicalize_name(requirement.name)] in requirement.specifier, text
