import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.deploy import nets
from tfseg_prune.bench import runtime
from tfseg_prune.deploy import ExportError, check_parity, export
from tfseg_prune.deploy.contents import read_contents

layers = keras.layers


@pytest.mark.parametrize("tail", ["logits", "upsampled", "argmax"])
@pytest.mark.parametrize("precision", ["float32", "float16", "dynamic", "int8"])
def test_file_has_built_in_ops_of_fixed_shape_only(files, precision, tail):
    written = files(precision, tail)
    data = written.path.read_bytes()
    inside = read_contents(data)
    assert written.bytes == len(data) and written.ops == inside.counts()
    assert inside.precision == precision
    assert not inside.dynamic
    # One op per convolution: groups and dilation are native, batch normalization is folded.
    resizes = 1 if tail == "logits" else 2
    expected = {"CONV_2D": 4, "DEPTHWISE_CONV_2D": 1, "TRANSPOSE_CONV": 1, "CONCATENATION": 1}
    expected |= {"RESIZE_BILINEAR": resizes, "ADD": 2, "MUL": 1, "LEAKY_RELU": 1}
    expected |= {"ARG_MAX": 1} if tail == "argmax" else {}
    extra = {"float16": {"DEQUANTIZE"}, "int8": {"QUANTIZE", "DEQUANTIZE"}}.get(precision, set())
    assert {k: v for k, v in written.ops.items() if k not in extra} == expected


def test_bytes_shrink_with_precision(files):
    sizes = [files(p).bytes for p in ("float32", "float16", "dynamic")]
    assert sizes[0] > 1.4 * sizes[1] > 1.4 * sizes[2]
    assert files("int8").bytes < sizes[1]


def test_signature_has_speaking_names(files):
    for tail, name in (("upsampled", "logits"), ("argmax", "class_map")):
        signatures = runtime.interpreter(files("float32", tail).path).get_signature_list()
        assert signatures == {"serving_default": {"inputs": ["images"], "outputs": [name]}}


@pytest.mark.parametrize("io", ["float32", "int8", "uint8"])
def test_int8_input_and_output_types(model, images, tmp_path, io):
    written = export(model, tmp_path / "x.tflite", precision="int8", representative=images, io=io)
    opened = runtime.interpreter(written.path)
    for entry in (*opened.get_input_details(), *opened.get_output_details()):
        assert entry["dtype"] == np.dtype(io)
    assert check_parity(model, written.path, images).argmax_agreement > 0.98


def test_representative_images_come_from_a_data_set_and_are_counted(model, images, tmp_path):
    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return images[2 * index : 2 * index + 2], np.zeros((2, *nets.SIZE), "int32")

    for limit, used in ((3, 3), (100, 4)):
        written = export(
            model,
            tmp_path / "x.tflite",
            precision="int8",
            representative=Batches(),
            representative_images=limit,
        )
        assert written.representative_images == used


def test_model_of_any_size(tmp_path):
    inputs = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same")(inputs)
    model = keras.Model(inputs, layers.UpSampling2D(2, interpolation="bilinear")(x))
    written = export(model, tmp_path / "x.tflite", image_size=(31, 45))
    parity = check_parity(model, written.path, nets.images(size=(31, 45)))
    assert parity.pixels == 4 * 31 * 45


def hidden_op(x):
    inner = keras.Input((8, 8, 4))
    return keras.Model(inner, Erfinv(name="strange")(inner), name="nest")(x)


class Erfinv(layers.Layer):
    def call(self, inputs):
        return keras.ops.erfinv(inputs)


def int_argmax(x):
    classes = keras.ops.cast(keras.ops.expand_dims(keras.ops.argmax(x, axis=-1), -1), "float32")
    return keras.ops.concatenate([classes, classes], -1)


@pytest.mark.parametrize(
    "end, message",
    [
        (hidden_op, "no built-in op for Erfinv.*'strange'.*Remedy"),
        (int_argmax, "BitwiseAnd.*Remedy.*tail='argmax'"),
    ],
)
def test_unsupported_op_is_named_and_the_old_file_stays(tmp_path, capfd, end, message):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"old")
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, end(layers.Conv2D(4, 1)(inputs)))
    with pytest.raises(ExportError, match=message):
        export(model, path)
    assert os.listdir(tmp_path) == ["x.tflite"] and path.read_bytes() == b"old"
    assert capfd.readouterr() == ("", "")


def test_full_disk_leaves_the_old_file_and_nothing_else(model, tmp_path, monkeypatch):
    path = tmp_path / "x.tflite"
    path.write_bytes(b"old")

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        export(model, path)
    assert os.listdir(tmp_path) == ["x.tflite"] and path.read_bytes() == b"old"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"precision": "fp16"},
            "precision.*float32, float16, dynamic, int8, int8x16, mixed.*'fp16'",
        ),
        ({"tail": "softmax"}, "tail.*'softmax'"),
        ({"io": "int8"}, "io.*'float32' files.*'int8'"),
        ({"precision": "int8"}, "need to see images.*None.*Remedy"),
        ({"precision": "int8", "representative": []}, "No representative images"),
        ({"precision": "int8", "representative": [np.zeros((1, 8, 8, 3))]}, "32, 48, 3.*8, 8, 3"),
        ({"precision": "int8", "representative": np.full((32, 48, 3), np.nan)}, "finite"),
        (
            {"precision": "int8", "representative": [], "representative_images": -1},
            "representative_images.*-1",
        ),
        ({"scale": 0}, "scale=0"),
        ({"offset": float("inf")}, "offset=inf"),
        ({"scale": [1 / 58, 1 / 57, 1 / 57]}, "two finite numbers.*Normalization"),
        ({"threshold": float("nan")}, "threshold.*nan"),
        ({"max_loss": -1}, "max_loss.*-1"),
    ],
)
def test_bad_options_are_clear_errors(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export(model, tmp_path / "x.tflite", **options)
    assert not os.listdir(tmp_path)


def test_missing_folder_is_found_before_the_work(model, tmp_path):
    with pytest.raises(ValueError, match="existing folder"):
        export(model, tmp_path / "none" / "x.tflite")


def test_half_precision_layers_are_named_and_the_remedy_works(tmp_path):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = nets.segmenter()
        with pytest.raises(ExportError, match="conv, conv_bn.*dtype_policy = 'float32'"):
            export(model, tmp_path / "x.tflite")
        for layer in model.layers:
            layer.dtype_policy = "float32"
        export(model, tmp_path / "x.tflite")
        check_parity(model, tmp_path / "x.tflite", nets.images())
    finally:
        keras.config.set_dtype_policy("float32")


OTHER_BACKEND = """
import keras
from tests.deploy import nets
from tfseg_prune.deploy import check_parity, export
written = export(nets.segmenter(), r"{path}", tail="argmax")
parity = check_parity(nets.segmenter(), written.path, nets.images(), tail="argmax")
print(keras.backend.backend(), parity.argmax_agreement)
"""


@pytest.mark.slow
def test_other_backend_exports_the_same_file(files, tmp_path):
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", OTHER_BACKEND.format(path=tmp_path / "x.tflite")],
        env={**os.environ, "KERAS_BACKEND": "jax", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    backend, agreement = done.stdout.split()[-2:]
    assert backend == "jax" and float(agreement) >= 0.999
    assert read_contents((tmp_path / "x.tflite").read_bytes()).counts() == files(tail="argmax").ops


def test_every_common_activation_converts(tmp_path):
    names = "relu relu6 leaky_relu silu hard_silu elu selu gelu mish sigmoid hard_sigmoid tanh"
    inputs = x = keras.Input((*nets.SIZE, 3))
    for name in names.split():
        x = layers.Conv2D(8, 1, activation=name)(x)
    model = keras.Model(inputs, layers.Conv2D(nets.CLASSES, 1)(x))
    written = export(model, tmp_path / "x.tflite")
    assert check_parity(model, written.path, nets.images()).argmax_agreement > 0.999
