"""Start Prefect's server, a worker and MLflow together: `python -m flows.services [prefect] [worker] [mlflow]`.

This process becomes honcho, which starts the lines of `Procfile`; Ctrl-C stops them all. Both servers listen on
loopback and ask for a password (`flows/credentials.py`). Where the user's environment names a server elsewhere, that is
used and none is started here: PREFECT_API_URL (or a profile of Prefect), and MLFLOW_TRACKING_URI. The databases of the
servers here are files in this folder, or those of PREFECT_SERVER_DATABASE_CONNECTION_URL and MLFLOW_BACKEND_STORE_URI.
"""

import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from bigr.runtime.errors import EXIT_USER_ERROR, BigrError
from bigr.runtime.masking import masked
from bigr.tracking.store import RUN_LIST
from flows import credentials
from flows.execution import command
from flows.page import mlflow_url

SERVICES = ("prefect", "worker", "mlflow")
PID = Path(".prefect/services.pid")
"""Shows `make clean`, and another start, that the database is in use."""


def prepare(project: Path, names: Sequence[str], environment: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Which of the services `names` are to be started here, and what to add to their environment.

    Missing passwords are made. Raises `BigrError`, before anything is written, where a port is not a number or is in
    use, and where the services of this folder run already.
    """
    chosen, added = list(names), {"PREFECT_HOME": environment.get("PREFECT_HOME") or str(project / ".prefect")}
    added["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", os.defpath)])
    if environment.get("MLFLOW_TRACKING_URI", "").startswith("http") and "mlflow" in chosen:
        chosen.remove("mlflow")
    if "mlflow" in chosen:
        added["MLFLOW_PORT"] = str(_port("MLFLOW_PORT", 5000, environment))
    if {"prefect", "worker"} & set(chosen):
        if url := _prefect_elsewhere(project, environment):
            chosen = [name for name in chosen if name != "prefect"]
            if not environment.get("PREFECT_API_AUTH_STRING") and _auth_string_is_own(project):
                added["PREFECT_API_AUTH_STRING"] = ""  # the other server must not see the password of the one here
            _tell(f"Prefect  {masked(url, '')}, named by your settings; its runs are executed here")
        else:
            added |= _own_prefect(project, chosen, environment)
    if "mlflow" in chosen and not environment.get("MLFLOW_AUTH_CONFIG_PATH"):
        added |= credentials.mlflow(project)
        if environment.get("MLFLOW_BACKEND_STORE_URI"):  # stages then record through this server
            added |= {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{added['MLFLOW_PORT']}"}
            added |= credentials.mlflow_login(project)
    return chosen, added


def _own_prefect(project: Path, chosen: list[str], environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of this project's own server, and of the worker beside it."""
    port = _port("PREFECT_PORT", 4200, environment, free="prefect" in chosen)
    if "prefect" in chosen and _server_runs(project):
        raise BigrError("The services of this folder run already: stop them first, with Ctrl-C where they were started")
    kept = credentials.prefect(project, f"http://127.0.0.1:{port}/api")
    if login := environment.get("PREFECT_SERVER_API_AUTH_STRING"):
        kept |= {"PREFECT_API_AUTH_STRING": login, "PREFECT_SERVER_API_AUTH_STRING": login}
    _tell(f"Prefect  http://127.0.0.1:{port}  asks for PREFECT_API_AUTH_STRING of {credentials.PROFILES}")
    return {**kept, "PREFECT_PORT": str(port)}


def _server_runs(project: Path) -> bool:
    """Whether services with a Prefect server run in this folder; two servers cannot share a database."""
    try:
        number = int((project / PID).read_text())
        return any("honcho" in Path(word).name for word in psutil.Process(number).cmdline())
    except (FileNotFoundError, ValueError, psutil.Error):
        return False


def _prefect_elsewhere(project: Path, environment: Mapping[str, str]) -> str | None:
    """The API in the user's own settings: the environment, `.env`, `prefect.toml` or another profile."""
    if url := environment.get("PREFECT_API_URL"):
        return url
    from prefect.settings import get_current_settings

    url = get_current_settings().api.url
    return url if url and url != credentials.profile(project).get("PREFECT_API_URL") else None


def _auth_string_is_own(project: Path) -> bool:
    from prefect.settings import get_current_settings

    known = get_current_settings().api.auth_string
    own = credentials.profile(project).get("PREFECT_API_AUTH_STRING")
    return known is not None and known.get_secret_value() == own


def _port(name: str, default: int, environment: Mapping[str, str], free: bool = True) -> int:
    """The port in the variable `name`. free: nothing may listen on it."""
    text = environment.get(name) or str(default)
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        raise BigrError(f"{name} must be a port, 1 to 65535, got {text}")
    if free:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", int(text))) == 0:
                raise BigrError(
                    f"Port {text} is taken: the services run already, or name others: "
                    "make services PREFECT_PORT=… MLFLOW_PORT=…"
                )
    return int(text)


def _tell(line: str) -> None:
    """Print a line at once: honcho then takes this process's place."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Become honcho. Exit status 2 for an error of the user's."""
    project, names = Path.cwd(), sys.argv[1:] or SERVICES
    try:
        if unknown := sorted(set(names) - set(SERVICES)):
            raise BigrError(f"{', '.join(unknown)}: no such service; there are {', '.join(SERVICES)}")
        chosen, added = prepare(project, names, os.environ)
    except BigrError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if "mlflow" in names:
        asks = f"  asks for admin_username and admin_password of {credentials.MLFLOW}" if "mlflow" in chosen else ""
        os.environ.update(added)
        _tell(f"MLflow   {mlflow_url()}/#/experiments/1/runs?{RUN_LIST}{asks}")
    if not chosen:
        return 0
    if "prefect" in chosen:
        (project / PID).parent.mkdir(mode=0o700, exist_ok=True)
        (project / PID).write_text(f"{os.getpid()}\n")
    os.execve(command("honcho"), ["honcho", "start", *chosen], {**os.environ, **added})


if __name__ == "__main__":
    sys.exit(main())
