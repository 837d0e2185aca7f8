"""How the work of the stage `evaluation` is divided among processes: the CPU time of each.

    python -m benchmarks evaluation --processes 1,2

In a project's folder, after the stage `samples`. CPU time, not the clock's: a busy machine changes it little. Loading
Python's modules is left out. Nothing of the project is changed.
"""

import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer


def main(
    processes: Annotated[str, typer.Option(help="Numbers of processes, with commas.")] = "1,2",
    params: Annotated[Path, typer.Option(help="The settings.")] = Path("params.yaml"),
) -> None:
    """Measure."""
    typer.echo("processes  CPU seconds of each")
    for count in processes.split(","):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            for name in ("data", "models/tokenizer", "models/bigr"):
                (root / name).parent.mkdir(exist_ok=True)
                (root / name).symlink_to(Path(name).absolute())
            (root / "outputs").mkdir()
            shutil.copy("outputs/samples.npz", root / "outputs")
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", count]
            subprocess.run([*launch, "-m", "benchmarks.evaluation", str(params), folder], check=True)
            found = [json.loads((root / f"{rank}.json").read_text()) for rank in range(int(count))]
        typer.echo(f"{count:>9}  {', '.join(f'{seconds:.1f}' for seconds in found)}")


def measured(params: Path, root: Path) -> None:
    """Evaluate in this process of a group, and write its CPU time."""
    from bigr import config
    from bigr.runtime.context import Context
    from bigr.runtime.device import resolve_device
    from bigr.runtime.distributed import process_group, rank
    from bigr.stages import evaluate_model

    settings = config.load(params)
    with process_group(resolve_device(settings.run.device)):
        before = time.process_time()
        evaluate_model.run(settings, Context(root))
        (root / f"{rank()}.json").write_text(json.dumps(time.process_time() - before))


if __name__ == "__main__":
    measured(*map(Path, sys.argv[1:]))
