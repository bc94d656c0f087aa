"""The registry of small networks, and what they are made of."""

import keras
import numpy as np
from keras import layers

NETS = {}


def net(build):
    NETS[build.__name__] = build
    return build


def conv(x, filters, size=3, **options):
    x = layers.Conv2D(filters, size, padding="same", **options)(x)
    return layers.ReLU()(layers.BatchNormalization()(x))


def image(channels=3, size=8):
    return keras.Input((size, size, channels))


def scramble(model, seed=0):
    """Random weights and statistics everywhere, so that no difference hides behind a zero."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "int" in str(variable.dtype):
            continue
        value = rng.normal(scale=0.5, size=variable.shape)
        if "variance" in variable.path:
            value = np.abs(value) + 0.5
        variable.assign(value)
    return model


def head(inputs, x):
    """The model whose last layer, of four channels, reads `x`."""
    return keras.Model(inputs, layers.Conv2D(4, 1)(x))
