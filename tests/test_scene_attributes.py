"""The judge of scenes: what it counts as right, and that it learns to read them."""

import torch

from bigr.data.embedded.scenes import Description, Thing, described
from bigr.evaluation.scene_attributes import THINGS, SceneReader, attribute_metrics, judged, train_reader

CIRCLE, SQUARE = Thing("circle", "red", "small"), Thing("square", "blue", "large")
PAIR = Description((CIRCLE, SQUARE), "left of")


def test_all_is_right_where_things_and_relation_are() -> None:
    every = dict.fromkeys(("object", "colour", "size", "count", "position", "all"), True)
    assert judged(PAIR, {(2, 0): CIRCLE, (0, 1): SQUARE}) == every
    assert judged(PAIR, {(0, 1): CIRCLE, (0, 0): SQUARE}) == every | {"position": False, "all": False}


def test_each_attribute_is_judged_by_itself() -> None:
    bound = {(0, 0): Thing("circle", "blue", "small"), (0, 1): Thing("square", "red", "large")}  # colours exchanged
    assert judged(PAIR, bound) == {
        **{"object": True, "colour": True, "size": True, "count": True},
        **{"position": False, "all": False},
    }
    one = Description((CIRCLE,))
    assert judged(one, {(1, 1): Thing("circle", "red", "large")}) == {
        **{"object": True, "colour": True, "size": False, "count": True},
        "all": False,
    }
    assert judged(one, {})["count"] is False
    two = Description((CIRCLE, CIRCLE))
    assert (
        judged(two, {(0, 0): CIRCLE})["all"] is False and judged(two, {(0, 0): CIRCLE, (2, 2): CIRCLE})["all"] is True
    )


def test_metrics_are_shares_apart_for_held_out_pairs() -> None:
    texts = ["a small red circle", "a small red circle", "a large blue circle", "something else"]
    assert described(texts[2]).held_out
    shown = [{(0, 0): CIRCLE}, {}, {(0, 0): Thing("circle", "blue", "large")}, {}]
    found = attribute_metrics(texts, shown)
    assert found["all"] == 2 / 3 and found["seen_all"] == 1 / 2 and found["held_out_all"] == 1.0
    assert "position" not in found


def test_the_reader_learns_what_is_in_each_cell() -> None:
    reader, accuracy = train_reader(32, torch.device("cpu"), steps=100, scenes=1500)
    untrained = SceneReader().eval().read(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), 1)
    assert accuracy > 0.3 and len(THINGS) == 36 and len(untrained) == 1
    blank = reader.read(torch.full((2, 3, 32, 32), 240, dtype=torch.uint8), 1)
    assert blank == [{}, {}]
