"""L2 norm of the filter that writes a channel."""

from tfseg_prune.criteria import kernels

NORMALIZE = "mean"


def score(graph, *, seed=0, gradients=None):
    """{layer: sqrt(sum of w^2) over each filter}; see `kernels.channel_norms`."""
    return kernels.channel_norms(graph, 2)
