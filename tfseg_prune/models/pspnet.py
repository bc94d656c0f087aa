"""PSPNet: pyramid pooling on a dilated ResNet."""

import keras
from keras import layers

from tfseg_prune.models import arguments, resnet

BINS = (1, 2, 3, 6)


def pspnet(
    num_classes,
    input_shape,
    *,
    backbone="resnet50",
    output_stride=8,
    stem="deep",
    stride_on=None,
    bn_momentum=0.9,
    dropout=0.1,
    weights=None,
    name="pspnet",
):
    """PSPNet without the auxiliary head, which only training has.

    The last features are averaged in 1x1, 2x2, 3x3 and 6x6 windows, each of these maps goes through
    a 1x1 convolution of 512 channels and is resized back, and all are joined with the features. All
    blocks of a stage that lost its stride dilate alike.

    Resizing is bilinear with half-pixel centres. The original aligns corners, which no Keras layer
    does; parameters and MACs are not touched by that.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, each side more than 5 output strides: the last
            features are cut in 6 windows.
        backbone: str, "resnet50" or "resnet101". Defaults to `"resnet50"`.
        output_stride: int, 8, 16 or 32: image size over the last features' size. Defaults to `8`.
        stem: str, "plain" (7x7 to 64 channels) or "deep" (3x3 to 64, 64 and 128 channels). Defaults
            to `"deep"`.
        stride_on: str, which convolution of a stage's first block has its stride, "3x3" or "1x1"
            (the first). Defaults to `None`: with `weights` on the 1x1, where Keras' network has it
            and its features are exact; else on the 3x3, as the paper has it, for more MACs.
        bn_momentum: float in [0, 1), momentum of all batch norms. Defaults to `0.9`.
        dropout: float in [0, 1), rate of whole maps before the classifier. Defaults to `0.1`.
        weights: Path of an .npz with the weights of `keras.applications.ResNet50` (or 101), for
            `stem="plain"`, or `None` for random ones. Defaults to `None`.
        name: str, name of the model. Defaults to `"pspnet"`.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]` in [0, 255] to logits
        `[batch, height, width, num_classes]`.

    Raises:
        ValueError: if an argument is invalid or the weights do not fit.

    Example:

    >>> model = pspnet(11, (361, 481, 3))
    >>> model.output_shape
    (None, 361, 481, 11)
    """
    if stride_on is None:
        stride_on = "3x3" if weights is None else "1x1"
    arguments.check_count("num_classes", num_classes)
    resnet.check_options(
        backbone=backbone,
        output_stride=output_stride,
        stem=stem,
        multi_grid=(1, 1, 1),
        stride_on=stride_on,
        weights=weights,
    )
    arguments.check_image_shape(input_shape, at_least=(max(BINS) - 1) * output_stride + 1)
    arguments.check_fraction("bn_momentum", bn_momentum)
    arguments.check_fraction("dropout", dropout)

    def conv(x, name, filters, size):
        return resnet.conv_norm_relu(x, f"decoder_{name}", filters, size, bn_momentum=bn_momentum)

    def resize(x, like, name):
        # Left to itself the layer says "training" to all that is called after it in `model(x)`.
        return layers.Resizing(*like.shape[1:3], name=f"decoder_{name}")(x, training=False)

    images, x = resnet.image_input(input_shape)
    features = resnet.resnet(
        x,
        backbone=backbone,
        output_stride=output_stride,
        stem=stem,
        stride_on=stride_on,
        dilate_first=True,
        bn_momentum=bn_momentum,
    )[output_stride]
    pyramid = [features]
    for bins in BINS:
        means = adaptive_pool(features, bins, f"decoder_bin{bins}_pool")
        means = conv(means, f"bin{bins}", 512, 1)
        pyramid.append(resize(means, features, f"bin{bins}_resize"))
    x = layers.Concatenate(name="decoder_pyramid_concat")(pyramid)
    x = conv(x, "fuse", 512, 3)
    x = layers.SpatialDropout2D(dropout, name="decoder_dropout")(x)
    x = layers.Conv2D(num_classes, 1, name="decoder_logits")(x)
    model = keras.Model(images, resize(x, images, "upsample"), name=name)
    if weights is not None:
        resnet.load_keras_weights(model, weights)
    return model


def adaptive_pool(x, bins, name):
    """Means `[batch, bins, bins, channels]` over torch's adaptive windows.

    Window i of n on an axis of s pixels is `[floor(i s / n), ceil((i + 1) s / n))`. Where all have
    one length and one distance it is the usual pooling, which phones run faster.
    """
    if bins == 1:
        return layers.GlobalAveragePooling2D(keepdims=True, name=name)(x)
    lengths, steps = [], []
    for size in x.shape[1:3]:
        starts = [i * size // bins for i in range(bins)]
        ends = [-(-(i + 1) * size // bins) for i in range(bins)]
        lengths.append({end - start for start, end in zip(starts, ends)})
        steps.append({after - before for before, after in zip(starts, starts[1:])})
    if any(len(values) > 1 for values in lengths + steps):
        return layers.AdaptiveAveragePooling2D(bins, name=name)(x)
    length, step = ([next(iter(values)) for values in axes] for axes in (lengths, steps))
    return layers.AveragePooling2D(tuple(length), strides=tuple(step), name=name)(x)
