"""Byte pairs: the encoder that needs no download. The generator learns to read them (`TextConditions`)."""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bigr.runtime.errors import BigrError
from bigr.runtime.extras import require
from bigr.runtime.files import write_json
from bigr.text.encoder import CONFIG, cleaned

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KIND = "learned"
_FILE = "tokenizer.json"
_NONE = "[none]"
"""Number 0: what is behind the end of a text."""


class BytePairs:
    """A vocabulary of byte pairs, lower case; see `bigr.text.encoder.TextEncoder`. Any text in any script has some."""

    def __init__(self, tokenizer: "Tokenizer", tokens: int) -> None:
        self._tokenizer, self._tokens = tokenizer, tokens
        self.cut = 0

    @classmethod
    def learned(cls, texts: Iterable[str], vocabulary: int, tokens: int) -> "BytePairs":
        """From texts; vocabulary: the most entries, 257 or more; tokens: P."""
        require("text", "byte pairs")
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        trainer = trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[_NONE],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        tokenizer.train_from_iterator(map(cleaned, texts), trainer)
        return cls(tokenizer, tokens)

    @classmethod
    def load(cls, folder: Path, config: dict[str, Any]) -> "BytePairs":
        """What `save` wrote. Raises `BigrError` for a damaged file."""
        require("text", "reading texts")
        from tokenizers import Tokenizer

        path = folder / _FILE
        try:
            content = path.read_text(encoding="utf-8")
            if sha256(content.encode()).hexdigest() != config["sha256"]:
                raise ValueError("it is not that of config.json")
            return cls(Tokenizer.from_str(content), int(config["tokens"]))
        except Exception as error:  # tokenizers raises Exception itself
            raise BigrError(f"{path} cannot be read ({error}); run the stage text again") from None

    @property
    def shape(self) -> dict[str, Any]:
        return {"text_tokens": self._tokens, "text_vocabulary": int(self._tokenizer.get_vocab_size())}

    def read(self, texts: Sequence[str]) -> list[np.ndarray]:
        found = []
        for encoding in self._tokenizer.encode_batch([cleaned(text) for text in texts]):
            self.cut += len(encoding.ids) > self._tokens
            found.append(np.array(encoding.ids[: self._tokens], dtype=np.int32))
        return found

    def save(self, folder: Path) -> None:
        content = self._tokenizer.to_str()
        (folder / _FILE).write_text(content, encoding="utf-8")
        digest = sha256(content.encode()).hexdigest()
        write_json(folder / CONFIG, {"kind": KIND, "tokens": self._tokens, "sha256": digest})
