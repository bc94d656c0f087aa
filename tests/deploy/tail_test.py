import keras
import numpy as np
import pytest

from tests.deploy import nets
from tfseg_prune.deploy import with_tail

layers = keras.layers


def answer(model, images):
    return keras.ops.convert_to_numpy(model(images, training=False))


def test_tails_are_views_of_one_answer(model, images):
    upsampled = answer(with_tail(model, "upsampled"), images)
    np.testing.assert_array_equal(upsampled, answer(model, images))
    logits = answer(with_tail(model, "logits"), images)
    assert logits.shape == (4, 16, 24, nets.CLASSES)
    resized = keras.ops.image.resize(logits, nets.SIZE, interpolation="bilinear")
    np.testing.assert_allclose(upsampled, keras.ops.convert_to_numpy(resized), atol=1e-5)
    class_map = answer(with_tail(model, "argmax"), images)
    assert class_map.dtype == np.int32
    np.testing.assert_array_equal(class_map, upsampled.argmax(-1))


@pytest.mark.parametrize("resize", ["layer", "operation"])
def test_trailing_resize_is_found_whatever_made_it(resize):
    model = nets.segmenter(resize=resize)
    assert with_tail(model, "logits").output_shape == (None, 16, 24, nets.CLASSES)


def test_answer_at_lower_resolution_is_resized(images):
    model = nets.segmenter(resize=None)
    assert with_tail(model, "logits").output_shape == (None, 16, 24, nets.CLASSES)
    upsampled = with_tail(model, "upsampled")
    np.testing.assert_allclose(
        answer(upsampled, images), answer(nets.segmenter(), images), atol=1e-5
    )


def test_resize_inside_a_nested_model_and_before_a_linear_activation(model, images):
    inputs = keras.Input((*nets.SIZE, 3))
    outer = layers.Activation("linear")(model(inputs))
    nested = keras.Model(inputs, layers.UpSampling2D(2)(outer))
    np.testing.assert_array_equal(
        answer(with_tail(nested, "logits"), images), answer(with_tail(model, "logits"), images)
    )


def test_softmax_behind_the_resize_is_kept(model):
    probabilities = keras.Model(model.inputs, layers.Softmax()(model.outputs[0]))
    assert with_tail(probabilities, "logits").output_shape[1:3] == nets.SIZE


def test_sequential_model_and_any_size():
    stack = [layers.Conv2D(4, 3, strides=2, padding="same"), layers.UpSampling2D(2)]
    sequential = keras.Sequential([keras.Input((8, 8, 3)), *stack])
    assert with_tail(sequential, "logits").output_shape == (None, 4, 4, 4)
    inputs = keras.Input((None, None, 3))
    free = keras.Model(inputs, stack[1](stack[0](inputs)))
    assert with_tail(free, "argmax", image_size=(7, 9)).output_shape == (None, 7, 9)


def test_model_is_left_as_it_was(model, images):
    before = [len(layer._inbound_nodes) for layer in model.layers]
    for tail in ("logits", "upsampled", "argmax"):
        with_tail(model, tail, batch_size=1)
    assert [len(layer._inbound_nodes) for layer in model.layers] == before


def subclassed():
    class Mine(keras.Model):
        def call(self, inputs):
            return inputs

    return Mine()


def functional(inputs, outputs):
    return keras.Model(inputs, outputs)


IMAGE, OTHER = keras.Input((8, 8, 3), name="image"), keras.Input((8, 8, 3), name="other")
ANY = keras.Input((None, None, 3), name="any")


@pytest.mark.parametrize(
    "model, message",
    [
        (subclassed(), "functional or built sequential"),
        (functional([IMAGE, OTHER], layers.Add()([IMAGE, OTHER])), "one input.*image, other"),
        (functional(IMAGE, [layers.ReLU()(IMAGE)] * 2), "one output"),
        (functional(IMAGE, layers.GlobalMaxPooling2D(name="pool")(IMAGE)), "rank 4.*'pool'"),
        (functional(IMAGE, layers.Conv2D(1, 1)(IMAGE)), "two classes.*1 channel.*concatenate"),
        (functional(ANY, layers.Conv2D(2, 1)(ANY)), "input size.*'any'.*image_size="),
    ],
)
def test_unfit_model_is_one_clear_error(model, message):
    with pytest.raises(ValueError, match=message):
        with_tail(model, "upsampled")


def test_unknown_tail_and_size_that_contradicts(model):
    with pytest.raises(ValueError, match="logits, upsampled, argmax.*'softmax'"):
        with_tail(model, "softmax")
    with pytest.raises(ValueError, match="image_size="):
        with_tail(model, "logits", image_size=(64, 64))
