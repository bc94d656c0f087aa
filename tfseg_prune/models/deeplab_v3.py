"""DeepLabV3 and DeepLabV3+ with a dilated ResNet."""

import keras
from keras import layers

from tfseg_prune.models import arguments, resnet

HEADS = ("plain", "refined", "plus")


def deeplab_v3(
    num_classes,
    input_shape,
    *,
    backbone="resnet50",
    output_stride=16,
    stem="plain",
    head="plain",
    multi_grid=(1, 1, 1),
    atrous_rates=None,
    stride_on=None,
    dilate_first=None,
    bn_momentum=0.9,
    dropout=0.0,
    weights=None,
    name="deeplab_v3",
):
    """DeepLabV3: atrous spatial pyramid pooling (ASPP) on ResNet.

    A 1x1 convolution, three atrous 3x3 ones and image pooling, of 256 channels each, are joined and
    projected. The papers' variants:

    - multi-task pruning: `backbone="resnet101"`, the rest as it is;
    - SIRFP: `output_stride=8, stem="deep", head="refined", multi_grid=(1, 2, 4),
      dilate_first=True`, and for its DeepLabV3+ the same with `head="plus"`.

    Resizing is bilinear with half-pixel centres. The originals align corners, which no Keras layer
    does; parameters and MACs are not touched by that.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, any size.
        backbone: str, "resnet50" or "resnet101". Defaults to `"resnet50"`.
        output_stride: int, 8, 16 or 32: image size over the last features' size. Defaults to `16`.
        stem: str, "plain" (7x7 to 64 channels) or "deep" (3x3 to 64, 64 and 128 channels). Defaults
            to `"plain"`.
        head: str, what follows the pyramid: "plain" (projected to 256 channels), "refined"
            (projected to 512, then two 3x3 convolutions of 256) or "plus" (the same at stride 4,
            joined with 48 low-level channels). Defaults to `"plain"`.
        multi_grid: Three int, factors of the dilations in the blocks of conv5. Defaults to
            `(1, 1, 1)`.
        atrous_rates: int, one or more, dilations in the pyramid. Defaults to `None`: 6, 12 and 18
            at output stride 16, twice that at 8, half at 32.
        stride_on: str, which convolution of a stage's first block has its stride, "3x3" or "1x1"
            (the first). Defaults to `None`: with `weights` on the 1x1, where Keras' network has it
            and its features are exact; else on the 3x3, as the papers have it, for more MACs.
        dilate_first: bool, whether the first block of a stage that lost its stride dilates as those
            behind it, or as the stage before. Defaults to `None`: what keeps pretrained features
            exact, the first for strides on the 1x1, the second for strides on the 3x3.
        bn_momentum: float in [0, 1), momentum of all batch norms. Defaults to `0.9`.
        dropout: float in [0, 1), rate before the classifier. Defaults to `0.0`, as the originals.
        weights: Path of an .npz with the weights of `keras.applications.ResNet50` (or 101), for
            `stem="plain"`, or `None` for random ones. Defaults to `None`.
        name: str, name of the model. Defaults to `"deeplab_v3"`.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]` in [0, 255] to logits
        `[batch, height, width, num_classes]`.

    Raises:
        ValueError: if an argument is invalid or the weights do not fit.

    Example:

    >>> model = deeplab_v3(11, (360, 480, 3), backbone="resnet101")
    >>> model.output_shape
    (None, 360, 480, 11)
    """
    if stride_on is None:
        stride_on = "3x3" if weights is None else "1x1"
    if dilate_first is None:
        dilate_first = stride_on == "1x1"
    arguments.check_count("num_classes", num_classes)
    arguments.check_image_shape(input_shape)
    resnet.check_options(
        backbone=backbone,
        output_stride=output_stride,
        stem=stem,
        multi_grid=multi_grid,
        stride_on=stride_on,
        weights=weights,
    )
    arguments.check_choice("head", head, HEADS)
    arguments.check_flag("dilate_first", dilate_first)
    if atrous_rates is None:
        atrous_rates = [96 * i // output_stride for i in (1, 2, 3)]
    arguments.check_counts("atrous_rates", atrous_rates)
    arguments.check_fraction("bn_momentum", bn_momentum)
    arguments.check_fraction("dropout", dropout)

    def conv(x, name, filters, size, dilation=1):
        return resnet.conv_norm_relu(
            x, f"decoder_{name}", filters, size, bn_momentum=bn_momentum, dilation=dilation
        )

    def resize(x, like, name):
        # Left to itself the layer says "training" to all that is called after it in `model(x)`.
        return layers.Resizing(*like.shape[1:3], name=f"decoder_{name}")(x, training=False)

    images, x = resnet.image_input(input_shape)
    features = resnet.resnet(
        x,
        backbone=backbone,
        output_stride=output_stride,
        stem=stem,
        multi_grid=multi_grid,
        stride_on=stride_on,
        dilate_first=dilate_first,
        bn_momentum=bn_momentum,
    )
    high = features[output_stride]
    branches = [conv(high, "aspp_0", 256, 1)]
    branches += [
        conv(high, f"aspp_{i}", 256, 3, rate) for i, rate in enumerate(atrous_rates, start=1)
    ]
    pool = layers.GlobalAveragePooling2D(keepdims=True, name="decoder_pool")(high)
    branches.append(resize(conv(pool, "pool", 256, 1), high, "pool_resize"))
    x = layers.Concatenate(name="decoder_aspp_concat")(branches)
    x = conv(x, "aspp_project", 256 if head == "plain" else 512, 1)
    if head == "plus":
        low = conv(features[4], "low_project", 48, 1)
        x = layers.Concatenate(name="decoder_low_concat")([resize(x, low, "aspp_resize"), low])
    if head != "plain":
        x = conv(conv(x, "refine1", 256, 3), "refine2", 256, 3)
    x = layers.Dropout(dropout, name="decoder_dropout")(x)
    x = layers.Conv2D(num_classes, 1, name="decoder_logits")(x)
    model = keras.Model(images, resize(x, images, "upsample"), name=name)
    if weights is not None:
        resnet.load_keras_weights(model, weights)
    return model
