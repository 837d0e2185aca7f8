"""A package imports only from the layers below it (docs/architecture.md), and a dependency only where it belongs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"runtime", "config"},
    {"data", "models", "interop"},
    {"sampling"},
    {"training", "imaging"},
    {"evaluation"},
    {"stages"},
    {"tracking"},
    {"pipeline"},
    {"app", "cli", "__main__"},
]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "bigr").rglob("*.py"))


def package_of(module: str) -> str:
    """The package of a dotted module or of a path: what stands after `bigr`."""
    parts = module.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 else ""


def layer(name: str) -> int:
    """How high a package lies."""
    return next(height for height, packages in enumerate(LAYERS) if name in packages)


def imports(path: Path) -> list[str]:
    """The dotted modules that a file imports, also for types only and inside functions."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the whole name"
            module = str(node.module)
            found += [f"bigr.{alias.name}" for alias in node.names] if module == "bigr" else [module]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_from_its_own_layer_and_those_below(module: str) -> None:
    if package_of(module) == "__init__":
        return
    height = layer(package_of(module))
    above = [name for name in imports(ROOT / module) if name.startswith("bigr.") and layer(package_of(name)) > height]
    assert not above


def test_models_know_neither_files_nor_tracking_nor_settings() -> None:
    for path in (ROOT / "bigr/models").rglob("*.py"):
        packages = {package_of(name) for name in imports(path) if name.startswith("bigr.")}
        assert packages <= {"models", "runtime"}, path.name


@pytest.mark.parametrize(
    ("package", "importers"),
    [
        ("mlflow", {"bigr/tracking/"}),
        ("prefect", {"flows/"}),
        ("dvc", {"bigr/pipeline/dvcfile.py"}),
        ("webdataset", {"bigr/data/"}),
        ("torch_fidelity", {"bigr/evaluation/"}),
        ("gradio", {"bigr/app/"}),
    ],
)
def test_a_dependency_is_imported_in_one_package_only(package: str, importers: set[str]) -> None:
    files = [*MODULES, *(path.relative_to(ROOT).as_posix() for path in (ROOT / "flows").glob("*.py"))]
    using = [file for file in files if package in {name.split(".")[0] for name in imports(ROOT / file)}]
    assert not [file for file in using if not file.startswith(tuple(importers))]


def test_flows_import_neither_torch_nor_models() -> None:
    for path in (ROOT / "flows").glob("*.py"):
        heads = {".".join(name.split(".")[:2]) for name in imports(path) if name != "bigr.evaluation.headline"}
        assert not {"torch", "bigr.models", "bigr.stages", "bigr.training", "bigr.evaluation"} & heads, path.name


def test_the_command_line_starts_without_torch_and_mlflow() -> None:
    code = "import sys, bigr.cli.program, bigr.pipeline.dvcfile; print({'torch', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
