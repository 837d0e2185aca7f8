"""A pretrained model in place of a training: `tokenizer.from` and `generator.from`.

A model folder of this project, or a published file. The settings must describe the model's shape, since later stages
read the shape from them; settings that only the start of a training uses may differ (`START_ONLY`).
"""

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from bigr.interop.folders import M, load_config, load_model, tokenizer_of
from bigr.interop.published.published_model import PublishedModel
from bigr.runtime.errors import BigrError

START_ONLY = ("dropout", "init_std", "position_std")
"""Fields of a shape that have no effect on a trained model."""


@dataclass(frozen=True)
class PretrainedSource(Generic[M]):
    """The model that a setting names.

    setting: its key; named: its value, a path below `root` or absolute; cls: the model's class; read: reads a published
    file, given the expected shape, which settles what tensors do not determine.
    """

    setting: str
    root: Path
    named: str
    cls: type[M]
    read: Callable[[Path, Any], PublishedModel]

    def find(self, expected: Any) -> PublishedModel:
        """The model, its weights not yet read. `expected`: the shape that the settings describe. Raises `BigrError`
        where there is no such model."""
        path = self.root / self.named
        with self._at_fault():
            if path.is_dir():
                if not (path / "model.safetensors").is_file():
                    raise BigrError(f"{path / 'model.safetensors'}: no such file; {path} is not a whole model folder")
                return PublishedModel(path, load_config(path, self.cls), {}, tokenizer_of(path))
            return self.read(path, expected)

    def differences(self, found: PublishedModel, expected: Any, keys: Mapping[str, str] | None = None) -> list[str]:
        """A line for each setting that differs from the model.

        keys: the settings behind fields that are not of the section of `setting`.
        """
        section = self.setting.split(".")[0]
        lines = []
        for field in (f.name for f in dataclasses.fields(expected) if f.name not in START_ONLY):
            ours, theirs = json.dumps(getattr(expected, field)), json.dumps(getattr(found.config, field))
            if ours != theirs:
                key = (keys or {}).get(field, f"{section}.{field}")
                lines.append(f"{key} is {ours}, but {self.named} has {theirs}; set it to {theirs}")
        return lines

    def problems(self, found: PublishedModel, expected: Any, keys: Mapping[str, str] | None = None) -> list[str]:
        """The `differences`; where there are none, a line if the weights of a model folder are damaged or of another
        shape. The weights are mapped from the file, not read."""
        lines = self.differences(found, expected, keys)
        if not lines and found.path.is_dir():
            try:
                self.load(found, expected, keys)
            except BigrError as error:
                lines = [str(error)]
        return lines

    def load(self, found: PublishedModel, expected: Any, keys: Mapping[str, str] | None = None) -> M:
        """The model, in eval mode, on the CPU, with `expected` for its shape.

        Raises `BigrError` with the `differences`, if there are any, and where weights are missing or damaged.
        """
        if lines := self.differences(found, expected, keys):
            raise BigrError("\n".join(lines))
        with self._at_fault():
            model = load_model(found.path, self.cls) if found.path.is_dir() else found.load(self.cls)
        model.config = expected
        return model

    @contextmanager
    def _at_fault(self) -> Iterator[None]:
        try:
            yield
        except BigrError as error:
            raise BigrError(f"{self.setting}: {error}") from None
