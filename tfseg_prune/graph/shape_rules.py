"""How channel ids pass through what only moves numbers: layers and raw `keras.ops` alike.

The same movement is done to the ids. An operation that carries numbers of channels (a target
shape, split points, slices) says by `trace.call` how it is called on the smaller tensors.
"""

import re

import numpy as np
from keras import layers, ops

from tfseg_prune.graph.ids import CONSTANT, Channels, reshape_ids, size_of
from tfseg_prune.graph.rules import (
    axes_of,
    channel_axis,
    cut_constants,
    no_channels,
    register_rule,
)


def frozen_answer(trace, x, what):
    """Freezes `x`, of whose channels nothing is known after `what` the operation does."""
    trace.freeze(x.ids, f"{what} by '{trace.record.name}'")
    return no_channels(trace.shape)


# Joining.


def concatenate_ids(trace, given, axis, *, listed=True):
    """Channels of a concatenation along `axis` of tensors and constants.

    `listed` says whether the operation takes them as one list.
    """
    axis %= len(trace.shape)
    xs = [_as_channels(x) for x in given]
    varying = {a for x in xs for a in x.varying}
    lengths = [x.shape[axis] for x in xs]
    if varying <= {axis} and None not in lengths and any(x.has_channels for x in xs):
        parts = [np.broadcast_to(x.ids.reshape(-1), (length,)) for x, length in zip(xs, lengths)]
        return trace.channels(np.concatenate(parts), trace.shape, axis)
    # Along another axis than the channels: the parts share their channels.
    parts = []
    for x in xs:
        crosses = axis in x.varying
        parts.append(frozen_answer(trace, x, "joined crosswise") if crosses else x)
    return _beside(trace, given, [x.ids for x in parts], lambda along: along, listed)


def _as_channels(x):
    return x if isinstance(x, Channels) else no_channels(np.shape(x))


def _beside(trace, given, ids, axis_in, listed=True):
    """Channels of parts that share them; a constant part loses the dropped ones.

    Args:
        trace: `Trace`.
        given: The parts, `Channels` or constants.
        ids: Of each part, laid out as the answer is.
        axis_in: Function from an axis of the answer to that axis of a part.
        listed: Whether the operation takes the parts as one list.
    """
    parts = zip(given, ids)
    held = [Channels(own, trace.shape) for x, own in parts if isinstance(x, Channels)]
    answer = trace.elementwise(*held)
    if len(answer.varying) == 1:
        (along,) = answer.varying
        cut = {axis_in(along): answer.ids.reshape(-1)}
        constants = [i for i, x in enumerate(given) if not isinstance(x, Channels)]
        cut_constants(trace, dict.fromkeys(constants, cut), listed=listed)
    return answer


@register_rule(layers.Concatenate, "Concatenate")
def concatenation(trace, operation, xs):
    return concatenate_ids(trace, xs, operation.axis)


@register_rule("Append")
def append(trace, op, *xs):
    if op.axis is None:
        return [frozen_answer(trace, x, "joined flat") for x in xs if isinstance(x, Channels)][0]
    return concatenate_ids(trace, xs, op.axis, listed=False)


@register_rule("Hstack", "Vstack", "Dstack")
def stack_along(trace, op, xs):
    axis = "VHD".index(type(op).__name__[0])
    if min(len(_as_channels(x).shape) for x in xs) <= axis:
        return [frozen_answer(trace, x, "stacked") for x in xs if isinstance(x, Channels)][0]
    return concatenate_ids(trace, xs, axis)


@register_rule("Stack")
def stack(trace, op, xs):
    axis = op.axis % len(trace.shape)
    ids = [np.expand_dims(_as_channels(x).ids, axis) for x in xs]
    return _beside(trace, xs, ids, lambda along: along - (along > axis))


# Reshaping.


def reshape_to(trace, x):
    """`Channels` of `x` in the shape that the operation answers."""
    moved = size_of(x.shape) / size_of(trace.shape)
    if moved > 0:  # not where a size is unknown
        trace.per_image *= moved
    answer = reshape_ids(x, trace.shape)
    if answer is None:
        answer = frozen_answer(trace, x, "reshaped together with an unknown size")
    return trace.rectangular(answer)


def resized(shape, answer, kept):
    """`shape`, a setting that says how `answer` is shaped, with what is kept of the channels."""
    shape = list(shape)
    for axis in answer.varying:
        shape[axis] = kept.count(answer.ids)
    return tuple(shape)


@register_rule(layers.Reshape)
def reshape_layer(trace, layer, x):
    answer = reshape_to(trace, x)
    batch_and_target = (None, *layer.target_shape)
    trace.config("target_shape", lambda kept: resized(batch_and_target, answer, kept)[1:])
    return answer


@register_rule("Reshape")
def reshape(trace, op, x):
    answer = reshape_to(trace, x)
    trace.call(lambda kept, op, x: ops.reshape(x, resized(op.newshape, answer, kept)))
    return answer


@register_rule(layers.Flatten)
def flatten(trace, layer, x):
    rank = len(x.shape)
    if channel_axis(layer) == 1 and rank > 1:
        axes = (0, *range(2, rank), 1)
        x = Channels(np.transpose(x.ids, axes), tuple(x.shape[axis] for axis in axes))
    return reshape_to(trace, x)


@register_rule("ExpandDims")
def expand_dims(trace, op, x):
    axes = op.axis if isinstance(op.axis, (list, tuple)) else (op.axis,)
    return Channels(np.expand_dims(x.ids, tuple(axes)), trace.shape)


@register_rule("Squeeze")
def squeeze(trace, op, x):
    ones = [axis for axis, size in enumerate(x.shape) if size == 1]
    axes = axes_of(x, ones if op.axis is None else np.atleast_1d(op.axis).tolist())
    ids = x.ids.reshape([n for axis, n in enumerate(x.ids.shape) if axis not in axes])
    return Channels(ids, trace.shape)


@register_rule("BroadcastTo")
def broadcast_to(trace, op, x, *_):
    ids = x.ids.reshape((1,) * (len(trace.shape) - len(x.shape)) + x.ids.shape)
    answer = Channels(ids, trace.shape)
    trace.call(lambda kept, op, x: ops.broadcast_to(x, resized(op.shape, answer, kept)))
    return answer


@register_rule("Rearrange")
def rearrange(trace, op, x, pattern, **lengths):
    """A reshape, a transposition and a reshape, written as `b h w (g c) -> b (h w) g c`."""
    left, right = (re.findall(r"\w+|\(.*?\)", side) for side in pattern.split("->"))
    left, right = ([re.findall(r"\w+", group) for group in side] for side in (left, right))
    sizes = dict(lengths)
    for group, size in zip(left, x.shape):
        known = [sizes[name] for name in group if name in sizes]
        for name in group:
            if name not in sizes:
                sizes[name] = None if size is None else size // int(np.prod(known))
    names = [name for group in left for name in group]
    parts = reshape_ids(x, tuple(sizes[name] for name in names))
    if parts is None:
        return frozen_answer(trace, x, "rearranged together with an unknown size")
    parts = trace.rectangular(parts)
    order = [names.index(name) for group in right for name in group]
    moved = Channels(np.transpose(parts.ids, order), tuple(parts.shape[i] for i in order))
    inner = {name for group in left if len(group) > 1 for name in group}

    def with_lengths(kept, op, x, pattern, **lengths):
        new = dict(zip(names, resized(parts.shape, parts, kept)))
        return ops.rearrange(x, pattern, **{name: new[name] for name in inner})

    trace.call(with_lengths)
    return reshape_to(trace, moved)


# Moving axes.


@register_rule(layers.Permute)
def permute(trace, layer, x):
    return Channels(np.transpose(x.ids, (0, *layer.dims)), trace.shape)


@register_rule("Transpose")
def transpose(trace, op, x):
    return Channels(np.transpose(x.ids, op.axes), trace.shape)


@register_rule("Swapaxes")
def swapaxes(trace, op, x):
    return Channels(np.swapaxes(x.ids, op.axis1, op.axis2), trace.shape)


@register_rule("Moveaxis")
def moveaxis(trace, op, x):
    return Channels(np.moveaxis(x.ids, op.source, op.destination), trace.shape)


@register_rule("Rot90")
def rot90(trace, op, x):
    return Channels(np.rot90(x.ids, op.k, op.axes), trace.shape)


@register_rule("Flip")
def flip(trace, op, x):
    return Channels(np.flip(x.ids, op.axis), trace.shape)


@register_rule("Fliplr", "Flipud")
def flip_matrix(trace, op, x):
    return Channels(np.flip(x.ids, int(type(op).__name__ == "Fliplr")), trace.shape)


# Repeating and padding.


@register_rule(layers.RepeatVector)
def repeat_vector(trace, layer, x):
    return Channels(x.ids[:, None, :], trace.shape)


def _is_one_channel(x):
    return not x.varying and x.shape[-1:] == (1,)


def _copies(trace, x):
    """`Channels` of copies of a single channel: as many are made as what they meet keeps."""
    trace.freeze(x.ids, f"copied by '{trace.record.name}'")
    trace.record.selects = True
    return trace.channels(trace.fresh(trace.shape[-1]), trace.shape)


@register_rule("Tile")
def tile(trace, op, x):
    repeats = np.atleast_1d(op.repeats).tolist()
    rank = len(trace.shape)
    repeats = [1] * (rank - len(repeats)) + repeats
    if _is_one_channel(x) and repeats[-1] > 1:
        copies = _copies(trace, x)

        def tiled(kept, op, x):
            return ops.tile(x, [*repeats[:-1], kept.count(copies.ids)])

        trace.call(tiled)
        return copies
    ids = x.ids.reshape((1,) * (rank - x.ids.ndim) + x.ids.shape)
    repeats = [n if size > 1 else 1 for n, size in zip(repeats, ids.shape)]
    return Channels(np.tile(ids, repeats), trace.shape)


@register_rule("Repeat")
def repeat(trace, op, x):
    times = np.atleast_1d(op.repeats)
    if op.axis is None:
        return frozen_answer(trace, x, "repeated flat")
    axis = op.axis % len(x.shape)
    if axis not in x.varying:
        if not _is_one_channel(x) or axis != len(x.shape) - 1 or trace.shape[-1] == 1:
            return Channels(x.ids, trace.shape)
        copies = _copies(trace, x)
        trace.call(lambda kept, op, x: ops.repeat(x, kept.count(copies.ids), axis=axis))
        return copies
    if len(times) > 1:
        trace.freeze(x.ids, f"repeated a different number of times by '{trace.record.name}'")
    return Channels(np.repeat(x.ids, times, axis=axis), trace.shape)


@register_rule("Pad")
def pad(trace, op, x, *_, **__):
    widths = np.broadcast_to(op.pad_width, (len(x.shape), 2))
    if op.mode != "constant" and any(widths[axis].any() for axis in x.varying):
        trace.freeze(x.ids, f"padded with each other by '{trace.record.name}'")
    return _padded(trace, x, widths)


@register_rule(layers.ZeroPadding1D, layers.ZeroPadding2D, layers.ZeroPadding3D)
def zero_padding(trace, layer, x):
    sides = np.reshape(layer.padding, (-1, 2))
    first = 2 if channel_axis(layer) == 1 else 1
    widths = np.zeros((len(x.shape), 2), int)
    widths[first : first + len(sides)] = sides
    return _padded(trace, x, widths)


def _padded(trace, x, widths):
    """`Channels` of `x` with `widths` `[rank, 2]` of padding around, which is no channel."""
    edges = [tuple(widths[axis]) if axis in x.varying else (0, 0) for axis in range(len(x.shape))]
    return Channels(np.pad(x.ids, edges, constant_values=CONSTANT), trace.shape)


# Blocks of pixels as channels, and back. With channels first the backends disagree about which
# channel becomes which pixel, so that nothing is assumed.


@register_rule("DepthToSpace")
def depth_to_space(trace, op, x):
    """Channel `block * c + k` becomes channel k of a pixel; the blocks keep the same channels."""
    if channel_axis(op) == 1:
        return frozen_answer(trace, x, "moved into space, channels first,")
    ids = trace.along(x, -1, why=f"moved into space by '{trace.record.name}'")
    blocks = ids.reshape(op.block_size**2, -1)
    first = np.broadcast_to(blocks[:1], blocks.shape)
    return trace.channels(trace.meet(blocks, first)[0], trace.shape)


@register_rule("SpaceToDepth")
def space_to_depth(trace, op, x):
    if channel_axis(op) == 1:
        return frozen_answer(trace, x, "spread over channels, channels first,")
    ids = trace.along(x, -1, why=f"spread over channels by '{trace.record.name}'")
    return trace.channels(np.tile(ids, op.block_size**2), trace.shape)


@register_rule("ExtractPatches")
def extract_patches(trace, op, x):
    axis = channel_axis(op)
    ids = trace.along(x, axis, why=f"cut into patches by '{trace.record.name}'")
    return trace.channels(np.tile(ids, int(np.prod(op.size))), trace.shape, axis)
