"""Networks that move channels about: shuffles, slices, tiles, transpositions."""

import keras
import numpy as np
from keras import layers, ops

from tests.graph.nets.base import conv, head, image, net


@net
def channel_shuffle_between_grouped_convolutions():
    i = image()
    x = conv(conv(i, 12), 12, groups=3)
    x = layers.Permute((1, 3, 2))(layers.Reshape((64, 3, 4))(x))
    x = conv(layers.Reshape((8, 8, 12))(x), 12, groups=3)
    x = ops.transpose(ops.reshape(x, (-1, 8, 8, 3, 4)), (0, 1, 2, 4, 3))
    x = conv(ops.reshape(x, (-1, 8, 8, 12)), 8, groups=2)
    return head(i, x)


@net
def shufflenet_unit():
    i = image()
    x = conv(i, 12)
    left, right = ops.split(x, 2, axis=-1)
    right = conv(layers.DepthwiseConv2D(3, padding="same")(conv(right, 6, 1)), 6, 1)
    x = ops.stack([left, right], axis=-1)
    return head(i, ops.reshape(x, (-1, 8, 8, 12)))


@net
def depth_to_space():
    i = image()
    x = ops.nn.depth_to_space(conv(i, 24), 2)
    return head(i, layers.ReLU()(x) + conv(layers.UpSampling2D(2)(i), 6))


@net
def space_to_depth():
    i = image()
    a = conv(i, 5)
    x = conv(ops.nn.space_to_depth(a, 2), 7)
    return head(i, ops.concatenate([x, ops.image.extract_patches(a, 2)], axis=-1))


@net
def patches_by_reshape():
    i = image()
    x = ops.reshape(conv(i, 6), (-1, 2, 4, 2, 4, 6))
    x = ops.reshape(ops.transpose(x, (0, 1, 3, 2, 4, 5)), (-1, 4, 96))
    return keras.Model(i, layers.Dense(3)(layers.Dense(8)(x)))


@net
def windows_and_back():
    i = image()
    x = ops.transpose(ops.reshape(conv(i, 6), (-1, 2, 4, 2, 4, 6)), (0, 1, 3, 2, 4, 5))
    x = layers.Dense(6)(ops.reshape(x, (-1, 16, 6)))
    x = ops.transpose(ops.reshape(x, (-1, 2, 2, 4, 4, 6)), (0, 1, 3, 2, 4, 5))
    return head(i, ops.reshape(x, (-1, 8, 8, 6)))


@net
def rearranged():
    i = keras.Input(batch_shape=(2, 8, 8, 3))
    x = ops.rearrange(conv(i, 12), "b h w (g c) -> b (h w) c g", g=3)
    x = ops.rearrange(x, "b (h w) c g -> b h w (c g)", h=8)
    return head(i, conv(x, 6))


@net
def a_reshape_with_an_inferred_width():
    i = image()
    x = ops.reshape(layers.Reshape((64, -1))(conv(i, 6)), (-1, 8, 8, 6))
    gate = layers.Reshape((1, 1, -1))(layers.GlobalAveragePooling2D()(x))
    return head(i, x * layers.Conv2D(6, 1)(gate))


@net
def tiles_and_repeats():
    i = image()
    x = ops.tile(conv(i, 4), (1, 1, 1, 3))
    y = ops.repeat(conv(i, 4), 3, axis=-1)
    z = ops.tile(ops.repeat(conv(i, 12), 2, axis=1)[:, :8], (1, 1, 1, 1))
    return head(i, conv(x, 5) + conv(y + z, 5))


@net
def padded_and_cropped_by_layers():
    """As ports of ENet pad channels: among the places, for which there is a layer."""
    i = image()
    x = layers.Permute((1, 3, 2))(conv(i, 5))
    x = layers.ZeroPadding2D(((1, 0), (0, 3)))(x)
    x = layers.Permute((1, 3, 2))(x)[:, 1:]
    x = x + conv(i, 8)
    y = layers.Cropping2D(((0, 0), (2, 1)))(layers.Permute((1, 3, 2))(conv(i, 9)))
    y = layers.Cropping2D(1)(layers.Permute((1, 3, 2))(y))
    z = layers.Cropping1D((1, 2))(layers.Permute((2, 1))(layers.Reshape((64, 9))(conv(i, 9))))
    z = layers.Reshape((8, 8, 6))(layers.Permute((2, 1))(layers.ZeroPadding1D(0)(z)))
    return head(i, ops.concatenate([x, layers.ZeroPadding2D(1)(y), z], axis=-1))


@net
def joined_with_constants():
    """A constant beside channels stays; of one that lies along them the dropped ones go."""
    i = keras.Input(batch_shape=(1, 8, 8, 3))
    ones = np.ones((1, 8, 8, 2), "float32")
    x = conv(ops.concatenate([conv(i, 6), ones, conv(i, 3)], axis=-1), 7)
    x = conv(ops.append(x, ones, axis=-1), 8)
    plane = np.linspace(-1, 1, 512).astype("float32").reshape(1, 8, 8, 8)
    x = ops.concatenate([plane[:, :1], x[:, 1:]], axis=1)
    x = ops.append(x[:, :, 1:], plane[:, :, :1], axis=2)
    x = ops.hstack([x[:, 1:], plane[:, :1]]) + ops.vstack([x, plane])[1:, ...]
    return head(i, ops.sum(ops.stack([x, plane], axis=-2), axis=-2))


@net
def one_channel_many_times():
    """Copies follow the channels that they meet; where they meet none they stay."""
    i = image()
    x = ops.tile(conv(i, 1), (1, 1, 1, 8)) + conv(i, 8)
    gate = ops.repeat(ops.repeat(conv(i, 1)[:, ::2], 2, axis=1), 6, axis=-1)
    x = conv(x, 6) * gate + ops.tile(ops.mean(x, axis=[1, 2, 3], keepdims=True), (1, 8, 8, 6))
    return head(i, ops.concatenate([conv(x, 5), ops.repeat(conv(i, 1), 3, axis=-1)], axis=-1))


@net
def pooled_to_a_fixed_width():
    """What is as wide as its neighbour without having its channels stays as wide."""
    i = image()
    wide = ops.concatenate([ops.max(i, axis=-1, keepdims=True)] * 8, axis=-1)
    return head(i, conv(conv(wide + conv(i, 8), 6), 5))


@net
def unequal_repeats():
    i = image()
    return head(i, conv(ops.repeat(conv(i, 4), [1, 2, 3, 1], axis=-1), 6))


@net
def turned_and_rolled():
    i = image()
    x = ops.roll(ops.flip(conv(i, 8), axis=-1), 3, axis=-1) + conv(i, 8)
    x = ops.rot90(ops.roll(conv(x, 6), (1, 2), axis=(1, 2)), axes=(1, 2))
    x = ops.rot90(conv(x, 8), axes=(1, 3)) + ops.transpose(conv(i, 8), (0, 3, 2, 1))
    return head(i, ops.swapaxes(ops.moveaxis(x, 1, 2), 2, 3))


@net
def slices():
    i = image()
    x = conv(i, 12)
    a = x[..., ::-1][:, ::2, 1:3, np.int64(2) :]
    b = x[:, ::2, 1:3, None, -9:11:2][:, :, :, 0]
    c = ops.slice(x, (0, 2, 3, 0), (2, 4, 2, 12))
    return keras.Model(i, [layers.Conv2D(4, 1)(y) for y in (a, b, c)])


@net
def picked_channels():
    i = image()
    x = conv(i, 12)
    y = conv(i, 6)
    one = ops.expand_dims(x[..., 3], -1) + x[..., -2:-1] * ops.take(y, 2, axis=-1)[..., None]
    return head(i, one * ops.take(x, [0, 5, 5, -1], axis=-1))


@net
def gathers():
    i = image()
    x = conv(i, 8)
    a = ops.take(x, [[0, 2], [1, 3]], axis=1)[:, 0]
    b = ops.take_along_axis(x, ops.argsort(conv(i, 8), axis=1), axis=1)[:, :2]
    order = np.arange(7, -1, -1).reshape(1, 8, 1, 1)
    c = ops.take_along_axis(conv(i, 8), order, axis=1)[:, :2]
    d = conv(ops.take(conv(i, 4), [[0, 1], [2, 3]], axis=-1)[..., 0], 3)[:, :2]
    return head(i, ops.concatenate([a + b, c, d], axis=-1))


@net
def unstacked():
    i = image()
    x = conv(i, 6)
    rows = ops.unstack(conv(x, 8), axis=1)
    columns = ops.unstack(conv(conv(x, 5), 2), axis=-1)
    x = ops.stack(rows[:4], axis=1)
    return head(i, x * ops.expand_dims(columns[0] + columns[1], -1)[:, :4])


@net
def a_part_that_nobody_reads():
    i = image()
    a, _, c = ops.split(conv(i, 9), 3, axis=-1)
    return head(i, ops.concatenate([a, conv(c, 4)], axis=-1))


@net
def a_small_part_with_a_reader_of_its_own():
    i = image()
    a, b = ops.split(conv(i, 9), [2], axis=-1)
    a = layers.BatchNormalization()(a)
    return head(i, layers.Concatenate()([a, conv(b, 5), a[..., 1:]]))


@net
def joined_along_other_axes():
    i = image()
    a, b, c = conv(i, 6), conv(i, 6), conv(i, 6)
    x = ops.concatenate([ops.hstack([a, b]), ops.append(c, c, axis=1)], axis=2)
    return head(i, ops.dstack([conv(x, 5), conv(x, 5)]))


@net
def a_token_joined_to_others():
    i = image()
    x = layers.Reshape((64, 8))(conv(i, 8))
    token = layers.Reshape((1, 8))(layers.Dense(8)(layers.GlobalAveragePooling2D()(conv(i, 5))))
    x = layers.Dense(8)(ops.concatenate([token, x], axis=1)) + ops.concatenate([x, token], axis=1)
    return keras.Model(i, layers.Dense(3)(x[:, 0]))


@net
def padded_in_several_ways():
    i = image()
    x = ops.pad(conv(i, 6), ((0, 0), (1, 1), (2, 0), (0, 0)), mode="reflect")
    y = ops.pad(conv(i, 6), ((0, 0), (1, 1), (2, 0), (1, 1)), constant_values=0.5)
    z = ops.pad(conv(conv(i, 5), 6), ((0, 0), (1, 1), (2, 0), (1, 1)), mode="symmetric")
    return head(i, ops.concatenate([x, y, z], axis=-1))


@net
def broadcast():
    i = keras.Input(batch_shape=(2, 8, 8, 3))
    x = layers.Reshape((1, 6))(layers.GlobalAveragePooling2D()(conv(i, 6)))
    x = ops.broadcast_to(ops.expand_dims(x, 1), (2, 8, 8, 6)) * conv(i, 6)
    y = layers.RepeatVector(64)(layers.GlobalMaxPooling2D()(conv(x, 5)))
    return head(i, layers.Reshape((8, 8, 5))(y))


@net
def squeezed():
    i = image()
    x = layers.GlobalAveragePooling2D(keepdims=True)(conv(i, 8))
    x = ops.expand_dims(ops.squeeze(ops.squeeze(x, axis=1), 1), (1, 2))
    return head(i, conv(i, 8) * layers.Activation("sigmoid")(x))


@net
def blocks_of_pixels_with_channels_first():
    i = image()
    x = ops.transpose(conv(conv(i, 6), 8), (0, 3, 1, 2))
    x = ops.nn.depth_to_space(x, 2, data_format="channels_first")
    x = ops.nn.space_to_depth(x, 4, data_format="channels_first")
    return head(i, conv(ops.transpose(x, (0, 2, 3, 1)), 5))
