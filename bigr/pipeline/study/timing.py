"""Measured sampling time: `python -m bigr.pipeline.study.timing` where params.yaml and a trained model are.

Prints {variant: seconds an image} as JSON: codes and decoded images, in one thread, the fastest of several rounds.
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
from bigr.pipeline.study.tables import POINTS, TIMED_IMAGES, TIMED_ROUNDS
from bigr.runtime.device import resolve_device
from bigr.runtime.precision import autocast
from bigr.sampling.decode import decoded
from bigr.sampling.inputs import balanced_labels
from bigr.sampling.unmask import Sampling, sample_codes


def measure(root: Path) -> dict[str, float]:
    """Seconds an image at each point of figure 3, with the other settings of root/params.yaml: variant → seconds."""
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
    for (n, s), variant in POINTS.items():
        section = settings.samples.model_copy(update={"iterations": n, "diffusion_steps": s})
        found[variant] = min(seconds(Sampling.of(section)) for _ in range(TIMED_ROUNDS))
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.stdout.write(json.dumps(measure(Path.cwd())) + "\n")
