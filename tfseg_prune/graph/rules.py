"""The registry of rules, what they share, and the rules of convolutions and dense layers.

How channel ids pass through a layer or operation is one small function per type.

A rule is `rule(trace, layer, *args, **kwargs) -> Channels`: it gets the `Channels` of the call's
tensors in place of the tensors, and tells `trace` (a `tfseg_prune.graph.trace.Trace`) which
weights and settings follow which ids and what the layer costs. Teach a layer of your own with

```python
@tfseg_prune.register_rule(MyScale)
def my_scale(trace, layer, x):
    ids = trace.along(x, -1, why="MyScale scales the last axis")
    trace.weight(layer.scale, follows={0: ids})
    return x
```

`layer_rules`, `norm_rules`, `shape_rules`, `pick_rules`, `product_rules` and `attention_rules`
beside this file hold those of the other layers, and `op_rules` those of raw `keras.ops`.
"""

import math

import keras
import numpy as np
from keras import activations, layers, ops

from tfseg_prune.graph.ids import CONSTANT, Channels, size_of

_RULES = {}


def register_rule(*types):
    """Decorator: teaches the channel graph one or more layer types.

    Args:
        *types: Layer classes (their subclasses included, unless these have a rule of their own);
            or the full name of one, `"package.module.Class"`, so that it needn't be imported; or
            the class name of a raw Keras operation such as `"Reshape"`.

    Raises:
        TypeError: If a type is neither a class nor a name.
    """
    for key in types:
        if not isinstance(key, (type, str)):
            raise TypeError(
                "A rule is registered for a layer class or the name of a Keras operation."
                f" Expected: `register_rule(MyLayer)`. Received: {key!r}"
            )

    def register(rule):
        for key in types:
            _RULES[key] = rule
        return rule

    return register


def find_rule(operation):
    """The rule of a layer or operation, or `None`."""
    kind = type(operation)
    for cls in kind.__mro__:
        rule = _RULES.get(cls) or _RULES.get(f"{cls.__module__}.{cls.__qualname__}")
        if rule is not None:
            return rule
    if kind.__module__.startswith("keras.") and not isinstance(operation, keras.layers.Layer):
        return _RULES.get(kind.__name__)
    return None


# What rules share.

# Activations that act on each number alone, so that channel ids pass through them.
_ELEMENTWISE = {
    getattr(activations, name)
    for name in (
        "celu elu exponential gelu hard_shrink hard_sigmoid hard_silu hard_tanh leaky_relu linear"
        " log_sigmoid mish relu relu6 selu sigmoid silu soft_shrink softplus softsign"
        " sparse_plus sparse_sigmoid squareplus tanh tanh_shrink threshold"
    ).split()
}


def channel_axis(operation):
    """Axis of the channels by `data_format`; -1 for what has none."""
    data_format = getattr(operation, "data_format", "channels_last")
    if data_format is None:
        data_format = keras.config.image_data_format()
    return 1 if data_format == "channels_first" else -1


def is_elementwise(activation):
    """Whether an activation is known to act on each number alone."""
    if isinstance(activation, keras.layers.Layer):
        return find_rule(activation) is unary
    return activation is None or activation in _ELEMENTWISE


def activate(trace, activation, ids, name):
    """Freezes `ids` unless the activation is known to act on each number alone."""
    if is_elementwise(activation):
        return
    label = getattr(activation, "__name__", type(activation).__name__)
    trace.freeze(ids, f"mixed along the channel axis by the activation '{label}' of '{name}'")


def unary(trace, operation, x, *_, **__):
    """Rule of whatever acts on each number alone."""
    return x


def spatial(trace, operation, x, *_, **__):
    """Rule of what changes the sizes of an image, each channel alone."""
    axis = channel_axis(operation) % len(x.shape)
    if x.varying and x.varying != [axis]:
        trace.freeze(x.ids, f"resized along the channels by '{trace.record.name}'")
        return no_channels(trace.shape)
    return Channels(x.ids, trace.shape)


def no_channels(shape):
    """`Channels` of a tensor that has none."""
    return Channels(np.full((1,) * len(shape), CONSTANT), tuple(shape))


def axes_of(x, axis):
    """Set of axes, counted from the front, of a setting that may be `None`, an int or several."""
    rank = len(x.shape)
    if axis is None:
        return set(range(rank))
    return {int(a) % rank for a in (axis if isinstance(axis, (list, tuple)) else (axis,))}


def mix(trace, x, axes, what):
    """Freezes `x` where it has channels along a set of axes, since `what` mixes them."""
    if not axes.isdisjoint(x.varying):
        trace.freeze(x.ids, f"mixed along the channel axis by {what} '{trace.record.name}'")


def cut_constants(trace, cuts, *, listed=False):
    """Has the operation called with its constants cut to what is kept.

    Args:
        trace: `Trace`.
        cuts: {position of the argument: {axis: ids along it}}.
        listed: Whether positions are those in a list, the operation's first argument.
    """
    cuts = {position: axes for position, axes in cuts.items() if axes}

    def cut(kept, op, *args, **kwargs):
        given = list(args[0] if listed else args)
        for position, axes in cuts.items():
            given[position] = _compressed(given[position], axes, kept)
        return op(given, *args[1:], **kwargs) if listed else op(*given, **kwargs)

    if cuts:
        trace.call(cut)


def combined(trace, xs, *, listed=False):
    """`Channels` of an elementwise operation on tensors and constants, which are cut."""
    answer = trace.elementwise(*xs)
    cuts = {}
    for position, x in enumerate(xs):
        if not isinstance(x, Channels) and len(answer.varying) == 1:
            axis = answer.varying[0] - (len(trace.shape) - np.ndim(x))
            if axis >= 0 and np.shape(x)[axis] > 1:
                cuts[position] = {axis: answer.ids.reshape(-1)}
    cut_constants(trace, cuts, listed=listed)
    return answer


def _compressed(constant, axes, kept):
    """A constant, of the type that it has, with what is kept along each axis."""
    if all(kept.mask(ids).all() for ids in axes.values()):
        return constant
    array = np.asarray(ops.convert_to_numpy(constant))
    for axis, ids in axes.items():
        array = array.compress(kept.mask(ids), axis=axis)
    return array.tolist() if isinstance(constant, (list, tuple)) else array


# Convolutions and dense layers.


@register_rule(layers.Conv1D, layers.Conv2D, layers.Conv3D)
def convolution(trace, layer, x):
    axis = channel_axis(layer)
    ins = trace.along(x, axis, why=f"'{layer.name}' convolves along them")
    work = size_of(trace.shape) / trace.shape[axis] * math.prod(layer.kernel_size)
    if 1 < layer.groups == len(ins):
        # One input channel per group: a depthwise convolution by another name.
        outs = np.repeat(ins, layer.filters // layer.groups)
        trace.weight(layer.kernel, follows={-1: outs})
        trace.config("groups", ins)
        trace.macs(work, outs)
    else:
        outs = trace.produce(layer.filters)
        trace.weight(layer.kernel, reads={-2: ins}, writes={-1: outs}, groups=layer.groups)
        trace.macs(work / layer.groups, ins, outs, groups=layer.groups)
        if layer.groups > 1:
            trace.balance(ins, layer.groups)
            trace.balance(outs, layer.groups)
    trace.weight(layer.bias, follows={0: outs})
    trace.config("filters", outs)
    activate(trace, layer.activation, outs, layer.name)
    return trace.channels(outs, trace.shape, axis)


@register_rule("tfseg_prune.layers.gradual_conv.GradualConv2D")
def gradual_convolution(trace, layer, x):
    """Dense still, with as many channels in each of its groups as in the others already."""
    answer = convolution(trace, layer, x)
    kernel = trace.record.slots[0]
    kernel.effective = layer.effective_kernel
    for ids, key in ((kernel.reads, "input_groups"), (kernel.writes, "output_groups")):
        (ids,) = ids.values()
        assigned = getattr(layer, key)
        if assigned is None:
            trace.balance(ids, layer.target_groups)
            continue
        assigned = np.asarray(assigned)
        trace.balance(ids[np.argsort(assigned, kind="stable")], layer.target_groups)
        trace.config(key, lambda kept, a=assigned, ids=ids: a[kept.mask(ids)].tolist())
    trace.weight(layer.alpha, statistic=True)
    return answer


@register_rule(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
def transposed_convolution(trace, layer, x, **_):
    axis = channel_axis(layer)
    ins = trace.along(x, axis, why=f"'{layer.name}' convolves along them")
    outs = trace.produce(layer.filters)
    trace.weight(layer.kernel, reads={-1: ins}, writes={-2: outs})
    trace.weight(layer.bias, follows={0: outs})
    trace.config("filters", outs)
    trace.macs(size_of(x.shape) / x.shape[axis] * math.prod(layer.kernel_size), ins, outs)
    activate(trace, layer.activation, outs, layer.name)
    return trace.channels(outs, trace.shape, axis)


@register_rule(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
def depthwise_convolution(trace, layer, x):
    axis = channel_axis(layer)
    ins = trace.along(x, axis, why=f"'{layer.name}' convolves along them")
    outs = np.repeat(ins, layer.depth_multiplier)
    trace.weight(layer.kernel, follows={-2: ins})
    trace.weight(layer.bias, follows={0: outs})
    trace.macs(size_of(trace.shape) / len(outs) * math.prod(layer.kernel_size), outs)
    activate(trace, layer.activation, outs, layer.name)
    return trace.channels(outs, trace.shape, axis)


@register_rule(layers.SeparableConv1D, layers.SeparableConv2D)
def separable_convolution(trace, layer, x):
    axis = channel_axis(layer)
    ins = trace.along(x, axis, why=f"'{layer.name}' convolves along them")
    middle = np.repeat(ins, layer.depth_multiplier)
    outs = trace.produce(layer.filters)
    trace.weight(layer.depthwise_kernel, follows={-2: ins})
    trace.weight(layer.pointwise_kernel, reads={-2: middle}, writes={-1: outs})
    trace.weight(layer.bias, follows={0: outs})
    trace.config("filters", outs)
    pixels = size_of(trace.shape) / trace.shape[axis]
    trace.macs(pixels * math.prod(layer.kernel_size), middle)
    trace.macs(pixels, middle, outs)
    activate(trace, layer.activation, outs, layer.name)
    return trace.channels(outs, trace.shape, axis)


@register_rule(layers.Dense)
def dense(trace, layer, x):
    pixels = size_of(trace.shape) / layer.units
    if x.varying and x.varying != [len(x.shape) - 1]:
        # It mixes tokens, not channels: the channels pass beside it.
        (axis,) = x.varying
        trace.macs(pixels / x.shape[axis] * x.shape[-1] * layer.units, x.ids)
        return Channels(x.ids, trace.shape)
    ins = trace.along(x, -1, why=f"'{layer.name}' reads them")
    outs = trace.produce(layer.units)
    trace.weight(layer.kernel, reads={0: ins}, writes={1: outs})
    trace.weight(layer.bias, follows={0: outs})
    trace.config("units", outs)
    trace.macs(pixels, ins, outs)
    activate(trace, layer.activation, outs, layer.name)
    return trace.channels(outs, trace.shape)


@register_rule(layers.Embedding)
def embedding(trace, layer, x, *_, **__):
    if x.varying:
        trace.freeze(x.ids, f"looked up by '{layer.name}'")
    outs = trace.produce(layer.output_dim)
    trace.weight(layer.embeddings, writes={1: outs})
    trace.config("output_dim", outs)
    return trace.channels(outs, trace.shape)


@register_rule(layers.ReversibleEmbedding)
def reversible_embedding(trace, layer, x, reverse=False, **_):
    if reverse:
        return trace.keep_whole("read backwards, from channels to words")
    answer = embedding(trace, layer, x)
    if not layer.tie_weights:
        trace.weight(layer.reverse_embeddings, follows={0: answer.ids.reshape(-1)})
    return answer
