"""The tf_keras copy of a model answers as the model does, layer by layer."""

import importlib.util

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.deploy import nets
from tfseg_prune import models
from tfseg_prune.deploy import ExportError, folded, tf_keras_twin, twin

pytest.importorskip("tf_keras", reason="tf-keras is not installed (the extra [tfmot])")
layers = keras.layers
ops = keras.ops
SIZE = (8, 12)


def answers(model, *others):
    """What models answer to one random batch."""
    rng = np.random.default_rng(0)
    shape = [side or 16 for side in model.inputs[0].shape[1:]]
    images = rng.uniform(-2, 2, (2, *shape)).astype("float32")
    return [np.asarray(each(images, training=False)) for each in (model, *others)]


def check_equal(model, tolerance=1e-5):
    copy = tf_keras_twin(model)
    again = type(copy).from_config(copy.get_config())
    again.set_weights(copy.get_weights())
    expected, found, reloaded = answers(model, copy, again)
    assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    np.testing.assert_array_equal(found, reloaded)
    assert copy.count_params() == model.count_params()
    return copy


def chain(*steps, channels=6):
    """A functional model of layers, or functions, one behind the other."""
    keras.utils.set_random_seed(2)
    inputs = x = keras.Input((*SIZE, channels))
    for step in steps:
        x = step(x)
    return nets.randomised(keras.Model(inputs, x))


ZOO = {
    "plain": lambda: chain(layers.Conv2D(4, 3, activation="gelu"), layers.BatchNormalization()),
    "other activations": lambda: chain(
        *(layers.Conv2D(6, 1, activation=a) for a in ("hard_sigmoid", "leaky_relu", "relu6")),
        *(layers.Activation(a) for a in ("hard_silu", "mish", "silu", "log_softmax")),
        *(layers.ReLU(6.0), layers.LeakyReLU(0.1), layers.PReLU(shared_axes=[1, 2]), layers.ELU()),
    ),
    "convolutions": lambda: chain(
        layers.SeparableConv2D(8, 3, padding="same", depth_multiplier=2, activation="relu"),
        layers.Conv2DTranspose(6, 3, strides=2, padding="same"),
        layers.Conv2D(6, (1, 3), dilation_rate=(1, 2), groups=3, padding="same"),
        layers.DepthwiseConv2D(3, strides=2, activation="hard_silu"),
    ),
    "sizes": lambda: chain(
        layers.ZeroPadding2D(((1, 2), (0, 3))),
        layers.MaxPooling2D(2, padding="same"),
        layers.UpSampling2D(2, interpolation="bilinear"),
        layers.AveragePooling2D(2),
        layers.Resizing(9, 7),
        layers.Cropping2D(((1, 0), (2, 1))),
        lambda x: ops.image.resize(x, (5, 6), interpolation="nearest"),
        lambda x: ops.pad(x, [[0, 0], [1, 1], [0, 0], [0, 0]]),
        lambda x: x[:, 1:-1, ::2, :4],
    ),
    "raw operations": lambda: chain(
        lambda x: ops.concatenate([x, 2.0 * x + 1.0, ops.relu(x)], axis=-1),
        lambda x: ops.multiply(*ops.split(x, 2, axis=-1)),
        lambda x: ops.transpose(ops.reshape(x, (-1, 96, 3, 3)), (0, 1, 3, 2)),
        lambda x: x - ops.mean(x, axis=1, keepdims=True),
    ),
    "attention": lambda: chain(
        lambda x: (
            x
            * layers.Dense(6, activation="sigmoid")(layers.GlobalAveragePooling2D()(x))[
                :, None, None, :
            ]
        ),
        layers.LayerNormalization(),
        layers.Reshape((-1, 6)),
        lambda x: layers.MultiHeadAttention(2, 3)(x, x),
        layers.Permute((2, 1)),
        layers.Softmax(axis=1),
    ),
    "preprocessing": lambda: chain(
        layers.Rescaling(1 / 127.5, -1.0),
        layers.Normalization(mean=[0.1] * 6, variance=[2.0] * 6),
        layers.GaussianNoise(0.5),
        layers.Dropout(0.5),
    ),
}


@pytest.mark.parametrize("name", ZOO)
def test_every_kind_of_layer(name):
    check_equal(ZOO[name]())


@st.composite
def convolutions(draw):
    strides, dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    kind = draw(st.sampled_from(["Conv2D", "DepthwiseConv2D", "Conv2DTranspose"]))
    options = {
        "kernel_size": (draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        "strides": strides,
        "dilation_rate": 1 if kind == "Conv2DTranspose" else dilation,
        "padding": draw(st.sampled_from(["same", "valid"])),
        "use_bias": draw(st.booleans()),
        "activation": draw(st.sampled_from([None, "relu", "tanh", "hard_sigmoid", "silu"])),
    }
    if kind != "DepthwiseConv2D":
        options["filters"] = draw(st.integers(1, 5))
    return kind, options, draw(st.booleans())


@settings(max_examples=5, deadline=None, derandomize=True)
@given(convolutions())
def test_convolutions_of_any_options_and_their_normalisation_folded(drawn):
    kind, options, norm = drawn
    steps = [getattr(layers, kind)(**options)]
    if norm:
        steps += [layers.BatchNormalization(), layers.ReLU()]
    model = chain(*steps)
    check_equal(model)
    expected, found = answers(model, folded(model))
    assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1e-3)


def nested():
    keras.utils.set_random_seed(3)
    inner = keras.Input((*SIZE, 6))
    x = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", name="conv")(inner))
    block = keras.Model(inner, layers.Add()([x, inner]), name="block")
    shared = layers.Conv2D(6, 1, name="conv")
    inputs = keras.Input((*SIZE, 6))
    x = block(shared(block(shared(inputs))))
    return nets.randomised(keras.Model(inputs, keras.Sequential([layers.ReLU()])(x)))


def test_several_inputs_and_outputs():
    first, second = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    x = layers.Add()([first, second, first])
    model = keras.Model([first, second], [layers.Conv2D(4, 1)(x), layers.Flatten()(x)])
    copy = tf_keras_twin(model)
    images = [np.random.default_rng(i).normal(size=(2, 8, 8, 3)).astype("float32") for i in (0, 1)]
    for expected, found in zip(model(images), copy(images)):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_nested_and_shared_layers_stay_shared():
    copy = check_equal(nested())
    assert [layer.name for layer in copy.layers].count("block_conv") == 1
    expected, found = answers(nested(), folded(nested()))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_whole_network_and_training_the_copy_leaves_the_model():
    model = nets.segmenter(resize="operation")
    copy = check_equal(model)
    before = [w.copy() for w in model.get_weights()]
    copy.compile("sgd", "mse")
    copy.fit(nets.images(), np.ones((4, *nets.SIZE, nets.CLASSES)), verbose=0)
    assert any(
        (a != b).any() for a, b in zip(copy.get_weights(), tf_keras_twin(model).get_weights())
    )
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)


def test_folding_leaves_no_normalisation_and_no_rescaling():
    model = nets.segmenter()
    kinds = {type(layer) for layer in folded(model).layers}
    assert not kinds & {layers.BatchNormalization, layers.Rescaling}
    expected, found = answers(model, folded(model))
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    "build",
    [
        lambda s: models.deeplab_v3_plus(5, s),
        lambda s: models.deeplab_v3(5, s),
        lambda s: models.pspnet(5, s),
        lambda s: models.unet(5, s, width=8),
        lambda s: models.erfnet(5, s),
        lambda s: models.erfnet(5, s, block="D"),
        lambda s: keras.applications.MobileNetV3Small(
            weights=None, include_top=False, input_shape=s
        ),
        lambda s: keras.applications.EfficientNetB0(weights=None, include_top=False, input_shape=s),
        lambda s: keras.applications.ConvNeXtTiny(weights=None, include_top=False, input_shape=s),
    ],
)
def test_every_network(build):
    model = nets.randomised(build((64, 96, 3)))
    check_equal(model)
    expected, found = answers(model, folded(model))
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_layer_that_answers_something_else_is_named(monkeypatch):
    native = twin._native

    def broken(call, name, fused):
        layer = native(call, name, fused)
        if name == "dilated":
            layer.set_weights([-w for w in layer.get_weights()])
        return layer

    monkeypatch.setattr(twin, "_native", broken)
    with pytest.raises(ExportError, match="'dilated' .Conv2D. in tf_keras answers something else"):
        tf_keras_twin(nets.segmenter())


class Odd(layers.Layer):
    """Has weights, and a config that lacks an argument."""

    def __init__(self, power, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def build(self, shape):
        self.gain = self.add_weight(shape=shape[-1:])

    def call(self, x):
        return self.gain * x**self.power


def test_layer_that_cannot_be_copied_is_named():
    with pytest.raises(ExportError, match="'strange' .Odd. has no copy.*Remedy"):
        tf_keras_twin(chain(Odd(2.0, name="strange")))


def test_without_tf_keras_the_error_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"tfseg-prune\[tfmot\]"):
        tf_keras_twin(nets.segmenter())
