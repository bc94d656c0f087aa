import keras
import numpy as np
import pytest

from tfseg_prune import models


@pytest.mark.parametrize(
    "num_classes, size, output_stride, params, macs",
    [
        (19, (512, 1024), 16, 2_264_835, 10_256_728_064),
        (19, (512, 1024), 32, 2_264_835, 8_088_731_648),
        (19, (512, 1024), 8, 2_264_835, 22_145_613_824),
        (21, (512, 512), 16, 2_265_349, 5_136_793_600),
        (11, (360, 480), 16, 2_262_779, 3_387_475_520),
    ],
)
def test_cost_is_that_of_the_definition(checks, num_classes, size, output_stride, params, macs):
    model = models.deeplab_v3_plus(num_classes, (*size, 3), output_stride=output_stride)
    assert checks.params(model) == params
    assert checks.macs(model) == macs
    assert model.output_shape == (None, *size, num_classes)
    checks.plain_and_named(model)


def test_trains_at_batch_one_and_odd_size_and_saves(checks, tmp_path):
    model = models.deeplab_v3_plus(3, (33, 47, 3))
    checks.trains(model, batch_size=1)
    checks.survives_saving(model, tmp_path / "model.keras")


def test_a_plain_call_is_inference_and_fit_is_training():
    model = models.deeplab_v3_plus(2, (32, 32, 3))
    images = np.random.default_rng(0).uniform(0, 255, (2, 32, 32, 3)).astype("float32")
    before = model.get_weights()
    np.testing.assert_array_equal(model(images), model(images, training=False))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    model.compile("sgd", "mse")
    model.fit(images, np.zeros((2, 32, 32, 2)), verbose=0)
    moving = [w for w in model.weights if w.path.startswith("decoder") and "mean" in w.path]
    assert moving and all(np.abs(np.array(mean)).max() > 0 for mean in moving)


def test_dense_features_subsampled_are_the_strided_ones(checks):
    """With equal weights every output stride sees the same: dilations stand where strides stood."""
    images = np.random.default_rng(0).uniform(0, 255, (1, 64, 96, 3)).astype("float32")
    outputs = {}
    weights = None
    for output_stride in (8, 16, 32):
        model = models.deeplab_v3_plus(2, (64, 96, 3), output_stride=output_stride)
        weights = weights or model.get_weights()
        model.set_weights(weights)
        features = model.get_layer("backbone_block_16_project_BN").output
        outputs[output_stride] = checks.answer(keras.Model(model.input, features), images)
    assert outputs[8].shape == (1, 8, 12, 320)
    scale = np.abs(outputs[32]).max()
    for output_stride in (8, 16):
        step = 32 // output_stride
        np.testing.assert_allclose(
            outputs[output_stride][:, ::step, ::step], outputs[32], atol=1e-5 * scale
        )


def test_pooling_branch_reaches_every_pixel(checks):
    """What image pooling answers is the same everywhere: a 1x1 map broadcast to an odd size."""
    model = models.deeplab_v3_plus(2, (75, 107, 3))
    pooled = keras.Model(model.input, model.get_layer("decoder_pool_resize").output)
    images = np.random.default_rng(0).uniform(0, 255, (1, 75, 107, 3)).astype("float32")
    features = checks.answer(pooled, images)
    assert features.shape == (1, 5, 7, 256)
    assert np.abs(features).max() > 0
    assert np.abs(features - features[:, :1, :1]).max() <= 1e-6 * np.abs(features).max()


def test_momentum_and_epsilon_hold_throughout():
    model = models.deeplab_v3_plus(2, (32, 32, 3), bn_momentum=0.8)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 51 + 8
    assert {norm.momentum for norm in norms} == {0.8}
    assert {norm.epsilon for norm in norms} == {1e-5}


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0, (32, 32, 3)), {}, "num_classes"),
        ((2.0, (32, 32, 3)), {}, "num_classes"),
        ((True, (32, 32, 3)), {}, "num_classes"),
        ((2, (32, 32)), {}, "input_shape"),
        ((2, 32), {}, "input_shape"),
        ((2, (None, None, 3)), {}, "input_shape"),
        ((2, (32, 32, 1)), {}, "input_shape"),
        ((2, (32, -32, 3)), {}, "input_shape"),
        ((2, (32, 32, 3)), {"output_stride": 12}, "output_stride"),
        ((2, (32, 32, 3)), {"bn_momentum": 1}, "bn_momentum"),
        ((2, (32, 32, 3)), {"dropout": float("nan")}, "dropout"),
    ],
)
def test_wrong_argument_is_one_clear_error(arguments, options, message):
    with pytest.raises(ValueError, match=f"`{message}`. Expected: .* Received: "):
        models.deeplab_v3_plus(*arguments, **options)
