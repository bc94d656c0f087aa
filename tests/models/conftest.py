"""What the tests of every network ask of it."""

import math

import keras
import numpy as np
import pytest


class Checks:
    """Properties that every network must have, each an assertion."""

    @staticmethod
    def params(model):
        """Trainable parameters: the moving statistics of batch norms are not counted."""
        return sum(math.prod(variable.shape) for variable in model.trainable_variables)

    @staticmethod
    def macs(model):
        """MACs from kernel and feature shapes; transposed convolutions at input resolution."""
        total = 0
        for layer in model.layers:
            if hasattr(layer, "kernel"):
                transposed = isinstance(layer, keras.layers.Conv2DTranspose)
                _, height, width, _ = (layer.input if transposed else layer.output).shape
                total += math.prod(layer.kernel.shape) * height * width
        return total

    @staticmethod
    def plain_and_named(model):
        """Stock layers only, no raw ops, each in the encoder or the decoder; logits as agreed."""
        for operation in model.operations:
            assert isinstance(operation, keras.layers.Layer)
            assert type(operation).__module__.startswith("keras.")
            if not isinstance(operation, keras.layers.InputLayer):
                assert operation.name.startswith(("backbone_", "decoder_")), operation.name
        assert model.layers[1].name in ("backbone_rescale", "backbone_normalize")
        assert model.get_layer("decoder_logits").output.shape[-1] == model.output_shape[-1]

    @staticmethod
    def trains(model, batch_size, learning_rate=2e-3, steps=5, whole_images=False):
        """A few steps on one batch lower the loss; all stays finite, nearly all has moved.

        The classes are those of pixels, or of whole images for networks that are deep and coarse.
        """
        rng = np.random.default_rng(0)
        _, height, width, classes = model.output_shape
        images = rng.uniform(0, 255, (batch_size, height, width, 3)).astype("float32")
        labels = (images[..., 0] * classes / 255.01).astype("int32")
        if whole_images:
            labels[...] = np.arange(batch_size).reshape(-1, 1, 1) % classes
        before = model.get_weights()
        model.compile(
            keras.optimizers.Adam(learning_rate),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            run_eagerly=True,  # tracing would take longer than the steps
        )
        losses = [float(model.train_on_batch(images, labels)) for _ in range(steps)]
        assert losses[-1] < losses[0]
        after = model.get_weights()
        assert all(np.isfinite(value).all() for value in after)
        changed = [(now != then).any() for now, then in zip(after, before, strict=True)]
        assert np.mean(changed) > 0.9

    @staticmethod
    def survives_saving(model, path):
        """The saved file loads and answers the same, bit for bit; a plain call is inference."""
        rng = np.random.default_rng(1)
        images = rng.uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
        model.save(path)
        loaded = keras.saving.load_model(path)
        assert [layer.name for layer in loaded.layers] == [layer.name for layer in model.layers]
        np.testing.assert_array_equal(loaded(images), Checks.answer(model, images))

    @staticmethod
    def survives_rebuilding(model):
        """Its JSON text and weights answer the same, bit for bit; a plain call is inference."""
        rng = np.random.default_rng(1)
        images = rng.uniform(0, 255, (2, *model.input_shape[1:])).astype("float32")
        rebuilt = keras.models.model_from_json(model.to_json())
        rebuilt.set_weights(model.get_weights())
        np.testing.assert_array_equal(rebuilt(images), Checks.answer(model, images))

    @staticmethod
    def answer(model, images):
        """The model's output at inference as an array."""
        return keras.ops.convert_to_numpy(model(images, training=False))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(0)


@pytest.fixture
def checks():
    return Checks
