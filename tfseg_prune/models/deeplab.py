"""DeepLabV3+ with MobileNetV2 and the lite head: no atrous branches."""

import keras
from keras import layers

from tfseg_prune.models import arguments, mobilenet
from tfseg_prune.models import weights as weights_lib


def deeplab_v3_plus(
    num_classes,
    input_shape,
    *,
    output_stride=16,
    bn_momentum=0.9,
    dropout=0.1,
    weights=None,
    name="deeplab_v3_plus",
):
    """DeepLabV3+ on MobileNetV2 with the lite head of 2.26 million parameters.

    The head has a 1x1 branch and an image-pooling branch (256 channels each), joined and projected
    to 256, then joined at stride 4 with 48 low-level channels and refined by two separable
    convolutions.

    Args:
        num_classes: int, at least 1.
        input_shape: `(height, width, 3)` in pixels, any size.
        output_stride: int, 8, 16 or 32: image size over the last features' size. Defaults to `16`.
        bn_momentum: float in [0, 1), momentum of all batch norms. Keras' own 0.99 to 0.999 lags
            behind in runs of a few thousand steps. Defaults to `0.9`.
        dropout: float in [0, 1), rate before the classifier. Defaults to `0.1`.
        weights: Path of an .npz with the backbone's weights (see `load_weights`), or `None` for
            random ones. Defaults to `None`.
        name: str, name of the model. Defaults to `"deeplab_v3_plus"`.

    Returns:
        A `keras.Model` from images `[batch, height, width, 3]` in [0, 255] to logits
        `[batch, height, width, num_classes]`.

    Raises:
        ValueError: if an argument is invalid or the weights do not fit.

    Example:

    >>> model = deeplab_v3_plus(11, (352, 480, 3))
    >>> model.output_shape
    (None, 352, 480, 11)
    """
    arguments.check_count("num_classes", num_classes)
    arguments.check_image_shape(input_shape)
    arguments.check_choice("output_stride", output_stride, (8, 16, 32))
    arguments.check_fraction("bn_momentum", bn_momentum)
    arguments.check_fraction("dropout", dropout)

    def norm_relu(x, name):
        x = layers.BatchNormalization(
            momentum=bn_momentum, epsilon=mobilenet.EPSILON, name=f"decoder_{name}_BN"
        )(x)
        return layers.ReLU(name=f"decoder_{name}_relu")(x)

    def pointwise(x, filters, name):
        return norm_relu(layers.Conv2D(filters, 1, use_bias=False, name=f"decoder_{name}")(x), name)

    def separable(x, filters, name):
        depthwise = layers.DepthwiseConv2D(
            3, padding="same", use_bias=False, name=f"decoder_{name}_depthwise"
        )
        return pointwise(norm_relu(depthwise(x), f"{name}_depthwise"), filters, f"{name}_pointwise")

    def resize(x, like, name):
        # Left to itself the layer says "training" to all that is called after it in `model(x)`.
        return layers.Resizing(*like.shape[1:3], name=f"decoder_{name}")(x, training=False)

    images, x = arguments.image_input(input_shape)
    features = mobilenet.mobilenet_v2(x, output_stride=output_stride, bn_momentum=bn_momentum)
    low, high = features[4], features[output_stride]

    pool = layers.GlobalAveragePooling2D(keepdims=True, name="decoder_pool")(high)
    pool = resize(pointwise(pool, 256, "pool_conv"), high, "pool_resize")
    x = layers.Concatenate(name="decoder_aspp_concat")([pool, pointwise(high, 256, "aspp_conv")])
    x = resize(pointwise(x, 256, "aspp_project"), low, "aspp_resize")
    x = layers.Concatenate(name="decoder_low_concat")([x, pointwise(low, 48, "low_project")])
    x = separable(separable(x, 256, "refine1"), 256, "refine2")
    x = layers.Dropout(dropout, name="decoder_dropout")(x)
    x = layers.Conv2D(num_classes, 1, name="decoder_logits")(x)
    model = keras.Model(images, resize(x, images, "upsample"), name=name)
    if weights is not None:
        weights_lib.load_weights(model, weights)
    return model
