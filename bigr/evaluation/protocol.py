"""The evaluation protocol's seed: the same for every run, so that metrics of runs with other seeds compare."""

EVALUATION_SEED = 20240914
"""The seed of every draw of the evaluation. The project's `seed` has no part in them."""


def numpy_seed(seed: int) -> int:
    """`seed` reduced to [0, 2³²), as numpy's `RandomState` needs."""
    return seed % 2**32
