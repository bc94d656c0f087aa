"""Quantisation-aware training: what trains is what the file computes."""

import importlib.util
import types

import keras
import numpy as np
import pytest

import tfseg_prune as tsp
from tests.deploy import nets
from tfseg_prune.bench import metadata
from tfseg_prune.bench.sandbox import Sandbox
from tfseg_prune.deploy import ExportError, ParityError, folded, parity, quantised
from tfseg_prune.deploy.contents import read_contents
from tfseg_prune.models.pspnet import BINS, adaptive_pool
from tfseg_prune.training import SegmentationCrossEntropy, fit_quantised

pytest.importorskip("tensorflow_model_optimization", reason="the extra [tfmot] is not installed")


class Batches(keras.utils.PyDataset):
    """What another network says of the images: something to learn."""

    def __init__(self):
        super().__init__()
        self.images = nets.images(4)
        teacher = nets.segmenter()
        layer = teacher.get_layer("decoder_logits")
        kernel, bias = layer.get_weights()
        layer.set_weights([np.roll(kernel, 1, -1), bias])
        self.labels = np.asarray(teacher(self.images)).argmax(-1).astype("int32")

    def __len__(self):
        return 2

    def __getitem__(self, index):
        part = slice(2 * index, 2 * index + 2)
        return self.images[part], self.labels[part]


@pytest.fixture(scope="module")
def network(images):
    return quantised(nets.segmenter(), images)


def file_answers(path, images):
    with Sandbox(path) as opened:
        return np.concatenate([parity.run(opened, image) for image in images])


def test_before_training_it_is_the_network_but_for_rounding(network, model, images):
    expected, found = np.asarray(model(images)), network.predict(images)
    gap = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-4 < gap < 0.05, "not at all rounded, or too much"


KERNEL_SHAPES = {
    "Conv2D": (3, 3, 4, 5),
    "Conv2DTranspose": (3, 3, 5, 4),
    "DepthwiseConv2D": (3, 3, 4, 2),
    "Dense": (4, 5),
}


@pytest.mark.parametrize("kind", KERNEL_SHAPES)
def test_kernels_are_rounded_as_their_file_has_them(kind):
    from tfseg_prune.deploy import tfmot_config

    assert tfmot_config.KERNELS.keys() == KERNEL_SHAPES.keys()
    _, axes = tfmot_config.KERNELS[kind]
    shape = KERNEL_SHAPES[kind]
    rng = np.random.default_rng(0)
    # Channels of very different sizes: a scale that several share would show.
    sizes = [
        10.0 ** rng.uniform(-2, 2, n) if axis in axes else np.ones(n)
        for axis, n in enumerate(shape)
    ]
    kernel = rng.normal(size=shape)
    for axis, size in enumerate(sizes):
        kernel *= np.expand_dims(size, [other for other in range(len(shape)) if other != axis])
    kernel = kernel.astype("float32")
    state = types.SimpleNamespace(mode="train")
    weights = tfmot_config.Weights(axes, state)
    rows = np.moveaxis(kernel, axes, range(len(axes)))
    rows = rows.reshape(*rows.shape[: len(axes)], -1)
    scale = np.abs(rows).max(axis=-1, keepdims=True) / 127
    found = np.moveaxis(weights(kernel, True, {}).numpy(), axes, range(len(axes)))
    np.testing.assert_allclose(found.reshape(rows.shape), np.round(rows / scale) * scale, rtol=1e-5)
    state.mode = "export"
    np.testing.assert_array_equal(weights(kernel, True, {}), kernel)


def small():
    """The segmenter with half of its MACs pruned away."""
    model = nets.segmenter()
    return tsp.shrink(model, tsp.plan(model, budget=tsp.Budget(macs=0.5)))


@pytest.mark.slow
@pytest.mark.parametrize("build", [nets.segmenter, small])
def test_what_trains_is_what_the_file_answers(images, tmp_path, build):
    batches, before = Batches(), build()
    untouched = before.get_weights()
    loss = SegmentationCrossEntropy(255)
    before.get_layer("dilated").trainable = False
    network = fit_quantised(
        before,
        batches,
        num_classes=nets.CLASSES,
        ignore_index=255,
        epochs=10,
        learning_rate=0.002,
        representative=images,
    )

    def own(logits):
        return float(loss(batches.labels, logits))

    trained = network.predict(images)
    inner = network.model.get_layer("segmenter")
    scale, offset = inner.get_layer("backbone_rescale").get_weights()
    assert (scale == np.float32(1 / 127.5)).all() and (offset == -1).all(), "nobody's to train"
    expected = folded(before).get_layer("dilated").get_weights()
    for old, new in zip(expected, inner.get_layer("dilated").get_weights()):
        np.testing.assert_array_equal(old, new)
    assert own(trained) < 0.9 * own(before(images))
    assert own(network.model(images)) == pytest.approx(own(trained), rel=0.3)
    for tail in ("upsampled", "argmax"):
        path = tmp_path / f"{tail}.tflite"
        written = network.export(path, tail=tail, images=images)
        inside = read_contents(path.read_bytes())
        assert metadata.load(metadata.beside(path)) == written.metadata and not written.findings
        assert written.representative_images == len(images)
        assert inside.precision == "int8" and written.parity.argmax_agreement > 0.95
        left = {op.name for op in inside.ops if inside.types[op.outputs[0]] == "FLOAT32"}
        assert left <= {"DEQUANTIZE"}, "every op computes in integers"
        answer = file_answers(path, images)
        classes = trained.argmax(-1)
        # The file rounds the resized logits too, training doesn't.
        assert ((answer if tail == "argmax" else answer.argmax(-1)) == classes).mean() > 0.96
    for old, new in zip(untouched, before.get_weights()):
        np.testing.assert_array_equal(old, new)


def pyramid():
    """PSPNet's: means over windows of differing sizes, each map resized, then all joined."""
    layers = keras.layers
    keras.utils.set_random_seed(4)
    inputs = keras.Input((8, 12, 3))
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="features")(inputs)
    maps = [x]
    for bins in BINS:
        y = layers.Conv2D(8, 1, use_bias=False)(adaptive_pool(x, bins, f"pool{bins}"))
        y = layers.ReLU()(layers.BatchNormalization()(y))
        maps.append(layers.Resizing(8, 12)(y, training=False))
    x = layers.SpatialDropout2D(0.1)(layers.Concatenate()(maps))
    x = layers.Conv2D(nets.CLASSES, 1, name="decoder_logits")(x)
    return nets.randomised(keras.Model(inputs, x))


@pytest.mark.slow
def test_pyramid_of_adaptive_means_becomes_integers(tmp_path):
    model, images = pyramid(), nets.images(4, (8, 12))
    network = quantised(model, images)
    path = tmp_path / "x.tflite"
    written = network.export(path, images=images, threshold=0.9)
    inside = read_contents(path.read_bytes())
    left = {op.name for op in inside.ops if inside.types[op.outputs[0]] == "FLOAT32"}
    assert left <= {"DEQUANTIZE"} and written.ops["AVERAGE_POOL_2D"] > 1
    gap = np.abs(network.predict(images) - file_answers(path, images)).max()
    assert gap < 0.03 * np.abs(model(images)).max()


def test_file_that_differs_is_not_written(network, images, tmp_path):
    with pytest.raises(ParityError, match="was not written"):
        network.export(tmp_path / "x.tflite", images=images, threshold=1.0)
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="tail.*'logits'"):
        network.export(tmp_path / "x.tflite", tail="logits")


def test_without_tfmot_the_error_names_the_extra(images, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"tfseg-prune\[tfmot\]"):
        quantised(nets.segmenter(), images)


@pytest.mark.parametrize(
    "options, message",
    [({"epochs": 0}, "epochs >= 1"), ({"num_classes": 4}, "one channel a class")],
)
def test_bad_options_are_clear_errors(options, message):
    options = {"num_classes": nets.CLASSES, "ignore_index": 255, "epochs": 1, **options}
    with pytest.raises(ValueError, match=message):
        fit_quantised(nets.segmenter(), Batches(), **options)
