"""Norms of the kernels that write each channel, shared by the magnitude criteria."""

import numpy as np
from keras import ops


def channel_norms(graph, order):
    """{producing layer: p-norm of the weights that write each of its channels}.

    `||W[..., f]||_p` over all elements of filter f; biases are left out. Transposed convolutions
    are read along their own output axis.

    Args:
        graph: `ChannelGraph`.
        order: p, 1 or 2.
    """
    scores = {}
    for record in graph.records.values():
        for name, ids in record.produced.items():
            powers = np.zeros(len(ids))
            found = False
            for slot in record.slots:
                weight = None
                for axis, axis_ids in {**slot.writes, **slot.reads}.items():
                    if axis_ids is not ids:
                        continue
                    weight = record.operation.weights[slot.index] if weight is None else weight
                    values = np.abs(np.asarray(ops.convert_to_numpy(weight), "float64")) ** order
                    powers += values.sum(axis=tuple(a for a in range(values.ndim) if a != axis))
                    found = True
            scores[name] = powers ** (1 / order) if found else np.full(len(ids), np.nan)
    return scores
