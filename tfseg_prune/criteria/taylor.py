"""First-order Taylor importance (Molchanov et al., CVPR 2019): the loss without the channel.

With m the gate of a channel (`tfseg_prune.criteria.gates`), its score is the mean over training
steps of

    (dL/dm)^2,   dL/dm = gamma dL/dgamma + beta dL/dbeta  behind a batch normalisation,
                         sum_w w dL/dw                    at a producer without one
"""

from tfseg_prune.criteria import gates

# A square of a change of the loss means the same in every layer.
NORMALIZE = "none"


def score(graph, *, seed=0, gradients=None):
    """{layer: mean of (dL/dm)^2 per channel, NaN where there is no gate}.

    Raises:
        ValueError: If `gradients` are missing, empty or another model's.
    """
    return gates.by_layer(graph, gates.collected(graph, gradients, "taylor"))
