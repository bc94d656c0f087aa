"""int8 by either quantizer, int8 weights with int16 activations, and mixed precision."""

import importlib.util
import sys

import keras
import numpy as np
import pytest

from tests.deploy import nets
from tfseg_prune.bench import runtime
from tfseg_prune.deploy import ExportError, check_parity, export
from tfseg_prune.deploy.contents import read_contents

needs_quantizer = pytest.mark.skipif(
    importlib.util.find_spec("ai_edge_quantizer") is None,
    reason="ai-edge-quantizer is not installed (the extra [quantizer])",
)
WAYS = [
    ("int8x16", "converter"),
    pytest.param("int8", "ai_edge", marks=needs_quantizer),
    pytest.param("int8x16", "ai_edge", marks=needs_quantizer),
]


@pytest.mark.parametrize("precision, quantizer", WAYS)
@pytest.mark.parametrize("tail", ["upsampled", pytest.param("argmax", marks=pytest.mark.slow)])
def test_file_of_integers_answers_as_the_model(model, images, tmp_path, precision, quantizer, tail):
    path = tmp_path / "x.tflite"
    options = {"tail": tail, "representative": images, "quantizer": quantizer}
    written = export(model, path, precision=precision, images=images, **options)
    inside = read_contents(path.read_bytes())
    assert inside.precision == precision == written.parity.precision
    assert written.quantizer == quantizer and written.representative_images == len(images)
    kind = {"int8": "INT8", "int8x16": "INT16"}[precision]
    weighted = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1}
    found = [op for op in inside.ops if op.name in weighted]
    assert len(found) == 6 and {inside.types[op.outputs[0]] for op in found} == {kind}
    assert written.parity.argmax_agreement > {"int8": 0.97, "int8x16": 0.995}[precision]


@pytest.mark.slow
@pytest.mark.parametrize("precision, quantizer", WAYS)
def test_input_and_output_may_be_integers(model, images, tmp_path, precision, quantizer):
    io = {"int8": "int8", "int8x16": "int16"}[precision]
    path = tmp_path / "x.tflite"
    options = {"representative": images, "quantizer": quantizer, "io": io}
    export(model, path, precision=precision, **options)
    opened = runtime.interpreter(path)
    for entry in (*opened.get_input_details(), *opened.get_output_details()):
        assert entry["dtype"] == np.dtype(io)
    check_parity(model, path, images)


def test_without_the_quantizer_the_error_names_the_extra(model, images, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for options in ({"precision": "int8", "quantizer": "ai_edge"}, {"precision": "mixed"}):
        with pytest.raises(ExportError, match=r"tfseg-prune\[quantizer\]"):
            export(model, tmp_path / "x.tflite", representative=images, images=images, **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "options, message",
    [
        ({"precision": "float16", "quantizer": "ai_edge"}, "quantizer.*None.*'ai_edge'"),
        ({"precision": "mixed", "quantizer": "converter"}, "quantizer.*ai_edge.*'converter'"),
        ({"precision": "int8", "quantizer": "ai_edge", "io": "uint8"}, "io.*'uint8'"),
        ({"precision": "int8x16", "io": "int8"}, "io.*float32, int16.*'int8'"),
    ],
)
def test_what_a_quantizer_cannot_do_is_a_clear_error(model, images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "x.tflite", representative=images, **options)


def unbalanced():
    """A network that one layer's int8 ruins: an answer whose range a useless channel stretches."""
    keras.utils.set_random_seed(7)
    inputs = keras.Input((*nets.SIZE, 3))
    x = keras.layers.Rescaling(1 / 127.5, -1.0)(inputs)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="first")(x)
    x = keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="second")(x)
    wide = keras.layers.Conv2D(9, 1, name="stretched")(x)
    x = keras.layers.Conv2D(nets.CLASSES, 1, name="last")(wide)
    model = keras.Model(inputs, x)
    stretched, last = model.get_layer("stretched"), model.get_layer("last")
    kernel, bias = stretched.get_weights()
    kernel[..., -1] *= 1000.0
    stretched.set_weights([kernel, bias])
    kernel, bias = last.get_weights()
    kernel[..., -1, :] = 0.0
    last.set_weights([kernel, bias])
    return model


@pytest.fixture(scope="module")
def searched(images, tmp_path_factory):
    """`searched(max_loss)`: the mixed `Export` of `unbalanced`."""
    model, folder = unbalanced(), tmp_path_factory.mktemp("mixed")

    def get(max_loss):
        return export(
            model,
            folder / f"{max_loss}.tflite",
            precision="mixed",
            representative=images,
            images=images,
            max_loss=max_loss,
            threshold=0.0,
        )

    return get


@needs_quantizer
def test_the_layer_that_hurts_stays_float_and_the_bound_holds(searched):
    written = searched(0.02)
    assert "stretched" in written.mixed.float_layers[:2]
    assert 0 < len(written.mixed.float_ops) < written.mixed.ops
    assert written.mixed.curve[0].float_ops == 0 and written.mixed.curve[0].loss > 0.02
    assert written.mixed.loss <= 0.02
    assert written.parity.argmax_agreement >= 0.98 and written.parity.precision == "mixed"


@pytest.mark.slow
@needs_quantizer
def test_a_looser_bound_leaves_no_more_layers_in_float(searched):
    found = [searched(bound) for bound in (0.0, 0.005, 0.02, 0.1, 1.0)]
    counts = [len(written.mixed.float_ops) for written in found]
    assert counts == sorted(counts, reverse=True) and counts[-1] == 0 < counts[0]
    assert all(written.mixed.loss <= written.mixed.max_loss for written in found)
    kept = [set(written.mixed.float_ops) for written in found]
    assert all(small <= large for large, small in zip(kept, kept[1:]))
    assert all(
        list(w.mixed.damage.values()) == sorted(w.mixed.damage.values())[::-1] for w in found
    )


@pytest.mark.slow
@needs_quantizer
def test_with_a_metric_the_loss_is_that_of_the_miou(images, tmp_path):
    model = unbalanced()
    labels = keras.ops.convert_to_numpy(model(images)).argmax(-1).astype("int32")
    metric = keras.metrics.MeanIoU(nets.CLASSES)
    options = {"precision": "mixed", "representative": images, "threshold": 0.0}
    path = tmp_path / "x.tflite"
    written = export(
        model, path, images=[(images, labels)], metric=metric, max_loss=0.03, **options
    )
    assert written.mixed.measure == "miou" and written.mixed.images == len(images)
    float32 = export(model, tmp_path / "y.tflite", images=[(images, labels)], metric=metric)
    loss = float32.parity.miou - written.parity.miou
    assert written.mixed.loss == pytest.approx(loss, abs=1e-6) and loss <= 0.03


@needs_quantizer
@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "needs images.*Remedy"),
        ({"images": nets.images(), "max_loss": -0.1}, "max_loss.*-0.1"),
        ({"images": [], "max_loss": 0.1}, "No images"),
        ({"images": nets.images(), "metric": keras.metrics.MeanIoU(5)}, "metric needs labels"),
    ],
)
def test_bad_mixed_options_are_clear_errors(model, images, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "x.tflite", precision="mixed", representative=images, **options)
    assert not list(tmp_path.iterdir())
