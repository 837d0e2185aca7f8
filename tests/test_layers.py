"""A package imports only from the layers below it (docs/architecture.md), and a dependency only where it belongs."""

import ast
import subprocess
import sys
from collections import Counter
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from bigr.pipeline.stage_table import STAGES

ROOT = Path(__file__).parents[1]
LAYERS = [
    {"runtime", "config"},
    {"data", "models", "interop", "text"},
    {"sampling"},
    {"training", "imaging"},
    {"evaluation"},
    {"stages"},
    {"tracking"},
    {"pipeline"},
    {"app", "cli", "__main__"},
]
MODULES = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "bigr").rglob("*.py"))
TYPES = "TYPE_CHECKING"
DOTTED = {path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in MODULES}


def package_of(module: str) -> str:
    """The package of a dotted module or of a path: what stands after `bigr`."""
    parts = module.removesuffix(".py").replace("/", ".").split(".")
    return parts[1] if len(parts) > 1 else ""


def layer(name: str) -> int:
    """How high a package lies."""
    return next(height for height, packages in enumerate(LAYERS) if name in packages)


def imports(path: Path, *, types: bool = True) -> list[str]:
    """The dotted modules that a file imports, also inside functions, and with `types` under `if TYPE_CHECKING:`."""
    found = []
    tree = ast.parse(path.read_text())
    for_types = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test) == TYPES]
    unused = {id(node) for block in for_types if not types for part in block.body for node in ast.walk(part)}
    for node in ast.walk(tree):
        if id(node) in unused:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import; write the whole name"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if name in DOTTED]
            found += modules if len(modules) == len(inner) else [str(node.module), *modules]
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_package_imports_only_from_its_own_layer_and_those_below(module: str) -> None:
    if package_of(module) == "__init__":
        return
    height = layer(package_of(module))
    above = [name for name in imports(ROOT / module) if name.startswith("bigr.") and layer(package_of(name)) > height]
    assert not above


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = {
        name: {below for below in imports(ROOT / path, types=False) if below in DOTTED} for name, path in DOTTED.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_two_modules_and_no_two_public_classes_have_one_name() -> None:
    names = [Path(path).stem for path in MODULES if not Path(path).stem.startswith("__")]
    for path in MODULES:
        classes = [node for node in ast.walk(ast.parse((ROOT / path).read_text())) if isinstance(node, ast.ClassDef)]
        names += [node.name for node in classes if not node.name.startswith("_")]
    assert not [name for name, times in Counter(names).items() if times > 1]


def test_stages_are_leaves_that_the_runner_alone_imports_by_the_table_of_stages() -> None:
    stages = {f"bigr.stages.{stage.module}": name for name, stage in STAGES.items()}
    assert {name for name in DOTTED if name.startswith("bigr.stages.")} == set(stages), "a module that is no stage"
    importers = [path for path in MODULES if any(name.startswith("bigr.stages") for name in imports(ROOT / path))]
    assert not importers
    by_name = [path for path in MODULES if '"bigr.stages.' in (ROOT / path).read_text()]
    assert by_name == ["bigr/pipeline/runner.py"]


def test_recording_a_run_knows_nothing_of_the_registry() -> None:
    recording = (ROOT / "bigr/tracking").glob("*.py")
    assert not [path for path in recording if any("registry" in name for name in imports(path))]


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
