"""The op table of a file agrees with the cost model of the network that it was made of."""

import dataclasses
import io
import json

import keras
import pytest
from rich.console import Console

import tfseg_prune as tsp
from tfseg_prune import models
from tfseg_prune.deploy import export
from tfseg_prune.deploy.explain import explain
from tfseg_prune.report.explanation import print_explanation

SIZE = (64, 96, 3)
NETWORKS = {
    "deeplab_v3_plus": {},
    "unet": {"width": 6},
    "erfnet": {"block": "DG2"},
}


@pytest.mark.parametrize(
    "name",
    [
        "unet",
        pytest.param("deeplab_v3_plus", marks=pytest.mark.slow),
        pytest.param("erfnet", marks=pytest.mark.slow),
    ],
)
def test_macs_are_those_of_the_cost_model(tmp_path, name):
    network = getattr(models, name)(11, SIZE, **NETWORKS[name])
    # Odd widths, so that padding shows.
    small = tsp.shrink(network, tsp.plan(network, budget=tsp.Budget(macs=0.5)), check=False)
    found = explain(export(small, tmp_path / "x.tflite").path)
    counted = tsp.cost(small)
    assert found.macs == counted.macs and found.padded_macs == counted.padded_macs > counted.macs
    assert found.uncounted == ()
    # Layer by layer, too, where a layer is one op.
    for op in found.ops:
        if op.macs and op.layer in counted.layers:
            layer = counted.layers[op.layer]
            assert (op.macs, op.padded_macs) == (layer.macs, layer.padded_macs), op.layer


@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_bytes_and_macs_in_every_precision(files, model, precision):
    found, counted = explain(files(precision).path), tsp.cost(model)
    assert found.macs == counted.macs and found.precision == precision
    # Of so small a kernel dynamic range leaves the floats.
    width = {"float32": 4, "float16": 2, "dynamic": 4, "int8": 1}[precision]
    conv = next(op for op in found.ops if op.layer == "conv" and op.macs)
    kernel, bias = 3 * 3 * 3 * 16, 16
    assert kernel * width <= conv.weight_bytes <= kernel * width + 4 * bias
    activation = 1 if precision == "int8" else 4
    assert conv.activation_bytes == 16 * 24 * 16 * activation
    assert conv.output == (1, 16, 24, 16) and conv.inputs == ((1, 32, 48, 3),)
    assert sum(op.weight_bytes for op in found.ops) >= found.weight_bytes > kernel * width
    assert 0 < found.peak_bytes < found.activation_bytes
    unpacking = [op for op in found.ops if op.constant]
    assert bool(unpacking) == (precision == "float16")


def test_layers_are_named_with_and_without_the_json_beside_the_file(files, tmp_path):
    written = files()
    with_json = explain(written.path)
    (tmp_path / "x.tflite").write_bytes(written.path.read_bytes())
    alone = explain(tmp_path / "x.tflite")
    # Of a grouped convolution the converter loses the name, and keeps those of what is behind it.
    layers = ("conv", "depthwise", "dilated", "grouped_relu", "transposed", "decoder_logits")
    for found in (with_json, alone):
        named = [op.layer for op in found.ops if op.macs]
        assert named == list(layers), found
    assert set(with_json.ops[2].fused) == {"conv_bn", "conv_relu"}


def test_a_json_of_another_file_names_no_layers_and_is_told(files, tmp_path):
    (tmp_path / "x.tflite").write_bytes(files().path.read_bytes())
    (tmp_path / "x.tflite.json").write_text('{"from": "another tool"}')
    found = explain(tmp_path / "x.tflite")
    (tmp_path / "alone.tflite").write_bytes(files().path.read_bytes())
    assert found.ops == explain(tmp_path / "alone.tflite").ops
    assert "format_version None" in found.unnamed
    with io.StringIO() as text:
        print_explanation(dataclasses.replace(found, graphs=2), console=Console(file=text))
        assert "first of 2 graphs" in text.getvalue()
        assert "named as the file's tensors are. Invalid description" in text.getvalue()


def test_products_of_activations_are_counted(tmp_path):
    i = keras.Input((4, 6, 8))
    x = keras.layers.Reshape((24, 8))(i)
    x = keras.layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = keras.layers.Dense(7, name="dense")(x)
    model = keras.Model(i, keras.layers.Reshape((4, 6, 7))(x))
    found = explain(export(model, tmp_path / "x.tflite").path)
    assert found.macs == tsp.cost(model).macs


def test_json_holds_all_and_the_overlay_has_the_form_of_model_explorer(files):
    found = explain(files().path)
    read = json.loads(found.to_json())
    assert read["macs"] == found.macs and len(read["ops"]) == len(found.ops)
    overlay = json.loads(found.overlay())
    # https://github.com/google-ai-edge/model-explorer: node_data_builder.py, GraphNodeData.
    assert set(overlay) == {"results", "gradient"}
    assert set(overlay["results"]) == {str(op.index) for op in found.ops}
    for op in found.ops:
        assert overlay["results"][str(op.index)]["value"] == op.padded_macs
    stops = [item["stop"] for item in overlay["gradient"]]
    assert stops[0] == 0 and stops[-1] == 1
    assert all(item["bgColor"].startswith("#") for item in overlay["gradient"])


def test_a_file_that_is_none_is_one_error(tmp_path):
    (tmp_path / "x.tflite").write_bytes(b"no model at all")
    with pytest.raises(ValueError, match="Not a LiteRT model"):
        explain(tmp_path / "x.tflite")
    with pytest.raises(ValueError, match="no such file"):
        explain(tmp_path / "y.tflite")


def test_the_table_shows_each_op_and_the_sums(files, capsys):
    found = explain(files("float16").path)
    print_explanation(found)
    text = capsys.readouterr().out
    for word in ("CONV_2D", "decoder_logits", "1x32x48x5", f"{found.macs:,}", "unpack weights"):
        assert word in text
    assert f"{found.padded_macs:,}" in text


def test_what_gpus_get_wrong_is_said_and_red(tmp_path, capsys):
    i = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(6, 1, name="first")(i)
    mixed = keras.Model(i, keras.layers.Conv2D(6, 1, groups=2, name="mix")(x))
    found = explain(export(mixed, tmp_path / "x.tflite", grouped="grouped").path)
    (conv,) = [op for op in found.ops if op.gpu]
    assert conv.gpu == "wrong" and "3 channels per group" in conv.why
    assert conv.why.startswith(f"{conv.layer or f'op {conv.index}'}: ")
    assert json.loads(found.overlay())["results"][str(conv.index)]["bgColor"] == "#d93025"
    print_explanation(found)
    assert f"wrong 1 of {len(found.ops)} ops" in capsys.readouterr().out
    right = explain(export(mixed, tmp_path / "x.tflite").path)
    assert not [op for op in right.ops if op.gpu]
    # The JSON beside the file names the layers that took the place of others, too.
    assert {"first", "mix_group_0", "mix_group_1"} <= {op.layer for op in right.ops}
