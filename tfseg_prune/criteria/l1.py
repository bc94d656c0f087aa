"""L1 norm of the filter that writes a channel (Li et al., "Pruning filters", ICLR 2017)."""

from tfseg_prune.criteria import kernels

# Norms grow with the kernel's size, so layers are only comparable relative to their own mean.
NORMALIZE = "mean"


def score(graph, *, seed=0, gradients=None):
    """{layer: sum of |w| over each filter}; see `kernels.channel_norms`."""
    return kernels.channel_norms(graph, 1)
