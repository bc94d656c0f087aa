import keras
import numpy as np
import pytest

from tfseg_prune import models
from tfseg_prune.models import resnet


def _backbone(size, **options):
    images = keras.Input((*size, 3))
    return keras.Model(images, resnet.resnet(images, prefix="", **options))


def _dilations(model):
    """{stage: dilation of the 3x3 convolution of each block}."""
    found = {}
    for layer in model.layers:
        if layer.name.endswith("_2_conv"):
            found.setdefault(int(layer.name[4]), []).append(layer.dilation_rate[0])
    return found


@pytest.fixture(scope="module")
def published():
    """Keras' own ResNet50 with statistics as uneven as a trained network's, which gammas undo.

    Variances reach down to where the two epsilons differ by a good part of them.
    """
    rng = np.random.default_rng(0)
    model = keras.applications.ResNet50(include_top=False, weights=None, input_shape=(67, 96, 3))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            variance = 10 ** rng.uniform(-6, 1, n)
            layer.gamma.assign(rng.uniform(0.5, 1.5, n) * np.sqrt(variance + layer.epsilon))
            layer.beta.assign(rng.normal(0, 0.3, n))
            layer.moving_mean.assign(rng.normal(0, 0.1, n))
            layer.moving_variance.assign(variance)
        elif isinstance(layer, keras.layers.Conv2D):
            layer.bias.assign(rng.normal(0, 0.3, layer.filters))
            layer.kernel.assign(np.float16(layer.kernel).astype("float32"))
    return model


@pytest.fixture(scope="module")
def path(published, tmp_path_factory):
    """Its weights in the published form: kernels in float16, the rest in float32."""
    arrays = {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in published.layers
        for variable in layer.weights
    }
    arrays = {k: v.astype("float16") if k.endswith("/kernel") else v for k, v in arrays.items()}
    path = tmp_path_factory.mktemp("weights") / "resnet50.npz"
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="module")
def loaded(path):
    return models.deeplab_v3(2, (67, 96, 3), output_stride=32, weights=path)


def test_strides_channels_and_parameters(checks):
    model = _backbone((97, 130), output_stride=32)
    shapes = {stride: tuple(output.shape[1:]) for stride, output in model.output.items()}
    assert shapes == {
        4: (25, 33, 256),
        8: (13, 17, 512),
        16: (7, 9, 1024),
        32: (4, 5, 2048),
    }
    assert checks.params(model) == 23_508_032


@pytest.mark.parametrize(
    "options, conv4, conv5",
    [
        ({"output_stride": 32}, [1] * 6, [1] * 3),
        ({"output_stride": 16}, [1] * 6, [1, 2, 2]),
        ({"output_stride": 8}, [1] + [2] * 5, [2, 4, 4]),
        ({"output_stride": 8, "dilate_first": True}, [2] * 6, [4] * 3),
        (
            {"output_stride": 8, "dilate_first": True, "multi_grid": (1, 2, 4)},
            [2] * 6,
            [4, 8, 16],
        ),
    ],
)
def test_dilations_are_the_papers(options, conv4, conv5):
    model = _backbone((33, 33), **options)
    assert _dilations(model) == {2: [1] * 3, 3: [1] * 4, 4: conv4, 5: conv5}


def test_strided_convolutions_pad_symmetrically(checks):
    """The first output of a stride-2 convolution has the first pixel under the kernel's centre."""
    model = _backbone((64, 66), stem="deep", output_stride=32)
    for name, size in (("stem1", 3), ("conv3_block1_2", 3)):
        conv = model.get_layer(f"{name}_conv")
        pad = model.get_layer(f"{name}_pad")
        channels = conv.kernel.shape[2]
        impulse = np.zeros((1, *pad.input.shape[1:3], channels), "float32")
        impulse[0, 0, 0, 1] = 1.0
        response = checks.answer(keras.Model(pad.input, conv.output), impulse)
        kernel = conv.get_weights()[0]
        np.testing.assert_allclose(response[0, 0, 0], kernel[1, 1, 1], rtol=1e-6)
        assert kernel.shape[:2] == (size, size)


@pytest.mark.parametrize("stride_on, dilate_first", [("3x3", False), ("1x1", True)])
def test_dense_features_subsampled_are_the_strided_ones(checks, stride_on, dilate_first):
    """With equal weights every output stride sees the same: dilations stand where strides stood."""
    images = np.random.default_rng(0).uniform(-2, 2, (1, 64, 96, 3)).astype("float32")
    outputs, weights = {}, None
    for output_stride in (8, 32):
        model = _backbone(
            (64, 96), output_stride=output_stride, stride_on=stride_on, dilate_first=dilate_first
        )
        weights = weights or model.get_weights()
        model.set_weights(weights)
        features = model.output[output_stride]
        outputs[output_stride] = checks.answer(keras.Model(model.input, features), images)
    assert outputs[8].shape == (1, 8, 12, 2048)
    scale = np.abs(outputs[32]).max()
    np.testing.assert_allclose(outputs[8][:, ::4, ::4], outputs[32], atol=1e-5 * scale)


def test_images_are_normalised_by_colour(checks):
    model = keras.Model(*resnet.image_input((1, 1, 3)))
    red, green, blue = resnet.MEAN
    pixel = np.reshape([red, green + 57.12, blue - 57.375], (1, 1, 1, 3)).astype("float32")
    np.testing.assert_allclose(checks.answer(model, pixel)[0, 0, 0], [0, 1, -1], atol=1e-5)


def test_loaded_backbone_equals_the_published_one(checks, published, loaded):
    """On RGB what Keras' network answers on BGR minus the mean, at a size of any remainder."""
    images = np.random.default_rng(1).uniform(0, 255, (2, 67, 96, 3)).astype("float32")
    bgr = images[..., ::-1] - np.array(resnet.MEAN[::-1], "float32")
    for name in ("conv1_relu", "conv2_block3_out", "conv5_block3_out"):
        ours = keras.Model(loaded.input, loaded.get_layer(f"backbone_{name}").output)
        ours = checks.answer(ours, images)
        theirs = checks.answer(keras.Model(published.input, published.get_layer(name).output), bgr)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
        assert theirs.std() > 0.01 * np.abs(theirs).max()


def test_strides_go_where_the_weights_need_them(path, loaded):
    def strides(model):
        names = [f"backbone_conv3_block1_{i}_conv" for i in (0, 1, 2)]
        return [model.get_layer(name).strides[0] for name in names]

    assert strides(loaded) == [2, 2, 1]
    assert strides(models.deeplab_v3(2, (33, 33, 3))) == [2, 1, 2]
    assert strides(models.pspnet(2, (41, 41, 3), stem="plain", weights=path)) == [2, 2, 1]
    asked = models.deeplab_v3(2, (33, 33, 3), weights=path, stride_on="3x3")
    assert strides(asked) == [2, 1, 2]
    np.testing.assert_array_equal(
        *(x.get_layer("backbone_conv5_block3_3_conv").kernel for x in (asked, loaded))
    )


def test_loading_uses_the_whole_file(path, loaded):
    report = resnet.load_keras_weights(loaded, path)
    assert len(report.loaded) == 53 * 5  # a kernel and four vectors of its batch norm each
    assert report.unused == ()


def test_biases_are_never_lost_silently(path, loaded):
    before = loaded.get_layer("backbone_conv1_conv").get_weights()[0]
    with pytest.raises(ValueError, match="holds 53 .conv1_conv/bias.* Remedy: .*`weights`"):
        models.load_weights(loaded, path)
    np.testing.assert_array_equal(before, loaded.get_layer("backbone_conv1_conv").get_weights()[0])


@pytest.mark.parametrize(
    "network, options, message",
    [
        ("pspnet", {}, "stem='plain'"),
        ("deeplab_v3", {"stem": "deep"}, "stem='plain'"),
        ("deeplab_v3", {"backbone": "resnet101"}, "lacks .* of them .conv4_block7_1_conv/kernel"),
    ],
)
def test_weights_that_cannot_fit_are_one_clear_error(path, network, options, message):
    with pytest.raises(ValueError, match=message):
        getattr(models, network)(2, (64, 64, 3), weights=path, **options)
