"""The gradient score of DCFP, distribution calibrated filter pruning, as SIRFP's code has it.

Per channel, a moving average of |dL/dgamma| over those training steps in which gamma dL/dgamma > 0,
that is, in which a step downhill would shrink the scale; in the others it stays as it was. SIRFP's
second version uses it as a prior. Channels without a batch normalisation can't be ranked.
"""

from tfseg_prune.criteria import gates

# The gradients of scales differ from layer to layer with the sizes of the maps.
NORMALIZE = "mean"


def score(graph, *, seed=0, gradients=None):
    """{layer: moving average of |dL/dgamma| per channel, NaN without a batch normalisation}.

    Raises:
        ValueError: If `gradients` are missing, empty or another model's.
    """
    return gates.by_layer(graph, gates.collected(graph, gradients, "dcfp"))
