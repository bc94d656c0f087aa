"""How channel ids pass through activations, noise, pooling, resizing, merging and wrappers."""

import math

import keras
import numpy as np
from keras import layers

from tfseg_prune.graph.ids import Channels, size_of
from tfseg_prune.graph.rules import (
    activate,
    axes_of,
    channel_axis,
    combined,
    find_rule,
    mix,
    register_rule,
    spatial,
    unary,
)

# Stochastic depth leaves out whole images and is nothing at inference.
register_rule(
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
    "keras.src.legacy.layers.ThresholdedReLU",
    "keras.src.applications.convnext.StochasticDepth",
    "keras_hub.src.models.mit.mit_layers.DropPath",
)(unary)

register_rule(
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
    layers.AveragePooling1D,
    layers.AveragePooling2D,
    layers.AveragePooling3D,
    layers.AdaptiveMaxPooling1D,
    layers.AdaptiveMaxPooling2D,
    layers.AdaptiveMaxPooling3D,
    layers.AdaptiveAveragePooling1D,
    layers.AdaptiveAveragePooling2D,
    layers.AdaptiveAveragePooling3D,
    layers.UpSampling1D,
    layers.UpSampling2D,
    layers.UpSampling3D,
    layers.Resizing,
    layers.CenterCrop,
)(spatial)


@register_rule(layers.Activation)
def activation_layer(trace, layer, x, *_, **__):
    activate(trace, layer.activation, x.ids, layer.name)
    return x


@register_rule(layers.Softmax)
def softmax(trace, layer, x, *_, **__):
    mix(trace, x, axes_of(x, layer.axis), "Softmax")
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


@register_rule("keras.src.applications.convnext.LayerScale")
def layer_scale(trace, layer, x):
    ids = trace.along(x, -1, why=f"'{layer.name}' scales the last axis")
    trace.weight(layer.gamma, follows={0: ids})
    trace.config("projection_dim", ids)
    return x


@register_rule("keras_hub.src.layers.modeling.position_embedding.PositionEmbedding")
def position_embedding(trace, layer, x, *_, **__):
    """A table as wide as what it is added to."""
    ids = trace.along(x, -1, why=f"'{layer.name}' has a table for the last axis")
    trace.weight(layer.position_embeddings, follows={1: ids})
    return trace.channels(ids, trace.shape)


@register_rule(
    layers.GlobalAveragePooling1D,
    layers.GlobalAveragePooling2D,
    layers.GlobalAveragePooling3D,
    layers.GlobalMaxPooling1D,
    layers.GlobalMaxPooling2D,
    layers.GlobalMaxPooling3D,
)
def global_pooling(trace, layer, x, *_, **__):
    axis = channel_axis(layer)
    ids = trace.along(x, axis, why=f"'{layer.name}' pools along them")
    return trace.channels(ids, trace.shape, axis if layer.keepdims else -1)


@register_rule(
    layers.Add,
    layers.Subtract,
    layers.Multiply,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
    "keras.src.applications.inception_resnet_v2.CustomScaleLayer",
)
def merge(trace, layer, xs):
    return combined(trace, xs, listed=True)


@register_rule(
    "keras.src.layers.preprocessing.image_preprocessing.base_image_preprocessing_layer"
    ".BaseImagePreprocessingLayer"
)
def image_preprocessing(trace, layer, x, *_, **__):
    return trace.keep_whole("which was made for images, not for features")


@register_rule(layers.Masking)
def masking(trace, layer, x, *_, **__):
    trace.freeze(x.ids, f"looked at all together by '{layer.name}', which masks steps by them")
    return x


@register_rule(layers.RNN, layers.Bidirectional)
def recurrent(trace, layer, x, *_, **__):
    """Every kernel is used at every step, that of a `ConvLSTM2D` at every pixel of its answer."""
    kernels = [weight for weight in layer.weights if weight.ndim > 1]
    sides = kernels[0].ndim - 2
    last = len(trace.shape) - (channel_axis(getattr(layer, "cell", layer)) == -1)
    pixels = size_of((None, *trace.shape[last - sides : last]))
    trace.macs(
        (x.shape[1] or math.nan) * pixels * sum(math.prod(kernel.shape) for kernel in kernels)
    )
    return trace.keep_whole("whose steps share one state")


# Wrappers: the rule of the layer inside, on the tensor that it gets.


@register_rule(layers.TimeDistributed)
def time_distributed(trace, layer, x, *_, **__):
    if 1 in x.varying:
        trace.freeze(x.ids, f"taken step by step by '{layer.name}'")
        x = Channels(x.ids[:, :1], x.shape)
    step = Channels(x.ids[:, 0], (x.shape[0], *x.shape[2:]))
    shape = (trace.shape[0], *trace.shape[2:])
    answer = _inner(trace, layer, step, shape, times=x.shape[1])
    if answer is None:
        return trace.keep_whole(f"around a {type(layer.layer).__name__}")
    return Channels(answer.ids[:, None], trace.shape)


@register_rule(layers.SpectralNormalization)
def spectral_normalization(trace, layer, x, *_, **__):
    answer = _inner(trace, layer, x, trace.shape, times=1)
    if answer is None:
        return trace.keep_whole(f"around a {type(layer.layer).__name__}")
    for slot in trace.record.slots:
        if slot.variable is layer.kernel:
            # Follows the kernel's last axis, and is used in training only.
            last = slot.axes.get(layer.kernel.ndim - 1)
            trace.weight(layer.vector_u, follows={} if last is None else {1: last}, statistic=True)
            break
    return answer


def _inner(trace, wrapper, x, shape, times):
    """Runs the rule of the layer in a wrapper; `None` where that says too little."""
    inner, record = wrapper.layer, trace.record
    rule = find_rule(inner)
    if rule is None or isinstance(inner, (keras.Model, layers.Wrapper)):
        return None
    config, macs, shapes = record.config, record.macs, trace.shapes
    record.config, record.macs, trace.shapes = {}, [], (shape,)
    answer = rule(trace, inner, x)
    changes, record.config, trace.shapes = record.config, config, shapes
    for product in record.macs:
        macs.append(type(product)(product.coefficient * (times or np.nan), product.sides))
    record.macs = macs
    trace.config("layer", lambda kept: _changed(inner, changes, kept))
    usable = isinstance(answer, Channels) and record.call is None
    record.call = None
    return answer if usable else None


def _changed(layer, changes, kept):
    """The serialised layer with these entries of its config changed, not built yet."""
    serialised = keras.saving.serialize_keras_object(layer)
    new = {key: value(kept) for key, value in changes.items()}
    return {**serialised, "config": {**serialised["config"], **new}, "build_config": None}
