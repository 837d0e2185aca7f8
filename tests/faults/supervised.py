"""The services of a project as a supervisor runs them: each by itself, and started again where it was killed."""

import contextlib
import shutil
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

from flows import credentials
from tests import mini_project, postgres, preloaded, scratch
from tests.services import Services, free_port

COMMANDS = {"prefect": ("server", "start"), "mlflow": ("server",), "worker": ("worker", "start")}
"""Service → the words after the program's name, by which its process is known."""


class Platform:
    """Prefect's server and MLflow, both on Postgres, and a worker, for `project`."""

    def __init__(self, folder: Path, project: Path, database: postgres.Server, stack: ExitStack) -> None:
        self.project, self.database = project, database
        python = preloaded.environment(folder / "environment")
        self.mlflow = f"http://127.0.0.1:{(port := free_port())}"
        common = {
            "PREFECT_PORT": str(free_port()),
            "MLFLOW_PORT": str(port),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{database.at}/prefect",
            "MLFLOW_BACKEND_STORE_URI": f"postgresql://{database.at}/mlflow",
            preloaded.VARIABLE: preloaded.start(),
        }
        self.services: dict[str, Services] = {}
        for name in ("mlflow", "prefect", "worker"):
            (folder / name).mkdir()
            if name == "worker":
                common |= {"MLFLOW_TRACKING_URI": self.mlflow, **credentials.mlflow_login(project)}
            service = self.services[name] = Services(folder / name, project, python, (name,), **common)
            stack.callback(self._stop, service)
            self.wait_for(name)

    @property
    def worker(self) -> Services:
        """The service through which runs are started and asked for."""
        return self.services["worker"]

    def wait_for(self, name: str) -> None:
        """Return once the service answers."""
        service = self.services[name]
        if name == "worker":
            service.wait_until_up()
            return
        url = f"{self.mlflow}/health" if name == "mlflow" else f"{service.url}/health"
        service.wait_for(lambda: _answers(url))

    def kill(self, name: str) -> None:
        """`kill -9` of the service; of a server with all its processes, of the worker without the run that it began."""
        if name == "postgres":
            self.database.kill()
            return
        service = self.services[name]
        program = "mlflow" if name == "mlflow" else "prefect"
        (process,) = [p for p in service.processes() if _is(p, program, *COMMANDS[name])]
        for one in [process, *(process.children(recursive=True) if name != "worker" else [])]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        service.process.wait(60)  # honcho ends with it

    def start(self, name: str) -> None:
        """Start the service again, and return once it answers."""
        if name == "postgres":
            self.database.start()
            return
        self.services[name].launch()
        self.wait_for(name)

    @staticmethod
    def _stop(service: Services) -> None:
        for process in service.stop():
            process.kill()


def _is(process: psutil.Process, program: str, *words: str) -> bool:
    line = process.cmdline()
    names = [Path(word).name for word in line]
    return program in names and tuple(line[(at := names.index(program) + 1) : at + len(words)]) == words


def _answers(url: str) -> bool:
    try:
        return urllib.request.urlopen(url, timeout=5).status == 200
    except OSError:
        return False


@contextmanager
def platform(trained: Path, folder: Path) -> Iterator[Platform]:
    """A platform for a copy of the project `trained`, with the flow and its deployment."""
    project = scratch.copy(trained, folder / "copy")
    shutil.copytree(mini_project.ROOT / "flows", project / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("prefect.yaml", "pyproject.toml", "Procfile"):
        shutil.copy(mini_project.ROOT / name, project / name)
    with postgres.running("prefect", "mlflow") as database, ExitStack() as stack:
        yield Platform(folder, project, database, stack)


def left(project: Path) -> list[str]:
    """Commands of DVC and of stages that run in the project."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if process.cwd() == str(project) and {"repro", "run"} & set(line[1:4]):
                found.append(" ".join(line))
    return found


def until(happened: Any, seconds: float = 120) -> None:
    """Return once `happened()` is true."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
