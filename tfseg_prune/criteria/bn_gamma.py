"""|gamma| of the batch normalisation after a channel (network slimming, Liu et al., ICCV 2017).

Channels that no batch normalisation with a scale follows can't be ranked and are kept. Where
several follow (after a concatenation, say), their mean counts.
"""

import keras
import numpy as np
from keras import ops

# Gammas multiply normalised activations, so they compare across layers as they are.
NORMALIZE = "none"


def score(graph, *, seed=0, gradients=None):
    """{layer: |gamma| of each channel, NaN where there is none}.

    Raises:
        ValueError: If the model has no batch normalisation with a scale at all.
    """
    total, count = np.zeros(len(graph.unit_of)), np.zeros(len(graph.unit_of))
    for record in graph.records.values():
        layer = record.operation
        if not isinstance(layer, keras.layers.BatchNormalization) or layer.gamma is None:
            continue
        gamma = np.abs(np.asarray(ops.convert_to_numpy(layer.gamma)))
        for slot in record.slots:
            if slot.variable is layer.gamma:
                np.add.at(total, slot.follows[0], gamma)
                np.add.at(count, slot.follows[0], 1)
    if not count.any():
        raise ValueError(
            f"The criterion 'bn_gamma' ranks channels by the scale of their batch normalisation."
            " Expected: a model with BatchNormalization(scale=True). Received:"
            f" '{graph.model.name}', which has none. Remedy: use criterion='l1'."
        )
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return {
        name: mean[ids]
        for record in graph.records.values()
        for name, ids in record.produced.items()
    }
