"""CLIP as the judge of captions, from a local folder through transformers: safetensors alone, nothing is unpickled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.text.encoder import cleaned
from bigr.text.frozen import folder_hash, silence


class ClipJudge:
    """CLIP's two towers with their projections, in float32; see `bigr.evaluation.captions.caption_retrieval.Judge`.

    folder: with config.json, model.safetensors, the tokenizer's files and preprocessor_config.json. Raises `BigrError`
    where it cannot be loaded.
    """

    def __init__(self, folder: Path, device: torch.device) -> None:
        self._device = device
        require("text", "CLIP as the judge of captions")
        silence()
        from transformers import AutoConfig, AutoTokenizer, CLIPImageProcessor, CLIPModel

        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            if config.model_type != "clip":
                raise BigrError(
                    f"evaluation.clip is {folder}, a model of type {config.model_type}; it must be a whole CLIP, of "
                    "texts and images"
                )
            model: Any = CLIPModel.from_pretrained(
                folder, use_safetensors=True, local_files_only=True, dtype=torch.float32
            )
            self._model = model.to(device).eval().requires_grad_(False)
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._processor = CLIPImageProcessor.from_pretrained(folder, local_files_only=True)
        except BigrError:
            raise
        except Exception as error:  # of many kinds: a missing file, a damaged one, another layout
            reason = " ".join(str(error).split())[:300]
            raise BigrError(
                f"evaluation.clip: {folder} cannot be loaded ({reason}); it must be a folder with config.json, "
                "model.safetensors, the files of CLIP's tokenizer and preprocessor_config.json"
            ) from None
        self.about = {"name": "clip", "hash": folder_hash(folder)}

    @torch.no_grad()
    def see(self, images: Tensor) -> Tensor:
        pixels = self._processor(list(images), return_tensors="pt", input_data_format="channels_first")["pixel_values"]
        found = self._model.vision_model(pixel_values=pixels.to(self._device)).pooler_output
        return F.normalize(self._model.visual_projection(found), dim=1).cpu()

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:
        most = self._model.config.text_config.max_position_embeddings
        plain = [cleaned(text) for text in texts]
        batch = self._tokenizer(plain, padding=True, truncation=True, max_length=most, return_tensors="pt")
        found = self._model.text_model(
            input_ids=batch["input_ids"].to(self._device), attention_mask=batch["attention_mask"].to(self._device)
        ).pooler_output
        return F.normalize(self._model.text_projection(found), dim=1).cpu()
