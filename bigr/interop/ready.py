"""A ready model in place of a training: what `tokenizer.from` and `generator.from` name.

The settings must describe the shape that the model has, since every later stage and every reader of params.yaml goes by
them; what only the start of a training reads is left to the settings. Knows no model.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from bigr.errors import BigrError
from bigr.interop.folders import M, load_config, load_model, tokenizer_of

START_ONLY = ("dropout", "init_std", "position_std")
"""Fields of a shape that change nothing of a model that is trained."""


@dataclass(frozen=True)
class Ready(Generic[M]):
    """setting: the key that names the model; named: its value, a path below `root` or absolute; cls: the class."""

    setting: str
    root: Path
    named: str
    cls: type[M]

    @property
    def path(self) -> Path:
        """Where the model is."""
        return self.root / self.named

    def shape(self, expected: Any) -> Any:
        """The shape of the model, without reading its weights. `expected`: the shape that the settings describe, which
        tells what tensors alone do not. Raises `BigrError` where there is no such model."""
        with self._at_fault():
            return load_config(self.path, self.cls)

    def differences(self, found: Any, expected: Any, keys: Mapping[str, str] | None = None) -> list[str]:
        """A line for each setting that is not as the model is.

        keys: the settings behind fields that are not of the section of `setting`.
        """
        section = self.setting.split(".")[0]
        lines = []
        for field in (f.name for f in dataclasses.fields(expected) if f.name not in START_ONLY):
            ours, theirs = json.dumps(getattr(expected, field)), json.dumps(getattr(found, field))
            if ours != theirs:
                key = (keys or {}).get(field, f"{section}.{field}")
                lines.append(f"{key} is {ours}, but {self.named} has {theirs}; set it to {theirs}")
        return lines

    def check(self, found: Any, expected: Any, keys: Mapping[str, str] | None = None) -> None:
        """Raise `BigrError` with the `differences`, if there are any."""
        if lines := self.differences(found, expected, keys):
            raise BigrError("\n".join(lines))

    def load(self, expected: Any) -> M:
        """The model, in eval mode, on the CPU, with `expected` for its shape, which must have been checked."""
        with self._at_fault():
            model = load_model(self.path, self.cls)
        model.config = expected
        return model

    def tokenizer(self) -> str | None:
        """The hash of the tokenizer on whose codes the model was trained; None where it is not known."""
        return tokenizer_of(self.path)

    @contextmanager
    def _at_fault(self) -> Iterator[None]:
        try:
            yield
        except BigrError as error:
            raise BigrError(f"{self.setting}: {error}") from None
