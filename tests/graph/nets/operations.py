"""Networks of raw `keras.ops` that compute: with constants, over axes, on images."""

import keras
import numpy as np
from keras import layers, ops

from tests.graph.nets.base import conv, head, image, net


def numbers(*shape):
    return np.linspace(0.5, 1.5, int(np.prod(shape))).astype("float32").reshape(shape)


@net
def constants_of_every_shape():
    i = image()
    x = 2.0 - conv(i, 6) / 3
    x = ops.divide(numbers(6), 1 + ops.exp(-x)) - numbers(8, 8, 6)
    x = ops.maximum(x, numbers(1, 8, 1)) * ops.power(2.0, numbers(1, 8, 8, 6))
    return head(i, ops.multiply(numbers(6), x))


@net
def constants_in_merging_layers():
    i = keras.Input(batch_shape=(1, 8, 8, 3))
    x = layers.Add()([conv(i, 6), numbers(1, 8, 8, 6), conv(i, 6)])
    return head(i, layers.Multiply()([x, numbers(1, 8, 8, 1)]))


@net
def one_channel_times_many_constants():
    i = image()
    x = conv(i, 1) * numbers(6)
    return head(i, conv(conv(x, 5), 8))


@net
def tensors_combined():
    i = image()
    a, b = conv(i, 8), conv(i, 8)
    x = (a - b) / (1.0 + ops.abs(b)) + ops.minimum(a, b) * ops.arctan2(a, 1.0 + ops.square(b))
    return head(i, ops.hypot(x, conv(i, 8)) - ops.logaddexp(a, b))


@net
def chosen_by_a_condition():
    i = image()
    a, b = conv(i, 8), conv(i, 8)
    x = ops.where(ops.greater(a, b), a, numbers(8))
    x = ops.where(ops.logical_and(x > 0.2, ops.isfinite(x)), x, ops.zeros_like(x))
    mask = ops.cast(ops.less_equal(conv(i, 1), 0.3), "float32")
    return head(i, x * mask + ops.where(ops.equal(a, b), 0.0, 1.0) * ops.full_like(b, 0.5))


@net
def activations_as_operations():
    i = image()
    x = ops.relu6(conv(i, 8)) + ops.silu(conv(i, 8)) * ops.hard_sigmoid(conv(i, 8))
    x = ops.clip(ops.leaky_relu(x), -1.0, 2.0) + ops.softplus(ops.tanh(x))
    return head(i, ops.sqrt(ops.abs(x) + 1.0) + ops.cast(ops.sign(x), "float32"))


@net
def sums_over_channels():
    i = image()
    x = conv(i, 8)
    total = ops.sum(conv(i, 6), axis=-1, keepdims=True)
    length = ops.norm(conv(i, 7), axis=-1, keepdims=True) + ops.norm(conv(i, 5), 1, -1, True)
    everything = ops.sum(conv(i, 4), axis=(1, 2, 3))[:, None, None, None]
    count = ops.sum(conv(i, 9) > 0.1, axis=-1, keepdims=True)
    return head(i, x * total + length * everything + ops.cast(count, "float32"))


@net
def means_over_everything():
    i = image()
    x = conv(i, 8)
    centred = x - ops.mean(x, axis=-1, keepdims=True)
    x = centred / (1.0 + ops.mean(ops.square(centred), axis=[1, 2, 3], keepdims=True))
    return head(i, x + ops.mean(conv(i, 8), axis=(1, 2), keepdims=True))


@net
def extremes_over_channels():
    i = image()
    x = conv(conv(i, 5), 8)
    gate = ops.max(x, axis=-1, keepdims=True) + ops.std(conv(i, 6), axis=-1, keepdims=True)
    return head(i, ops.logsumexp(conv(i, 7), axis=1, keepdims=True) * gate)


@net
def spread_over_space():
    i = image()
    x = ops.var(conv(i, 8), axis=[1, 2], keepdims=True) * ops.amax(
        conv(i, 8), axis=1, keepdims=True
    )
    x = layers.Softmax(axis=[1, 2])(conv(x + conv(i, 8), 6)) * ops.cumsum(conv(i, 6), axis=1)
    return head(i, x + ops.sort(conv(i, 6), axis=2) + ops.triu(conv(i, 6)) * 0.0)


@net
def along_the_channels():
    i = image()
    x = ops.softmax(conv(conv(i, 16), 5)) + ops.cumsum(conv(conv(i, 16), 5), axis=-1)
    values, _ = ops.top_k(conv(conv(i, 16), 6), 5)
    return head(i, conv(x * values, 5) + layers.Softmax(axis=[1, 3])(conv(conv(i, 16), 5)))


@net
def gated_linear_unit():
    i = image()
    x = ops.glu(conv(i, 12)) + ops.glu(conv(i, 6), axis=1)[:, :1]
    return head(i, x)


@net
def classes_as_numbers():
    i = image()
    x = ops.one_hot(ops.argmax(conv(conv(i, 6), 5), axis=-1), 7)
    return head(i, conv(x, 6) * ops.one_hot(ops.argmax(conv(i, 6), axis=1), 8, axis=1))


@net
def constant_kernels():
    i = image()
    x = ops.depthwise_conv(conv(i, 6), numbers(3, 3, 6, 2) - 1, padding="same")
    y = ops.conv(conv(i, 7), numbers(3, 3, 7, 5) - 1, padding="same")
    y = conv(y, 12)
    return head(i, x * y + ops.image.gaussian_blur(y))


@net
def images():
    i = image()
    x = ops.image.resize(conv(i, 8), (6, 10), antialias=True)
    x = ops.image.pad_images(x, top_padding=1, left_padding=2, target_height=9, target_width=13)
    x = ops.image.crop_images(
        conv(x, 6), top_cropping=2, left_cropping=1, target_height=7, target_width=8
    )
    x = ops.image.affine_transform(x, ops.ones_like(x[:, 0, 0, :1]) * numbers(8))
    x = ops.average_pool(ops.max_pool(x, 2, strides=1), 2)
    return head(i, ops.image.resize(x, (8, 8), interpolation="nearest"))


@net
def a_cast_to_half_and_back():
    i = image()
    x = ops.cast(ops.cast(conv(i, 8), "float16"), "float32") + layers.Activation(
        "relu", dtype="float16"
    )(conv(i, 8))
    return head(i, x)
