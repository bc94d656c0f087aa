"""ResNet-50 and ResNet-101 as segmentation backbones: dilated where stride becomes resolution."""

import keras
import numpy as np
from keras import layers

from tfseg_prune.models import arguments
from tfseg_prune.models import weights as weights_lib

# Blocks of the stages conv2 to conv5 (ResNet paper, table 1).
BLOCKS = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3)}
STEMS = ("plain", "deep")
STRIDES_ON = ("3x3", "1x1")
EPSILON = 1e-5
# Of ImageNet, RGB in [0, 255]. The means are those that Keras' weights were trained with.
MEAN = (123.68, 116.779, 103.939)
DEVIATION = (58.395, 57.12, 57.375)


def image_input(input_shape):
    """The images `[batch, height, width, 3]` in [0, 255], and the same normalised per colour."""
    images = keras.Input(tuple(input_shape), name="images")
    normalize = layers.Normalization(
        mean=list(MEAN), variance=[d**2 for d in DEVIATION], name="backbone_normalize"
    )
    return images, normalize(images)


def conv_norm_relu(x, name, filters, size, *, bn_momentum, stride=1, dilation=1, relu=True):
    """A convolution without bias, batch norm and ReLU: `<name>_conv`, `<name>_bn`, `<name>_relu`.

    A stride pads by half the kernel on every side, as torch does.

    Args:
        x: Features `[batch, height, width, channels]`.
        name: str, what the layers' names begin with.
        filters: int, output channels.
        size: int, odd height and width of the kernel.
        bn_momentum: float, momentum of the batch norm.
        stride: int. Defaults to `1`.
        dilation: int, of a convolution without stride. Defaults to `1`.
        relu: bool, whether there is a ReLU. Defaults to `True`.

    Returns:
        Features `[batch, ceil(height / stride), ceil(width / stride), filters]`.
    """
    if stride > 1 and size > 1:
        x = layers.ZeroPadding2D(size // 2, name=f"{name}_pad")(x)
    x = layers.Conv2D(
        filters,
        size,
        strides=stride,
        padding="valid" if stride > 1 else "same",
        dilation_rate=dilation,
        use_bias=False,
        name=f"{name}_conv",
    )(x)
    x = layers.BatchNormalization(momentum=bn_momentum, epsilon=EPSILON, name=f"{name}_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(x) if relu else x


def check_options(*, backbone, output_stride, stem, multi_grid, stride_on, weights):
    """Raises a ValueError unless a backbone of these options can be built."""
    arguments.check_choice("backbone", backbone, tuple(BLOCKS))
    arguments.check_choice("output_stride", output_stride, (8, 16, 32))
    arguments.check_choice("stem", stem, STEMS)
    arguments.check_choice("stride_on", stride_on, STRIDES_ON)
    arguments.check_counts("multi_grid", multi_grid, length=3)
    if weights is not None and stem != "plain":
        raise ValueError(
            "Invalid `weights`. Expected: None for the deep stem, for which there is no file, or"
            f" stem='plain'. Received: {str(weights)!r} with stem={stem!r}."
        )


def resnet(
    x,
    *,
    backbone="resnet50",
    output_stride=16,
    stem="plain",
    multi_grid=(1, 1, 1),
    stride_on="3x3",
    dilate_first=False,
    bn_momentum=0.9,
    prefix="backbone_",
):
    """Features of a ResNet with bottleneck blocks, at every stride that it reaches.

    Layers are named as in `keras.applications.ResNet50`, after the prefix. Where `output_stride` is
    reached, later strides become dilations.

    Args:
        x: Images `[batch, height, width, 3]`, normalised.
        backbone: str, "resnet50" or "resnet101". Defaults to `"resnet50"`.
        output_stride: int, 8, 16 or 32. Defaults to `16`.
        stem: str, "plain" (7x7 to 64 channels) or "deep" (3x3 to 64, 64 and 128 channels). Defaults
            to `"plain"`.
        multi_grid: Three int, factors of the dilations in the blocks of conv5. Defaults to
            `(1, 1, 1)`.
        stride_on: str, the convolution of a stage's first block that has its stride: "3x3" (torch)
            or "1x1", the first (the ResNet paper, Keras). Defaults to `"3x3"`.
        dilate_first: bool, whether the first block of a stage that lost its stride dilates as those
            behind it, or as the stage before. What a network with strides has learnt stays exact
            with False where the stride was on the 3x3 and with True where it was on the 1x1.
            Defaults to `False`.
        bn_momentum: float in [0, 1), momentum of the batch norms. Defaults to `0.9`.
        prefix: str, before every layer's name. Defaults to `"backbone_"`.

    Returns:
        A dict from stride (4 and more) to the last features of that stride, `[batch,
        ceil(height / stride), ceil(width / stride), channels]`.
    """

    def unit(x, name, filters, size, **options):
        return conv_norm_relu(x, prefix + name, filters, size, bn_momentum=bn_momentum, **options)

    def block(x, name, filters, stride, dilation, is_first):
        """1x1, 3x3 and 1x1 to four times the filters, added to what came in or its projection."""
        on_1x1, on_3x3 = (stride, 1) if stride_on == "1x1" else (1, stride)
        shortcut = x
        if is_first:
            shortcut = unit(x, f"{name}_0", 4 * filters, 1, stride=stride, relu=False)
        x = unit(x, f"{name}_1", filters, 1, stride=on_1x1)
        x = unit(x, f"{name}_2", filters, 3, stride=on_3x3, dilation=dilation)
        x = unit(x, f"{name}_3", 4 * filters, 1, relu=False)
        x = layers.Add(name=f"{prefix}{name}_add")([shortcut, x])
        return layers.ReLU(name=f"{prefix}{name}_out")(x)

    if stem == "plain":
        x = unit(x, "conv1", 64, 7, stride=2)
    else:
        for i, (filters, stride) in enumerate(((64, 2), (64, 1), (128, 1))):
            x = unit(x, f"stem{i + 1}", filters, 3, stride=stride)
    x = layers.ZeroPadding2D(1, name=f"{prefix}pool1_pad")(x)
    x = layers.MaxPooling2D(3, strides=2, name=f"{prefix}pool1_pool")(x)

    reached, dilation = 4, 1
    features = {}
    for stage, blocks in enumerate(BLOCKS[backbone], start=2):
        stride = 1 if stage == 2 else 2
        dilation_before = dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        for i in range(blocks):
            rate = dilation if i or dilate_first else dilation_before
            if stage == 5:
                rate *= multi_grid[i]
            x = block(
                x,
                f"conv{stage}_block{i + 1}",
                filters=64 * 2 ** (stage - 2),
                stride=1 if i else stride,
                dilation=rate,
                is_first=i == 0,
            )
        features[reached] = x
    return features


def load_keras_weights(model, path, *, prefix="backbone_"):
    """Loads the weights of `keras.applications.ResNet50` (or 101) into a backbone of plain stem.

    Those networks read BGR minus the mean and have biases. Here conv1 is turned to normalised RGB
    and the biases go into the batch norms' moving means, both without loss. The features are then
    Keras' own where strides lie on the 1x1 convolutions.

    Args:
        model: `keras.Model` to load into, in place; its images come in through `image_input`.
        path: Path of an .npz file as of `load_weights`.
        prefix: str, before the file's layer names in the model. Defaults to `"backbone_"`.

    Returns:
        A `LoadReport`.

    Raises:
        ValueError: if the file can't be read, or does not hold all of the layers with their shapes.
    """
    return weights_lib.load_weights(
        model, path, prefix=prefix, file_epsilon=1.001e-5, convert=_from_keras
    )


def _from_keras(arrays):
    """The arrays of Keras' network as those of ours."""
    converted = dict(arrays)
    for key, bias in arrays.items():
        mean = key.replace("_conv/bias", "_bn/moving_mean")
        if mean != key and mean in converted:
            del converted[key]
            converted[mean] = arrays[mean] - bias
    kernel = arrays.get("conv1_conv/kernel")
    if kernel is not None and kernel.ndim == 4 and kernel.shape[2] == len(DEVIATION):
        deviation = np.reshape(DEVIATION, (3, 1))
        converted["conv1_conv/kernel"] = kernel[:, :, ::-1] * deviation
    return converted
