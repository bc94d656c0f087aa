"""Norms of the kernels that write each channel, shared by the magnitude criteria."""

import numpy as np
from keras import ops

# Elements that are converted at a time: what fits a processor's cache.
_PIECE = 2**16


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
                    powers += _sums_of_powers(np.asarray(ops.convert_to_numpy(weight)), axis, order)
                    found = True
            scores[name] = powers ** (1 / order) if found else np.full(len(ids), np.nan)
    return scores


def _sums_of_powers(values, axis, order):
    """`sum |values|^order` over all axes but one, in float64 without a copy of a large kernel."""
    rows = np.moveaxis(values, axis, -1).reshape(-1, values.shape[axis])
    step = max(1, _PIECE // rows.shape[1])
    sums = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        sums += (np.abs(rows[start : start + step].astype("float64")) ** order).sum(axis=0)
    return sums
