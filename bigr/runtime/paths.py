"""What paths of dvc.yaml name."""


def is_code(path: str) -> bool:
    """Whether a dep of dvc.yaml is this project's code, a package or a file of one, not data."""
    return path.startswith("bigr/") or path.endswith(".py")
