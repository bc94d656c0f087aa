"""How channel ids pass through what picks some of the channels: splits, slices and gathers."""

import numpy as np
from keras import layers, ops

from tfseg_prune.graph.ids import Channels
from tfseg_prune.graph.rules import axes_of, channel_axis, no_channels, register_rule
from tfseg_prune.graph.shape_rules import frozen_answer


def positions(kept, ids, chosen):
    """Where the kept ones of `ids[chosen]` stand among the kept ones of `ids`."""
    mask = kept.mask(ids)
    return (np.cumsum(mask) - 1)[chosen[mask[chosen]]].astype("int32")


def picked(trace, x, axis, chosen):
    """`Channels` of the entries `chosen` of `x` along its channels, in that order."""
    ids = x.ids.reshape(-1)

    def gather(kept, op, x, *_, **__):
        return _taken(x, positions(kept, ids, chosen), axis)

    trace.call(gather)
    trace.record.selects = True
    return trace.channels(ids[chosen], trace.shape, axis)


def _taken(x, here, axis):
    """Entries of a tensor, by a slice where they are a run."""
    if len(here) > 1 and (np.diff(here) != 1).any():
        return ops.take(x, here, axis=axis)
    start = int(here[0]) if len(here) else 0
    return x[(slice(None),) * axis + (slice(start, start + len(here)),)]


@register_rule("Split", "ArraySplit", "Hsplit", "Vsplit", "Dsplit")
def split(trace, op, x):
    name = type(op).__name__
    axis = "VHD".index(name[0]) if name[1:] == "split" else op.axis % len(x.shape)
    if axis not in x.varying:
        return [Channels(x.ids, shape) for shape in trace.shapes]
    ids = x.ids.reshape(-1)
    points = np.cumsum([shape[axis] for shape in trace.shapes])[:-1]
    parts = np.split(ids, points)

    def resplit(kept, op, x):
        here = [int(kept.mask(ids[:point]).sum()) for point in points]
        return ops.split(x, here, axis=axis)

    trace.record.selects = True
    trace.call(resplit)
    return [trace.channels(part, shape, axis) for part, shape in zip(parts, trace.shapes)]


@register_rule(layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
def cropping(trace, layer, x):
    sides = np.reshape(layer.cropping, (-1, 2))
    first = 2 if channel_axis(layer) == 1 else 1
    cropped = [axis for axis in x.varying if axis - first in range(len(sides))]
    if not cropped:
        return Channels(x.ids, trace.shape)
    (axis,) = cropped
    ids = x.ids.reshape(-1)
    before, after = sides[axis - first]
    end = len(ids) - after

    def setting(kept):
        new = sides.tolist()
        new[axis - first] = [kept.count(ids[:before]), kept.count(ids[end:])]
        return new if len(new) > 1 else new[0]

    trace.config("cropping", setting)
    trace.record.selects = True
    return trace.channels(ids[before:end], trace.shape, axis)


@register_rule("Unstack")
def unstack(trace, op, x):
    axis = op.axis % len(x.shape)
    if axis in x.varying:
        trace.freeze(x.ids, f"unstacked by '{trace.record.name}'")
        return [no_channels(shape) for shape in trace.shapes]
    return [Channels(np.squeeze(x.ids, axis), shape) for shape in trace.shapes]


@register_rule("Take")
def take(trace, op, x, indices, *_, **__):
    if not isinstance(x, Channels) or op.axis is None:
        for given in (x, indices):
            if isinstance(given, Channels):
                trace.freeze(given.ids, f"gathered by '{trace.record.name}'")
        return no_channels(trace.shape)
    axis = op.axis % len(x.shape)
    if isinstance(indices, Channels):
        trace.freeze(indices.ids, f"used as indices by '{trace.record.name}'")
        if axis in x.varying:
            return frozen_answer(trace, x, "gathered")
        rank = len(indices.shape)
    else:
        rank = np.ndim(indices)
    if axis not in x.varying:
        ones = (1,) * rank
        ids = x.ids.reshape(x.ids.shape[:axis] + ones + x.ids.shape[axis + 1 :])
        return Channels(ids, trace.shape)
    chosen = np.asarray(indices) % x.shape[axis]
    if rank == 1:
        return picked(trace, x, axis, chosen)
    if rank > 1:
        return frozen_answer(trace, x, "gathered")
    ids = x.ids.reshape(-1)
    trace.freeze(ids[chosen], f"picked by its number by '{trace.record.name}'")
    trace.call(
        lambda kept, op, x, _: ops.take(x, int(positions(kept, ids, chosen[None])[0]), axis=axis)
    )
    return no_channels(trace.shape)


@register_rule("TakeAlongAxis")
def take_along_axis(trace, op, x, indices):
    if not isinstance(x, Channels) or op.axis is None or op.axis % len(x.shape) in x.varying:
        for given in (x, indices):
            if isinstance(given, Channels):
                trace.freeze(given.ids, f"gathered by '{trace.record.name}'")
        return no_channels(trace.shape)
    if not isinstance(indices, Channels):
        if any(np.shape(indices)[axis] > 1 for axis in x.varying):
            return frozen_answer(trace, x, "gathered")
        return Channels(x.ids, trace.shape)
    return trace.elementwise(x, indices)


@register_rule("Roll")
def roll(trace, op, x):
    axes = axes_of(x, op.axis)
    if axes.isdisjoint(x.varying):
        return x
    if len(axes) > 1:
        return frozen_answer(trace, x, "rolled together with another axis")
    (axis,) = axes
    return picked(trace, x, axis, np.roll(np.arange(x.ids.size), op.shift))


@register_rule("Slice")
def slice_from(trace, op, x, start):
    if isinstance(start, Channels):
        trace.freeze(start.ids, f"used as an index by '{trace.record.name}'")
        start = (None,) * len(x.shape)
    for axis in x.varying:
        if trace.shape[axis] != x.shape[axis]:
            return frozen_answer(trace, x, "sliced")

        def resliced(kept, op, x, start):
            shape = list(op.shape)
            shape[axis] = x.shape[axis]
            return ops.slice(x, start, shape)

        trace.call(resliced)
    return Channels(x.ids, trace.shape)


@register_rule("GetItem")
def getitem(trace, op, x, key):
    """Python slicing: the same slicing on the ids; slices along the channels are counted anew."""
    keys = _full_key(key, len(x.shape))
    if keys is None:
        return frozen_answer(trace, x, "indexed")
    on_ids, channel_key = [], None
    axis = 0
    for place, k in enumerate(keys):
        if k is None:
            on_ids.append(None)
            continue
        if axis in x.varying and k != slice(None):
            channel_key = place, axis
            on_ids.append(k)
        else:
            on_ids.append(slice(None) if isinstance(k, slice) else 0)
        axis += 1
    ids = x.ids[tuple(on_ids)]
    if channel_key is None:
        return Channels(ids, trace.shape)
    place, axis = channel_key
    along = x.ids.reshape(-1)
    chosen = np.atleast_1d(np.arange(len(along))[keys[place]])
    if isinstance(keys[place], int):
        trace.freeze(along[chosen], f"picked by its number by '{trace.record.name}'")
        ids = np.full(ids.shape, 0)

    def sliced(kept, op, x, key):
        here = positions(kept, along, chosen)
        new = list(keys)
        if isinstance(keys[place], int):
            new[place] = int(here[0])
        else:
            x, new[place] = _taken(x, here, axis), slice(None)
        return x[tuple(new)]

    trace.record.selects = True
    trace.call(sliced)
    return Channels(ids, trace.shape)


def _full_key(key, rank):
    """The key with one entry per axis, `None` for new axes; `None` if it holds anything else."""
    keys = list(key) if isinstance(key, tuple) else [key]
    keys = [int(k) if isinstance(k, np.integer) else k for k in keys]
    known = (slice, int, type(None), type(...))
    if any(isinstance(k, bool) or not isinstance(k, known) for k in keys):
        return None
    missing = [slice(None)] * (rank - sum(k is not None and k is not ... for k in keys))
    at = keys.index(...) if ... in keys else len(keys)
    return keys[:at] + missing + keys[at + 1 :]
