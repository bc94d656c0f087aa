import keras
import numpy as np
import pytest

from tfseg_prune import models


@pytest.mark.parametrize(
    "num_classes, size, params, macs",
    [
        (19, (512, 1024), 2_064_191, 26_604_339_200),
        (20, (512, 1024), 2_064_256, 26_612_727_808),
        (11, (360, 480), 2_063_671, 8_746_401_600),
    ],
)
def test_cost_is_that_of_the_definition(checks, num_classes, size, params, macs):
    model = models.erfnet(num_classes, (*size, 3))
    assert checks.params(model) == params
    assert checks.macs(model) == macs
    assert model.output_shape == (None, *size, num_classes)
    checks.plain_and_named(model)


def test_parameters_by_part(checks):
    model = models.erfnet(19, (64, 64, 3))
    encoder = keras.Model(model.input, model.get_layer("backbone_16_block_relu2").output)
    assert encoder.output_shape == (None, 8, 8, 128)
    assert checks.params(encoder) == 1_874_044
    assert checks.params(model) - checks.params(encoder) == 190_147


def test_dilations_and_dropouts_are_the_tables():
    model = models.erfnet(2, (32, 32, 3))
    dilations = [
        max(layer.dilation_rate)
        for layer in model.layers
        if layer.name.endswith("conv2_3x1") and layer.filters == 128
    ]
    assert dilations == [2, 4, 8, 16] * 2
    rates = [x.rate for x in model.layers if isinstance(x, keras.layers.SpatialDropout2D)]
    assert rates == [0.03] * 5 + [0.3] * 8


def test_trains_and_saves(checks, tmp_path):
    model = models.erfnet(3, (32, 48, 3))
    checks.trains(model, batch_size=2)
    checks.survives_saving(model, tmp_path / "model.keras")


def test_way_up_is_aligned_as_in_torch(checks):
    """A 3x3 transposed convolution has its kernel's centre on the even pixels."""
    model = models.erfnet(2, (32, 32, 3))
    conv, crop = (model.get_layer(f"decoder_1_up_{name}") for name in ("conv", "crop"))
    impulse = np.zeros((1, 4, 4, 128), "float32")
    impulse[0, 2, 1, 5] = 1.0
    response = checks.answer(keras.Model(conv.input, crop.output), impulse)
    expected = np.zeros((1, 8, 8, 64), "float32")
    expected[0, 3:6, 1:4] = conv.get_weights()[0][..., 5] / np.sqrt(1 + 1e-3)
    np.testing.assert_allclose(response, expected, atol=1e-6)


def test_transposed_convolutions_have_a_bias():
    """Without one they fuse to an operator version that GPU delegates refuse."""
    model = models.erfnet(2, (32, 32, 3))
    transposed = [x for x in model.layers if isinstance(x, keras.layers.Conv2DTranspose)]
    assert len(transposed) == 3 and all(x.use_bias for x in transposed)


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((-1, (32, 32, 3)), {}, "num_classes"),
        ((2, (32, 32)), {}, "input_shape"),
        ((2, (None, None, 3)), {}, "input_shape"),
        ((2, (36, 32, 3)), {}, "input_shape"),
        ((2, (32, 32, 3)), {"bn_momentum": -0.1}, "bn_momentum"),
    ],
)
def test_wrong_argument_is_one_clear_error(arguments, options, message):
    with pytest.raises(ValueError, match=f"`{message}`. Expected: .* Received: "):
        models.erfnet(*arguments, **options)
