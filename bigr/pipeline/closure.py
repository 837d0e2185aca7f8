"""The code that a stage uses: the packages of all that it imports of `bigr`, read from the source without running it.

`python -m bigr.pipeline.closure` prints what dvc.yaml lacks among each stage's `deps` and what is needless; `--write`
(`make deps`) corrects it. Imports inside functions count; those under `if TYPE_CHECKING:` do not.
"""

import ast
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from bigr.pipeline.stage_table import STAGES
from bigr.runtime.paths import is_code

PACKAGE = "bigr"
PLUMBING = f"{PACKAGE}/runtime/"
DETERMINING = {f"{PLUMBING}{name}.py" for name in ("distributed", "precision", "seeds")}
"""The plumbing that results depend on: what is drawn, and in which precision and by how many processes is computed."""


def modules(root: Path, start: str) -> set[str]:
    """The files of all modules that the one at `start` imports, itself among them.

    Plumbing (`bigr/runtime`) changes no result and is left out, but for `DETERMINING`.
    """
    found: set[str] = set()
    waiting = [start]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found.add(path)
            waiting += [path for path in _imports(root, path) if path in DETERMINING or not path.startswith(PLUMBING)]
    return found


def closure(root: Path, start: str) -> list[str]:
    """The code of the module at `start` as dvc.yaml names it: packages, and modules beside inner packages; sorted."""
    return sorted({_named(root, path) for path in modules(root, start)} - {""})


def stage_code(root: Path) -> dict[str, list[str]]:
    """The code that each stage needs named in dvc.yaml; a stage without a file is left out."""
    return {name: closure(root, stage.path) for name, stage in STAGES.items() if (root / stage.path).is_file()}


def _named(root: Path, path: str) -> str:
    """How dvc.yaml names a module: by its package, or by its file where that package holds others, stages or plumbing.

    The `__init__.py` of a package that holds others is not named.
    """
    package = Path(path).parent
    inner = any(below.parent != root / package for below in (root / package).rglob("__init__.py"))
    if package.name not in ("stages", "runtime") and not inner:
        return package.as_posix()
    return "" if path.endswith("/__init__.py") else path


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


def differences(root: Path) -> list[str]:
    """One line for each file that a stage's deps in dvc.yaml name needlessly or fail to name."""
    described = YAML(typ="safe", pure=True).load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    lines = []
    for name, needed in stage_code(root).items():
        named = [dep for dep in described[name].get("deps") or [] if is_code(dep)]
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
        deps[:] = [*needed, *(dep for dep in deps if not is_code(dep))]
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
