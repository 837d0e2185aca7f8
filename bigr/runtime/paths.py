"""Paths of dvc.yaml."""


def is_code(path: str) -> bool:
    """Whether a dep of dvc.yaml is code of this project (a package or a module), not data."""
    return path.startswith("bigr/") or path.endswith(".py")
