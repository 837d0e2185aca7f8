"""Measured sampling time: `python -m bigr.pipeline.study.timing n,S …` where params.yaml and a trained model are.

Prints {"n,S": seconds an image} as JSON. One thread, batches of one size, codes and decoded images; the fastest of
several rounds, since other work on the machine can only slow a round down.
"""

import json
import sys
import time
from pathlib import Path

import torch

from bigr import config
from bigr.interop.folders import load_model
from bigr.models.autoencoder.tokenizer import Tokenizer
from bigr.models.masked.generator import BiGR
from bigr.pipeline.study.tables import TIMED_IMAGES, TIMED_ROUNDS
from bigr.runtime.device import resolve_device
from bigr.runtime.precision import autocast
from bigr.sampling.decode import decoded
from bigr.sampling.inputs import balanced_labels
from bigr.sampling.unmask import Sampling, sample_codes


def measure(root: Path, points: list[tuple[int, int]]) -> dict[str, float]:
    """Seconds an image at each point (n, S), with the other settings of root/params.yaml."""
    settings = config.load(root / "params.yaml")
    device = resolve_device(settings.run.device)
    tokenizer = load_model(root / "models" / "tokenizer", Tokenizer).to(device)
    model = load_model(root / "models" / "bigr", BiGR).to(device)
    labels = balanced_labels(TIMED_IMAGES, model.config.num_classes).to(device)

    def seconds(sampling: Sampling) -> float:
        started = time.perf_counter()
        with autocast(device, settings.run.precision, model.config.dim):
            codes = sample_codes(model, labels, sampling, range(TIMED_IMAGES))
        decoded(tokenizer, codes)  # ends on the CPU: nothing is still under way
        return (time.perf_counter() - started) / TIMED_IMAGES

    found = {}
    for n, s in points:
        section = settings.samples.model_copy(update={"iterations": n, "diffusion_steps": s})
        found[f"{n},{s}"] = min(seconds(Sampling.of(section)) for _ in range(TIMED_ROUNDS))
    return found


def main() -> None:
    """Measure the points of the command line in this folder."""
    torch.set_num_threads(1)
    points = [(int(n), int(s)) for n, s in (word.split(",") for word in sys.argv[1:])]
    sys.stdout.write(json.dumps(measure(Path.cwd(), points)) + "\n")


if __name__ == "__main__":
    main()
