"""Scenes: one to three coloured shapes on a pale ground, rendered by Pillow, with captions in several phrasings.

A scene is a set of shapes in the cells of a 2×2 grid. Its caption says everything that is judged: which shapes, their
colours and sizes, how many, and the relation of two. Some pairs of colour and shape (`HELD_OUT`) are in no training
scene, so that composition is measured and not memory. `described` reads a caption back: the caption alone tells what
an image of it must show.
"""

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from bigr.data.embedded.parquet_split import Captioned, write_parquet
from bigr.runtime.files import atomic_folder
from bigr.runtime.seeds import derive_seed

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 85, 200),
    "yellow": (240, 200, 20),
    "purple": (140, 60, 180),
    "orange": (245, 130, 20),
}
SHAPES = ("circle", "square", "triangle")
SIZES = ("small", "large")
RELATIONS = ("left of", "right of", "above", "below")
HELD_OUT = frozenset({("red", "triangle"), ("blue", "circle"), ("green", "square"), ("purple", "triangle")})
"""Pairs of colour and shape that no training scene has: each colour and each shape is there in others."""

CLASSES = ["one shape", "equal shapes", "two shapes", "three shapes"]
"""The kinds of scene."""

CELLS = 2
"""Cells along a side of the grid."""
_RADIUS = {"small": 0.30, "large": 0.46}
"""Of a shape, in cells."""
_JITTER = {"small": 0.10, "large": 0.03}
"""How far a shape's centre may be from that of its cell, in cells."""
_OVERSAMPLING = 4
_SEED = 0
"""The same scenes for pipelines of every seed, so that these are measured on the same images."""
_COUNTS = {2: "two", 3: "three"}


@dataclass(frozen=True, order=True)
class Thing:
    """A shape with its colour and size."""

    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Description:
    """What a caption says. things: the shapes, as often as they are there; relation: of the first to the second."""

    things: tuple[Thing, ...]
    relation: str | None = None

    @property
    def kind(self) -> int:
        """The number of its class in `CLASSES`."""
        if len(self.things) == 1:
            return 0
        if len(set(self.things)) == 1:
            return 1
        return len(self.things)

    @property
    def held_out(self) -> bool:
        """Whether it has a pair of colour and shape that is in no training scene."""
        return any((thing.colour, thing.shape) in HELD_OUT for thing in self.things)


Placed = dict[tuple[int, int], Thing]
"""Shapes by the row and column of their cell."""


def write_scenes(folder: Path, image_size: int, train_count: int, val_count: int) -> dict[str, int]:
    """Write train.parquet and val.parquet atomically; returns the number of images of each split.

    Half of the validation scenes, and no training scene, have a held-out pair of colour and shape.
    """
    with atomic_folder(folder) as temporary:
        return {
            split: write_parquet(temporary / f"{split}.parquet", scenes(split, count, image_size), CLASSES)
            for split, count in (("train", train_count), ("val", val_count))
        }


def scenes(split: str, count: int, image_size: int) -> Iterator[Captioned]:
    """`count` images of a split, train or val, with their captions. Image i is the same for every count."""
    for number in range(count):
        draws = random.Random(derive_seed(_SEED, "scenes", split, number))
        described = _drawn(draws, held_out=split == "val" and number % 2 == 1)
        image = render(placed(described, draws), image_size, draws)
        yield Captioned(image, described.kind, caption(described, draws))


def placed_scenes(count: int, image_size: int, seed: int) -> Iterator[tuple[Image.Image, Placed]]:
    """`count` scenes of all pairs of colour and shape, and where their shapes are: to train a judge."""
    for number in range(count):
        draws = random.Random(derive_seed(seed, "placed scenes", number))
        where = placed(_drawn(draws, held_out=None), draws)
        yield render(where, image_size, draws), where


def _drawn(draws: random.Random, held_out: bool | None) -> Description:
    """A description; held_out: whether it has a held-out pair, None: either."""
    while True:
        kind = draws.randrange(len(CLASSES))
        things = [_thing(draws) for _ in range(1 if kind < 2 else kind)]
        if kind == 1:
            things *= draws.choice(list(_COUNTS))
        relation = draws.choice(RELATIONS) if kind == 2 else None
        found = Description(tuple(things), relation)
        fits = found.kind == kind and len(set(things)) == (1 if kind < 2 else kind)
        if fits and held_out in (None, found.held_out):
            return found


def _thing(draws: random.Random) -> Thing:
    return Thing(draws.choice(SHAPES), draws.choice(list(COLOURS)), draws.choice(SIZES))


def placed(described: Description, draws: random.Random) -> Placed:
    """The shapes in different cells, drawn at random among the places that the relation allows."""
    cells = [(row, column) for row in range(CELLS) for column in range(CELLS)]
    while True:
        places = draws.sample(cells, len(described.things))
        if described.relation is None or stands(described.relation, places[0], places[1]):
            return dict(zip(places, described.things, strict=True))


def stands(relation: str, first: tuple[int, int], second: tuple[int, int]) -> bool:
    """Whether the cell (row, column) `first` is in this relation to the cell `second`."""
    return {
        "left of": first[1] < second[1],
        "right of": first[1] > second[1],
        "above": first[0] < second[0],
        "below": first[0] > second[0],
    }[relation]


def render(things: Placed, image_size: int, draws: random.Random) -> Image.Image:
    """The image, RGB, on a ground of a pale grey that varies; edges are smooth."""
    side = image_size * _OVERSAMPLING
    ground = draws.randint(228, 252)
    image = Image.new("RGB", (side, side), (ground, ground, ground))
    pen, cell = ImageDraw.Draw(image), side / CELLS
    for (row, column), thing in things.items():
        jitter = _JITTER[thing.size]
        x = (column + 0.5 + draws.uniform(-jitter, jitter)) * cell
        y = (row + 0.5 + draws.uniform(-jitter, jitter)) * cell
        _draw(pen, thing, x, y, _RADIUS[thing.size] * cell)
    return image.resize((image_size, image_size), Image.Resampling.BOX)


def _draw(pen: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float) -> None:
    colour = COLOURS[thing.colour]
    if thing.shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif thing.shape == "square":
        half = 0.86 * radius
        pen.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + 0.85 * radius), (x + radius, y + 0.85 * radius)], fill=colour)


def caption(described: Description, draws: random.Random) -> str:
    """A sentence that says all that `described` holds, in one of several phrasings."""
    things = described.things
    if described.kind == 0:
        return draws.choice(("{}", "there is {}", "a picture of {}")).format(_one(things[0]))
    if described.kind == 1:
        count, one = _COUNTS[len(things)], things[0]
        form = draws.choice(("{} {}s", "there are {} {}s", "a picture of {} {}s"))
        return form.format(count, f"{one.size} {one.colour} {one.shape}")
    if described.relation is not None:
        first, second = map(_one, things)
        form = draws.choice(("{0} {2} {1}", "there is {0} {2} {1}", "{1} with {0} {2} it"))
        return form.format(first, second, described.relation)
    first, second, third = map(_one, things)
    form = draws.choice(("{}, {} and {}", "there are {}, {} and {}", "a picture of {}, {} and {}"))
    return form.format(first, second, third)


def _one(thing: Thing) -> str:
    return f"{'an' if thing.size[0] in 'aeiou' else 'a'} {thing.size} {thing.colour} {thing.shape}"


_THING = re.compile(rf"(two |three |)({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")
_RELATION = re.compile("|".join(RELATIONS))


def described(text: str) -> Description | None:
    """What a caption says; None where it is not one that `caption` could have made."""
    things: list[Thing] = []
    for number, size, colour, shape in _THING.findall(text):
        count = {"two ": 2, "three ": 3}.get(number, 1)
        things += [Thing(shape, colour, size)] * count
    relations = _RELATION.findall(text)
    if not 1 <= len(things) <= 3 or len(relations) > 1 or (relations and len(things) != 2):
        return None
    if not relations:
        return Description(tuple(things))
    if " with " in text:  # the second is named first
        things.reverse()
    return Description(tuple(things), relations[0])
