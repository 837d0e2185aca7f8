"""deploy/compose.yaml as a mapping, with the variables of an environment in it as Docker puts them there."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

FILE = Path(__file__).parents[1] / "deploy" / "compose.yaml"
PASSWORDS = {
    "POSTGRES_PASSWORD": "postgres-1",
    "STORAGE_USER": "ada",
    "STORAGE_PASSWORD": "storage-1",
    "PREFECT_PASSWORD": "prefect-1",
    "MLFLOW_PASSWORD": "mlflow-pass-1",
    "MLFLOW_SECRET_KEY": "secret-1",
}
"""What the file must be given."""


def interpolated(**environment: str) -> dict[str, Any]:
    """The file with `PASSWORDS` and `environment`. Raises `KeyError` for a variable that it needs and does not get."""
    known = PASSWORDS | environment

    def value(match: re.Match[str]) -> str:
        name, kind, text = match["name"], match["kind"], match["text"]
        if known.get(name):
            return known[name]
        if kind == ":?":
            raise KeyError(name)
        return text

    text = re.sub(r"\$\{(?P<name>\w+)(?P<kind>:[-?])(?P<text>[^}]*)\}", value, FILE.read_text())
    assert "${" not in text
    return dict(YAML(typ="safe").load(text))


def services(**environment: str) -> dict[str, dict[str, Any]]:
    """The services of the file, by name."""
    return dict(interpolated(**environment)["services"])
