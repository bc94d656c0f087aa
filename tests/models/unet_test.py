import keras
import numpy as np
import pytest

from tfseg_prune import models


@pytest.mark.parametrize(
    "num_classes, size, params, macs",
    [
        (24, (512, 768), 31_033_240, 289_583_136_768),
        (11, (352, 480), 31_032_395, 124_289_679_360),
    ],
)
def test_cost_is_that_of_the_definition(checks, num_classes, size, params, macs):
    model = models.unet(num_classes, (*size, 3))
    assert checks.params(model) == params
    assert checks.macs(model) == macs
    assert model.output_shape == (None, *size, num_classes)
    checks.plain_and_named(model)


def test_parameters_by_part():
    model = models.unet(24, (64, 64, 3))
    parts = {"backbone_level": 0, "backbone_bottleneck": 0, "decoder_level": 0, "decoder_logits": 0}
    for layer in model.layers:
        for part in parts:
            if layer.name.startswith(part):
                parts[part] += layer.count_params()
    assert list(parts.values()) == [4_685_376, 14_157_824, 12_188_480, 1_560]


@pytest.mark.parametrize("size", [(32, 48), (37, 51)])
def test_trains_and_saves_at_any_size(checks, tmp_path, size):
    model = models.unet(3, (*size, 3), width=4)
    checks.trains(model, batch_size=2)
    checks.survives_saving(model, tmp_path / "model.keras")


def test_way_up_is_padded_at_the_far_end_only():
    """360 rows halve to 22 at the bottom: one row of zeros at the way up's end, nowhere else."""
    model = models.unet(2, (360, 480, 3), width=2)
    padded = [x for x in model.layers if isinstance(x, keras.layers.ZeroPadding2D)]
    assert [x.name for x in padded] == ["decoder_level4_pad"]
    assert padded[0].padding == ((0, 1), (0, 0))


def test_skip_comes_first_in_the_concatenation():
    model = models.unet(2, (16, 16, 3), width=2)
    skip, up = model.get_layer("decoder_level1_concat").input
    assert skip is model.get_layer("backbone_level1_conv2").output
    assert up is model.get_layer("decoder_level1_up").output


def test_deep_activations_stay_alive_at_the_start(checks):
    """He's initialisation keeps the variance through ten layers without a batch norm."""
    model = models.unet(2, (64, 64, 3), width=8)
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 64, 3)).astype("float32")
    bottom = keras.Model(model.input, model.get_layer("backbone_bottleneck_conv2").output)
    assert 0.05 < checks.answer(bottom, images).std() < 5


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0, (32, 32, 3)), {}, "num_classes"),
        ((2, (32, 3)), {}, "input_shape"),
        ((2, (None, 32, 3)), {}, "input_shape"),
        ((2, (15, 32, 3)), {}, "input_shape"),
        ((2, (32, 32, 3)), {"width": 0}, "width"),
        ((2, (32, 32, 3)), {"width": 0.5}, "width"),
    ],
)
def test_wrong_argument_is_one_clear_error(arguments, options, message):
    with pytest.raises(ValueError, match=f"`{message}`. Expected: .* Received: "):
        models.unet(*arguments, **options)
