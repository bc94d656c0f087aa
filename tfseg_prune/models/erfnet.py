"""ERFNet: factorised residual blocks at 1/8 resolution."""

import keras
from keras import layers

from tfseg_prune.models import arguments

# Blocks of the encoder: ("down", filters) or ("block", dilation, dropout).
ENCODER = (
    ("down", 16),
    ("down", 64),
    *[("block", 1, 0.03)] * 5,
    ("down", 128),
    *[("block", dilation, 0.3) for dilation in (2, 4, 8, 16)] * 2,
)
DECODER = (
    ("up", 64),
    *[("block", 1, 0.0)] * 2,
    ("up", 16),
    *[("block", 1, 0.0)] * 2,
)


def erfnet(num_classes, input_shape, *, bn_momentum=0.9, name="erfnet"):
    """ERFNet without the encoder's own classifier.

    Strided convolutions are padded and cropped as torch does, so that torch's weights are exact.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, height and width divisible by 8.
        bn_momentum: float in [0, 1), momentum of all batch norms. Defaults to `0.9`.
        name: str, name of the model. Defaults to `"erfnet"`.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]` in [0, 255] to logits
        `[batch, height, width, num_classes]`.

    Raises:
        ValueError: if an argument is invalid.

    Example:

    >>> model = erfnet(11, (360, 480, 3))
    >>> model.output_shape
    (None, 360, 480, 11)
    """
    arguments.check_count("num_classes", num_classes)
    arguments.check_image_shape(input_shape, at_least=8, multiple_of=8)
    arguments.check_fraction("bn_momentum", bn_momentum)

    def norm(x, name):
        return layers.BatchNormalization(
            momentum=bn_momentum, epsilon=1e-3, name=f"{name}_BN"
        )(x)

    def down(x, name, filters):
        """Halves the size: a strided convolution beside a max-pooling of what came in."""
        conv = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
        conv = layers.Conv2D(filters - x.shape[-1], 3, strides=2, name=f"{name}_conv")(conv)
        pool = layers.MaxPooling2D(name=f"{name}_pool")(x)
        x = layers.Concatenate(name=f"{name}_concat")([conv, pool])
        return layers.ReLU(name=f"{name}_relu")(norm(x, name))

    def up(x, name, filters):
        """Doubles the size by a transposed convolution.

        The crop stands before the ReLU: LiteRT then folds the batch norm but can't fuse the ReLU,
        which would make it a TRANSPOSE_CONV version that GPU delegates refuse.
        """
        x = norm(layers.Conv2DTranspose(filters, 3, strides=2, name=f"{name}_conv")(x), name)
        x = layers.Cropping2D(((1, 0), (1, 0)), name=f"{name}_crop")(x)
        return layers.ReLU(name=f"{name}_relu")(x)

    def block(x, name, dilation, dropout):
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
        if dropout:
            x = layers.SpatialDropout2D(dropout, name=f"{name}_dropout")(x)
        x = layers.Add(name=f"{name}_add")([x, shortcut])
        return layers.ReLU(name=f"{name}_relu2")(x)

    kinds = {"down": down, "up": up, "block": block}
    images, x = arguments.image_input(input_shape)
    for part, table in (("backbone", ENCODER), ("decoder", DECODER)):
        for i, (kind, *options) in enumerate(table):
            x = kinds[kind](x, f"{part}_{i + 1}_{kind}", *options)
    logits = layers.Conv2DTranspose(num_classes, 2, strides=2, name="decoder_logits")(x)
    return keras.Model(images, logits, name=name)
