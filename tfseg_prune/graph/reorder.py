"""Channels of a model in another order, which changes nothing of what it answers."""

import numpy as np
from keras import ops


def interchangeable(graph, *, grouping=()):
    """Which units may change places.

    Two may if every layer that writes, reads or follows one does so as often with the other. What
    can't be pruned stays in its place, and so do the channels of grouped convolutions and of group
    normalisations.

    Args:
        graph: `ChannelGraph`.
        grouping: Names of layers whose groups needn't be respected.

    Returns:
        int array `[num_units]`: units of one number may change places, those of -1 may not.
    """
    # A random number per axis of a weight, summed over those that hold a unit.
    rng = np.random.default_rng(0)
    signature = np.zeros(graph.num_units, np.uint64)
    fixed = ~graph.prunable
    for slot, units in _axes(graph):
        present, counts = np.unique(units, return_counts=True)
        number = rng.integers(1, 2**63, dtype=np.uint64)
        signature[present] += counts.astype(np.uint64) * number
        if slot.groups > 1:
            fixed[present] = True
    for rows, name in zip(graph.balanced, graph.balanced_by):
        if name not in grouping:
            fixed[rows] = True
    kinds = np.unique(signature, return_inverse=True)[1]
    return np.where(fixed, -1, kinds)


def reorder(graph, source):
    """Moves channels to other places of a model, by all weights that write, read or follow them.

    Nothing else is looked at: constants in raw operations, say, stay as they are, so whoever calls
    this compares the model with what it was (`check_equal`).

    Args:
        graph: `ChannelGraph` of the model, whose weights are changed in place.
        source: int array `[num_units]`, a permutation: the channels of unit `source[u]` get the
            places that those of unit u have.

    Raises:
        ValueError: If units change places that can't (see `interchangeable`); nothing is changed.
    """
    moved = []
    for record in graph.records.values():
        for slot in record.slots:
            taken = {
                axis: _taken(graph.unit_of[ids], source, record.name)
                for axis, ids in slot.axes.items()
            }
            taken = {axis: indices for axis, indices in taken.items() if indices is not None}
            if taken and slot.groups > 1:
                raise ValueError(_torn(record.name))
            if taken:
                value = np.asarray(ops.convert_to_numpy(slot.variable))
                for axis, indices in taken.items():
                    value = np.take(value, indices, axis=axis)
                moved.append((slot.variable, value))
    for variable, value in moved:
        variable.assign(value)


def _taken(units, source, name):
    """Where along an axis each of its places takes its channel from; `None` if all stay."""
    wanted = source[units]
    if (wanted == units).all():
        return None
    there, here = (np.argsort(x, kind="stable") for x in (units, wanted))
    if (units[there] != wanted[here]).any():
        raise ValueError(_torn(name))
    # Of a unit that an axis holds several times the first goes to the first place, and so on.
    indices = np.empty(len(units), int)
    indices[here] = there
    return indices


def _torn(name):
    return (
        f"The channels of '{name}' can't change places so. Expected: units that are"
        " interchangeable. Received: others"
    )


def _axes(graph):
    """(slot, units along the axis) of every axis of every weight."""
    for record in graph.records.values():
        for slot in record.slots:
            for ids in slot.axes.values():
                yield slot, graph.unit_of[ids]
