"""What ERFNet and its grouped family are built of.

Every function takes a symbolic tensor, the prefix of its layers' names and `norm(x, name)`, which
normalises a batch, and answers a symbolic tensor.
"""

from keras import layers

from tfseg_prune.layers.channel_shuffle import channel_shuffle

NON_BOTTLENECK = "Non-bt-1D"
SEPARABLE = "D"
# Block of the paper: (groups of its 1x1 convolutions, whether it shuffles).
SEPARABLE_BLOCKS = {
    SEPARABLE: (1, False),
    **{f"DG{groups}": (groups, False) for groups in (2, 4, 8)},
    **{f"DG{groups}S": (groups, True) for groups in (2, 4, 8)},
}
BLOCKS = (NON_BOTTLENECK, *SEPARABLE_BLOCKS)


def down(x, name, norm, filters):
    """Halves the size: a strided convolution beside a max-pooling of what came in."""
    conv = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    conv = layers.Conv2D(filters - x.shape[-1], 3, strides=2, name=f"{name}_conv")(conv)
    pool = layers.MaxPooling2D(name=f"{name}_pool")(x)
    x = layers.Concatenate(name=f"{name}_concat")([conv, pool])
    return layers.ReLU(name=f"{name}_relu")(norm(x, name))


def up(x, name, norm, filters, *, kernel=3):
    """Doubles the size by a transposed convolution; with a 1x1 kernel 3 of 4 pixels get the bias.

    The crop, were it of nothing, stands before the ReLU: LiteRT then folds the batch norm but can't
    fuse the ReLU, which would make it a TRANSPOSE_CONV version that GPU delegates refuse.
    """
    x = norm(layers.Conv2DTranspose(filters, kernel, strides=2, name=f"{name}_conv")(x), name)
    edge = (kernel // 2, 0)
    x = layers.Cropping2D((edge, edge), name=f"{name}_crop")(x)
    return layers.ReLU(name=f"{name}_relu")(x)


def bilinear_up(x, name, norm, filters):
    """A 1x1 convolution, then twice the size: the parameters and MACs of `up(kernel=1)`."""
    x = norm(layers.Conv2D(filters, 1, name=f"{name}_conv")(x), name)
    x = layers.ReLU(name=f"{name}_relu")(x)
    return layers.UpSampling2D(2, interpolation="bilinear", name=f"{name}_resize")(x)


def non_bottleneck(x, name, norm, dilation, dropout):
    """Non-bottleneck-1D: two pairs of 3x1 and 1x3 convolutions, the second pair dilated."""
    shortcut, filters = x, x.shape[-1]
    for pair, rate in ((1, 1), (2, dilation)):
        if pair == 2:
            x = layers.ReLU(name=f"{name}_relu1")(x)
        x = layers.Conv2D(
            filters,
            (3, 1),
            padding="same",
            dilation_rate=(rate, 1),
            activation="relu",
            name=f"{name}_conv{pair}_3x1",
        )(x)
        x = layers.Conv2D(
            filters,
            (1, 3),
            padding="same",
            dilation_rate=(1, rate),
            name=f"{name}_conv{pair}_1x3",
        )(x)
        x = norm(x, f"{name}_conv{pair}")
    return _residual(x, shortcut, name, dropout)


def separable(x, name, norm, dilation, dropout, *, groups=1, shuffle=None):
    """D and DG: two pairs of a 3x3 depthwise and a 1x1 convolution, the second pair dilated.

    The first 1x1 convolution has no ReLU. The dropout is that of the block that this one replaces;
    the paper's figure shows none.

    Args:
        x, name, norm: See above.
        dilation: int, of the second depthwise convolution.
        dropout: float, rate of the spatial dropout; 0 leaves it out.
        groups: int, of both 1x1 convolutions. Defaults to `1`.
        shuffle: int, groups of the channel shuffle after the first 1x1 convolution. Defaults to
            `None`, no shuffle.
    """
    shortcut, filters = x, x.shape[-1]
    for pair, rate in ((1, 1), (2, dilation)):
        x = layers.DepthwiseConv2D(
            3,
            padding="same",
            dilation_rate=rate,
            use_bias=False,
            name=f"{name}_conv{pair}_3x3",
        )(x)
        x = layers.ReLU(name=f"{name}_conv{pair}_relu")(norm(x, f"{name}_conv{pair}_3x3"))
        pointwise = f"{name}_conv{pair}_1x1"
        x = layers.Conv2D(filters, 1, groups=groups, use_bias=False, name=pointwise)(x)
        x = norm(x, f"{name}_conv{pair}")
        if pair == 1 and shuffle:
            x = channel_shuffle(x, shuffle, f"{name}_shuffle")
    return _residual(x, shortcut, name, dropout)


def _residual(x, shortcut, name, dropout):
    if dropout:
        x = layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(x)
    x = layers.Add(name=f"{name}_add")([x, shortcut])
    return layers.ReLU(name=f"{name}_relu2")(x)
