"""A tiny LiteRT file for the tests of bench."""

import pytest


def _write(path, width):
    import keras
    import tensorflow as tf

    image = keras.Input(batch_shape=(1, 16, 24, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(image)
    x = keras.layers.Conv2D(width, 3, padding="same", activation="relu")(x)
    x = keras.layers.Conv2D(4, 1)(x)
    model = keras.Model(image, x)
    path.write_bytes(tf.lite.TFLiteConverter.from_keras_model(model).convert())
    return path


@pytest.fixture(scope="session")
def tiny_tflite(tmp_path_factory):
    """A convolution of width 8 on 16x24 images."""
    return _write(tmp_path_factory.mktemp("bench") / "tiny.tflite", 8)


@pytest.fixture(scope="session")
def wide_tflite(tmp_path_factory):
    """The same with width 32."""
    return _write(tmp_path_factory.mktemp("bench") / "wide.tflite", 32)
