"""What is measured: the models of settings files, with fresh weights and random codes of the right shapes."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from bigr import config
from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig, masked_count
from bigr.runtime.seeds import generator
from bigr.sampling.unmask import Sampling

ROOT = Path(__file__).parents[1]
FILES = {
    "digits": "params.yaml",
    "L": "recipes/imagenet256-L-d24.yaml",
    "XL": "recipes/imagenet256-XL-d24.yaml",
    "XXL": "recipes/imagenet256-XXL-d24.yaml",
}
CLASSES = {"digits": 10}


@dataclass
class Subject:
    """A tokenizer, a generator, and the settings that they are sampled and trained under.

    published: how the published algorithm samples, where that is not as this project does.
    """

    name: str
    settings: config.Settings
    tokenizer: Tokenizer
    model: BiGR
    sampling: Sampling
    device: torch.device
    published: Sampling | None = None

    @classmethod
    def of(
        cls, name: str, device: torch.device, settings: config.Settings | None = None, target: str = ""
    ) -> "Subject":
        """The model of a name in `FILES`, its weights drawn anew; target: in place of `generator.target`."""
        settings = settings or config.load(ROOT / FILES[name])
        torch.manual_seed(0)
        shape = BiGRConfig.of(
            settings.generator,
            code_bits=settings.tokenizer.code_bits,
            grid=settings.grid,
            num_classes=CLASSES.get(name, 1000),
        )
        model = BiGR(replace(shape, target=target or shape.target))
        for parameter in model.parameters():  # modulations start at zero: with them, networks would be identities
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=shape.init_std)
        tokenizer = Tokenizer(TokenizerConfig.of(settings.tokenizer, image_size=settings.shards.image_size))
        sampling = Sampling.of(settings.samples)
        return cls(name, settings, tokenizer.to(device).eval(), model.to(device), sampling, device)

    @property
    def published_model(self) -> BiGR:
        """The same weights as a model that the published algorithm knows: one that predicts flips, or x₀."""
        config = self.model.config
        if config.target in ("flip", "x0"):
            return self.model
        with torch.device("meta"):
            model = BiGR(replace(config, target="flip"))
        model.load_state_dict(self.model.state_dict(keep_vars=True), assign=True)
        for name, buffer in self.model.named_buffers():
            model.get_submodule(name.rpartition(".")[0]).register_buffer(name.rpartition(".")[2], buffer, False)
        return model.eval()

    def labels(self, batch: int) -> Tensor:
        """Class numbers int64 [B]."""
        return torch.arange(batch, device=self.device) % self.model.config.num_classes

    def training_batch(self, batch: int) -> tuple[Tensor, Tensor, Tensor]:
        """Codes float [B, N, K], labels int64 [B], and positions that are masked, as in the middle of the schedule."""
        draws, tokens = generator(0, "benchmarks", device=self.device), self.settings.grid**2
        codes = torch.rand(batch, tokens, self.model.config.code_bits, generator=draws, device=self.device).round()
        order = torch.rand(batch, tokens, generator=draws, device=self.device).argsort(1)
        return codes, self.labels(batch), order[:, : masked_count(tokens / 2, tokens)]
