"""Random scores: the control that every criterion must beat."""

import numpy as np

NORMALIZE = "none"


def score(graph, *, seed=0, gradients=None):
    """{layer: uniform numbers in (0, 1)}, a pure function of the architecture and the seed."""
    rng = np.random.default_rng(seed)
    return {name: rng.random(len(units)) for name, units in graph.producers.items()}
