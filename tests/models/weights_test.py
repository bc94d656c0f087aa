import keras
import numpy as np
import pytest

from tfseg_prune.models import deeplab, weights


@pytest.fixture(scope="module")
def published():
    """A MobileNetV2 whose variances are as uneven as a trained network's.

    Gammas undo them, so that the features stay of order one and do not amplify float noise.
    """
    rng = np.random.default_rng(0)
    model = keras.applications.MobileNetV2((65, 97, 3), include_top=False, weights=None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            n = layer.gamma.shape[0]
            variance = 10 ** rng.uniform(-6, 1, n)
            layer.gamma.assign(rng.uniform(0.5, 1.5, n) * np.sqrt(variance + layer.epsilon))
            layer.beta.assign(rng.normal(0, 0.3, n))
            layer.moving_mean.assign(rng.normal(0, 0.1, n))
            layer.moving_variance.assign(variance)
    return model


@pytest.fixture(scope="module")
def arrays(published):
    """The published form: kernels in float16, the rest in float32, and layers that we have not."""
    found = {
        f"{layer.name}/{variable.name}": keras.ops.convert_to_numpy(variable)
        for layer in published.layers
        for variable in layer.weights
    }
    for key, value in found.items():
        if key.endswith("/kernel"):
            found[key] = value.astype("float16")
    return found


@pytest.fixture
def path(arrays, tmp_path):
    np.savez(tmp_path / "weights.npz", **arrays)
    return tmp_path / "weights.npz"


def test_loaded_backbone_equals_the_published_one(checks, published, arrays, path):
    """At sizes 32k+1 both pad alike, so the features agree although the epsilons differ."""
    for layer in published.layers:
        for variable in layer.weights:
            variable.assign(arrays[f"{layer.name}/{variable.name}"].astype("float32"))
    model = deeplab.deeplab_v3_plus(3, (65, 97, 3), output_stride=32, weights=path)
    images = np.random.default_rng(1).uniform(0, 255, (2, 65, 97, 3)).astype("float32")
    for name in ("block_2_add", "block_16_project_BN"):
        ours = keras.Model(model.input, model.get_layer(f"backbone_{name}").output)
        ours = checks.answer(ours, images)
        theirs = keras.Model(published.input, published.get_layer(name).output)
        theirs = checks.answer(theirs, images / 127.5 - 1)
        assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()


def test_report_names_all_that_was_loaded_and_left(path, arrays):
    model = deeplab.deeplab_v3_plus(3, (32, 32, 3))
    report = weights.load_weights(model, path)
    assert len(report.loaded) == 51 * 5  # a kernel and four vectors of its batch norm each
    assert sorted(report.loaded + report.unused) == sorted(arrays)
    assert {key.split("/")[0] for key in report.unused} == {"Conv_1", "Conv_1_bn"}


def test_nothing_changes_when_something_does_not_fit(arrays, tmp_path):
    model = deeplab.deeplab_v3_plus(3, (32, 32, 3))
    before = model.get_weights()
    lacking = {key: value for key, value in arrays.items() if not key.startswith("block_16_")}
    reshaped = arrays | {"block_16_project/kernel": np.zeros((1, 1, 960, 8), "float16")}
    for name, content, message in (
        ("lacking", lacking, "lacks 15 of them .block_16_expand/kernel"),
        ("reshaped", reshaped, r"block_16_project/kernel \(1, 1, 960, 8\), not \(1, 1, 960, 320\)"),
        ("foreign", {"conv1/kernel": np.zeros(3)}, "Was the file written for another backbone"),
    ):
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(ValueError, match=message):
            weights.load_weights(model, tmp_path / f"{name}.npz")
    for then, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(then, now)


def test_unreadable_file_is_one_clear_error(path, tmp_path):
    model = deeplab.deeplab_v3_plus(3, (32, 32, 3))
    truncated = tmp_path / "truncated.npz"
    truncated.write_bytes(path.read_bytes()[:1000])
    damaged = tmp_path / "damaged.npz"
    content = bytearray(path.read_bytes())
    content[500:2000] = bytes(1500)
    damaged.write_bytes(content)
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    np.save(tmp_path / "array.npy", np.zeros(3))
    absent, array = tmp_path / "absent.npz", tmp_path / "array.npy"
    for bad in (truncated, damaged, text, absent, array, tmp_path):
        with pytest.raises(ValueError, match="Cannot read the weights. Expected: .* Received: "):
            weights.load_weights(model, bad)


def test_model_without_such_layers_is_one_clear_error(path):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, keras.layers.Conv2D(2, 1, name="stem")(images))
    with pytest.raises(ValueError, match="named 'backbone_'"):
        weights.load_weights(model, path)


def test_other_models_load_by_another_prefix(published, path):
    """A keras.applications model has the file's own names and epsilon: gammas come as they are."""
    model = keras.applications.MobileNetV2((32, 32, 3), include_top=False, weights=None)
    report = weights.load_weights(model, path, prefix="")
    assert report.unused == ()
    gamma, theirs = (x.get_layer("bn_Conv1").get_weights()[0] for x in (model, published))
    np.testing.assert_allclose(gamma, theirs, rtol=1e-6)


def test_copying_is_all_or_nothing():
    def model(width, names=("backbone_a", "backbone_b")):
        x = inputs = keras.Input((4,))
        for name in names:
            x = keras.layers.Dense(width, name=name)(x)
        return keras.Model(inputs, keras.layers.Dense(width, name="decoder_c")(x), name="net")

    source, target = model(4), model(4)
    assert weights.copy_weights(source, target) == ("backbone_a", "backbone_b")
    for name, same in (("backbone_a", True), ("backbone_b", True), ("decoder_c", False)):
        ours, theirs = (np.array(net.get_layer(name).kernel) for net in (source, target))
        assert (ours == theirs).all() == same
    for other in (model(4, ("backbone_a",)), model(5)):
        before = target.get_weights()
        with pytest.raises(ValueError, match="do not fit 'net'. Expected: .* Received: 2 such"):
            weights.copy_weights(other, target)
        assert all((a == b).all() for a, b in zip(before, target.get_weights()))
    with pytest.raises(ValueError, match="Received: 0 such layers"):
        weights.copy_weights(source, target, prefix="encoder_")
