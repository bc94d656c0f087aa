"""MobileNetV2 as a segmentation backbone: dilated where stride is traded for resolution."""

from keras import layers

# expansion, filters, blocks, stride of the first block (MobileNetV2 paper, table 2)
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
EPSILON = 1e-5


def mobilenet_v2(x, *, output_stride=16, bn_momentum=0.9, prefix="backbone_"):
    """Features of MobileNetV2 1.0 up to its 320 channels, at every stride that it reaches.

    Layers are named as in `keras.applications.MobileNetV2`, after the prefix. Unlike there,
    stride-2 convolutions pad one pixel on every side, as torch does, so that torch's weights are
    exact at every image size. Where `output_stride` is reached, later strides become dilations: a
    block that loses its stride keeps the dilation before it, the blocks behind it dilate more.

    Args:
        x: Images `[batch, height, width, 3]` in [-1, 1].
        output_stride: int, 8, 16 or 32. Defaults to `16`.
        bn_momentum: float in [0, 1), momentum of the batch norms. Defaults to `0.9`.
        prefix: str, before every layer's name. Defaults to `"backbone_"`.

    Returns:
        A dict from stride to the last features of that stride, `[batch, ceil(height / stride),
        ceil(width / stride), channels]`.
    """

    def norm(x, name):
        return layers.BatchNormalization(
            momentum=bn_momentum, epsilon=EPSILON, name=prefix + name
        )(x)

    def relu6(x, name):
        return layers.ReLU(6.0, name=f"{prefix}{name}_relu")(x)

    def pointwise(x, filters, name):
        x = layers.Conv2D(filters, 1, use_bias=False, name=prefix + name)(x)
        return norm(x, f"{name}_BN")

    def depthwise(x, stride, dilation, name, pad_name):
        if stride == 2:
            x = layers.ZeroPadding2D(1, name=prefix + pad_name)(x)
        x = layers.DepthwiseConv2D(
            3,
            strides=stride,
            padding="valid" if stride == 2 else "same",
            dilation_rate=dilation,
            use_bias=False,
            name=prefix + name,
        )(x)
        return relu6(norm(x, f"{name}_BN"), name)

    x = layers.ZeroPadding2D(1, name=f"{prefix}Conv1_pad")(x)
    x = layers.Conv2D(32, 3, strides=2, use_bias=False, name=f"{prefix}Conv1")(x)
    x = relu6(norm(x, "bn_Conv1"), "Conv1")

    reached, dilation, block = 2, 1, 0
    features = {}
    for expansion, filters, blocks, first_stride in STAGES:
        for stride in (first_stride,) + (1,) * (blocks - 1):
            name = f"block_{block}" if block else "expanded_conv"
            next_dilation = dilation
            if reached * stride > output_stride:
                stride, next_dilation = 1, dilation * stride
            reached *= stride
            shortcut = x
            if expansion > 1:
                expand = f"{name}_expand"
                x = relu6(pointwise(x, expansion * x.shape[-1], expand), expand)
            x = depthwise(x, stride, dilation, f"{name}_depthwise", f"{name}_pad")
            x = pointwise(x, filters, f"{name}_project")
            if stride == 1 and shortcut.shape[-1] == filters:
                x = layers.Add(name=f"{prefix}{name}_add")([shortcut, x])
            features[reached] = x
            dilation = next_dilation
            block += 1
    return features
