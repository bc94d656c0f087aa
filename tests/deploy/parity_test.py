import keras
import numpy as np
import pytest

from tests.deploy import nets
from tfseg_prune import models
from tfseg_prune.bench import runtime
from tfseg_prune.deploy import ParityError, check_parity, export
from tfseg_prune.deploy.parity import THRESHOLDS


@pytest.mark.parametrize("tail", ["logits", "upsampled", "argmax"])
@pytest.mark.parametrize("precision", sorted(THRESHOLDS.keys() - {"mixed"}))
def test_file_answers_as_the_model(model, files, images, precision, tail):
    parity = check_parity(model, files(precision, tail).path, images, tail=tail)
    assert parity.precision == precision and parity.threshold == THRESHOLDS[precision]
    assert parity.argmax_agreement >= parity.threshold
    side = 2 if tail == "logits" else 1
    assert (parity.images, parity.pixels) == (4, 4 * 32 * 48 // side**2)
    if tail == "argmax":
        assert parity.max_abs_diff is None and parity.relative_diff is None
    else:
        bounds = {"float32": 2e-6, "float16": 5e-3, "dynamic": 0.05, "int8": 0.1, "int8x16": 0.02}
        assert 0 < parity.relative_diff < bounds[precision]


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_tails_of_one_model_agree(files, images, precision):
    def run(tail):
        opened = runtime.interpreter(files(precision, tail).path)
        opened.set_tensor(opened.get_input_details()[0]["index"], images[:1])
        opened.invoke()
        return opened.get_tensor(opened.get_output_details()[0]["index"])

    upsampled = run("upsampled")
    # The spare classes of an argmax widen the int8 range a little.
    same = (run("argmax") == upsampled.argmax(-1)).mean()
    assert same > (0.999 if precision == "float32" else 0.99)
    resized = keras.ops.image.resize(run("logits"), nets.SIZE, interpolation="bilinear")
    gap = np.abs(upsampled - keras.ops.convert_to_numpy(resized)).max() / np.abs(upsampled).max()
    assert gap < (1e-5 if precision == "float32" else 0.02)


def test_deeplab_survives(tmp_path):
    model = models.deeplab_v3_plus(5, (64, 96, 3))
    written = export(model, tmp_path / "x.tflite")
    assert not {"SPACE_TO_BATCH_ND", "BATCH_TO_SPACE_ND", "SHAPE", "PACK"} & written.ops.keys()
    check_parity(model, written.path, nets.images(2, (64, 96)))


def test_batching_changes_nothing(model, files, images):
    path = files("int8").path
    ways = [images, list(images), [images[:3], images[3:]], ((i[None], None) for i in images)]
    figures = {check_parity(model, path, way).argmax_agreement for way in ways}
    assert len(figures) == 1


@pytest.mark.parametrize("tail", ["logits", "upsampled", "argmax"])
def test_miou_is_that_of_the_files_answers(model, files, images, tail):
    labels = keras.ops.convert_to_numpy(model(images)).argmax(-1).astype("int32")
    labels[:, :16] = 255
    labels[:, 16:24] = (labels[:, 16:24] + 1) % nets.CLASSES
    metric = keras.metrics.MeanIoU(nets.CLASSES, ignore_class=255)
    metric.update_state(labels, labels)  # left over from an earlier use
    path = files("float32", tail).path
    parity = check_parity(model, path, images, tail=tail, labels=labels, metric=metric)
    own = keras.metrics.MeanIoU(nets.CLASSES, ignore_class=255)
    own.update_state(labels, keras.ops.convert_to_numpy(model(images)).argmax(-1))
    assert parity.miou == pytest.approx(float(own.result()), abs=2e-3)
    assert 0.1 < parity.miou < 0.9
    beside = check_parity(model, path, [(images, labels)], tail=tail, metric=metric)
    assert beside.miou == pytest.approx(parity.miou)


@pytest.mark.parametrize("precision", ["float32", "dynamic", "int8"])
@pytest.mark.parametrize("layer", ["depthwise", "grouped", "transposed", "decoder_logits"])
def test_broken_layer_is_named(model, files, images, tmp_path, layer, precision):
    broken = tmp_path / "broken.tflite"
    # The converter names a grouped convolution after what follows it.
    tensor = {"grouped": "grouped_relu", "transposed": "transposed_bn"}.get(layer, layer)
    nets.break_weights(files(precision).path, broken, tensor, lambda w: w[::-1])
    with pytest.raises(ParityError, match=f"first diverge at layer '{layer}'") as caught:
        check_parity(model, broken, images)
    divergence, parity = caught.value.divergence, caught.value.parity
    assert divergence.layer == layer and not divergence.gradual
    assert divergence.difference > divergence.tolerance
    # The ReLU behind a transposed convolution is an op of its own.
    behind = {"decoder_logits": (), "transposed": ("bn",)}.get(layer, ("bn", "relu"))
    assert divergence.fused_with == tuple(f"{layer}_{name}" for name in behind)
    assert f"{parity.argmax_agreement:.3%}" in str(caught.value)
    assert parity.argmax_agreement < parity.threshold


def test_changed_keras_layer_is_named_in_a_class_map_file(files, images):
    model = nets.segmenter()
    layer = model.get_layer("dilated")
    layer.set_weights([-weight for weight in layer.get_weights()])
    with pytest.raises(ParityError, match="'dilated'.*'dilated_bn'"):
        check_parity(model, files("float32", "argmax").path, images, tail="argmax", threshold=1.0)


def test_noise_that_gathers_blames_no_layer(model, files, images):
    with pytest.raises(ParityError, match="No single layer departs") as caught:
        check_parity(model, files("int8").path, images, threshold=1.0)
    assert caught.value.divergence.gradual


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_number_that_is_not_finite_is_an_error_whatever_the_threshold(
    model, files, images, tmp_path, value
):
    broken = tmp_path / "broken.tflite"
    nets.break_weights(
        files().path, broken, "decoder_logits", lambda w: np.where(np.arange(w.size) == 0, value, w)
    )
    with pytest.raises(ParityError, match="'decoder_logits'"):
        check_parity(model, broken, images, threshold=0.0)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"images": []}, "No images"),
        ({"images": nets.images(size=(16, 16))}, "do not fit the model.*32, 48, 3.*16, 16"),
        ({"tail": "argmax"}, "not this model's.*tail='argmax'"),
        ({"threshold": 1.5}, "threshold.*1.5"),
        ({"metric": keras.metrics.MeanIoU(5)}, "metric needs labels.*None"),
        ({"labels": [np.zeros((4, *nets.SIZE))] * 2}, "more labels"),
        ({"labels": []}, "more images"),
    ],
)
def test_bad_input_is_one_clear_error(model, files, images, options, message):
    options = {"images": images, **options}
    with pytest.raises(ValueError, match=message):
        check_parity(model, files().path, options.pop("images"), **options)


def test_truncated_file_is_a_clear_error(model, files, images, tmp_path):
    short = tmp_path / "short.tflite"
    short.write_bytes(files().path.read_bytes()[:5000])
    with pytest.raises(ValueError, match="damaged or cut short"):
        check_parity(model, short, images)


def test_nothing_is_printed(model, files, images, capfd):
    check_parity(model, files().path, images)
    assert capfd.readouterr() == ("", "")


def test_export_with_images_fails_whole_or_tells_the_agreement(model, images, tmp_path):
    path = tmp_path / "x.tflite"
    written = export(model, path, images=images)
    assert written.parity.argmax_agreement >= 0.999 and written.parity.path == path
    before = path.read_bytes()
    with pytest.raises(ParityError, match="x.tflite' was not written.*100.00%"):
        export(model, path, precision="int8", representative=images, images=images, threshold=1.0)
    names = sorted(found.name for found in tmp_path.iterdir())
    assert path.read_bytes() == before and names == ["x.tflite", "x.tflite.json"]
    written.metadata.check(path)  # the JSON, too, is still that of the file
