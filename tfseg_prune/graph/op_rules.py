"""How channel ids pass through raw `keras.ops` in a functional graph.

The rules are found by the class name of the operation, since Keras doesn't export these classes.
An operation that carries numbers of channels (a target shape, split points, slices, constants)
says by `trace.call` how it is called on the smaller tensors.
"""

import numpy as np
from keras import ops

from tfseg_prune.graph.ids import CONSTANT, Channels, size_of
from tfseg_prune.graph.rules import (
    concatenate_ids,
    mix,
    register_rule,
    reshape_to,
    resized,
    spread,
    unary,
)

register_rule(
    *(
        "Abs Absolute Cast Ceil Celu Clip Copy Cos Elu Erf Exp Expm1 Floor Gelu HardShrink"
        " HardSigmoid HardSilu HardTanh LeakyRelu Log Log1p LogSigmoid NanToNum Negative"
        " Reciprocal Relu Relu6 Round Rsqrt Selu Sigmoid Sign Silu Sin SoftShrink Softplus"
        " Softsign SparsePlus SparseSigmoid Sqrt Square Squareplus StopGradient Tanh TanhShrink"
        " Threshold"
    ).split()
)(unary)

register_rule("Resize", "MaxPool", "AveragePool", "AdaptiveMaxPool", "AdaptiveAveragePool")(
    lambda trace, op, x, **_: spread(trace, x)
)


@register_rule(
    *"Add Subtract Multiply Divide TrueDivide DivideNoNan Maximum Minimum Power".split()
)
def binary(trace, op, x1, x2):
    answer = trace.elementwise(x1, x2)
    given = [x1, x2]
    constants = [i for i, x in enumerate(given) if not isinstance(x, Channels)]
    for i in constants:
        shape = np.shape(given[i])
        aligned = (1,) * (len(trace.shape) - len(shape)) + tuple(shape)
        if any(aligned[axis] > 1 for axis in answer.varying):
            array = np.asarray(ops.convert_to_numpy(given[i])).reshape(aligned)

            def sliced(kept, op, *xs, i=i, array=array):
                (axis,) = answer.varying
                xs = list(xs)
                xs[i] = array.compress(kept.mask(answer.ids.reshape(-1)), axis=axis)
                return op(*xs)

            trace.call(sliced)
    return answer


@register_rule("Softmax", "LogSoftmax", "Cumsum", "Cumprod", "Sort", "Argsort", "Normalize")
def along_axis(trace, op, x, **_):
    axes = op.axis if isinstance(op.axis, (list, tuple)) else [op.axis]
    if None in axes:
        axes = range(len(x.shape))
    mix(trace, x, axes, type(op).__name__)
    return x


@register_rule("Mean", "Sum", "Max", "Min", "Amax", "Amin", "Prod", "Std", "Var", "Logsumexp")
def reduction(trace, op, x, **_):
    rank = len(x.shape)
    axes = range(rank) if op.axis is None else np.atleast_1d(op.axis).tolist()
    axes = {axis % rank for axis in axes}
    mix(trace, x, axes, type(op).__name__)
    ids = x.ids
    if axes & set(x.varying):
        ids = np.full((1,) * rank, CONSTANT)
    if not op.keepdims:
        ids = ids.reshape([n for axis, n in enumerate(ids.shape) if axis not in axes])
    return Channels(ids, trace.shape)


register_rule("Argmax", "Argmin")(reduction)


# Shapes.


@register_rule("Reshape")
def reshape(trace, op, x):
    answer = reshape_to(trace, x)
    trace.call(lambda kept, op, x: ops.reshape(x, resized(op.newshape, answer, kept)))
    return answer


@register_rule("Transpose")
def transpose(trace, op, x):
    return Channels(np.transpose(x.ids, op.axes), trace.shape)


@register_rule("Swapaxes")
def swapaxes(trace, op, x):
    return Channels(np.swapaxes(x.ids, op.axis1, op.axis2), trace.shape)


@register_rule("Moveaxis")
def moveaxis(trace, op, x):
    return Channels(np.moveaxis(x.ids, op.source, op.destination), trace.shape)


@register_rule("ExpandDims")
def expand_dims(trace, op, x):
    axes = op.axis if isinstance(op.axis, (list, tuple)) else (op.axis,)
    return Channels(np.expand_dims(x.ids, tuple(axes)), trace.shape)


@register_rule("Squeeze")
def squeeze(trace, op, x):
    rank = len(x.shape)
    ones = [axis for axis in range(rank) if x.shape[axis] == 1]
    axes = {int(axis) % rank for axis in (ones if op.axis is None else np.atleast_1d(op.axis))}
    ids = x.ids.reshape([n for axis, n in enumerate(x.ids.shape) if axis not in axes])
    return Channels(ids, trace.shape)


@register_rule("Concatenate")
def concatenate(trace, op, xs):
    return concatenate_ids(trace, xs, op.axis)


@register_rule("Stack")
def stack(trace, op, xs):
    return trace.elementwise(*[Channels(np.expand_dims(x.ids, op.axis), trace.shape) for x in xs])


@register_rule("Pad")
def pad(trace, op, x, *_, **__):
    widths = np.broadcast_to(op.pad_width, (len(x.shape), 2))
    if any(widths[axis].any() for axis in x.varying):
        (axis,) = x.varying
        if op.mode != "constant":
            trace.freeze(x.ids, f"padded with each other by '{trace.record.name}'")
        edges = [(0, 0)] * len(x.shape)
        edges[axis] = tuple(widths[axis])
        return Channels(np.pad(x.ids, edges, constant_values=CONSTANT), trace.shape)
    return spread(trace, x)


@register_rule("BroadcastTo")
def broadcast_to(trace, op, x, *_):
    answer = Channels(
        x.ids.reshape((1,) * (len(trace.shape) - len(x.shape)) + x.ids.shape), trace.shape
    )
    trace.call(lambda kept, op, x: ops.broadcast_to(x, resized(op.shape, answer, kept)))
    return answer


def _positions(kept, ids, chosen):
    """Where the kept ones of `ids[chosen]` stand among the kept ones of `ids`."""
    mask = kept.mask(ids)
    return (np.cumsum(mask) - 1)[chosen[mask[chosen]]]


@register_rule("Split", "ArraySplit")
def split(trace, op, x):
    axis = op.axis % len(x.shape)
    if axis not in x.varying:
        return [Channels(x.ids, shape) for shape in trace.shapes]
    ids = x.ids.reshape(-1)
    points = np.cumsum([shape[axis] for shape in trace.shapes])[:-1]

    def resplit(kept, op, x):
        here = [int(kept.mask(ids[:point]).sum()) for point in points]
        return ops.split(x, here, axis=axis)

    trace.call(resplit)
    parts = np.split(ids, points)
    return [trace.channels(part, shape, axis) for part, shape in zip(parts, trace.shapes)]


@register_rule("Unstack")
def unstack(trace, op, x):
    axis = op.axis % len(x.shape)
    if axis in x.varying:
        trace.freeze(x.ids, f"unstacked by '{trace.record.name}'")
        return [Channels(np.full((1,) * len(s), CONSTANT), s) for s in trace.shapes]
    return [Channels(np.squeeze(x.ids, axis), shape) for shape in trace.shapes]


@register_rule("Take")
def take(trace, op, x, indices):
    rank = len(x.shape)
    axis = None if op.axis is None else op.axis % rank
    if isinstance(indices, Channels) or axis is None or np.ndim(indices) > 1:
        trace.freeze(x.ids, f"gathered by '{trace.record.name}'")
        return Channels(np.full((1,) * len(trace.shape), CONSTANT), trace.shape)
    chosen = np.asarray(indices)
    if axis not in x.varying:
        ids = x.ids if chosen.ndim else np.squeeze(x.ids, axis)
        return Channels(ids, trace.shape)
    ids = x.ids.reshape(-1)
    chosen = chosen % len(ids)
    if not chosen.ndim:
        trace.freeze(ids[chosen], f"picked by its number by '{trace.record.name}'")

    def gather(kept, op, x, indices):
        here = _positions(kept, ids, np.atleast_1d(chosen)).astype("int32")
        return ops.take(x, here if chosen.ndim else int(here[0]), axis=axis)

    trace.call(gather)
    if not chosen.ndim:
        return Channels(np.full((1,) * len(trace.shape), CONSTANT), trace.shape)
    return trace.channels(ids[chosen], trace.shape, axis)


@register_rule("Flip")
def flip(trace, op, x):
    return Channels(np.flip(x.ids, op.axis), trace.shape)


@register_rule("GetItem")
def getitem(trace, op, x, key):
    """Python slicing: the same slicing on the ids; slices along the channels are counted anew."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if not all(isinstance(k, (slice, int, type(None), type(...))) for k in keys):
        trace.freeze(x.ids, f"indexed by '{trace.record.name}'")
        return Channels(np.full((1,) * len(trace.shape), CONSTANT), trace.shape)
    if ... in keys:
        at = keys.index(...)
        missing = len(x.shape) - sum(k is not None and k is not ... for k in keys)
        keys[at : at + 1] = [slice(None)] * missing
    keys += [slice(None)] * (len(x.shape) - sum(k is not None for k in keys))
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
    single = isinstance(keys[place], int)
    if single:
        trace.freeze(along[chosen], f"picked by its number by '{trace.record.name}'")
        ids = np.full(ids.shape, CONSTANT)

    def sliced(kept, op, x, key):
        here = _positions(kept, along, chosen)
        rest = tuple(slice(None) if i == place and not single else k for i, k in enumerate(keys))
        if single:
            rest = tuple(int(here[0]) if i == place else k for i, k in enumerate(rest))
            return x[rest]
        if len(here) > 1 and (np.diff(here) != 1).any():
            return ops.take(x, here, axis=axis)[rest]
        start = int(here[0]) if len(here) else 0
        run = slice(start, start + len(here))
        return x[tuple(run if i == place else k for i, k in enumerate(rest))]

    trace.call(sliced)
    return Channels(ids, trace.shape)


# Products of two activations.


@register_rule("Matmul")
def matmul(trace, op, x1, x2):
    if not (isinstance(x1, Channels) and isinstance(x2, Channels)):
        x = x1 if isinstance(x1, Channels) else x2
        trace.freeze(x.ids, f"multiplied with a constant matrix by '{trace.record.name}'")
        contracted = np.shape(x2)[-2] if isinstance(x1, Channels) else np.shape(x1)[-1]
        trace.macs(size_of(trace.shape) * contracted)
        return Channels(np.full((1,) * len(trace.shape), CONSTANT), trace.shape)
    inner1, inner2 = len(x1.shape) - 1, len(x2.shape) - 2
    if (inner1 in x1.varying) != (inner2 in x2.varying):
        for x, axis in ((x1, inner1), (x2, inner2)):
            if axis in x.varying:
                trace.freeze(x.ids, f"multiplied with no channels by '{trace.record.name}'")
    sides = []
    contracted = x1.shape[inner1]
    if inner1 in x1.varying and inner2 in x2.varying:
        trace.unite(x1.ids, x2.ids)
        trace.record.contracts = True
        sides.append(x1.ids)
        contracted = 1
    # What is left of each operand: its batch axes and its outer axis.
    rank = len(trace.shape)
    left = [
        Channels(x.ids.reshape((1,) * (rank - x.ids.ndim) + x.ids.shape), trace.shape)
        for x, inner in ((x1, inner1), (x2, inner2))
        if x.varying and inner not in x.varying
    ]
    answer = trace.elementwise(*left)
    elements = size_of(trace.shape)
    for axis in answer.varying:
        elements /= trace.shape[axis]
        sides.append(answer.ids)
    trace.macs(elements * contracted, *sides)
    return answer
