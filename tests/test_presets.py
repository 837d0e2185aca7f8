"""The published sizes: parameter counts to the unit (docs/method.md, sections 1 and 2). Nothing is allocated."""

from dataclasses import replace

import pytest
import torch

from bigr.models.autoencoder.tokenizer import Tokenizer, TokenizerConfig
from bigr.models.masked.generator import BiGR, BiGRConfig
from bigr.models.presets import PRESETS, TOKENIZERS

GENERATORS = {
    ("L", 16): 336_321_552,
    ("L", 20): 336_333_844,
    ("L", 24): 336_346_136,
    ("L", 32): 336_370_720,
    ("XL", 24): 799_372_824,
    ("XXL", 24): 1_480_028_184,
    ("XXL", 32): 1_480_065_056,
    ("L-512", 32): 372_718_624,
}


def parameters(cls: type[torch.nn.Module], config: BiGRConfig | TokenizerConfig) -> int:
    """How many parameters a model has, without making room for them."""
    with torch.device("meta"):
        return sum(p.numel() for p in cls(config).parameters())


@pytest.mark.parametrize(("name", "code_bits"), GENERATORS)
def test_a_generator_has_the_papers_number_of_parameters(name: str, code_bits: int) -> None:
    config = replace(PRESETS[name], code_bits=code_bits)
    assert parameters(BiGR, config) == GENERATORS[name, code_bits]


def test_the_presets_are_the_papers() -> None:
    assert list(PRESETS) == ["L", "XL", "XXL", "L-512"]
    assert {name: (c.code_bits, c.tokens, c.num_classes) for name, c in PRESETS.items()} == {
        "L": (24, 256, 1000),
        "XL": (24, 256, 1000),
        "XXL": (24, 256, 1000),
        "L-512": (32, 1024, 1000),
    }
    assert {name: (c.layers, c.heads, c.dim, c.transcoder_blocks, c.transcoder_dim) for name, c in PRESETS.items()} == {
        "L": (24, 16, 1024, 3, 1024),
        "XL": (36, 20, 1280, 6, 1280),
        "XXL": (48, 24, 1536, 8, 1536),
        "L-512": (24, 16, 1024, 6, 1280),
    }  # no number of parameters tells the heads


def test_the_tokenizer_has_the_papers_number_of_parameters() -> None:
    assert parameters(Tokenizer, TOKENIZERS["256"]) == 65_382_683


@pytest.mark.parametrize(("tokenizer", "generator"), [("256", "L"), ("256", "XL"), ("256", "XXL"), ("512", "L-512")])
def test_a_tokenizer_makes_the_tokens_of_its_generators(tokenizer: str, generator: str) -> None:
    ours, theirs = TOKENIZERS[tokenizer], PRESETS[generator]
    assert (ours.code_bits, ours.grid) == (theirs.code_bits, theirs.grid)
