"""A `.tflite` with the JSON beside it is enough to segment an image, without Keras."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image

from tfseg_prune.bench import metadata, predict
from tfseg_prune.bench.segmenter import Segmentation, Segmenter
from tfseg_prune.data import images as data_images
from tfseg_prune.deploy import export

SIZE = (16, 24)
LABELS = [("road", (128, 64, 128)), ("car", (0, 0, 142)), ("sky", (70, 130, 180))]


@pytest.fixture(scope="module")
def network():
    """Red, green and blue are the classes' logits, less 100 so that their sign matters."""
    i = keras.Input((*SIZE, 3))
    x = keras.layers.Conv2D(3, 1, name="logits")(i)
    model = keras.Model(i, keras.layers.UpSampling2D(1, interpolation="bilinear")(x))
    model.get_layer("logits").set_weights(
        [np.eye(3, dtype="float32").reshape(1, 1, 3, 3), np.full(3, -100, "float32")]
    )
    return model


@pytest.fixture(scope="module")
def photo():
    """Three fields of pure colour, not of the network's size: rows 0-14 red, then green | blue."""
    image = np.zeros((30, 50, 3), np.uint8)
    image[:15, :, 0] = image[15:, :25, 1] = image[15:, 25:, 2] = 250
    return image


@pytest.fixture(scope="module")
def written(network, photo, tmp_path_factory):
    """`written(precision, tail, io)`: path of a file with its JSON."""
    folder, made = tmp_path_factory.mktemp("segmenter"), {}

    def get(precision="float32", tail="upsampled", io="float32"):
        key = precision, tail, io
        if key not in made:
            seen = data_images.resize_image(photo, SIZE)[None].astype("float32")
            path = folder / f"{'_'.join(key)}.tflite"
            options = {"representative": seen, "labels": LABELS}
            export(network, path, precision=precision, tail=tail, io=io, **options)
            made[key] = path
        return made[key]

    return get


@pytest.mark.parametrize(
    "precision, tail, io",
    [
        *(("float32", tail, "float32") for tail in ("logits", "upsampled", "argmax")),
        *(("float16", "upsampled", "float32"), ("dynamic", "upsampled", "float32")),
        *(("int8", "upsampled", io) for io in ("float32", "int8", "uint8")),
        ("int8", "argmax", "uint8"),
    ],
)
def test_every_kind_of_file_sees_the_same(written, photo, precision, tail, io):
    with Segmenter(written(precision, tail, io)) as segmenter:
        found = segmenter(photo)
    assert found.class_map.shape == photo.shape[:2] and found.class_map.dtype == np.int32
    inside = np.ones(photo.shape[:2], bool)
    inside[12:18] = inside[:, 22:28] = False  # where fields meet
    np.testing.assert_array_equal(found.class_map[inside], photo.argmax(-1)[inside])
    assert list(found.shares()) == ["road", "car", "sky"]
    assert sum(found.shares().values()) == pytest.approx(1)
    np.testing.assert_array_equal(found.colors()[0, 0], (128, 64, 128))
    np.testing.assert_array_equal(found.overlay(0.0), photo)
    np.testing.assert_array_equal(found.overlay(1.0), found.colors())
    np.testing.assert_array_equal(found.overlay(0.5)[0, 0], (189, 32, 64))


def test_it_takes_what_training_takes(network, written):
    """Resized as the data pipeline resizes, and Keras gives the same classes."""
    photo = np.random.default_rng(0).integers(0, 255, (37, 61, 3), dtype=np.uint8)
    resized = data_images.resize_image(photo, SIZE)
    expected = np.asarray(network(resized[None].astype("float32")))[0].argmax(-1)
    with Segmenter(written()) as segmenter:
        np.testing.assert_array_equal(segmenter(resized).class_map, expected)
        large = segmenter(photo).class_map
    np.testing.assert_array_equal(
        large, data_images.resize_label(expected.astype(np.uint8), (37, 61))
    )


def test_a_photo_may_be_a_path_or_an_image_and_stands_upright(written, photo, tmp_path):
    picture = Image.fromarray(photo)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.save(tmp_path / "turned.png", exif=exif)
    picture.convert("RGBA").save(tmp_path / "a.png")
    picture.save(tmp_path / "damaged.png", exif=b"Exif\0\0no TIFF file")
    with Segmenter(written()) as segmenter:
        expected = segmenter(photo).class_map
        files = (tmp_path / "a.png", str(tmp_path / "turned.png"), tmp_path / "damaged.png")
        for given in (*files, picture):
            np.testing.assert_array_equal(segmenter(given).class_map, expected)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda path: path, "no such file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n cut") and path, "complete image file"),
        (lambda path: Image.new("I;16", (4, 4)).save(path) or path, "8 bits a channel"),
        (lambda path: np.zeros((4, 4)), r"float64 \[4, 4\]"),
        (lambda path: np.zeros((0, 4, 3), np.uint8), r"\[0, 4, 3\]"),
    ],
)
def test_what_is_no_image_is_one_error(written, tmp_path, make, message):
    with Segmenter(written()) as segmenter:
        with pytest.raises(ValueError, match=f"Expected: .*{message}"):
            segmenter(make(tmp_path / "x.png"))


def test_without_the_json_it_says_what_it_assumes(written, photo, tmp_path):
    for tail, words in (("upsampled", "map of logits"), ("argmax", "class map")):
        path = shutil.copy(written("float32", tail), tmp_path / f"{tail}.tflite")
        with pytest.warns(UserWarning, match=words):
            segmenter = Segmenter(path)
        with segmenter:
            assert "[0, 255]" in segmenter.assumed
            found = segmenter(photo)
        with Segmenter(written()) as described:
            assert described.assumed is None
            np.testing.assert_array_equal(found.class_map, described(photo).class_map)
        assert next(iter(found.shares())) == "class 0"


def test_numbers_that_are_no_class_are_no_share():
    class_map = np.array([[0, 1, 1, -1, 2**31 - 1]], np.int32)
    labels = metadata.labels_of(["road", "car"], 2)
    found = Segmentation(np.zeros((1, 5, 3), np.uint8), class_map, labels)
    assert found.shares() == {"car": 0.4, "road": 0.2}
    alike = Segmentation(found.image, class_map, metadata.labels_of(["road", "road"], 2))
    assert alike.shares() == {"road": pytest.approx(0.6)}
    np.testing.assert_array_equal(found.colors()[0, 3:], 0)


def test_a_file_of_open_size_needs_a_fixed_one(tmp_path):
    import tensorflow as tf

    i = keras.Input((None, None, 3))
    model = keras.Model(i, keras.layers.Conv2D(3, 1)(i))
    (tmp_path / "x.tflite").write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    with pytest.raises(ValueError, match=r"of a fixed size.*\[-1, -1, -1, 3\]"):
        Segmenter(tmp_path / "x.tflite")


def test_a_json_of_another_file_or_a_damaged_one_is_an_error(written, tmp_path):
    path = shutil.copy(written(), tmp_path / "x.tflite")
    beside = metadata.beside(path)
    shutil.copy(metadata.beside(written("int8")), beside)
    with pytest.raises(ValueError, match="of another file.*sha256.*Remedy"):
        Segmenter(path)
    good = json.loads(metadata.beside(written()).read_text())
    for change, words in (
        ({"format_version": 2}, "format_version 2, not 1"),
        ({"labels": good["labels"][:2]}, "3 classes"),
        ({"labels": [{**good["labels"][0], "color": [0, 0, 300]}]}, "not 3 bytes"),
        ({"input": {**good["input"], "scale": 0}}, "scale 0"),
        ({"output": {**good["output"], "meaning": "depth"}}, "'depth'"),
        ({"output": {**good["output"], "height": "tall"}}, "'tall'"),
        ({"sha256": None}, "sha256"),
        ({"output": {**good["output"], "height": 5}}, "does not fit the model"),
    ):
        beside.write_text(json.dumps({**good, **change}))
        with pytest.raises(ValueError, match=words):
            Segmenter(path)
    for text in ("", "{", "[]", "null", "[" * 10000):
        beside.write_text(text)
        with pytest.raises(ValueError, match="Invalid description"):
            Segmenter(path)


def test_scale_and_offset_reach_the_network(network, photo, tmp_path):
    i = keras.Input((*SIZE, 3))
    centred = keras.Model(i, network(keras.layers.Rescaling(127.5, 127.5)(i)))
    written = export(centred, tmp_path / "x.tflite", labels=LABELS, scale=1 / 127.5, offset=-1.0)
    assert written.metadata.input.offset == -1
    with Segmenter(written.path) as segmenter:
        assert list(segmenter(photo).shares()) == ["road", "car", "sky"]


def test_the_json_says_what_the_file_is(written):
    for key, meaning in ((("int8", "argmax", "uint8"), "class_map"), (("float32",), "logits")):
        path = written(*key)
        found = metadata.load(metadata.beside(path))
        found.check(path)
        assert (found.precision, found.output.meaning) == (key[0], meaning)
        assert (found.input.height, found.input.width) == SIZE
        assert [(label.name, label.color) for label in found.labels] == LABELS
        assert "logits" in found.layers
        assert found.package.startswith("tfseg_prune ")
        found.save(path.with_suffix(".again"))
        assert metadata.load(path.with_suffix(".again")) == found


@pytest.mark.parametrize(
    "labels, words",
    [
        (["a", "b"], "Expected: 3.*Received: 2"),
        (["a", "b", 3], "class 2.*3"),
        ([("a", (1, 2)), "b", "c"], "class 0"),
        ([("a", "red"), "b", "c"], "class 0"),
        ([("a", (0.5, 0.2, 1.0)), "b", "c"], "class 0.*whole numbers"),
    ],
)
def test_labels_must_be_the_networks(network, tmp_path, labels, words):
    with pytest.raises(ValueError, match=words):
        export(network, tmp_path / "x.tflite", labels=labels)
    assert not list(tmp_path.iterdir())


def test_labels_without_colours_get_different_ones():
    labels = metadata.labels_of(None, 256)
    assert len({label.color for label in labels}) == 256
    first = np.array([label.color for label in labels[:7]], int)
    apart = np.abs(first[:, None] - first[None]).sum(-1) + 999 * np.eye(7, dtype=int)
    assert apart.min() >= 100


def test_a_network_of_other_channels_has_no_json(tmp_path):
    i = keras.Input((*SIZE, 4))
    model = keras.Model(i, keras.layers.Conv2D(2, 1)(i))
    (tmp_path / "x.tflite.json").write_text("of an earlier file")
    written = export(model, tmp_path / "x.tflite")
    assert written.metadata is None and os.listdir(tmp_path) == ["x.tflite"]
    with pytest.raises(ValueError, match="no segmenter of single images"):
        Segmenter(written.path)
    with pytest.raises(ValueError, match="No JSON can hold.*4 channels"):
        export(model, tmp_path / "x.tflite", labels=["a", "b"])


def test_a_network_of_grey_images_sees_them_so(tmp_path, photo):
    i = keras.Input((*SIZE, 1))
    dark = keras.layers.Conv2D(2, 1, kernel_initializer="zeros")
    model = keras.Model(i, dark(i))
    dark.set_weights([np.array([[[[-1.0, 0.0]]]]), np.array([100.0, 0.0])])
    written = export(model, tmp_path / "x.tflite", labels=["dark", "light"])
    assert written.metadata.input.channels == "GRAY"
    grey = Image.fromarray(photo).resize(SIZE[::-1], Image.Resampling.BILINEAR)
    with Segmenter(written.path) as segmenter:
        found = segmenter(grey)
    np.testing.assert_array_equal(found.class_map, np.asarray(grey.convert("L")) >= 100)
    assert 0.05 < found.class_map.mean() < 0.95


def test_a_folder_of_images_becomes_a_folder_of_overlays(written, photo, tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(photo).save(tmp_path / "in" / "a.png")
    Image.fromarray(photo).save(tmp_path / "in" / "a.bmp")
    Image.fromarray(photo).save(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "c.jpg").write_bytes(b"cut")
    (tmp_path / "in" / "notes.txt").write_text("no image")
    said = []
    with pytest.raises(ValueError, match="c.jpg"):
        predict.predict(written(), tmp_path / "in", tmp_path / "out", opacity=1.0, say=said.append)
    assert sorted(os.listdir(tmp_path / "out")) == ["a.bmp.png", "a.png.png", "b.png"]
    assert len(said) == 3 and "road 50%" in said[0]
    with Segmenter(written()) as segmenter:
        expected = segmenter(photo).colors()
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "out" / "b.png")), expected)


def test_overlays_never_lie_where_their_images_do(written, photo, tmp_path):
    image = tmp_path / "a.png"
    Image.fromarray(photo).save(image)
    for source, out in ((image, image), (tmp_path, tmp_path)):
        with pytest.raises(ValueError, match="where their images do"):
            predict.predict(written(), source, out)
    with pytest.raises(ValueError, match="ends in .png"):
        predict.predict(written(), image, tmp_path / "b.jpg")
    np.testing.assert_array_equal(np.array(Image.open(image)), photo)


def test_neither_keras_nor_tensorflow_is_needed(written, photo, tmp_path):
    Image.fromarray(photo).save(tmp_path / "a.png")
    code = (
        "import sys\n"
        "for name in ('keras', 'tensorflow', 'jax', 'absl', 'rich'): sys.modules[name] = None\n"
        "import tfseg_prune as tsp\n"
        "from tfseg_prune.bench import predict\n"
        f"print(tsp.Segmenter({str(written('int8'))!r})({str(tmp_path / 'a.png')!r}).shares())\n"
        f"sys.exit(predict.main([{str(written('int8'))!r}, 'a.png', 'b.png']))"
    )
    command = [sys.executable, "-c", code]
    env = {**os.environ, "PYTHONPATH": str(pathlib.Path(predict.__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("road") == 2 and (tmp_path / "b.png").is_file()
