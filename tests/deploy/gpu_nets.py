"""Tiny networks, one for each thing that a GPU delegate takes, refuses, gets wrong or dies of."""

import dataclasses
import tempfile

import keras
import numpy as np
from keras import layers, ops

from tfseg_prune.deploy.convert import convert
from tfseg_prune.deploy.quiet import quiet

SIZE = (8, 12)
CLASSES = 5


@dataclasses.dataclass(frozen=True)
class Case:
    """A network of one thing between two convolutions.

    Args:
        build: function from the first convolution's output to what the second one reads.
        verdict: of the delegate, `"ok"` or a `Finding`'s.
        channels: of the first convolution.
        precision: of the file.
        tail: of the file.
        batch: `None`, any number.
        classes: channels of the second convolution.
        rule: the rules' verdict, where it is another one. Defaults to `None`.
    """

    build: object
    verdict: str = "ok"
    channels: int = 8
    precision: str = "float32"
    tail: str = "logits"
    batch: int | None = 1
    classes: int = CLASSES
    rule: str | None = None


class Call(layers.Layer):
    """A function of tensors, with TensorFlow's as its second argument."""

    def __init__(self, function, **kwargs):
        super().__init__(**kwargs)
        self.function = function

    def call(self, inputs):
        import tensorflow as tf

        return self.function(inputs, tf)


def model(case):
    """The case's Keras model; all that is trained is random."""
    keras.utils.set_random_seed(1)
    images = keras.Input((*SIZE, 3))
    x = case.build(layers.Conv2D(case.channels, 3, padding="same", name="front")(images))
    built = keras.Model(images, layers.Conv2D(case.classes, 1, name="back")(x), name="net")
    rng = np.random.default_rng(0)
    for layer in built.layers:
        if not isinstance(layer, layers.Conv2D):
            layer.set_weights([w + rng.uniform(0, 0.3, w.shape) for w in layer.get_weights()])
    return built


def images(count=2, seed=0):
    return np.random.default_rng(seed).normal(size=(count, *SIZE, 3)).astype("float32")


def write(case, path):
    """Writes the case's file, with nothing lowered; returns its model."""
    built = model(case)
    if case.batch is None:
        data = _of_any_batch(built)
    else:
        data = convert(
            built,
            precision=case.precision,
            tail=case.tail,
            io="float32",
            image_size=None,
            images=images(16, seed=1),
        )
    path.write_bytes(data)
    return built


def _of_any_batch(built):
    import tensorflow as tf

    with quiet(), tempfile.TemporaryDirectory() as folder:
        built.export(folder, format="tf_saved_model", verbose=False)
        return tf.lite.TFLiteConverter.from_saved_model(folder).convert()


def conv(filters=8, size=3, **kwargs):
    return layers.Conv2D(filters, size, padding="same", **kwargs)


def chain(*steps):
    def build(x):
        for step in steps:
            x = step(x)
        return x

    return build


def norm(x):
    return layers.BatchNormalization()(x)


def relu(x):
    return layers.ReLU()(x)


def relu6(x):
    return layers.ReLU(6.0)(x)


def call(function):
    return lambda x: Call(function)(x)


def self_and(build):
    return lambda x: layers.Add()([x, build(x)])


def transposed(**kwargs):
    options = {"strides": 2, "padding": "same", "bias_initializer": "random_normal", **kwargs}
    return layers.Conv2DTranspose(8, 3, **options)


def grouped(ins, outs, groups, **kwargs):
    return lambda x: conv(outs * groups, groups=groups, **kwargs)(x)


def squeeze_and_excite(x):
    y = layers.GlobalAveragePooling2D(keepdims=True)(x)
    y = conv(8, 1, activation="sigmoid")(conv(4, 1, activation="relu")(y))
    return layers.Multiply()([x, y])


def squeeze_and_excite_by_dense(x):
    y = layers.Dense(4, activation="relu")(layers.GlobalAveragePooling2D()(x))
    return layers.Multiply()([x, layers.Dense(8, activation="sigmoid")(y)])


def attention(x):
    y = layers.Reshape((96, 8))(x)
    return layers.Reshape((*SIZE, 8))(layers.MultiHeadAttention(2, 4)(y, y))


def split_convolve_join(parts):
    def build(x):
        pieces = Call(lambda x, tf: tf.split(x, parts, -1))(x)
        return layers.Concatenate()([conv(3)(piece) for piece in pieces])

    return build


def permuting_convolution(x):
    kernel = np.eye(8, dtype="float32")[[0, 4, 1, 5, 2, 6, 3, 7]].T
    return layers.Conv2D(8, 1, kernel_initializer=lambda *_, **__: kernel[None, None])(x)


def padded(amounts, value=0.0):
    return call(lambda x, tf: tf.pad(x, amounts, constant_values=value))


def joined(cut):
    """What `cut` makes of a tensor, joined along the channels."""
    return call(lambda x, tf: tf.concat(cut(x, tf), -1))


def scaled(function):
    """Times what a function makes of each channel's mean magnitude."""
    return call(lambda x, tf: x * function(tf.reduce_mean(tf.abs(x), [1, 2], keepdims=True), tf))


BORDER = [[0, 0], [1, 2], [2, 1], [0, 0]]
SHUFFLED = [0, 4, 1, 5, 2, 6, 3, 7]

# A table of its own for each row of what is known about the delegate.
CONVOLUTIONS = {
    "conv-bn-relu": Case(chain(conv(use_bias=False), norm, relu)),
    "conv-bn-relu6": Case(chain(conv(use_bias=False), norm, relu6)),
    "conv-7-channels": Case(chain(conv(7, strides=2), relu)),
    "dilated": Case(chain(conv(dilation_rate=2, use_bias=False), norm, relu)),
    "asymmetric-dilated": Case(lambda x: conv(8, (3, 1), dilation_rate=(2, 1))(x)),
    "depthwise": Case(chain(layers.DepthwiseConv2D(3, padding="same"), norm, relu6)),
    "depthwise-dilated": Case(lambda x: layers.DepthwiseConv2D(3, dilation_rate=2)(x)),
    "depthwise-multiplier": Case(lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x)),
    "depthwise-multiplier-1x1": Case(
        lambda x: layers.DepthwiseConv2D(1, depth_multiplier=2)(x), "wrong"
    ),
    "depthwise-multiplier-1x1-one-channel": Case(
        lambda x: layers.DepthwiseConv2D(1, depth_multiplier=8)(x), channels=1
    ),
    "depthwise-multiplier-1x2": Case(
        lambda x: layers.DepthwiseConv2D((1, 2), depth_multiplier=2)(x)
    ),
    "depthwise-multiplier-int8": Case(
        lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x), precision="int8"
    ),
    "depthwise-1x1-int8": Case(lambda x: layers.DepthwiseConv2D(1)(x), precision="int8"),
    "separable": Case(chain(layers.SeparableConv2D(8, 3), norm, relu)),
    "float16": Case(chain(conv(use_bias=False), norm, relu), precision="float16"),
    "dynamic": Case(chain(conv(use_bias=False), norm, relu), precision="dynamic"),
    "int8": Case(chain(conv(use_bias=False), norm, relu), precision="int8"),
    "int8x16": Case(chain(conv(), relu), "refused", precision="int8x16"),
}
ACTIVATIONS = {
    **{
        name: Case(chain(conv(), layers.Activation(name)))
        for name in ("hard_swish", "gelu", "silu", "elu", "sigmoid", "hard_sigmoid", "tanh", "mish")
    },
    "leaky": Case(chain(conv(), layers.LeakyReLU(0.2))),
    "prelu": Case(chain(conv(), layers.PReLU(shared_axes=[1, 2]))),
    "se": Case(squeeze_and_excite),
    "se-dense": Case(squeeze_and_excite_by_dense),
    "se-int8": Case(squeeze_and_excite, precision="int8"),
    "se-dense-int8": Case(squeeze_and_excite_by_dense, "wrong", precision="int8"),
    # The converter drops the dimensions that the pooling keeps.
    "gap-add-int8": Case(
        self_and(layers.GlobalAveragePooling2D(keepdims=True)), "wrong", precision="int8"
    ),
    "gap-resized-add-int8": Case(
        self_and(chain(layers.GlobalAveragePooling2D(keepdims=True), layers.Resizing(*SIZE))),
        precision="int8",
    ),
    **{
        f"{name}-of-mean-int8": Case(
            call(lambda x, tf, name=name: getattr(tf, name)(x, tf.reduce_mean(x, [1, 2]))),
            "wrong",
            precision="int8",
        )
        for name in ("maximum", "subtract")
    },
    "log-softmax": Case(layers.Activation("log_softmax"), "refused"),
}
# Channels in, channels out, groups. Groups of one channel, which count as wrong, are right if they
# answer one: that is a depthwise convolution.
GROUPED = {
    f"grouped-{ins}-{outs}x{groups}": Case(grouped(ins, outs, groups), verdict, ins * groups)
    for verdict, sizes in {
        "ok": [(4, 4, 2), (4, 8, 3), (8, 8, 2), (8, 4, 2), (12, 12, 2), (1, 1, 6)],
        "wrong": [(1, 2, 4), (2, 2, 4), (3, 3, 4), (4, 2, 4), (4, 6, 2)],
        "dies": [(6, 6, 2), (5, 5, 2), (8, 2, 2)],
    }.items()
    for ins, outs, groups in sizes
} | {
    "grouped-int8": Case(grouped(4, 4, 2), precision="int8"),
    "grouped-float16-wrong": Case(grouped(2, 2, 4), "wrong", precision="float16"),
    # A kernel of 1x1 in integers makes a matrix product, and that knows of no groups. The converter
    # leaves short kernels of dynamic range files in float.
    **{
        f"grouped-1x1-{precision}": Case(grouped(16, 16, 4, size=1), verdict, 64, precision)
        for precision, verdict in (
            *(("int8", "wrong"), ("dynamic", "wrong")),
            *(("float32", "ok"), ("float16", "ok")),
        )
    },
    **{
        f"grouped-1x1-{ins}-{outs}x{groups}-int8": Case(
            grouped(ins, outs, groups, size=1), "wrong", ins * groups, "int8"
        )
        for ins, outs, groups in [(6, 6, 2), (8, 2, 2), (2, 2, 4), (1, 1, 6)]
    },
    "grouped-1x1-strides-int8": Case(
        grouped(16, 16, 4, size=1, strides=2), "wrong", 64, precision="int8"
    ),
    "grouped-1x1-short-dynamic": Case(grouped(4, 4, 2, size=1), precision="dynamic"),
    "grouped-1x2-int8": Case(grouped(16, 16, 4, size=(1, 2)), "ok", 64, precision="int8"),
    "grouped-dynamic": Case(grouped(16, 16, 4), "ok", 64, precision="dynamic"),
}
SPLITS = {
    **{
        f"split-conv-join-{width}": Case(split_convolve_join(3), channels=3 * width)
        for width in (1, 2, 3, 4, 6)
    },
    "strided-slices": Case(joined(lambda x, tf: [x[..., 5:], x[..., :5]])),
    "one-part-untouched": Case(
        joined(lambda x, tf: (lambda a, b: [b, tf.abs(a)])(*tf.split(x, 2, -1)))
    ),
    "split-unequal": Case(joined(lambda x, tf: [tf.abs(y) for y in tf.split(x, [3, 5], -1)])),
    "split-rejoined": Case(joined(lambda x, tf: tf.split(x, 2, -1))),
    "split-swapped": Case(joined(lambda x, tf: tf.split(x, 2, -1)[::-1]), "wrong"),
    "split-along-width": Case(joined(lambda x, tf: tf.split(x, 3, 2)), "wrong"),
    "split-dropped": Case(joined(lambda x, tf: tf.split(x, 4, -1)[:3]), "wrong"),
    "split-unequal-swapped": Case(joined(lambda x, tf: tf.split(x, [3, 5], -1)[::-1]), "wrong"),
}
# A bias fuses with the ReLU, too, unless something stands between them.
TRANSPOSED = {
    "transposed": Case(transposed()),
    "transposed-no-bias": Case(transposed(use_bias=False)),
    "transposed-bn": Case(chain(transposed(use_bias=False), norm)),
    "transposed-no-bias-relu": Case(chain(transposed(use_bias=False), relu)),
    "transposed-no-bias-bn-relu": Case(chain(transposed(use_bias=False), norm, relu), "refused"),
    "transposed-bias-bn-relu": Case(chain(transposed(), norm, relu), "refused"),
    "transposed-bias-relu": Case(chain(transposed(), relu), "refused"),
    "transposed-bias-unfused-relu": Case(chain(transposed(), layers.Cropping2D(1), relu)),
    "transposed-odd-size": Case(chain(layers.Cropping2D(((0, 1), (0, 0))), transposed()), "wrong"),
    "transposed-odd-size-2x2": Case(
        chain(layers.Cropping2D(((0, 1), (0, 0))), lambda x: layers.Conv2DTranspose(8, 2, 2)(x))
    ),
    "transposed-odd-size-4x4": Case(
        chain(
            layers.Cropping2D(((0, 1), (0, 0))),
            lambda x: layers.Conv2DTranspose(8, 4, 2, padding="same")(x),
        )
    ),
}
RESIZES = {
    "bilinear-upsampling": Case(layers.UpSampling2D(2, interpolation="bilinear")),
    "bilinear-resizing": Case(layers.Resizing(13, 17)),
    "nearest-upsampling": Case(layers.UpSampling2D(2), "refused"),
    "nearest-resize": Case(lambda x: ops.image.resize(x, (16, 24), interpolation="nearest")),
}
SHUFFLES = {
    "shuffle-rank-5": Case(
        chain(
            layers.Reshape((*SIZE, 2, 4)), layers.Permute((1, 2, 4, 3)), layers.Reshape((8, 12, 8))
        ),
        "refused",
    ),
    "shuffle-rank-4": Case(
        chain(layers.Reshape((96, 2, 4)), layers.Permute((1, 3, 2)), layers.Reshape((8, 12, 8)))
    ),
    "shuffle-gather": Case(call(lambda x, tf: tf.gather(x, SHUFFLED, axis=-1))),
    "shuffle-convolution": Case(permuting_convolution),
}
OTHERS = {
    "gap": Case(self_and(layers.GlobalAveragePooling2D(keepdims=True))),
    "gap-resized": Case(
        chain(layers.GlobalAveragePooling2D(keepdims=True), layers.Resizing(*SIZE))
    ),
    "max-pooling": Case(layers.MaxPooling2D(3, 2, padding="same")),
    "average-pooling": Case(layers.AveragePooling2D(3, 2, padding="same")),
    "layer-norm": Case(layers.LayerNormalization()),
    "group-norm": Case(layers.GroupNormalization(2), "refused"),
    "attention": Case(attention),
    "attention-rank-4": Case(lambda x: layers.MultiHeadAttention(2, 4)(x, x), "refused"),
    "softmax": Case(layers.Softmax()),
    "pad": Case(chain(layers.ZeroPadding2D(1), conv())),
    "strided-1x1": Case(layers.Conv2D(8, 1, strides=2)),
    "strided-1x1-int8": Case(layers.Conv2D(8, 1, strides=2), "wrong", precision="int8"),
    "strided-1x1-dynamic": Case(
        layers.Conv2D(64, 1, strides=3), "wrong", channels=64, precision="dynamic"
    ),
    "strided-2x1-int8": Case(conv(8, (2, 1), strides=2), precision="int8"),
    "strided-1x1-depthwise-int8": Case(layers.DepthwiseConv2D(1, strides=2), precision="int8"),
    "transposed-bias-of-one": Case(
        chain(layers.Conv2DTranspose(8, 3, 2, use_bias=False), lambda x: x + 0.5), "refused"
    ),
    "pad-int8": Case(chain(padded(BORDER, 2.0), conv()), precision="int8"),
    "pad-int8-depthwise": Case(
        chain(padded(BORDER, 1.0), layers.DepthwiseConv2D(3)), precision="int8"
    ),
    "pad-int8-average-pooling": Case(
        chain(padded(BORDER), layers.AveragePooling2D(3, 2)), precision="int8"
    ),
    "pad-int8-max-pooling": Case(
        chain(padded(BORDER), layers.MaxPooling2D(3, 2)), precision="int8"
    ),
    "pad-asymmetric-depthwise": Case(
        chain(layers.ZeroPadding2D(((0, 1), (0, 1))), layers.DepthwiseConv2D(3, strides=2))
    ),
    "gather-rows": Case(call(lambda x, tf: tf.gather(x, [5, 0, 1, 7], axis=2))),
    "slice": Case(layers.Cropping2D(1)),
    "concat": Case(lambda x: layers.Concatenate()([x, conv(3)(x), conv(5)(x)])),
    "concat-rows": Case(lambda x: layers.Concatenate(axis=1)([x, conv()(x)])),
    "add": Case(self_and(conv())),
    "multiply-map": Case(lambda x: layers.Multiply()([x, conv(1, activation="sigmoid")(x)])),
    "depth-to-space": Case(call(lambda x, tf: tf.nn.depth_to_space(x, 2))),
    "argmax-8-classes": Case(conv(), tail="argmax", classes=8),
    "argmax-5-classes": Case(conv(), "wrong", tail="argmax"),
    "argmax-5-not-negative": Case(
        chain(
            conv(5),
            relu,
            call(lambda x, tf: tf.cast(tf.argmax(x, -1, tf.int32), tf.float32)[..., None]),
        )
    ),
    # TOPK_V2 and CUMSUM, said to be refused, are taken: the one is wrong where slices are not full,
    # the other right along height and width and deadly along the channels.
    "top-k": Case(call(lambda x, tf: tf.math.top_k(x, 3)[0])),
    "top-k-of-5": Case(call(lambda x, tf: tf.math.top_k(-tf.exp(x), 3)[0]), "wrong", 5),
    "reverse-8": Case(call(lambda x, tf: tf.reverse(x, [3]))),
    "reverse-5": Case(call(lambda x, tf: tf.reverse(x, [3])), "wrong", 5),
    "reverse-rows": Case(call(lambda x, tf: tf.reverse(x, [1])), "ok", 5),
    "batch-norm-unfolded": Case(lambda x: norm(layers.Concatenate()([x, conv()(x)]))),
    **{
        f"{name}-of-{channels}": Case(scaled(function), verdict, channels, rule=rule)
        for channels, verdict, rule in ((8, "ok", None), (5, "wrong", "unknown"))
        for name, function in {
            "logarithm": lambda x, tf: tf.math.log(x),
            "reciprocal": lambda x, tf: 1.0 / x,
            "inverse-root": lambda x, tf: tf.math.rsqrt(x),
        }.items()
    },
    "logarithm-of-5-shifted": Case(scaled(lambda x, tf: tf.math.log(x + 0.1)), channels=5),
}
REFUSED = {
    "argmax-int64": call(lambda x, tf: tf.cast(tf.argmax(x, -1), tf.float32)[..., None]),
    "space-to-batch": call(lambda x, tf: tf.space_to_batch(x, [2, 2], [[0, 0], [0, 0]])[:1]),
    "arg-min": call(
        lambda x, tf: tf.cast(tf.argmin(x, -1, output_type=tf.int32), tf.float32)[:, :, :, None]
    ),
    "broadcast-to": call(lambda x, tf: tf.broadcast_to(x[:, :1], (1, *SIZE, 8))),
    "l2-normalize": call(lambda x, tf: tf.nn.l2_normalize(x, -1)),
    "response-norm": call(lambda x, tf: tf.nn.local_response_normalization(x)),
    "conv-3d": lambda x: layers.Reshape((8, 12, 8))(
        layers.Conv3D(1, 3, padding="same")(layers.Reshape((8, 12, 8, 1))(x))
    ),
    "add-three": call(lambda x, tf: tf.add_n([x, tf.abs(x), tf.exp(x)])),
    "largest-of-itself": lambda x: layers.Maximum()([x, x]),
    "pairs-of-itself": joined(
        lambda x, tf: [
            *[pair(x, x) for pair in (tf.subtract, tf.divide, tf.maximum, tf.minimum, tf.pow)],
            tf.math.squared_difference(x, x),
            *[tf.cast(pair(x, x), tf.float32) for pair in (tf.equal, tf.greater)],
        ]
    ),
    "gather-by-points": call(lambda x, tf: tf.gather_nd(x[0], [[0, 1], [2, 3]])[None, None]),
    "pad-symmetric": call(lambda x, tf: tf.pad(x, BORDER, mode="SYMMETRIC")),
    "slice-drops-axis": call(lambda x, tf: x[:, 0][:, None]),
    "slice-backwards": call(lambda x, tf: x[:, ::-1]),
    "gather-by-table": call(lambda x, tf: tf.gather(x, [[0, 1], [2, 3]], axis=1)[:, :, 0]),
    "select-broadcasts": call(
        lambda x, tf: tf.where(x > 0.0, x, tf.reduce_mean(x, [1, 2], keepdims=True))
    ),
    "number-without-dimensions": call(lambda x, tf: x + tf.reduce_mean(x)),
}
WRONG = {
    "one-hot": call(lambda x, tf: tf.one_hot(tf.argmax(x, -1, output_type=tf.int32), 8)),
    "product-broadcasts": call(
        lambda x, tf: tf.matmul(x, tf.reduce_mean(x, 1, keepdims=True), transpose_b=True)
    ),
    "cumulative-exclusive": call(lambda x, tf: tf.cumsum(x, 1, exclusive=True)),
    "cumulative-backwards": call(lambda x, tf: tf.cumsum(x, 1, reverse=True)),
    "pad-batch": call(lambda x, tf: tf.pad(x, [[0, 1], [0, 0], [0, 0], [0, 0]])[1:] + x),
    "pad-by-2": chain(padded(BORDER, 2.0), conv()),
    "pad-max-pooling": chain(
        call(lambda x, tf: -tf.abs(x) - 1.0), padded(BORDER), layers.MaxPooling2D(3, 2)
    ),
    "pad-average-pooling": chain(padded(BORDER), layers.AveragePooling2D(3, 2)),
    "pad-by-2-depthwise": chain(padded(BORDER, 2.0), layers.DepthwiseConv2D(3)),
    "unstacked-backwards": call(
        lambda x, tf: tf.concat(tf.unstack(x, axis=1)[::-1], 1)[:, :, :, None]
    ),
}
DEADLY = {
    "cumulative-channels": call(lambda x, tf: tf.cumsum(x, -1)),
    "product-with-itself": call(lambda x, tf: tf.matmul(x, x, transpose_b=True)),
    "choice-of-itself": call(lambda x, tf: tf.where(x > 0.0, x, x)),
}
# What a rule that is too strict would forbid, too.
NEIGHBOURS = {
    "cumulative-rows": call(lambda x, tf: tf.cumsum(x, 1)),
    "product": call(lambda x, tf: tf.matmul(x, tf.abs(x), transpose_b=True)),
    "sum-of-two": call(lambda x, tf: tf.add_n([x, tf.abs(x)])),
    "sum-with-itself": lambda x: layers.Add()([x, x]),
    "pad-reflect": call(lambda x, tf: tf.pad(x, BORDER, mode="REFLECT")),
    "pad-relu-max-pooling": chain(conv(), relu, padded(BORDER), layers.MaxPooling2D(3, 2)),
    "pad-low-max-pooling": chain(padded(BORDER, -1e5), layers.MaxPooling2D(3, 2)),
    "pad-two-readers": chain(
        padded(BORDER, 2.0), lambda x: layers.Concatenate()([conv()(x), conv()(x)])
    ),
    "pad-by-2-transposed": chain(padded([[0, 0], [1, 1], [1, 1], [0, 0]], 2.0), transposed()),
    "select-same-shape": call(lambda x, tf: tf.where(x > 0.0, x, tf.exp(x))),
    "select-number": call(lambda x, tf: tf.where(x > 0.0, x, 0.5)),
    "gather-list": call(lambda x, tf: tf.gather(x, [3, 1, 2], axis=1)),
    "slice-steps": call(lambda x, tf: x[:, ::2, 1::3]),
    "keeps-dimensions": call(lambda x, tf: x + tf.reduce_mean(x, [1, 2, 3], keepdims=True)),
    "int32-arithmetic": call(lambda x, tf: tf.cast(tf.cast(x * 9.0, tf.int32) * 3, tf.float32)),
    "unstacked": call(lambda x, tf: tf.concat(tf.unstack(x, axis=1), 1)[:, :, :, None]),
}
# The plain ops that no network above has.
PLAIN = {
    "of-one": joined(
        lambda x, tf: [
            *[f(x) for f in (tf.floor, tf.math.ceil, tf.round, tf.sign, tf.sin, tf.cos, tf.square)],
            tf.sqrt(tf.abs(x)),
        ]
    ),
    "of-two": joined(
        lambda x, tf: [
            *[f(x, tf.abs(x) + 0.5) for f in (tf.maximum, tf.minimum, tf.subtract, tf.divide)],
            *[f(x, tf.abs(x) + 0.5) for f in (tf.math.floordiv, tf.math.floormod)],
            tf.pow(tf.abs(x), tf.exp(-x)),
        ]
    ),
    "of-truths": joined(
        lambda x, tf: [
            tf.cast(truth, tf.float32)
            for small, large in [(x < -0.2, x > 0.2)]
            for truth in (
                *(small, large, x <= 0.1, x >= -0.1, tf.logical_or(small, large)),
                *(tf.logical_and(x > -0.3, x < 0.3), tf.equal(tf.round(x), 0.0)),
                tf.not_equal(tf.round(x), 1.0),
            )
        ]
    ),
    "reductions": joined(
        lambda x, tf: [
            *[
                x + f(x, [1, 2], keepdims=True)
                for f in (tf.reduce_max, tf.reduce_min, tf.reduce_sum)
            ],
            x + tf.reduce_prod(tf.abs(x), 1, keepdims=True),
            *[
                x + tf.cast(f(x > 0.0, 2, keepdims=True), tf.float32)
                for f in (tf.reduce_any, tf.reduce_all)
            ],
        ]
    ),
    "clipped": joined(
        lambda x, tf: [tf.nn.relu6(tf.concat([x, -x], -1)), tf.clip_by_value(x, -1.0, 1.0)]
    ),
    "space-to-depth": call(lambda x, tf: tf.nn.space_to_depth(x, 2)),
    "tiled": call(lambda x, tf: tf.tile(x, [1, 2, 1, 1])),
    "rolled": call(lambda x, tf: tf.roll(x, 3, 2)),
    "packed": call(lambda x, tf: tf.stack(tf.unstack(x, axis=3)[::-1], 3)),
}
DYNAMIC = {
    "dynamic-transposed": Case(transposed(use_bias=False), "refused", batch=None),
    "dynamic-reshape": Case(layers.Reshape((12, 8, 8)), "refused", batch=None),
    "dynamic-dilated": Case(conv(dilation_rate=2), "refused", batch=None),
    "dynamic-conv": Case(conv(), batch=None),
}

CASES = {
    **{**CONVOLUTIONS, **ACTIVATIONS, **GROUPED, **SPLITS, **TRANSPOSED, **RESIZES, **SHUFFLES},
    **{**OTHERS, **DYNAMIC},
    **{name: Case(build, "refused") for name, build in REFUSED.items()},
    **{name: Case(build, "wrong") for name, build in WRONG.items()},
    **{name: Case(build, "dies") for name, build in DEADLY.items()},
    **{name: Case(build) for name, build in {**NEIGHBOURS, **PLAIN}.items()},
}
