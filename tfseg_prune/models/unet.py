"""The plain UNet of "To Prune or Not to Prune": biases, no batch norm."""

import keras
from keras import layers

from tfseg_prune.models import arguments

LEVELS = 4


def unet(num_classes, input_shape, *, width=64, name="unet"):
    """UNet with four levels of `width`, 2, 4 and 8 times that, and a bottleneck of 16 times.

    Sizes that a pooling does not divide lose their last row or column there, and the way up is
    padded with zeros to the skip's size.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, each side at least 16.
        width: int, channels of the first level. Defaults to `64`.
        name: str, name of the model. Defaults to `"unet"`.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]` in [0, 255] to logits
        `[batch, height, width, num_classes]`.

    Raises:
        ValueError: if an argument is invalid.

    Example:

    >>> model = unet(11, (352, 480, 3), width=16)
    >>> model.output_shape
    (None, 352, 480, 11)
    """
    arguments.check_count("num_classes", num_classes)
    arguments.check_count("width", width)
    arguments.check_image_shape(input_shape, at_least=2**LEVELS)

    def double_conv(x, filters, name):
        for i in (1, 2):
            x = layers.Conv2D(
                filters,
                3,
                padding="same",
                activation="relu",
                # Without batch norms only the initial variance keeps deep activations alive.
                kernel_initializer="he_normal",
                name=f"{name}_conv{i}",
            )(x)
        return x

    images, x = arguments.image_input(input_shape)
    skips = []
    for level in range(LEVELS):
        x = double_conv(x, width * 2**level, f"backbone_level{level + 1}")
        skips.append(x)
        x = layers.MaxPooling2D(name=f"backbone_level{level + 1}_pool")(x)
    x = double_conv(x, width * 2**LEVELS, "backbone_bottleneck")
    for level, skip in reversed(list(enumerate(skips))):
        prefix = f"decoder_level{level + 1}"
        filters = width * 2**level
        x = layers.Conv2DTranspose(filters, 2, strides=2, name=f"{prefix}_up")(x)
        rows, columns = (skip.shape[axis] - x.shape[axis] for axis in (1, 2))
        if rows or columns:
            x = layers.ZeroPadding2D(((0, rows), (0, columns)), name=f"{prefix}_pad")(x)
        x = layers.Concatenate(name=f"{prefix}_concat")([skip, x])
        x = double_conv(x, filters, prefix)
    return keras.Model(images, layers.Conv2D(num_classes, 1, name="decoder_logits")(x), name=name)
