import errno
import os
import zipfile

import keras
import numpy as np
import pytest

from tfseg_prune.pipeline import files


def small(width=4):
    images = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(width, 3)(images)
    return keras.Model(images, keras.layers.Conv2D(2, 1)(x), name="small")


def full_disk(model, path, **options):
    with open(path, "wb") as file:
        file.write(b"half a fi")
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_folder_that_is_not_there_is_one_error_that_names_the_file(tmp_path):
    with pytest.raises(OSError, match="could not be written.*No such file"):
        files.write_json(tmp_path / "nowhere" / "a.json", {})
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="could not be written"):
        files.write_json(tmp_path / "folder", {})
    assert os.listdir(tmp_path) == ["folder"]


def test_a_full_disk_leaves_the_previous_model(tmp_path, monkeypatch):
    path = tmp_path / "m.keras"
    files.save_model(small(), path)
    before = files.digest(path)
    monkeypatch.setattr(keras.Model, "save", full_disk)
    with pytest.raises(OSError, match="m.keras' could not be written.*No space left"):
        files.save_model(small(8), path)
    assert files.digest(path) == before and os.listdir(tmp_path) == ["m.keras"]


@pytest.mark.parametrize("kind", ["functional", "sequential"])
def test_a_model_is_saved_without_what_trained_it_and_can_train_on(tmp_path, kind):
    model = small()
    if kind == "sequential":
        model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3)])
    files.save_model(model, tmp_path / "fresh.keras")
    model.compile("adam", "mse", run_eagerly=True)
    images = np.ones((2, 8, 8, 3), "float32")
    target = np.ones((2, *model.output_shape[1:]), "float32")
    model.fit(images, target, verbose=0)
    files.save_model(model, tmp_path / "trained.keras")
    assert os.path.getsize(tmp_path / "trained.keras") < 1.2 * os.path.getsize(
        tmp_path / "fresh.keras"
    )
    loaded = files.load_model(tmp_path / "trained.keras")
    assert type(loaded) is type(model) and not loaded.compiled
    np.testing.assert_array_equal(loaded(images), model(images))
    model.fit(images, target, verbose=0)
    assert int(model.optimizer.iterations) == 2


def test_what_is_no_model_is_one_clear_error(tmp_path):
    model = small(64)
    model.save(tmp_path / "whole.keras")
    whole = (tmp_path / "whole.keras").read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.keras").write_bytes(b"")
    (tmp_path / "text.keras").write_text("hello")
    at = len(whole) // 2
    (tmp_path / "flipped.keras").write_bytes(whole[:at] + bytes(200) + whole[at + 200 :])
    with zipfile.ZipFile(tmp_path / "other.keras", "w") as file:
        file.writestr("a.txt", "x")
    with zipfile.ZipFile(tmp_path / "config.keras", "w") as file:
        file.writestr("config.json", "{}")
        file.writestr("metadata.json", "{}")
    names = ("cut", "empty", "text", "flipped", "other", "config", "missing")
    for path in [*(tmp_path / f"{name}.keras" for name in names), tmp_path]:
        with pytest.raises(ValueError) as caught:
            files.load_model(path)
        message = str(caught.value)
        assert str(path) in message and "Expected:" in message and "Received:" in message
        assert "\n" not in message and len(message) < 700


def test_a_subclassed_model_is_one_clear_error(tmp_path):
    class Net(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = keras.layers.Conv2D(2, 1)

        def call(self, x):
            return self.conv(x)

    net = Net()
    net(np.ones((1, 8, 8, 3), "float32"))
    net.save(tmp_path / "net.keras")
    with pytest.raises(ValueError, match="functional or Sequential.*Could not locate class 'Net'"):
        files.load_model(tmp_path / "net.keras")


class Doubled(keras.layers.Layer):
    def call(self, x):
        return 2 * x


def test_a_layer_of_ones_own_is_named_however_deep_it_lies(tmp_path):
    images = keras.Input((8, 8, 3))
    model = keras.Model(images, Doubled()(images))
    for depth in range(3):
        path = tmp_path / f"{depth}.keras"
        model.save(path)
        with pytest.raises(
            ValueError, match="'Doubled'.*Remedy:.*Python.*register_keras"
        ) as caught:
            files.load_model(path)
        assert len(str(caught.value)) < 900 and "\n" not in str(caught.value)
        model = keras.Sequential([keras.Input((8, 8, 3)), model])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_an_hdf5_file_is_to_be_saved_anew(tmp_path):
    small().save(tmp_path / "old.h5")
    (tmp_path / "old.h5").rename(tmp_path / "renamed.keras")
    small().save(tmp_path / "old.h5")
    for name in ("old.h5", "renamed.keras"):
        with pytest.raises(ValueError, match="HDF5.*Remedy:.*load_model.*save.*\\.keras") as caught:
            files.load_model(tmp_path / name)
        assert "cut off" not in str(caught.value)
