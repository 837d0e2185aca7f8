"""Which code a stage uses: the transitive closure of its imports of `bigr`, read from the source without running it.

dvc.yaml must name this code in the stage's `deps`, or stale results survive a code change. `python -m bigr.closure`
prints for each stage what dvc.yaml has too much and too little, `python -m bigr.closure --write` puts it right (also
`make deps`). Imports inside functions count; those under `if TYPE_CHECKING:` do not, nor does an `__init__.py` that
runs no code of its own: one with a docstring only, or that hands on names when they are asked for (`__getattr__`).
"""

import ast
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bigr.config import STAGES

PACKAGE = "bigr"


def closure(root: Path, start: str) -> list[str]:
    """Paths, relative to `root` and sorted, of the modules that the module at `start` imports, itself included."""
    found: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += _imports(root, path)
    return sorted(path for path in found if not _runs_nothing(root / path))


def stage_code(root: Path) -> dict[str, list[str]]:
    """The code that each stage needs named in dvc.yaml; a stage without a file is left out."""
    files = {name: f"{PACKAGE}/stages/{name}.py" for name in STAGES}
    return {name: closure(root, file) for name, file in files.items() if (root / file).is_file()}


def _imports(root: Path, path: str) -> list[str]:
    package = path.split("/")[:-1]
    paths = []
    for node in _nodes(ast.parse((root / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        paths += [found for name in names if name.split(".")[0] == PACKAGE for found in _files(root, name)]
    return paths


def _nodes(node: ast.AST) -> list[ast.AST]:
    """All nodes below `node`, without the bodies of `if TYPE_CHECKING:`."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        return [child for statement in node.orelse for child in _nodes(statement)]
    return [node, *(below for child in ast.iter_child_nodes(node) for below in _nodes(child))]


def _files(root: Path, module: str) -> list[str]:
    """The files that importing `module` runs: its own, and the `__init__.py` of every package above it."""
    parts = module.split(".")
    names = ["/".join(parts[:end]) + "/__init__.py" for end in range(1, len(parts) + 1)]
    return [name for name in [*names, "/".join(parts) + ".py"] if (root / name).is_file()]


def _runs_nothing(path: Path) -> bool:
    if path.name != "__init__.py":
        return False
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if PACKAGE in {name.split(".")[0] for node in _nodes(tree) for name in _imported(node)}:
        return False
    return all(_inert(node) for node in tree.body)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def _inert(node: ast.stmt) -> bool:
    """A docstring, an import, a table of constants, `if TYPE_CHECKING:`, or what answers for names (PEP 562)."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return not any(isinstance(below, ast.Call) for below in ast.walk(node))
    if isinstance(node, ast.If):
        return ast.unparse(node.test).endswith("TYPE_CHECKING")
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", "__dir__")
    )


def differences(root: Path) -> list[str]:
    """One line for each file that a stage's deps in dvc.yaml name needlessly or fail to name."""
    described = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lines = []
    for name, needed in stage_code(root).items():
        named = [dep for dep in described[name].get("deps") or [] if dep.endswith(".py")]
        lines += [f"{name}: add     - {path}" for path in needed if path not in named]
        lines += [f"{name}: remove  - {path}" for path in named if path not in needed]
    return lines


def write(root: Path) -> None:
    """Rewrite the code among each stage's deps in dvc.yaml; data, comments and all else stay."""
    yaml = YAML()
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.width = 4096
    path = root / "dvc.yaml"
    described: Any = yaml.load(path.read_text(encoding="utf-8"))
    for name, needed in stage_code(root).items():
        deps = described["stages"][name].setdefault("deps", [])
        deps[:] = [*needed, *(dep for dep in deps if not dep.endswith(".py"))]
    with path.open("w", encoding="utf-8") as file:
        yaml.dump(described, file)


def main() -> int:
    """Print the differences, or with `--write` remove them. Exit status 1: there are some."""
    root = Path.cwd()
    if sys.argv[1:] == ["--write"]:
        write(root)
    lines = differences(root)
    sys.stdout.writelines(f"{line}\n" for line in lines)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
