"""ERFNet: factorised residual blocks at 1/8 resolution, and its family with grouped ones."""

import functools

import keras
from keras import layers

from tfseg_prune.models import arguments
from tfseg_prune.models import erfnet_blocks as blocks

# Parts of the encoder: ("down", filters) or ("block", dilation, dropout).
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
# Places in ENCODER of the blocks that the paper's selective nets replace: the last 2 of 5 with 64
# channels and the last 4 of 8 with 128.
SELECTIVE = (5, 6, 12, 13, 14, 15)
PLACEMENTS = ("all", "selective")
UP = {
    "erfnet": blocks.up,
    "light": functools.partial(blocks.up, kernel=1),
    "light-bilinear": blocks.bilinear_up,
}
HEADS = ("segmentation", "classification")


def erfnet(
    num_classes,
    input_shape,
    *,
    block=blocks.NON_BOTTLENECK,
    placement="all",
    decoder="erfnet",
    grouped=True,
    bn_momentum=0.9,
    name="erfnet",
):
    """ERFNet without the encoder's own classifier, or one of its family.

    Strided convolutions are padded and cropped as torch does, so that torch's weights are exact.

    The family is that of Vallurupalli et al., Efficient Semantic Segmentation using Gradual
    Grouping: a row `DG2S*` of its tables is `block="DG2S"`, one without the star has
    `placement="selective"`, and `DG2*-proposed` is `block="DG2", decoder="light"`.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, height and width divisible by 8.
        block: str, the encoder's blocks: `"Non-bt-1D"` (ERFNet's own), `"D"` (depthwise separable),
            `"DG2"`, `"DG4"`, `"DG8"` (its 1x1 convolutions in so many groups), or these with an
            `"S"` behind (the channels shuffled after the first of the two). Defaults to
            `"Non-bt-1D"`.
        placement: str, `"all"` 13 blocks of the encoder are such, or a `"selective"` 6: the last 2
            with 64 channels and the last 4 with 128. Defaults to `"all"`.
        decoder: str, `"erfnet"`, or `"light"`: transposed 1x1 convolutions instead of 3x3, and D
            for the first of both blocks at each scale. The paper says both blocks, but its figures
            are those of one. `"light-bilinear"` is as large, and cheaper on phones: 1x1
            convolutions and bilinear upsampling. Defaults to `"erfnet"`.
        grouped: bool, whether the 1x1 convolutions of DG blocks are grouped. Otherwise they are
            dense, where gradual grouping starts; shuffles are the same. Defaults to `True`.
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
    _check(num_classes, input_shape, block, placement, grouped, bn_momentum)
    arguments.check_choice("decoder", decoder, tuple(UP))
    norm = functools.partial(_norm, bn_momentum)
    images, x = _encoder(input_shape, block, placement, grouped, norm)
    for i, (kind, *options) in enumerate(DECODER):
        if kind == "up":
            make = UP[decoder]
        elif decoder != "erfnet" and DECODER[i - 1][0] == "up":
            make = blocks.separable
        else:
            make = blocks.non_bottleneck
        x = make(x, f"decoder_{i + 1}_{kind}", norm, *options)
    logits = layers.Conv2DTranspose(num_classes, 2, strides=2, name="decoder_logits")(x)
    return keras.Model(images, logits, name=name)


def erfnet_encoder(
    num_classes,
    input_shape,
    *,
    head="segmentation",
    block=blocks.NON_BOTTLENECK,
    placement="all",
    grouped=True,
    bn_momentum=0.9,
    name="erfnet_encoder",
):
    """The encoder of `erfnet` with a head of its own, to be trained before the decoder.

    Its layers named `backbone_...` are those of `erfnet` with the same options, so that
    `copy_weights(encoder, model)` hands over what it learnt.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, height and width divisible by 8.
        head: str, `"segmentation"` (a 1x1 convolution) or `"classification"` (of whole images:
            global average pooling and a dense layer). Defaults to `"segmentation"`.
        block: As of `erfnet`.
        placement: As of `erfnet`.
        grouped: As of `erfnet`.
        bn_momentum: float in [0, 1), momentum of all batch norms. Defaults to `0.9`.
        name: str, name of the model. Defaults to `"erfnet_encoder"`.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]` in [0, 255] to logits
        `[batch, height / 8, width / 8, num_classes]`, or `[batch, num_classes]` of whole images.

    Raises:
        ValueError: if an argument is invalid.

    Example:

    >>> erfnet_encoder(100, (64, 64, 3), head="classification", block="DG4").output_shape
    (None, 100)
    """
    _check(num_classes, input_shape, block, placement, grouped, bn_momentum)
    arguments.check_choice("head", head, HEADS)
    norm = functools.partial(_norm, bn_momentum)
    images, x = _encoder(input_shape, block, placement, grouped, norm)
    if head == "segmentation":
        logits = layers.Conv2D(num_classes, 1, name="decoder_logits")(x)
    else:
        x = layers.GlobalAveragePooling2D(name="decoder_pool")(x)
        logits = layers.Dense(num_classes, name="decoder_logits")(x)
    return keras.Model(images, logits, name=name)


def _check(num_classes, input_shape, block, placement, grouped, bn_momentum):
    arguments.check_count("num_classes", num_classes)
    arguments.check_image_shape(input_shape, at_least=8, multiple_of=8)
    arguments.check_choice("block", block, blocks.BLOCKS)
    arguments.check_choice("placement", placement, PLACEMENTS)
    arguments.check_flag("grouped", grouped)
    arguments.check_fraction("bn_momentum", bn_momentum)


def _norm(momentum, x, name):
    return layers.BatchNormalization(momentum=momentum, epsilon=1e-3, name=f"{name}_BN")(x)


def _encoder(input_shape, block, placement, grouped, norm):
    """The images, and their features `[batch, height / 8, width / 8, 128]`."""
    replacing = blocks.non_bottleneck
    if block in blocks.SEPARABLE_BLOCKS:
        groups, shuffles = blocks.SEPARABLE_BLOCKS[block]
        replacing = functools.partial(
            blocks.separable,
            groups=groups if grouped else 1,
            shuffle=groups if shuffles else None,
        )
    images, x = arguments.image_input(input_shape)
    for i, (kind, *options) in enumerate(ENCODER):
        if kind == "down":
            make = blocks.down
        elif placement == "all" or i in SELECTIVE:
            make = replacing
        else:
            make = blocks.non_bottleneck
        x = make(x, f"backbone_{i + 1}_{kind}", norm, *options)
    return images, x
