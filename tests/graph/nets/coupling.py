"""Networks that couple channels: sums, concatenations, groups, shared layers, models in models."""

import keras
import numpy as np
from keras import layers, ops

from tests.graph.nets.base import conv, image, net


@net
def chain():
    i = image()
    return keras.Model(i, layers.Conv2D(4, 1)(conv(conv(i, 12), 16)))


@net
def residual():
    i = image()
    stem = conv(i, 12)
    x = layers.Add()([stem, conv(conv(stem, 8), 12)])
    x = layers.Add()([x, conv(conv(x, 8), 12)])
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def concatenation_with_batch_normalization_after_it():
    i = image()
    a, b = conv(i, 6), conv(i, 10)
    x = layers.BatchNormalization()(layers.Concatenate()([a, b, conv(b, 4)]))
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def inverted_residual():
    i = image()
    stem = conv(i, 8)
    x = conv(stem, 24, 1)
    x = layers.ReLU()(layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x)))
    x = layers.Add()([stem, layers.BatchNormalization()(layers.Conv2D(8, 1)(x))])
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def depth_multiplier_and_separable():
    i = image()
    x = layers.DepthwiseConv2D(3, depth_multiplier=2, padding="same")(conv(i, 6))
    x = layers.SeparableConv2D(10, 3, padding="same", depth_multiplier=3)(x)
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def transposed_convolution_with_skip():
    i = image()
    a = conv(i, 8)
    x = layers.Conv2DTranspose(8, 2, strides=2)(conv(a, 10, strides=2))
    x = layers.Concatenate()([a, layers.ReLU()(x)])
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def grouped_convolutions():
    i = image()
    x = conv(i, 16)
    x = conv(x, 24, groups=4)
    x = conv(x, 12, groups=2)
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def grouped_convolution_per_channel():
    i = image()
    x = layers.Conv2D(16, 3, padding="same", groups=8)(conv(i, 8))
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def squeeze_and_excite():
    i = image()
    x = conv(i, 12)
    s = layers.GlobalAveragePooling2D(keepdims=True)(x)
    s = layers.Conv2D(12, 1, activation="sigmoid")(layers.Conv2D(5, 1, activation="relu")(s))
    return keras.Model(i, layers.Conv2D(4, 1)(layers.Multiply()([x, s])))


@net
def spatial_gate():
    i = image()
    x = conv(i, 12)
    gate = layers.Conv2D(1, 1, activation="sigmoid")(x)
    return keras.Model(i, layers.Conv2D(4, 1)(x * gate))


@net
def shared_layer():
    i, j = image(), image()
    stem, head = layers.Conv2D(10, 3, padding="same"), layers.Conv2D(6, 1)
    a, b = stem(i), stem(j)
    return keras.Model([i, j], [layers.Conv2D(4, 1)(head(a) + head(b)), layers.Conv2D(2, 1)(a)])


@net
def shared_reader():
    i = image()
    a, b = conv(i, 10), conv(i, 10)
    reader = layers.Conv2D(6, 1)
    x = layers.Concatenate()([reader(a), reader(b)])
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def nested_models():
    inner_in = image(12)
    inner = keras.Model(inner_in, layers.Add()([inner_in, conv(conv(inner_in, 6), 12)]))
    middle_in = image(12)
    middle = keras.Model(middle_in, conv(inner(middle_in), 9))
    i = image()
    return keras.Model(i, layers.Conv2D(4, 1)(middle(conv(i, 12))))


@net
def nested_model_called_twice():
    inner_in = image(8)
    inner = keras.Model(inner_in, [conv(inner_in, 6), conv(inner_in, 8)])
    i = image()
    a, b = inner(conv(i, 8))
    c, d = inner(b)
    x = layers.Concatenate()([a, c, d])
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def nested_sequential():
    i = image()
    block = keras.Sequential([image(10), layers.Conv2D(8, 3), layers.PReLU(shared_axes=[1, 2])])
    return keras.Model(i, layers.Conv2D(4, 1)(block(conv(i, 10))))


@net
def sequential():
    return keras.Sequential(
        [image(), layers.Conv2D(8, 3), layers.LeakyReLU(), layers.Flatten(), layers.Dense(5)]
    )


@net
def flatten_and_dense():
    i = image()
    x = layers.Flatten()(layers.MaxPooling2D(4)(conv(i, 6)))
    return keras.Model(i, layers.Dense(3)(layers.Dense(10, activation="relu")(x)))


@net
def multi_head_attention():
    i = keras.Input((9, 6))
    x = layers.Dense(16)(i)
    y = layers.MultiHeadAttention(4, 6, value_dim=5)(x, x)
    return keras.Model(i, layers.Dense(3)(layers.Add()([x, y])))


@net
def attention_from_operations():
    i = image()
    x = conv(i, 12)

    def heads(t, width):
        t = layers.Reshape((64, 2, width))(t)
        return ops.transpose(t, (0, 2, 1, 3))

    q, k, v = heads(layers.Conv2D(8, 1)(x), 4), heads(layers.Conv2D(8, 1)(x), 4), None
    v = heads(layers.Conv2D(12, 1)(x), 6)
    scores = ops.softmax(ops.matmul(q, ops.transpose(k, (0, 1, 3, 2))), axis=-1)
    y = ops.transpose(ops.matmul(scores, v), (0, 2, 1, 3))
    y = layers.Conv2D(12, 1)(ops.reshape(y, (-1, 8, 8, 12)))
    return keras.Model(i, layers.Conv2D(4, 1)(x + y))


@net
def channel_shuffle_5d():
    i = image()
    x = conv(i, 12)
    x = ops.reshape(x, (-1, 8, 8, 3, 4))
    x = ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, 8, 8, 12))
    return keras.Model(i, layers.Conv2D(4, 1)(conv(x, 6)))


@net
def channel_shuffle_4d():
    i = image()
    x = layers.Permute((1, 3, 2))(layers.Reshape((64, 3, 4))(conv(i, 12)))
    return keras.Model(i, layers.Conv2D(4, 1)(layers.Reshape((8, 8, 12))(x)))


@net
def pixel_shuffle():
    i = image()
    x = ops.reshape(conv(i, 24), (-1, 8, 8, 2, 2, 6))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 16, 16, 6))
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def split_and_slices():
    i = image()
    x = conv(i, 16)
    a, b, c = ops.split(x, [4, 10], axis=-1)
    d = x[..., 2:12:2]
    e = ops.take(x, [3, 1, 7], axis=-1)
    x = ops.concatenate([a, conv(b, 5), c, d, e, x[:, :, :, -3:]], axis=-1)
    return keras.Model(i, layers.Conv2D(4, 1)(x[:, 1:, ::1, :]))


@net
def layer_normalization():
    i = image()
    x = layers.LayerNormalization()(conv(i, 10))
    x = conv(x, 8)
    return keras.Model(i, layers.Conv2D(4, 1)(layers.Softmax()(conv(x, 6))))


@net
def mean_over_channels():
    i = image()
    x = conv(i, 10)
    return keras.Model(i, layers.Conv2D(4, 1)(conv(x, 8) * ops.mean(x, axis=-1, keepdims=True)))


@net
def constants():
    i = image()
    x = conv(i, 10) * np.linspace(0.5, 1.5, 10).astype("float32") + 0.25
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def zero_padded_channels():
    i = image()
    a = conv(i, 6)
    x = ops.pad(a, ((0, 0), (0, 0), (0, 0), (1, 3))) + conv(a, 10)
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def shared_reader_of_channels_and_of_a_fixed_width():
    i = image()
    a = conv(i, 10)
    fixed = layers.Conv2D(10, 1)(i) * 1.0
    fixed = ops.reshape(ops.cumsum(ops.reshape(fixed, (-1,))), (-1, 8, 8, 10))
    reader = layers.Conv2D(6, 1)
    return keras.Model(i, layers.Conv2D(4, 1)(conv(reader(a) + reader(fixed), 8)))


@net
def sum_with_a_fixed_width():
    i = image()
    fixed = ops.reshape(ops.cumsum(ops.reshape(i, (-1,))), (-1, 8, 8, 3))
    x = conv(conv(i, 3) + fixed, 8)
    return keras.Model(i, layers.Conv2D(4, 1)(x))


@net
def token_mixing():
    i = image()
    x = layers.Reshape((64, 10))(conv(i, 10))
    y = layers.Permute((2, 1))(layers.Dense(64)(layers.Permute((2, 1))(x)))
    return keras.Model(i, layers.Dense(3)(layers.Add()([x, y])))


@net
def embedding():
    i = keras.Input((7,), dtype="int32")
    x = layers.GlobalAveragePooling1D()(layers.Embedding(11, 8)(i))
    return keras.Model(i, layers.Dense(3)(layers.Dense(6)(x)))


@net
def inner_layer_is_an_output():
    i = image()
    a = conv(i, 8)
    b = conv(a, 10)
    return keras.Model(i, {"logits": layers.Conv2D(4, 1)(conv(b, 6)), "features": b})


@net
def one_input_many_sizes():
    i = keras.Input((None, None, 3))
    x = conv(i, 8)
    y = layers.UpSampling2D(2, interpolation="bilinear")(conv(layers.AveragePooling2D(2)(x), 8))
    return keras.Model(i, layers.Conv2D(4, 1)(layers.Maximum()([x, y])))


@net
def models_in_models_in_models():
    inner_in = image(8)
    inner = keras.Model(inner_in, conv(conv(inner_in, 6), 8))
    middle_in = image(8)
    middle = keras.Model(middle_in, [inner(conv(inner(middle_in), 8)), conv(middle_in, 5)])
    outer_in = image(8)
    a, b = middle(outer_in)
    outer = keras.Model(outer_in, conv(a, 8) + middle(conv(b, 8))[0])
    i = image()
    return keras.Model(i, layers.Conv2D(4, 1)(outer(conv(outer(conv(i, 8)), 8))))


@net
def outputs_of_every_kind():
    """An input, one tensor twice, the answers of a nested model, and what others read on."""
    i, j = image(), image(5)
    inner_in = image(8)
    inner = keras.Model(inner_in, [conv(inner_in, 6), conv(inner_in, 7)])
    a, b = inner(conv(i, 8))
    x = layers.Concatenate()([conv(a, 9), layers.Conv2D(9, 1)(j), b])
    return keras.Model([i, j], [j, b, layers.Conv2D(4, 1)(x), b, conv(layers.Conv2D(5, 1)(b), 3)])


@net
def inputs_meet_features():
    i, j = image(6), image()
    x = layers.Concatenate()([i, conv(j, 7), j])
    return keras.Model([i, j], layers.Conv2D(4, 1)(conv(x, 8) + conv(conv(j, 6) * i, 8)))


@net
def one_convolution_on_three_tensors():
    i = image()
    stem = conv(i, 8)
    shared, normalization = layers.Conv2D(8, 3, padding="same"), layers.BatchNormalization()
    a = normalization(shared(stem))
    b = normalization(shared(layers.ReLU()(a)))
    return keras.Model(i, layers.Conv2D(4, 1)(layers.Concatenate()([a, b, shared(conv(i, 8))])))
