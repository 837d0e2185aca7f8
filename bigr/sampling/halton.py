"""The Halton order of a grid's tokens: each next one far from those before (arXiv 2503.17076)."""

import math
from functools import cache


@cache
def halton_places(tokens: int) -> tuple[int, ...]:
    """The place of each of the g² tokens, in reading order: 0 comes first.

    Point k = 1, 2, … of the Halton sequence has the row ⌊g·φ₂(k)⌋ and the column ⌊g·φ₃(k)⌋; the order is that in which
    tokens are met.
    """
    places: dict[int, int] = {}
    grid, k = math.isqrt(tokens), 0
    while len(places) < tokens:
        k += 1
        token = int(grid * radical_inverse(k, 2)) * grid + int(grid * radical_inverse(k, 3))
        places.setdefault(token, len(places))
    return tuple(places[token] for token in range(tokens))


def radical_inverse(k: int, base: int) -> float:
    """φ(k): the digits of k in `base`, mirrored at the point."""
    value, scale = 0, 1
    while k:
        k, digit = divmod(k, base)
        value, scale = value * base + digit, scale * base
    return value / scale
