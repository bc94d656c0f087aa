"""Layers with weights, normalisation, activations and sizes. See `tests.graph.random_models`."""

import math

from tests.graph.random_models.drawing import move

_ELEMENTWISE = "relu relu6 silu gelu tanh sigmoid elu softplus hard_silu leaky_relu".split()
_OPERATIONS = _ELEMENTWISE + "abs sin erf square softsign negative hard_tanh".split()


def dimensional(d, i, name):
    """`Conv` + rank: Conv1D on tokens, Conv2D on maps."""
    return f"{name}{len(d.shape(i)) - 1}D"


def after(d, i):
    """What usually follows a convolution."""
    if d.chance(50):
        i = d.layer("BatchNormalization", i)
    return activate(d, i) if d.chance(60) else i


def activate(d, i):
    kind = d.rng.randrange(4)
    if kind == 0:
        return d.layer("ReLU", i)
    if kind == 1:
        return d.layer("Activation", i, activation=d.choice(*_ELEMENTWISE))
    if kind == 2:
        return d.op(d.choice(*_OPERATIONS), i)
    return prelu(d, i)


# Layers with a kernel.


@move(14, 2, 3, 4)
def convolution(d, i):
    *sizes, width = d.shape(i)
    if len(sizes) == 3 and max(sizes) > 8:
        return None
    kernel = d.choice(1, 1, 3, 3, 2)
    settings = {"filters": d.width(), "kernel_size": kernel}
    if len(sizes) == 2 and kernel == 3 and d.chance(25):
        settings["kernel_size"] = d.choice([1, 3], [3, 1])
    if min(sizes) < kernel or d.chance(75):
        settings["padding"] = "same"
    elif min(sizes) >= 7 and d.chance(30):
        settings["dilation_rate"] = 2
    if "dilation_rate" not in settings and min(sizes) >= 4 and d.chance(25):
        settings["strides"] = 2
    elif settings.get("padding") == "same" and len(sizes) < 3 and d.chance(15):
        settings["dilation_rate"] = d.choice(2, 3)
    if len(sizes) < 3 and d.chance(25):
        groups = d.divisor(width) if d.chance(70) else width
        settings |= {"groups": groups, "filters": groups * d.choice(1, 2, 3)}
    if d.chance(20):
        settings["activation"] = d.choice(*_ELEMENTWISE)
    if d.chance(40):
        settings["use_bias"] = False
    return after(d, d.layer(dimensional(d, i, "Conv"), i, **settings))


@move(4, 2, 3)
def depthwise(d, i):
    settings = {"kernel_size": d.choice(1, 3), "padding": "same"}
    if d.shape(i)[-1] <= 12:
        settings["depth_multiplier"] = d.choice(1, 1, 2, 3)
    if d.chance(20):
        settings["dilation_rate"] = 2
    elif min(d.shape(i)[:-1]) >= 4 and d.chance(25):
        settings["strides"] = 2
    return after(d, d.layer(dimensional(d, i, "DepthwiseConv"), i, **settings))


@move(3, 2, 3)
def separable(d, i):
    settings = {"filters": d.width(), "kernel_size": 3, "padding": "same"}
    settings |= {"depth_multiplier": d.choice(1, 1, 2), "use_bias": d.chance(50)}
    if d.chance(20):
        settings["dilation_rate"] = 2
    elif min(d.shape(i)[:-1]) >= 4 and d.chance(25):
        settings["strides"] = 2
    return after(d, d.layer(dimensional(d, i, "SeparableConv"), i, **settings))


@move(3, 2, 3)
def transposed(d, i):
    strides = d.choice(1, 2) if max(d.shape(i)[:-1]) <= 8 else 1
    settings = {"filters": d.width(), "kernel_size": d.choice(2, 3), "strides": strides}
    settings |= {"padding": d.choice("same", "valid"), "use_bias": d.chance(60)}
    return after(d, d.layer(dimensional(d, i, "Conv") + "Transpose", i, **settings))


@move(4, 1, 2, 3, 4)
def dense(d, i):
    return after(d, d.layer("Dense", i, units=d.width(), use_bias=d.chance(60)))


@move(2, 2, 3)
def einsum_dense(d, i):
    """Over the channels, over channels that become heads, or over places."""
    width, rank = d.width(), len(d.shape(i))
    letters = "bcd"[:rank]
    kind = d.rng.randrange(3)
    if kind == 0:
        equation, shape = f"{letters}x,xy->{letters}y", [*d.shape(i)[:-1], width]
    elif kind == 1:
        # Keras adds a bias `[heads, 1]` along axis 1 where that is as long (on TensorFlow).
        heads = 3 if d.shape(i)[0] == 2 else 2
        equation, shape = f"{letters}x,xyz->{letters}yz", [*d.shape(i)[:-1], heads, 4]
    else:
        equation, shape = f"{letters}x,cw->bw{letters[2:]}x", [width, *d.shape(i)[1:]]
    bias = d.choice(None, equation[-1] if kind < 2 else None, "yz" if kind == 1 else None)
    return d.layer("EinsumDense", i, equation=equation, output_shape=shape, bias_axes=bias)


@move(2, 2, 3)
def flatten_and_dense(d, i):
    while max(d.shape(i)[:-1]) > 4:
        i = d.layer(dimensional(d, i, "AveragePooling"), i, pool_size=2, padding="same")
    flat = (math.prod(d.shape(i)),)
    i = d.layer("Flatten", i) if d.chance(60) else d.reshape(i, flat)
    return d.layer("Dense", i, units=d.width(), activation="relu")


# Normalisation and activations.


@move(5, 1, 2, 3, 4)
def batch_normalization(d, i):
    axis = 1 if d.chance(8) else -1
    return d.layer("BatchNormalization", i, axis=axis, center=d.chance(80), scale=d.chance(80))


@move(3, 2, 3)
def normalization(d, i):
    """Normalisations that look along the channels, or at groups of them."""
    width = d.shape(i)[-1]
    kind = d.rng.randrange(6)
    if kind == 0:
        return d.layer("LayerNormalization", i, axis=d.choice([-1], [1]))
    if kind == 1:
        return d.layer("RMSNormalization", i)
    if kind == 2:
        return d.layer("UnitNormalization", i, axis=d.choice([-1], [1]))
    groups = d.choice(-1, 1, d.divisor(width), d.divisor(width))
    return d.layer("GroupNormalization", i, groups=groups)


@move(4, 1, 2, 3, 4)
def activation(d, i):
    return activate(d, i)


@move(2, 1, 2, 3)
def prelu(d, i):
    rank = len(d.shape(i))
    shared = list(range(1, rank)) if d.chance(70) else d.rng.choice([[], [rank], [1]])
    return d.layer("PReLU", i, shared_axes=shared or None)


@move(1, 2, 3)
def softmax(d, i):
    axis = d.choice(1, 1, 1, -1)
    return d.layer("Softmax", i, axis=axis) if d.chance(50) else d.op("softmax", i, axis=axis)


@move(1, 1, 2, 3)
def noise(d, i):
    names = ["Dropout", "GaussianDropout"]
    if len(d.shape(i)) == 3:
        names.append("SpatialDropout2D")
    return d.layer(d.choice(*names), i, rate=0.3)


# Sizes.


@move(4, 2, 3)
def pooling(d, i):
    if min(d.shape(i)[:-1]) < 2:
        return None
    kind = d.choice("Max", "Average")
    settings = {"pool_size": 2, "strides": d.choice(1, 2), "padding": d.choice("same", "valid")}
    if d.chance(20):
        return d.op(f"{kind.lower()}_pool", i, **settings)
    return d.layer(dimensional(d, i, kind + "Pooling"), i, **settings)


@move(2, 2, 3)
def global_pooling(d, i):
    name = dimensional(d, i, f"Global{d.choice('Max', 'Average')}Pooling")
    return d.layer(name, i, keepdims=d.chance(60))


@move(4, 3)
def image_pooling_branch(d, i):
    """Of ASPP and pyramid pooling: pooled, projected, brought back, concatenated."""
    pooled = d.layer("GlobalAveragePooling2D", i, keepdims=True)
    if d.chance(50) and min(d.shape(i)[:2]) >= 4:
        pooled = d.layer("AveragePooling2D", i, pool_size=d.choice(2, 4))
    pooled = after(d, d.layer("Conv2D", pooled, filters=d.width(), kernel_size=1))
    if d.shape(pooled)[:2] != d.shape(i)[:2]:
        pooled = d.to_size(pooled, d.shape(i))
    return d.layer("Concatenate", [i, pooled])


@move(3, 2, 3)
def upsampling(d, i):
    if max(d.shape(i)[:-1]) > 8:
        return None
    if len(d.shape(i)) == 2:
        return d.layer("UpSampling1D", i, size=2)
    return d.to_size(i, (*(2 * n for n in d.shape(i)[:2]), d.shape(i)[2]))


@move(2, 3)
def resizing(d, i):
    return d.to_size(i, (d.choice(4, 6, 8), d.choice(4, 8, 9), d.shape(i)[2]))


@move(2, 2, 3)
def pad_or_crop(d, i):
    places = len(d.shape(i)) - 1
    edges = [[d.rng.randrange(2), d.rng.randrange(3)] for _ in range(places)]
    if d.chance(50) and min(d.shape(i)[:-1]) > 4:
        name, key = "Cropping", "cropping"
    elif d.chance(50):
        name, key = "ZeroPadding", "padding"
    else:
        mode = d.choice("constant", "reflect" if min(d.shape(i)[:-1]) > 2 else "constant")
        return d.op("pad", i, pad_width=[[0, 0], *edges, [0, 0]], mode=mode)
    return d.layer(dimensional(d, i, name), i, **{key: edges if places > 1 else edges[0]})
