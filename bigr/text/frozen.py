"""Frozen encoders of texts through transformers: CLIP's penultimate layer and its vector, or T5's last layer.

Weights are safetensors in a local folder, or of a repository on the Hugging Face Hub where a download is allowed. No
pickle is read and no code of a repository runs.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigr.interop import hub
from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.files import sha256_file, write_json
from bigr.text.encoder import CONFIG, cleaned

KINDS = ("clip", "t5")
_MODEL_TYPES = {"clip": ("clip", "clip_text_model"), "t5": ("t5",)}
_PENULTIMATE = -2


class FrozenEncoder:
    """CLIP or T5, in float32; see `bigr.text.encoder.TextEncoder`.

    kind: of `KINDS`; source: the folder or the id, as it was named; tokens: P.
    """

    def __init__(self, kind: str, source: str, folder: Path, tokens: int, device: torch.device) -> None:
        require("text", "a frozen encoder of texts")
        self._kind, self._source, self._tokens = kind, source, tokens
        self._tokenizer, self._model = _loaded(kind, source, folder)
        self._model = self._model.to(device).eval().requires_grad_(False)
        self._hash = folder_hash(folder)
        self.cut = 0
        most = getattr(self._model.config, "max_position_embeddings", None)
        if most is not None and tokens > most:
            raise BigrError(f"text.tokens is {tokens}; {source} reads {most} at most: lower it")

    @classmethod
    def open(
        cls,
        kind: str,
        source: str,
        tokens: int,
        device: torch.device,
        *,
        root: Path = Path(),
        download: bool = False,
        expected: str | None = None,
    ) -> "FrozenEncoder":
        """The encoder of a folder below `root`, of an absolute path, or of a repository's id.

        expected: its hash, where it is known. Raises `BigrError` where it cannot be had, or is another.
        """
        below = root / source
        folder = below if below.is_dir() else hub.local_folder(source, None, None, not download)
        found = cls(kind, source, folder, tokens, device)
        if expected is not None and found._hash != expected:
            raise BigrError(
                f"{source} is another encoder than the one that the texts were read with; run the stage text again, "
                "or put that one back"
            )
        return found

    @property
    def shape(self) -> dict[str, Any]:
        width = int(self._model.config.hidden_size)
        return {"text_tokens": self._tokens, "text_width": width, "text_pooled": self._kind == "clip"}

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[np.ndarray]:
        plain = [cleaned(text) for text in texts]
        found = [np.zeros((0, self.shape["text_width"]), dtype=np.float16) for _ in plain]
        places = [place for place, text in enumerate(plain) if text]
        if not places:
            return found
        lengths = self._tokenizer([plain[place] for place in places], truncation=False)["input_ids"]
        self.cut += sum(len(ids) > self._tokens for ids in lengths)
        batch = self._tokenizer(
            [plain[place] for place in places],
            padding=True,
            truncation=True,
            max_length=self._tokens,
            return_tensors="pt",
        ).to(self._model.device)
        output = self._model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            output_hidden_states=self._kind == "clip",
        )
        if self._kind == "clip":
            rows = torch.cat([output.pooler_output.unsqueeze(1), output.hidden_states[_PENULTIMATE]], dim=1)
        else:
            rows = output.last_hidden_state
        kept = rows.half().cpu().numpy()
        ends = batch["attention_mask"].sum(1).tolist()
        for row, place, end in zip(kept, places, ends, strict=True):
            found[place] = row[: end + (self._kind == "clip")]
        return found

    def save(self, folder: Path) -> None:
        """Its name and hash: the weights stay where they are."""
        write_json(
            folder / CONFIG,
            {"kind": self._kind, "tokens": self._tokens, "from": self._source, "sha256": self._hash},
        )


def _loaded(kind: str, source: str, folder: Path) -> tuple[Any, Any]:
    silence()
    from transformers import AutoConfig, AutoTokenizer, CLIPTextModel, T5EncoderModel

    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True)
        if config.model_type not in _MODEL_TYPES[kind]:
            raise BigrError(f"text.from is {source}, a model of type {config.model_type}; text.encoder is {kind}")
        cls = CLIPTextModel if kind == "clip" else T5EncoderModel
        model = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, dtype=torch.float32)
        return AutoTokenizer.from_pretrained(folder, local_files_only=True), model
    except BigrError:
        raise
    except Exception as error:  # of many kinds: a missing file, a damaged one, another layout
        reason = " ".join(str(error).split())[:300]
        raise BigrError(
            f"text.from: {source} cannot be loaded ({reason}); it must be a folder with config.json, model.safetensors "
            "and the files of its tokenizer"
        ) from None


def silence() -> None:
    """Import transformers, without telemetry, warnings and progress bars."""
    import bigr.runtime.torchvision_import  # noqa: F401 - before transformers, which imports torchvision

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def folder_hash(folder: Path) -> str:
    """Of the weights and of the tokenizer's files, whatever else is in the folder."""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".model"))
    digests = [f"{name} {sha256_file(folder / name)}" for name in names]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()
