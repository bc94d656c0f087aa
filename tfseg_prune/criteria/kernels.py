"""The weights that write each channel, shared by the criteria that look at weights alone."""

import numpy as np
from keras import ops


def filters(graph):
    """{producing layer: float64 array `[channels, weights]` of what writes each channel}.

    Biases are left out. Transposed convolutions are read along their own output axis. The array
    has no columns where a layer's channels come without weights.

    Args:
        graph: `ChannelGraph`.
    """
    found = {}
    for record in graph.records.values():
        for name, ids in record.produced.items():
            parts = [np.zeros((len(ids), 0))]
            for slot in record.slots:
                for axis, axis_ids in {**slot.writes, **slot.reads}.items():
                    if axis_ids is ids:
                        weight = record.operation.weights[slot.index]
                        values = np.asarray(ops.convert_to_numpy(weight), "float64")
                        parts.append(np.moveaxis(values, axis, 0).reshape(len(ids), -1))
            found[name] = np.concatenate(parts, axis=1)
    return found


def channel_norms(graph, order):
    """{producing layer: p-norm of the weights that write each of its channels}.

    `||W[..., f]||_p` over all elements of filter f; NaN where a channel has no weights.

    Args:
        graph: `ChannelGraph`.
        order: p, 1 or 2.
    """
    return {
        name: np.linalg.norm(values, order, axis=1)
        if values.shape[1]
        else np.full(len(values), np.nan)
        for name, values in filters(graph).items()
    }
