import keras
import numpy as np
import pytest

import tfseg_prune as tsp
from tfseg_prune import models
from tfseg_prune.models.pspnet import adaptive_pool


@pytest.mark.parametrize(
    "num_classes, size, params, macs",
    [
        (21, (513, 513), 46_716_373, 189_710_102_720),
        (19, (512, 512), 46_715_347, 184_150_917_120),
    ],
)
def test_cost_is_that_of_the_definition(checks, num_classes, size, params, macs):
    model = models.pspnet(num_classes, (*size, 3))
    cost = tsp.cost(model)
    assert cost.params == checks.params(model) == params
    assert cost.macs == checks.macs(model) == macs
    assert model.output_shape == (None, *size, num_classes)
    checks.plain_and_named(model)


def test_all_blocks_of_a_dilated_stage_dilate():
    model = models.pspnet(2, (41, 41, 3))
    rates = {
        stage: {
            layer.dilation_rate[0]
            for layer in model.layers
            if layer.name.startswith(f"backbone_conv{stage}_") and layer.name.endswith("_2_conv")
        }
        for stage in (2, 3, 4, 5)
    }
    assert rates == {2: {1}, 3: {1}, 4: {2}, 5: {4}}


@pytest.mark.parametrize(
    "size, bins, kind",
    [
        ((65, 65), 1, keras.layers.GlobalAveragePooling2D),
        ((65, 65), 2, keras.layers.AveragePooling2D),
        ((65, 65), 3, keras.layers.AdaptiveAveragePooling2D),
        ((64, 64), 3, keras.layers.AveragePooling2D),
        ((64, 64), 6, keras.layers.AdaptiveAveragePooling2D),
        ((45, 60), 2, keras.layers.AveragePooling2D),
        ((45, 60), 6, keras.layers.AdaptiveAveragePooling2D),
        ((6, 7), 6, keras.layers.AveragePooling2D),
        ((8, 6), 6, keras.layers.AdaptiveAveragePooling2D),
        ((47, 8), 3, keras.layers.AdaptiveAveragePooling2D),
    ],
)
def test_pooling_windows_are_torchs(checks, size, bins, kind):
    x = keras.Input((*size, 2))
    model = keras.Model(x, adaptive_pool(x, bins, "pool"))
    assert type(model.get_layer("pool")) is kind
    features = np.random.default_rng(0).normal(size=(1, *size, 2)).astype("float32")

    def window(i, size):
        return slice(i * size // bins, -(-(i + 1) * size // bins))

    expected = [
        [features[:, window(i, size[0]), window(j, size[1])].mean((1, 2)) for j in range(bins)]
        for i in range(bins)
    ]
    expected = np.transpose(expected, (2, 0, 1, 3))
    np.testing.assert_allclose(checks.answer(model, features), expected, atol=1e-6)


def test_features_come_first_then_the_bins_in_order():
    model = models.pspnet(2, (41, 41, 3))
    names = [
        tensor._keras_history.operation.name
        for tensor in model.get_layer("decoder_pyramid_concat").input
    ]
    assert names == ["backbone_conv5_block3_out"] + [
        f"decoder_bin{bins}_resize" for bins in (1, 2, 3, 6)
    ]


def test_rebuilds_where_windows_differ(checks):
    model = models.pspnet(3, (57, 41, 3))
    assert isinstance(model.get_layer("decoder_bin6_pool"), keras.layers.AdaptiveAveragePooling2D)
    checks.survives_rebuilding(model)


def test_half_of_the_macs_shrinks_exactly():
    model = models.pspnet(3, (41, 48, 3))
    plan = tsp.plan(model, budget=tsp.Budget(macs=0.5), ranking="scope", align=8)
    small = tsp.shrink(model, plan)  # raises unless it equals the masked twin
    assert tsp.check_equal(tsp.masked_twin(model, plan), small) < 1e-4
    assert tsp.cost(small) == tsp.cost(model, plan)
    assert 0.48 < tsp.cost(small).macs / tsp.cost(model).macs <= 0.5
    assert {f"decoder_bin{bins}_conv" for bins in (1, 2, 3, 6)} <= plan.keep.keys()


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0, (48, 48, 3)), {}, "num_classes"),
        ((2, (48, 48)), {}, "input_shape"),
        ((2, (40, 48, 3)), {}, "input_shape"),
        ((2, (48, 48, 3)), {"output_stride": 16}, "input_shape"),
        ((2, (48, 48, 3)), {"output_stride": 12}, "output_stride"),
        ((2, (48, 48, 3)), {"backbone": "resnet34"}, "backbone"),
        ((2, (48, 48, 3)), {"stem": ""}, "stem"),
        ((2, (48, 48, 3)), {"stride_on": "both"}, "stride_on"),
        ((2, (48, 48, 3)), {"bn_momentum": -1}, "bn_momentum"),
        ((2, (48, 48, 3)), {"dropout": 1.0}, "dropout"),
    ],
)
def test_wrong_argument_is_one_clear_error(arguments, options, message):
    with pytest.raises(ValueError, match=f"`{message}`. Expected: .* Received: "):
        models.pspnet(*arguments, **options)
