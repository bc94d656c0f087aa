"""A model of the same values without batch normalisation: its scale and shift in the convolutions.

The form in which a file computes, and so the one to train for integers in: what is quantised is the
product of a kernel and its normalisation's scale, which nobody sees while the two are apart.
"""

import keras
import numpy as np
from keras import layers

from tfseg_prune.deploy import flat
from tfseg_prune.graph.nodes import again, finish, rewire, tensors_in
from tfseg_prune.graph.rules import channel_axis

# {layer: axis of its kernel that counts the channels that it writes}
_KERNEL_AXES = {layers.Conv2D: (-1,), layers.Dense: (-1,), layers.Conv2DTranspose: (-2,)}
_KERNEL_AXES[layers.DepthwiseConv2D] = (-2, -1)


def folded(model):
    """A model that answers the same, its batch normalisations folded.

    A batch normalisation that alone reads a convolution goes into the kernel and the bias. Any
    other, and a Rescaling or Normalization of images, becomes a depthwise convolution of 1 x 1,
    which has an integer form with a scale of each channel's own. A separable convolution becomes a
    depthwise and a pointwise one, as a file has it.

    Args:
        model: functional `keras.Model`. It isn't changed; layers that stay are copied.

    Returns:
        A new functional `keras.Model`, of float32.

    Example:

    >>> images = keras.Input((8, 8, 3))
    >>> x = keras.layers.Conv2D(4, 3, use_bias=False, name="conv")(images)
    >>> model = folded(keras.Model(images, keras.layers.BatchNormalization()(x)))
    >>> [layer.name for layer in model.layers[1:]]
    ['conv']
    """
    calls, _, outputs = flat.flatten(model)
    times = {}
    for call in calls:
        times[id(call.operation)] = times.get(id(call.operation), 0) + 1
    producers = {number: call for call in calls for number in call.outputs}
    read = flat.readers(calls, outputs)
    merged, gone = {}, set()
    for call in calls:
        if type(call.operation) is not layers.BatchNormalization or times[id(call.operation)] > 1:
            continue
        source = producers.get(call.inputs[0])
        if source is not None and times[id(source.operation)] == 1:
            if len(read[call.inputs[0]]) == 1 and _fit(source.operation, call.operation):
                merged[id(source.operation)] = call.operation
                gone.add(id(call.operation))
    made = {}

    def call(operation, args, kwargs):
        if id(operation) in gone:
            return tensors_in((args, kwargs))[0]
        if id(operation) not in made:
            shape = tuple(tensors_in((args, kwargs))[0].shape)
            made[id(operation)] = _replaced(operation, merged.get(id(operation)), shape)
        own = made[id(operation)]
        if own is not operation and type(own) is not type(operation):
            return own(tensors_in((args, kwargs))[0])
        return own(*args, **kwargs)

    return rewire(model, call)


def _fit(layer, norm):
    """Whether a layer's kernel can take a batch normalisation."""
    if type(layer) not in _KERNEL_AXES or layer.activation is not keras.activations.linear:
        return False
    rank = len(next(iter(norm._build_shapes_dict.values())))
    own = rank - 1 if type(layer) is layers.Dense else channel_axis(layer) % rank
    return norm.axis % rank == own


def _replaced(operation, norm, shape):
    kind = type(operation)
    if norm is not None:
        scale, shift = _scale_and_shift(norm)
        return _with_kernel(operation, shape, scale, shift)
    if kind is layers.SeparableConv2D:
        return _separated(operation, shape)
    affine = _affine(operation, shape)
    if affine is not None:
        return _pointwise(operation, shape, *affine)
    if not isinstance(operation, layers.Layer):
        return operation
    if not operation.weights:
        return again(operation, {"name": operation.name})
    return _with_kernel(operation, shape, None, None)


def _with_kernel(layer, shape, scale, shift):
    """A copy of the layer, its answer scaled and shifted by channel unless these are `None`."""
    changes = {"name": layer.name} if scale is None else {"name": layer.name, "use_bias": True}
    new = again(layer, changes, blank=True)
    new.build(shape)
    weights = layer.get_weights()
    if scale is not None:
        axes = _KERNEL_AXES[type(layer)]
        kernel, *bias = weights
        sizes = [kernel.shape[axis] for axis in axes]
        ones = [1] * kernel.ndim
        for axis, size in zip(axes, sizes):
            ones[axis] = size
        own = bias[0] if bias else 0.0
        weights = [kernel * scale.reshape(ones), own * scale + shift]
    new.set_weights(weights)
    finish(layer, new)
    return new


def _scale_and_shift(norm):
    """`(a, b)` with `norm(x) = a x + b` in inference, float64 by channel."""
    mean, variance = (np.asarray(v, "float64") for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * np.asarray(norm.gamma)
    return scale, (np.asarray(norm.beta) if norm.center else 0.0) - mean * scale


def _affine(operation, shape):
    """`(scale, shift)` by channel of a layer that is only that, on images; else `None`."""
    if len(shape) != 4 or shape[-1] is None:
        return None
    if type(operation) is layers.BatchNormalization and operation.axis % 4 == 3:
        return _scale_and_shift(operation)
    if type(operation) is layers.Rescaling:
        found = np.asarray(operation.scale, "float64"), np.asarray(operation.offset, "float64")
    elif type(operation) is layers.Normalization and not operation.invert:
        mean, variance = (np.asarray(v, "float64") for v in (operation.mean, operation.variance))
        found = (1.0 / np.maximum(np.sqrt(variance), keras.config.epsilon()),)
        found = (*found, -mean * found[0])
    else:
        return None
    if any(value.size not in (1, shape[-1]) for value in found):
        return None
    return tuple(np.broadcast_to(value.ravel(), shape[-1:]) for value in found)


def _pointwise(operation, shape, scale, shift):
    layer = layers.DepthwiseConv2D(1, name=operation.name, depthwise_initializer="zeros")
    layer.build(shape)
    layer.set_weights([np.reshape(scale, layer.kernel.shape), shift])
    # A scale of images is no weight: nobody trained it.
    layer.trainable = type(operation) is layers.BatchNormalization and operation.trainable
    return layer


def _separated(conv, shape):
    settings = {"data_format": conv.data_format, "dtype": conv.dtype_policy}
    deep = layers.DepthwiseConv2D(
        conv.kernel_size,
        strides=conv.strides,
        padding=conv.padding,
        depth_multiplier=conv.depth_multiplier,
        dilation_rate=conv.dilation_rate,
        use_bias=False,
        name=f"{conv.name}_depthwise",
        **settings,
    )
    point = layers.Conv2D(
        conv.filters,
        1,
        use_bias=conv.use_bias,
        activation=conv.activation,
        name=conv.name,
        **settings,
    )
    deep.build(shape)
    point.build(deep.compute_output_shape(shape))
    first, *rest = conv.get_weights()
    deep.set_weights([first])
    point.set_weights(rest)
    return lambda x: point(deep(x))
