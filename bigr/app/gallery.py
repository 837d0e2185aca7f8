"""Images of the data set: examples, and those most similar to an image by the model's features."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from bigr.app.bounds import MAX_COMPARED
from bigr.data.images import to_image
from bigr.data.shards import ShardIndex, load_split, read_captions
from bigr.imaging.model import ImageModel
from bigr.runtime.errors import BigrError

EXAMPLES = 10
_AT_ONCE = 32
_LOOKED_AT = 400
"""Images that are searched for examples of different classes."""


@dataclass(frozen=True)
class Neighbour:
    """An image of the data set, the name of its class, and the cosine of its features with those asked for, −1 to 1."""

    picture: Image.Image
    name: str
    similarity: float


class Dataset:
    """The shards in a folder. Raises `BigrError` where they cannot be read."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index = folder, ShardIndex.load(folder)
        self._features: WeakKeyDictionary[ImageModel, list[Tensor]] = WeakKeyDictionary()

    @cached_property
    def examples(self) -> list[tuple[Image.Image, str]]:
        """A few held-out images and their captions, or their classes' names: of as many classes as possible."""
        split = "val" if self.index.images("val") else "train"
        pixels, labels = load_split(self.folder, split, _LOOKED_AT)
        order = torch.arange(len(labels))
        rounds = torch.tensor([int((labels[:place] == labels[place]).sum()) for place in order])
        chosen = sorted(order.tolist(), key=lambda place: (int(rounds[place]), int(labels[place])))[:EXAMPLES]
        captions: list[str] = []
        if self.index.splits[split].get("captions"):
            texts = chain.from_iterable(map(read_captions, self.index.shards(split)))
            captions = list(islice(texts, len(labels)))
        names = captions or [self.index.classes[label] for label in labels]
        return [(to_image(pixels[place]), names[place]) for place in chosen]

    @cached_property
    def _training(self) -> tuple[Tensor, Tensor]:
        return load_split(self.folder, "train", MAX_COMPARED)

    @property
    def compared(self) -> int:
        """How many images are searched for the most similar."""
        return min(self.index.images("train"), MAX_COMPARED)

    def look(self, model: ImageModel) -> Iterator[int]:
        """Compute every layer's features of all images that are searched, once for a model; yields how many are done.

        Features that a stopped call computed are kept.
        """
        pixels, _ = self._training
        rows = self._features.setdefault(model, [])
        for part in pixels.split(_AT_ONCE)[len(rows) :]:
            rows.append(model.layer_features([to_image(one) for one in part]))
            yield len(rows) * _AT_ONCE

    def nearest(self, model: ImageModel, picture: Image.Image, layer: int, count: int) -> list[Neighbour]:
        """The `count` images whose features in `layer` are most similar, the most similar first."""
        asked = model.features(picture, layer)
        for _ in self.look(model):
            pass
        pixels, labels = self._training
        known = torch.cat([rows[:, layer - 1] for rows in self._features[model]])
        values, places = model.nearest(asked, known, count, layer)
        return [
            Neighbour(to_image(pixels[place]), self.index.classes[int(labels[place])], value)
            for value, place in zip(values[0].tolist(), places[0].tolist(), strict=True)
        ]


def find(folder: Path) -> Dataset | None:
    """The shards in `folder`, None where there are none."""
    try:
        return Dataset(folder)
    except BigrError:
        return None
