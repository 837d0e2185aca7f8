"""The passwords of Prefect's API and of MLflow's pages: made when first needed, in files that only the user can read.

`.credentials/profiles.toml` has Prefect's profiles, and pyproject.toml names it, so that `prefect …` finds it in the
project's folder; `.credentials/mlflow.ini` configures MLflow's login. No password is on a command line, which every
user of a machine can read. For new ones, stop the services, remove the folder, and start them again.
"""

import configparser
import io
import json
import os
import secrets
import tomllib
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from bigr.runtime.errors import BigrError
from bigr.runtime.locks import only_one

FOLDER = Path(".credentials")
PROFILES, PROFILE = FOLDER / "profiles.toml", "bigr"
MLFLOW, MLFLOW_USERS = FOLDER / "mlflow.ini", FOLDER / "mlflow-users.db"
USER = "bigr"


def profile(project: Path) -> dict[str, str]:
    """Prefect's settings for this project's own server; empty before its first start.

    Raises `BigrError` where the file is not TOML.
    """
    own = _profiles(project)["profiles"].get(PROFILE, {})
    return {key: str(value) for key, value in own.items()}


def prefect(project: Path, url: str) -> dict[str, str]:
    """Write these settings for an API on `url`, and return them. The password is made at the first call.

    Other profiles in the file stay as they are. Raises like `profile`.
    """
    with _alone(project):
        return _keep_profile(project, url)


def mlflow(project: Path) -> dict[str, str]:
    """The environment with which MLflow's server asks for a password. It is made at the first call."""
    with _alone(project):
        _keep_mlflow(project)
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str((project / MLFLOW).absolute()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_urlsafe(32),
    }


def mlflow_login(project: Path) -> dict[str, str]:
    """The environment with which a client of MLflow's server gives the password that `mlflow` made."""
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(project / MLFLOW)
    return {
        "MLFLOW_TRACKING_USERNAME": ini["mlflow"]["admin_username"],
        "MLFLOW_TRACKING_PASSWORD": ini["mlflow"]["admin_password"],
    }


def _alone(project: Path) -> AbstractContextManager[None]:
    """Make the folder, and lock it: `make ui` and `make services` may be started at the same time."""
    (project / FOLDER).mkdir(mode=0o700, exist_ok=True)
    (project / FOLDER).chmod(0o700)
    lock = project / FOLDER / ".lock"
    lock.touch(mode=0o600)
    return only_one(lock, waiting=lambda process: None)


def _keep_profile(project: Path, url: str) -> dict[str, str]:
    content = _profiles(project)
    own = content["profiles"].get(PROFILE, {})
    login = own.get("PREFECT_API_AUTH_STRING") or f"{USER}:{secrets.token_urlsafe(32)}"
    own |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": login, "PREFECT_SERVER_API_AUTH_STRING": login}
    content["profiles"][PROFILE] = own
    if content.get("active") not in content["profiles"]:
        content["active"] = PROFILE
    lines = [f"active = {_toml(content['active'])}"]
    for name, values in content["profiles"].items():
        lines += ["", f"[profiles.{_toml(name)}]", *(f"{_toml(key)} = {_toml(value)}" for key, value in values.items())]
    _write(project / PROFILES, "\n".join(lines) + "\n")
    return profile(project)


def _keep_mlflow(project: Path) -> None:
    ini = configparser.ConfigParser(interpolation=None)
    ini.read(project / MLFLOW)
    password = ini.get("mlflow", "admin_password", fallback="")
    if not password:
        (project / MLFLOW_USERS).unlink(missing_ok=True)  # MLflow reads the password only where it has no user yet
        password = secrets.token_urlsafe(32)
    users = str((project / MLFLOW_USERS).absolute())
    ini["mlflow"] = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{users}".replace("%", "%%"),  # MLflow interpolates what it reads
        "admin_username": USER,
        "admin_password": password,
        "authorization_function": "bigr.tracking.origin:authenticate",
    }
    text = io.StringIO()
    ini.write(text)
    _write(project / MLFLOW, text.getvalue())
    if not (project / MLFLOW_USERS).exists():
        _write(project / MLFLOW_USERS, "")


def _profiles(project: Path) -> dict[str, Any]:
    """The file of profiles; without one, an empty table `profiles`."""
    try:
        content = tomllib.loads((project / PROFILES).read_text(encoding="utf-8"))
    except FileNotFoundError:
        content = {}
    except tomllib.TOMLDecodeError as error:
        raise BigrError(f"{PROFILES}: not TOML ({error}); correct or remove it") from None
    content.setdefault("profiles", {})
    return content


def _toml(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _write(path: Path, text: str) -> None:
    """Write `text` to the file atomically, with mode 0600 from the start."""
    beside = path.with_name(f".{path.name}")
    beside.unlink(missing_ok=True)  # of a process that was killed
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    beside.replace(path)
