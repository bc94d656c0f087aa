"""Distance of a filter to all others of its layer (FPGM, He et al., CVPR 2019).

A filter near the layer's geometric median is said by the others already. Its score is

    g_c = sum_j ||W_c - W_j||_2

over all filters j of the layer; the smallest go.
"""

import numpy as np

from tfseg_prune.criteria import kernels

# Distances grow with the kernel's size and the number of filters, as norms do.
NORMALIZE = "mean"


def score(graph, *, seed=0, gradients=None):
    """{layer: sum of distances of each filter to the layer's others}."""
    return {
        name: _distances(values) if values.shape[1] else np.full(len(values), np.nan)
        for name, values in kernels.filters(graph).items()
    }


def _distances(filters):
    """Row sums of the Euclidean distance matrix of `[channels, weights]`."""
    squares = (filters**2).sum(axis=1)
    gram = filters @ filters.T
    apart = np.maximum(squares[:, None] + squares[None] - 2 * gram, 0.0)
    np.fill_diagonal(apart, 0.0)
    return np.sqrt(apart).sum(axis=1)
