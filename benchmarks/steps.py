"""How fast this machine trains and samples under a params.yaml: medians over a few steps, nothing is written.

    python -m benchmarks steps [params.yaml]

Random images and codes of the right shapes stand for the data, and fresh weights for trained ones: the arithmetic is
the same. Sampling is measured with the settings of the section `samples`, as the stage does it; on a CPU also with a
batch in one part.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer

from bigr import config
from bigr.imaging.similarity import averages_of
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig, masked_count
from bigr.runtime.cpu_parts import in_parts
from bigr.runtime.device import resolve_device
from bigr.runtime.precision import autocast
from bigr.runtime.seeds import generator
from bigr.sampling.unmask import Sampling, sample_codes
from bigr.training.optimiser import EMA, adamw

ROUNDS, WARM = 7, 2
CLASSES = 10


def median_ms(work: Callable[[], object], device: torch.device) -> float:
    """Median milliseconds of `work`, after a few calls that do not count."""
    times = []
    for _ in range(ROUNDS + WARM):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[WARM:])


def main(params: Annotated[Path, typer.Argument(help="The settings.")] = Path("params.yaml")) -> None:
    """Measure."""
    settings = config.load(params)
    device = resolve_device(settings.run.device)
    draws = generator(0, "speed", device=device)

    def training_step(
        module: torch.nn.Module, width: int, section: config.TrainingSettings, loss: Callable[[], torch.Tensor]
    ) -> float:
        optimiser, average = adamw(module, section), EMA(module, section.ema_decay)

        def work() -> None:
            with autocast(device, settings.run.precision, width):
                value = loss()
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), section.grad_clip)
            optimiser.step()
            average.update(module)

        return median_ms(work, device)

    section, size = settings.tokenizer, settings.shards.image_size
    tokenizer = Tokenizer(TokenizerConfig.of(section, image_size=size)).to(device)
    images = torch.rand(section.batch_size, 3, size, size, generator=draws, device=device)
    step = training_step(
        tokenizer, tokenizer.width, section, lambda: (tokenizer.autoencode(images, draws)[0] - images).abs().mean()
    )
    print(f"tokenizer    {step:9.1f} ms a step of {section.batch_size} images")

    bits = settings.tokenizer.code_bits
    shape = BiGRConfig.of(settings.generator, code_bits=bits, grid=settings.grid, num_classes=CLASSES)
    model = BiGR(shape).to(device)
    batch, tokens = settings.generator.batch_size, settings.grid**2
    codes = torch.rand(batch, tokens, bits, generator=draws, device=device).round()
    labels = torch.arange(batch, device=device) % CLASSES
    masked = torch.rand(batch, tokens, generator=draws, device=device).argsort(1)[:, : masked_count(tokens / 2, tokens)]
    noise_draws = settings.generator.noise_draws
    step = training_step(
        model,
        settings.generator.dim,
        settings.generator,
        lambda: model.loss(codes, labels, masked, draws, noise_draws=noise_draws),
    )
    print(f"generator    {step:9.1f} ms a step of {batch} images")

    count = min(settings.samples.batch_size, settings.samples.count)
    labels = torch.arange(count, device=device) % CLASSES
    sampling = Sampling.of(settings.samples)
    model.eval()

    def sample(part: slice) -> torch.Tensor:
        with autocast(device, settings.run.precision, settings.generator.dim):
            return sample_codes(model, labels[part], sampling, list(range(count))[part])

    rows = range(count)
    took = median_ms(lambda: in_parts(sample, rows, tokens, device), device) / count
    print(f"samples      {took:9.1f} ms an image, in batches of {count}")
    if device.type == "cpu":
        took = median_ms(lambda: sample(slice(0, count)), device) / count
        print(f"  one part   {took:9.1f} ms an image: the batch in all threads at once")
    count = settings.evaluation.batch_size
    some = torch.rand(count, tokens, bits, generator=draws, device=device) < 0.5
    took = median_ms(lambda: averages_of(model, some), device) / count
    print(f"features     {took:9.2f} ms an image, in batches of {count}")
