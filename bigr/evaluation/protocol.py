"""The evaluation protocol's seed: the same for every run, so that metrics of runs with other seeds compare."""

from bigr.runtime.seeds import derive_seed

EVALUATION_SEED = 20240914
"""The seed of every draw of the evaluation. The project's `seed` has no part in them."""

_NUMPY_BITS = 32


def numpy_seed(*place: str | int) -> int:
    """A seed of `EVALUATION_SEED` for this place in [0, 2³²), as numpy's `RandomState` needs."""
    return derive_seed(EVALUATION_SEED, *place) % 2**_NUMPY_BITS
