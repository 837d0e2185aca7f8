"""t-SNE of a layer's features, of zero mean and unit variance, by scikit-learn."""

import numpy as np
import torch
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from bigr.evaluation.protocol import EVALUATION_SEED, numpy_seed
from bigr.evaluation.representation.features import Features
from bigr.runtime.seeds import derive_seed

_EPS = 1e-6


def tsne(features: Features, layer: int, *, images: int, perplexity: float) -> np.ndarray:
    """Points float32 [m, 2] of the features of `layer`, from 1, of the first `images` images; zeros if there are < 4.

    perplexity: about the number of neighbours of a point, reduced to a third of the points. One thread, so that the
    same features give the same points on the same machine.
    """
    x = features.layer(layer, slice(0, images), torch.device("cpu")).double()
    x = (x - x.mean(0)) / (x.var(0, correction=0) + _EPS).sqrt()
    if len(x) < 4 or float(x.abs().max()) < _EPS:  # scikit-learn fails on equal points
        return np.zeros((len(x), 2), dtype=np.float32)
    seed = numpy_seed(derive_seed(EVALUATION_SEED, "tsne"))
    method = TSNE(perplexity=min(perplexity, (len(x) - 1) / 3), init="pca", random_state=seed)
    with threadpool_limits(1):
        return np.asarray(method.fit_transform(x.float().numpy()), dtype=np.float32)
