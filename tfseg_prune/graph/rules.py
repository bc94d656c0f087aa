"""How channel ids pass through each layer type: one small function per type.

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

Raw `keras.ops` in the graph have their rules in `tfseg_prune.graph.op_rules`.
"""

import math

import keras
import numpy as np
from keras import activations, layers

from tfseg_prune.graph.ids import CONSTANT, Channels, reshape_ids, size_of

_RULES = {}


def register_rule(*types):
    """Decorator: teaches the channel graph one or more layer types.

    Args:
        *types: Layer classes (their subclasses included, unless these have a rule of their own),
            or the class name of a raw Keras operation such as `"Reshape"`.

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
    for cls in type(operation).__mro__:
        if cls in _RULES:
            return _RULES[cls]
    if not isinstance(operation, keras.layers.Layer):
        return _RULES.get(type(operation).__name__)
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


def channel_axis(layer):
    return 1 if getattr(layer, "data_format", None) == "channels_first" else -1


def activate(trace, activation, ids, name):
    """Freezes `ids` unless the activation is known to act on each number alone."""
    if activation is None or activation in _ELEMENTWISE:
        return
    if isinstance(activation, keras.layers.Layer) and find_rule(activation) is unary:
        return
    label = getattr(activation, "__name__", type(activation).__name__)
    trace.freeze(ids, f"mixed along the channel axis by the activation '{label}' of '{name}'")


def spread(trace, x, shape=None):
    """The same ids on another spatial size; ids along spatial axes are frozen."""
    shape = trace.shape if shape is None else shape
    axis = x.varying[0] if x.varying else len(x.shape) - 1
    ids = x.ids
    if x.varying and x.shape[axis] != shape[axis]:
        trace.freeze(ids, f"resized along the channels by '{trace.record.name}'")
        ids = np.full((1,) * len(shape), CONSTANT)
    return Channels(ids, shape)


def mix(trace, x, axes, what):
    """Freezes `x` where it has channels along `axes`, since `what` mixes them."""
    rank = len(x.shape)
    if any(axis % rank in x.varying for axis in axes):
        trace.freeze(x.ids, f"mixed along the channel axis by {what} '{trace.record.name}'")


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
        trace.macs(work / layer.groups, ins, outs)
        if layer.groups > 1:
            trace.balance(ins, layer.groups)
            trace.balance(outs, layer.groups)
    trace.weight(layer.bias, follows={0: outs})
    trace.config("filters", outs)
    activate(trace, layer.activation, outs, layer.name)
    return trace.channels(outs, trace.shape, axis)


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
def embedding(trace, layer, x):
    outs = trace.produce(layer.output_dim)
    trace.weight(layer.embeddings, writes={1: outs})
    trace.config("output_dim", outs)
    return trace.channels(outs, trace.shape)


# Normalisation.


@register_rule(layers.BatchNormalization)
def batch_normalization(trace, layer, x, **_):
    ids = trace.along(x, layer.axis, why=f"'{layer.name}' normalises another axis")
    trace.weight(layer.gamma, follows={0: ids})
    trace.weight(layer.beta, follows={0: ids})
    trace.weight(layer.moving_mean, follows={0: ids}, statistic=True)
    trace.weight(layer.moving_variance, follows={0: ids}, statistic=True)
    return x


@register_rule(
    layers.LayerNormalization, layers.RMSNormalization, layers.UnitNormalization, layers.Softmax
)
def normalization_over_axes(trace, layer, x, **_):
    axes = layer.axis if isinstance(layer.axis, (list, tuple)) else [layer.axis]
    mix(trace, x, axes, type(layer).__name__)
    return x


@register_rule(layers.GroupNormalization)
def group_normalization(trace, layer, x):
    mix(trace, x, [layer.axis], "GroupNormalization")
    return x


@register_rule(layers.Normalization)
def feature_normalization(trace, layer, x):
    trace.freeze(x.ids, f"normalised by the fixed statistics of '{layer.name}'")
    return x


@register_rule(layers.Rescaling)
def rescaling(trace, layer, x, **_):
    if np.size(layer.scale) > 1 or np.size(layer.offset) > 1:
        trace.freeze(x.ids, f"rescaled per channel by '{layer.name}'")
    return x


# Activations, noise, pooling, padding, resizing: ids pass through.


@register_rule(
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
    layers.Dropout,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.AlphaDropout,
    layers.ActivityRegularization,
    layers.Identity,
)
def unary(trace, layer, x, **_):
    return x


@register_rule(layers.Activation)
def activation_layer(trace, layer, x, **_):
    activate(trace, layer.activation, x.ids, layer.name)
    return x


@register_rule(layers.PReLU)
def prelu(trace, layer, x):
    # The slopes have the tensor's shape without the batch, of length 1 along shared axes.
    follows = {}
    for axis, size in enumerate(layer.alpha.shape):
        if size > 1 and axis + 1 in x.varying:
            follows[axis] = x.ids.reshape(-1)
    trace.weight(layer.alpha, follows=follows)
    return x


@register_rule(
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
    layers.Cropping1D,
    layers.Cropping2D,
    layers.Cropping3D,
    layers.Resizing,
    layers.CenterCrop,
)
def spatial(trace, layer, x, **_):
    return spread(trace, x)


@register_rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def global_pooling(trace, layer, x, **_):
    axis = channel_axis(layer)
    ids = trace.along(x, axis, why=f"'{layer.name}' pools along them")
    return trace.channels(ids, trace.shape, axis if layer.keepdims else -1)


# Merging and reshaping.


@register_rule(layers.Add, layers.Subtract, layers.Multiply, layers.Average)
@register_rule(layers.Maximum, layers.Minimum)
def merge(trace, layer, xs):
    return trace.elementwise(*xs)


def concatenate_ids(trace, xs, axis):
    """Channels of a concatenation along `axis`."""
    rank = len(trace.shape)
    axis %= rank
    varying = {a for x in xs for a in x.varying}
    if varying <= {axis} and any(x.has_channels for x in xs):
        parts = [np.broadcast_to(x.ids.reshape(-1), (x.shape[axis],)) for x in xs]
        return trace.channels(np.concatenate(parts), trace.shape, axis)
    # Along another axis than the channels: the parts share their channels.
    first = trace.elementwise(*[Channels(x.ids, trace.shape) for x in xs])
    return first


@register_rule(layers.Concatenate)
def concatenation(trace, layer, xs):
    return concatenate_ids(trace, xs, layer.axis)


def reshape_to(trace, x):
    """`Channels` of `x` in the shape that the operation answers."""
    answer = reshape_ids(x, trace.shape)
    if answer is None:
        trace.freeze(x.ids, f"reshaped together with an unknown size by '{trace.record.name}'")
        answer = Channels(np.full((1,) * len(trace.shape), CONSTANT), trace.shape)
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


@register_rule(layers.Flatten)
def flatten(trace, layer, x):
    return reshape_to(trace, x)


@register_rule(layers.Permute)
def permute(trace, layer, x):
    return Channels(np.transpose(x.ids, (0, *layer.dims)), trace.shape)


@register_rule(layers.RepeatVector)
def repeat_vector(trace, layer, x):
    return Channels(x.ids[:, None, :], trace.shape)


# Attention.


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(trace, layer, query, value, key=None, **_):
    """Heads stay; query and key share their channels within a head, value and projection theirs."""
    key = value if key is None else key
    why = f"'{layer.name}' attends over them"
    given = {"query": query, "key": key, "value": value, "gate": query}
    ins = {part: trace.along(x, -1, why=why) for part, x in given.items()}
    tokens = {part: size_of(x.shape[:-1]) for part, x in given.items()}
    heads, width = layer.num_heads, layer.key_dim
    key_ids = trace.produce(width, "key_dim")
    value_ids = trace.produce(layer.value_dim, "value_dim")
    inner = {"query": key_ids, "key": key_ids, "value": value_ids, "gate": value_ids}

    def rescale(kept):
        # The layer divides by the root of its own key_dim, which the surgery changes.
        return math.sqrt(kept.count(key_ids) / width)

    for part in ("query", "key", "value", "gate"):
        projection = getattr(layer, f"_{part}_dense", None)
        if projection is None:
            continue
        scale = rescale if part == "query" else None
        # Nothing but matrix products reads these channels: the twin zeroes them where they arise.
        trace.weight(projection.kernel, reads={0: ins[part], 2: inner[part]}, scale=scale)
        trace.weight(projection.bias, reads={1: inner[part]}, scale=scale)
        trace.macs(tokens[part] * heads, ins[part], inner[part])
    outs = trace.produce(trace.shape[-1])
    trace.weight(layer.output_dense.kernel, reads={1: value_ids}, writes={2: outs})
    trace.weight(layer.output_dense.bias, follows={0: outs})
    attended = math.prod(key.shape[axis] or math.nan for axis in layer._attention_axes)
    trace.macs(tokens["query"] * attended * heads, key_ids)
    trace.macs(tokens["query"] * attended * heads, value_ids)
    trace.macs(tokens["query"] * heads, value_ids, outs)
    trace.config("key_dim", key_ids)
    trace.config("value_dim", value_ids)
    # The default is "as wide as the query", which the query need not stay.
    trace.config("output_shape", lambda kept: (kept.count(outs),))
    answers = [trace.channels(outs, trace.shape)]
    answers += [Channels(np.full((1,) * len(s), CONSTANT), s) for s in trace.shapes[1:]]
    return answers
