"""Networks of the rarer layers: normalisation, wrappers, those of keras.applications, 1-D, 3-D."""

import keras
import numpy as np
from keras import layers, ops
from keras.src.applications.convnext import LayerScale, StochasticDepth
from keras.src.applications.inception_resnet_v2 import CustomScaleLayer

from tests.graph.nets.base import conv, head, image, net


@net
def convnext_block():
    i = image()
    stem = conv(i, 8)
    x = layers.Conv2D(8, 7, padding="same", groups=8)(stem)
    x = layers.Dense(8)(layers.Activation("gelu")(layers.Dense(24)(x)))
    x = stem + StochasticDepth(0.2)(LayerScale(0.1, 8)(x))
    return head(i, x)


@net
def convnext_block_with_layer_normalization():
    i = image()
    stem = conv(conv(i, 12), 6)
    x = layers.LayerNormalization()(layers.Conv2D(6, 7, padding="same", groups=6)(stem))
    x = layers.Dense(6)(layers.Activation("gelu")(layers.Dense(40)(x)))
    return head(i, stem + LayerScale(0.1, 6)(x))


@net
def scaled_residual():
    i = image()
    x = conv(i, 10)
    return head(i, CustomScaleLayer(0.3)([x, conv(conv(x, 6), 10)]))


@net
def group_normalization():
    i = image()
    x = layers.GroupNormalization(4)(conv(i, 12))
    x = layers.GroupNormalization(-1, scale=False)(conv(x, 8))
    return head(i, x)


@net
def group_normalization_across_a_concatenation():
    """Two of its five groups hold channels of both layers or of a padding."""
    i = image()
    x = layers.Concatenate()([conv(conv(i, 9), 5), conv(i, 8)])
    x = ops.pad(x, ((0, 0), (0, 0), (0, 0), (0, 2)))
    return head(i, conv(layers.GroupNormalization(5)(x), 10))


@net
def one_group():
    i = image()
    return head(i, conv(layers.GroupNormalization(1)(conv(i, 6)), 8))


@net
def unit_normalization():
    i = image()
    x = layers.UnitNormalization()(conv(i, 10))
    x = layers.UnitNormalization(axis=[1, 2])(conv(x, 8))
    return head(i, ops.normalize(x, axis=-1, order=1))


@net
def rms_normalization():
    i = image()
    x = layers.RMSNormalization(epsilon=0.5)(conv(i, 10))
    x = layers.RMSNormalization(axis=[1, 3], epsilon=0.1)(conv(x, 8))
    x = ops.rms_normalization(conv(x, 6), epsilon=0.3)
    scale = np.linspace(1, 2, 7).astype("float32")
    x = ops.rms_normalization(conv(x, 7), scale=scale)
    return head(i, ops.rms_normalization(conv(x, 9), axis=(1, 2)))


@net
def normalization_of_other_axes():
    i = image()
    x = layers.LayerNormalization(axis=[1, 2])(conv(i, 8))
    x = ops.layer_normalization(conv(x, 9), axis=(1, 2))
    x = layers.BatchNormalization(axis=1)(x)
    x = layers.BatchNormalization(renorm=True)(conv(x, 6))
    return head(i, x)


@net
def normalization_of_all_channels():
    i = image()
    x = layers.LayerNormalization(axis=[1, 2, 3])(conv(conv(i, 9), 4))
    x = conv(ops.layer_normalization(conv(conv(x, 9), 4), axis=-1), 4)
    x = ops.concatenate(ops.moments(x, axes=[3], keepdims=True), axis=-1)
    return head(i, conv(x, 9))


@net
def batch_normalization_of_constants():
    i = image()
    numbers = [np.linspace(low, low + 1, 8).astype("float32") for low in range(1, 5)]
    x = conv(i, 8)
    x = ops.batch_normalization(x, *numbers[:2], axis=-1, offset=numbers[2], scale=numbers[3])
    return head(i, x)


@net
def spectral_normalization():
    i = image()
    x = layers.SpectralNormalization(layers.Conv2D(8, 3, padding="same"))(conv(i, 6))
    x = layers.SpectralNormalization(layers.Conv2DTranspose(7, 2, strides=2))(layers.ReLU()(x))
    return head(i, layers.SpectralNormalization(layers.Dense(5))(x))


@net
def every_step_alone():
    i = keras.Input((3, 8, 8, 3))
    x = layers.TimeDistributed(layers.Conv2D(8, 3, padding="same"))(i)
    x = layers.TimeDistributed(layers.BatchNormalization())(x)
    x = layers.TimeDistributed(layers.ReLU())(x)
    x = layers.TimeDistributed(layers.GlobalAveragePooling2D())(x)
    return keras.Model(i, layers.Dense(3)(layers.TimeDistributed(layers.Dense(6))(x)))


@net
def recurrent_layers():
    i = image()
    x = layers.Reshape((16, 6))(layers.MaxPooling2D(2)(conv(conv(i, 8), 6)))
    x = layers.LSTM(5, return_sequences=True)(x)
    return keras.Model(i, layers.Dense(3)(layers.Dense(7)(layers.Bidirectional(layers.GRU(4))(x))))


@net
def slopes_per_channel_and_pixel():
    i = image()
    x = layers.PReLU(shared_axes=[1, 2])(layers.Conv2D(8, 1)(i))
    x = layers.PReLU()(layers.Conv2D(6, 1)(x))
    return head(i, layers.PReLU(shared_axes=[3])(layers.Conv2D(7, 1)(x)))


@net
def rescaling_per_channel():
    i = image()
    x = layers.Rescaling([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], offset=0.5)(conv(i, 6))
    return head(i, layers.Rescaling(0.1, offset=list(range(8)))(conv(x, 8)))


@net
def paddings_and_crops():
    i = image()
    x = layers.Cropping2D(((1, 0), (2, 1)))(layers.ZeroPadding2D((2, 1))(conv(i, 8)))
    x = layers.CenterCrop(6, 6)(x)
    x = layers.Resizing(9, 7, pad_to_aspect_ratio=True)(conv(x, 7))
    return head(i, layers.Resizing(6, 8, crop_to_aspect_ratio=True, interpolation="nearest")(x))


@net
def adaptive_pooling():
    i = image()
    x = layers.AdaptiveAveragePooling2D(4)(conv(i, 8))
    return head(i, layers.AdaptiveMaxPooling2D(2)(conv(x, 6)))


@net
def augmentation_inside():
    i = image()
    x = conv(layers.RandomFlip()(i), 8)
    return head(i, conv(layers.RandomContrast(0.2)(conv(x, 6)), 5))


@net
def masked_steps():
    i = keras.Input((7, 5))
    x = layers.Dense(8)(layers.Masking()(layers.Dense(6)(layers.Dense(9)(i))))
    return keras.Model(i, layers.Dense(3)(layers.GlobalAveragePooling1D()(x)))


@net
def words_with_positions():
    words = keras.Input((7,), dtype="int32")
    x = layers.Embedding(11, 8, mask_zero=True)(words)
    x = x + layers.Embedding(7, 8)(ops.cumsum(ops.ones_like(words), axis=1) - 1)
    x = layers.GlobalAveragePooling1D()(
        layers.ReversibleEmbedding(9, 8, tie_weights=False)(words) * x
    )
    return keras.Model(words, layers.Dense(3)(x))


@net
def words_there_and_back():
    words = keras.Input((7,), dtype="int32")
    table = layers.ReversibleEmbedding(8, 8)
    x = layers.Dense(8)(layers.Dense(16)(layers.Dense(12)(table(words))))
    return keras.Model(words, table(x, reverse=True))


@net
def positions_of_an_image():
    """A table of positions as the constant that `Embedding` gives for known places."""
    i = image()
    x = layers.Reshape((64, 10))(conv(i, 10))
    table = layers.Embedding(64, 10, embeddings_initializer="normal")(np.arange(64))
    return keras.Model(i, layers.Dense(3)(x + ops.convert_to_numpy(table)))


@net
def one_dimension():
    i = keras.Input((16, 3))
    x = layers.PReLU(shared_axes=[1])(layers.Conv1D(8, 3, padding="same")(i))
    x = layers.DepthwiseConv1D(3, depth_multiplier=2)(layers.ZeroPadding1D(1)(x))
    x = layers.SeparableConv1D(9, 3)(layers.UpSampling1D(2)(layers.AveragePooling1D(2)(x)))
    x = layers.Conv1DTranspose(7, 2, strides=2)(layers.SpatialDropout1D(0.1)(x))
    x = layers.Concatenate(axis=1)([layers.Cropping1D(2)(x), x])
    return keras.Model(i, layers.Dense(3)(layers.GlobalMaxPooling1D()(x)))


@net
def three_dimensions():
    i = keras.Input((4, 4, 4, 2))
    x = layers.Conv3D(6, 3, padding="same")(i)
    x = layers.Conv3DTranspose(5, 2, strides=2)(layers.MaxPooling3D(2)(x))
    x = layers.Cropping3D(1)(layers.ZeroPadding3D(1)(layers.UpSampling3D(1)(x)))
    return keras.Model(i, layers.Dense(3)(layers.GlobalAveragePooling3D()(x)))


@net
def channels_first():
    """Wider than it has channels: Keras adds a bias along the width where both are equal."""
    i = keras.Input((3, 4, 32))
    options = {"data_format": "channels_first"}

    def block(x, filters):
        x = layers.Conv2D(filters, 3, padding="same", **options)(x)
        return layers.ReLU()(layers.BatchNormalization(axis=1)(x))

    a = layers.GroupNormalization(4, axis=1)(block(i, 8))
    b = layers.UpSampling2D(2, **options)(block(layers.AveragePooling2D(2, **options)(a), 6))
    x = layers.Concatenate(axis=1)([a, layers.PReLU(shared_axes=[2, 3])(b)])
    gate = layers.GlobalAveragePooling2D(keepdims=True, **options)(x)
    x = x * layers.Conv2D(14, 1, activation="sigmoid", **options)(gate)
    x = layers.ZeroPadding2D(1, **options)(layers.Resizing(4, 18, **options)(x))
    return keras.Model(i, layers.Dense(3)(layers.Flatten(**options)(block(x, 5))))
