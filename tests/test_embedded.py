"""The embedded data sets with captions: scenes of coloured shapes, and emoji."""

import io
import itertools
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from bigr import config
from bigr.data.embedded.emoji import held_out, read_names, write_emoji
from bigr.data.embedded.scenes import (
    CELLS,
    CLASSES,
    COLOURS,
    HELD_OUT,
    RELATIONS,
    SHAPES,
    SIZES,
    Description,
    Thing,
    caption,
    described,
    placed,
    render,
    scenes,
    stands,
    write_scenes,
)
from bigr.runtime.context import Context
from bigr.runtime.errors import BigrError
from bigr.stages import write_dataset

ROOT = Path(__file__).parents[1]
FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
NAMES = """\
# group: Smileys & Emotion
1F600 ; fully-qualified     # 😀 E1.0 grinning face
263A  ; unqualified         # ☺ E0.6 smiling face
# group: Component
1F3FB ; component           # 🏻 E1.0 light skin tone
# group: People & Body
1F44B 1F3FB ; fully-qualified # 👋🏻 E1.0 waving hand: light skin tone
1F44B 1F3FF ; fully-qualified # 👋🏿 E1.0 waving hand: dark skin tone
1F46D 1F3FB ; fully-qualified # x E12.1 women holding hands: light skin tone, dark skin tone
"""


def rows(path: Path) -> list[dict]:
    return pq.read_table(path).to_pylist()


def draws(number: int) -> random.Random:
    return random.Random(number)


def test_a_caption_says_all_that_the_scene_has() -> None:
    for number, one in enumerate(scenes("train", 300, 16)):
        found = described(one.text)
        assert found is not None and found.kind == one.label, one.text
        for form in range(3):  # every phrasing says the same
            again = described(caption(found, draws(100 * number + form)))
            assert again is not None and sorted(again.things) == sorted(found.things)
            assert again.relation == found.relation and (found.relation is None or again.things == found.things)


def test_a_relation_keeps_its_direction_in_every_phrasing() -> None:
    first, second = Thing("circle", "red", "small"), Thing("square", "blue", "large")
    texts = {caption(Description((first, second), "left of"), draws(number)) for number in range(40)}
    assert texts == {
        "a small red circle left of a large blue square",
        "there is a small red circle left of a large blue square",
        "a large blue square with a small red circle left of it",
    }
    assert {described(text) for text in texts} == {Description((first, second), "left of")}


@pytest.mark.parametrize("text", ["", "a red apple", "a small pink circle", "three small red circles and a tree" * 2])
def test_what_is_no_caption_of_a_scene_is_not_described(text: str) -> None:
    assert described(text) is None


def test_held_out_pairs_are_in_no_training_scene_and_in_half_of_the_others() -> None:
    train = [described(one.text) for one in scenes("train", 600, 8)]
    assert not any(one.held_out for one in train)
    seen = {(thing.colour, thing.shape) for one in train for thing in one.things}
    assert seen == set(itertools.product(COLOURS, SHAPES)) - HELD_OUT
    assert {thing.size for one in train for thing in one.things} == set(SIZES)
    assert {one.relation for one in train} == {None, *RELATIONS} and {one.kind for one in train} == {0, 1, 2, 3}
    assert [described(one.text).held_out for one in scenes("val", 40, 8)] == [False, True] * 20


def test_shapes_are_where_the_scene_has_them_in_their_colours() -> None:
    things = tuple(
        Thing(shape, colour, "large") for shape, colour in zip(SHAPES, ("red", "green", "blue"), strict=True)
    )
    where = placed(Description(things), draws(3))
    image = np.asarray(render(where, 16 * CELLS, draws(3))).astype(int)
    for row in range(CELLS):
        for column in range(CELLS):
            pixel = image[16 * row + 8, 16 * column + 8]
            thing = where.get((row, column))
            expected = COLOURS[thing.colour] if thing else (240, 240, 240)
            assert np.abs(pixel - expected).max() <= 12
    filled = {
        thing.shape: (image[16 * r : 16 * r + 16, 16 * c : 16 * c + 16].min(-1) < 200).sum()
        for (r, c), thing in where.items()
    }
    assert filled["triangle"] < filled["square"] < filled["circle"] < 16**2


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_relation_holds_between_the_cells(relation: str) -> None:
    pair = Description((Thing("circle", "red", "small"), Thing("square", "red", "small")), relation)
    for number in range(30):
        first, second = placed(pair, draws(number))
        assert stands(relation, first, second) and not stands(relation, second, first)


def test_scenes_are_the_same_every_time_and_whatever_their_number(tmp_path: Path) -> None:
    assert write_scenes(tmp_path / "a", 16, 30, 12) == {"train": 30, "val": 12}
    write_scenes(tmp_path / "b", 16, 40, 12)
    few, many = (rows(tmp_path / name / "train.parquet") for name in "ab")
    assert few == many[:30] and rows(tmp_path / "a" / "val.parquet") == rows(tmp_path / "b" / "val.parquet")
    with Image.open(io.BytesIO(few[0]["image"]["bytes"])) as image:
        assert image.size == (16, 16) and image.mode == "RGB"


def settings(**dataset: object) -> config.Settings:
    values = config.read(ROOT / "params.yaml")
    values["dataset"] |= dataset
    return config.validate(values)


def test_the_stage_writes_the_data_set_that_is_chosen_and_none_beside_ones_own_images(tmp_path: Path) -> None:
    context = Context(tmp_path, "f")
    write_dataset.run(settings(name="scenes", train_count=20, val_count=10), context)
    folder = tmp_path / "data" / "dataset"
    assert sorted(path.name for path in folder.iterdir()) == ["train.parquet", "val.parquet"]
    schema = pq.read_schema(folder / "train.parquet")
    assert all(name.encode() in schema.metadata[b"huggingface"] for name in CLASSES)
    values = config.read(ROOT / "params.yaml")
    values["shards"]["source"] = "pictures"
    write_dataset.run(config.validate(values), context)
    assert list(folder.iterdir()) == []


def test_the_list_of_emoji_is_read(tmp_path: Path) -> None:
    path = tmp_path / "emoji-test.txt"
    path.write_text(NAMES, encoding="utf-8")
    found, groups = read_names(path)
    assert groups == ["Smileys & Emotion", "People & Body"]  # not that of the components
    assert [(one.name, one.group) for one in found] == [
        ("grinning face", 0),
        ("waving hand: light skin tone", 1),
        ("waving hand: dark skin tone", 1),
        ("women holding hands: light skin tone, dark skin tone", 1),
    ]
    assert found[0].text == "😀" and len(found[1].text) == 2
    assert [held_out(one, 1.0) for one in found] == [False, True, True, False]  # one tone, not two
    assert not any(held_out(one, 0.0) for one in found)


def test_a_missing_list_or_font_is_one_line_that_says_how_to_get_it(tmp_path: Path) -> None:
    names = tmp_path / "emoji-test.txt"
    with pytest.raises(BigrError, match=r"dataset.emoji_names: .* cannot be read \(No such file.*apt-get install"):
        write_emoji(tmp_path / "out", 16, FONT, names, 0.2)
    names.write_text("nothing of the kind")
    with pytest.raises(BigrError, match=r"dataset.emoji_names: .* lists no emoji"):
        write_emoji(tmp_path / "out", 16, FONT, names, 0.2)
    names.write_text(NAMES, encoding="utf-8")
    with pytest.raises(BigrError, match=r"dataset.emoji_font: .* cannot be used .*apt-get install"):
        write_emoji(tmp_path / "out", 16, tmp_path / "font.ttf", names, 0.2)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(not FONT.is_file(), reason="needs Noto Color Emoji: apt-get install fonts-noto-color-emoji")
def test_emoji_are_drawn_in_colour_and_sequences_as_one(tmp_path: Path) -> None:
    names = tmp_path / "emoji-test.txt"
    names.write_text(NAMES, encoding="utf-8")
    assert write_emoji(tmp_path / "out", 32, FONT, names, 0.999999) == {"train": 2, "val": 2}
    light, dark = (
        np.asarray(Image.open(io.BytesIO(row["image"]["bytes"]))).astype(int)
        for row in rows(tmp_path / "out/val.parquet")
    )
    drawn = (light.min(-1) < 250) & (dark.min(-1) < 250)
    assert drawn.mean() > 0.2 and light[drawn].mean() > dark[drawn].mean() + 50  # the same hand in two tones
    face = np.asarray(Image.open(io.BytesIO(rows(tmp_path / "out/train.parquet")[0]["image"]["bytes"]))).astype(int)
    assert face[16, 3, 0] > face[16, 3, 2] + 80  # yellow
