"""Frozen encoders of texts with random weights: tiny CLIPs and a T5 in folders as transformers writes them."""

from pathlib import Path

import torch

from bigr.text.frozen import silence

silence()

from tokenizers import Tokenizer, models, pre_tokenizers, processors  # noqa: E402 - after `silence`
from transformers import (  # noqa: E402
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

CAPTIONS = [
    "a small red circle",
    "a large blue square",
    "two small red squares",
    "a red circle above a blue square",
] * 5
PLACES = 12
"""That a tiny CLIP reads."""


def write_tokenizer(folder: Path) -> dict[str, int]:
    """A tokenizer of the words of `CAPTIONS`; what a CLIP's configuration has to know of it."""
    words = sorted({word for caption in CAPTIONS for word in caption.split()})
    vocabulary = {word: place for place, word in enumerate(["<pad>", "<unk>", *words, "<s>", "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    start, end = ("<s>", vocabulary["<s>"]), ("</s>", vocabulary["</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[start, end])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return {"vocab_size": len(vocabulary), "bos_token_id": start[1], "eos_token_id": end[1]}


def write_frozen(folder: Path, kind: str, width: int = 16) -> Path:
    """The encoder of texts alone. kind: clip or t5."""
    torch.manual_seed(0)
    known = write_tokenizer(folder)
    if kind == "clip":
        CLIPTextModel(CLIPTextConfig(**_tower(width), **known, max_position_embeddings=PLACES)).save_pretrained(folder)
    else:
        size = known["vocab_size"]
        T5EncoderModel(
            T5Config(vocab_size=size, d_model=width, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
        ).save_pretrained(folder)
    return folder


def write_clip(folder: Path, width: int = 16) -> Path:
    """A whole CLIP, of texts and of images of 16×16 pixels."""
    torch.manual_seed(0)
    known = write_tokenizer(folder)
    config = CLIPConfig(
        text_config={**_tower(width), **known, "max_position_embeddings": PLACES},
        vision_config={**_tower(width), "image_size": 16, "patch_size": 8},
        projection_dim=8,
    )
    CLIPModel(config).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def _tower(width: int) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
