"""t-SNE: a layer's features as points of a plane, for the eye. Near points are near in the features; far says little.

scikit-learn's, on what the linear probe sees: features of zero mean and unit variance.
"""

import numpy as np
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from bigr.evaluation.fidelity.classifier import INSTRUMENT_SEED
from bigr.evaluation.representation.features import Features
from bigr.runtime.seeds import derive_seed

_EPS = 1e-6
_RNG_BITS = 32  # what numpy's RandomState takes


def tsne(features: Features, layer: int, *, images: int, perplexity: float) -> np.ndarray:
    """The first `images` images' features of `layer` (from 1) as points, float32 [m, 2].

    perplexity: about how many neighbours a point heeds; at most a third of the points. The same features give the same
    points on the same machine: with one thread, since the order of sums decides where the points drift.
    """
    x = features.layer(layer, slice(0, images), torch.device("cpu")).double()
    x = (x - x.mean(0)) / (x.var(0, correction=0) + _EPS).sqrt()
    if len(x) < 4 or float(x.abs().max()) < _EPS:  # nothing to arrange: scikit-learn crashes on points that are all one
        return np.zeros((len(x), 2), dtype=np.float32)
    seed = derive_seed(INSTRUMENT_SEED, "tsne") % 2**_RNG_BITS
    method = TSNE(perplexity=min(perplexity, (len(x) - 1) / 3), init="pca", random_state=seed)
    with threadpool_limits(1):
        return np.asarray(method.fit_transform(x.float().numpy()), dtype=np.float32)
