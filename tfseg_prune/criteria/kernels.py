"""The weights that write each channel, shared by the criteria that look at weights alone."""

import numpy as np
from keras import ops

# Elements that are converted at a time: what fits a processor's cache.
_PIECE = 2**16


def filters(graph):
    """{producing layer: float64 array `[channels, weights]` of what writes each channel}.

    Biases are left out. Transposed convolutions are read along their own output axis. The array
    has no columns where a layer's channels come without weights.

    Args:
        graph: `ChannelGraph`.
    """
    return {
        name: np.concatenate([np.zeros((0, width)), *parts]).T
        for name, width, parts in _written(graph)
    }


def channel_norms(graph, order):
    """{producing layer: p-norm of the weights that write each of its channels}.

    `||W[..., f]||_p` over all elements of filter f (see `filters`); NaN where a channel comes
    without weights.

    Args:
        graph: `ChannelGraph`.
        order: p, 1 or 2.
    """
    return {
        name: sum(_sums_of_powers(part, order) for part in parts) ** (1 / order)
        if parts
        else np.full(width, np.nan)
        for name, width, parts in _written(graph)
    }


def _written(graph):
    """(layer's name for plans, width, arrays `[weights, channels]`) of every producing layer."""
    for record in graph.records.values():
        for name, ids in record.produced.items():
            parts = []
            for slot in record.slots:
                for axis, axis_ids in {**slot.writes, **slot.reads}.items():
                    if axis_ids is ids:
                        weight = slot.variable if slot.effective is None else slot.effective()
                        values = np.asarray(ops.convert_to_numpy(weight))
                        parts.append(np.moveaxis(values, axis, -1).reshape(-1, len(ids)))
            yield name, len(ids), parts


def _sums_of_powers(rows, order):
    """`sum |rows|^order` over the first axis, in float64 without a copy of a large kernel."""
    step = max(1, _PIECE // rows.shape[1])
    sums = np.zeros(rows.shape[1])
    for start in range(0, len(rows), step):
        sums += (np.abs(rows[start : start + step].astype("float64")) ** order).sum(axis=0)
    return sums
