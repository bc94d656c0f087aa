"""`to_functional` answers the same model with its composite layers as functional models."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.nets import NETS, conv, head, image, scramble
from tests.graph.shrink_test import random_plan
from tfseg_prune.graph import ChannelGraph, check_equal, cost, masked_twin, shrink, to_functional


class Block(layers.Layer):
    """A residual block that keeps its layers to itself."""

    def __init__(self, filters, **options):
        super().__init__(**options)
        self.convolution = layers.Conv2D(2 * filters, 3, padding="same")
        self.normalization = layers.BatchNormalization()
        self.projection = layers.Conv2D(filters, 1)

    def call(self, x, training=None):
        y = ops.relu(self.normalization(self.convolution(x), training=training))
        return x + self.projection(y)


class Tokens(layers.Layer):
    """Attention that reads the batch size, with a block inside."""

    def __init__(self, width):
        super().__init__()
        self.block = Block(width)
        self.dense = layers.Dense(width)

    def call(self, x):
        batch, height, width, channels = ops.shape(self.block(x))
        x = ops.reshape(x, (batch, height * width, channels))
        x = self.dense(ops.reshape(x, (batch, -1, channels)))
        return ops.reshape(x, (batch, height, width, channels))


class Positions(layers.Layer):
    def build(self, shape):
        self.table = self.add_weight(shape=shape[1:], initializer="normal")

    def call(self, x):
        return x + self.table


def is_opened(model, name):
    return isinstance(model.get_layer(name), keras.Model)


def pruned_like_its_twin(model):
    plan = random_plan(model)
    small = shrink(model, plan)
    assert cost(small).macs < cost(model).macs
    return check_equal(masked_twin(model, plan), small)


def test_a_layer_made_of_layers_can_be_pruned_inside():
    i = image()
    model = scramble(head(i, Block(6, name="block")(conv(i, 6))))
    converted = to_functional(model)
    assert check_equal(model, converted) == 0.0
    graph = ChannelGraph(converted)  # a warning would be an unknown layer
    assert any(name.startswith("block/") for name in graph.producers)
    assert all(graph.prunable[units].all() for units in list(graph.producers.values())[:-1])
    pruned_like_its_twin(converted)
    assert converted.weights[-1] is model.weights[-1]


def test_layers_inside_layers_and_reshapes_by_the_batch_size():
    i = image()
    shared = Tokens(6)
    model = scramble(head(i, shared(conv(i, 6)) + shared(conv(i, 6))))
    converted = to_functional(model)
    assert is_opened(converted, shared.name)
    assert check_equal(model, converted) < 1e-6
    pruned_like_its_twin(converted)


def test_training_reaches_the_layers_inside():
    i = image()
    model = to_functional(head(i, Block(6, name="block")(conv(i, 6))))
    moving = model.get_layer("block").layers[2].moving_mean
    before = np.array(moving)
    model.compile("sgd", "mse")
    model.fit(np.ones((2, 8, 8, 3)), np.zeros((2, 8, 8, 4)), verbose=0)
    assert np.abs(before - np.array(moving)).max() > 0


def test_functions_without_weights_are_opened_too():
    i = image()
    x = layers.Lambda(lambda x: ops.concatenate([x, -x], axis=-1), name="crelu")(conv(i, 5))
    converted = to_functional(scramble(head(i, x)))
    assert is_opened(converted, "crelu")
    pruned_like_its_twin(converted)


@pytest.mark.parametrize(
    "layer, why",
    [
        (Positions(), "it has weights of its own"),
        # Another one every time.
        (layers.Lambda(lambda x: x * keras.random.uniform((5,))), "SurgeryError"),
        # Takes no symbols.
        (layers.Lambda(lambda x: x * np.max(x), output_shape=(8, 8, 5)), "Error"),
    ],
)
def test_what_cannot_be_opened_stays_and_says_why(layer, why):
    i = image()
    model = head(i, layer(conv(i, 5)))
    with pytest.warns(UserWarning, match=f"stay as they are: '{layer.name}' \\(.*{why}"):
        assert to_functional(model) is model
    with pytest.warns(UserWarning, match="kept whole and their MACs aren't counted.*to_functional"):
        ChannelGraph(model)


def test_nothing_hidden_is_the_model_itself():
    model = NETS["nested_models"]()
    assert to_functional(model) is model


class Network(keras.Model):
    def __init__(self):
        super().__init__()
        self.stem = layers.Conv2D(6, 3, padding="same")
        self.block = Block(6)
        self.out = layers.Conv2D(4, 1)

    def call(self, inputs):
        x = self.block(self.stem(inputs["image"]))
        return {"logits": self.out(x), "features": x}


def test_a_subclassed_model_becomes_functional():
    network = Network()
    model = to_functional(network, {"image": keras.Input((8, 8, 3), name="image")})
    batch = {"image": np.random.default_rng(0).normal(size=(3, 8, 8, 3)).astype("float32")}
    for key, value in network(batch).items():
        np.testing.assert_allclose(value, model(batch)[key], rtol=1e-5, atol=1e-6)
    pruned_like_its_twin(scramble(model))


def test_a_subclassed_model_that_cannot_be_converted_is_one_clear_error():
    class Own(keras.Model):
        def build(self, shape):
            self.table = self.add_weight(shape=shape[1:], name="table")

        def call(self, x):
            return x * self.table

    with pytest.raises(ValueError, match="Expected: its inputs.*Remedy: `to_functional"):
        to_functional(Own())
    with pytest.raises(ValueError, match="no weights but those of its layers.*its own.*table"):
        to_functional(Own(), keras.Input((8, 8, 3)))


class TestInputsOfSubclassedModels:
    class Two(keras.Model):
        def __init__(self):
            super().__init__()
            self.stem, self.out = layers.Conv2D(6, 3, padding="same"), layers.Conv2D(4, 1)
            self.side = layers.Conv2D(6, 1)

        def call(self, image, depth, scale=1.0):
            return self.out(ops.relu(self.stem(image)) * self.side(depth)) * scale

    class First(keras.Model):
        """Reads a list, and holds the size of what it reads."""

        def __init__(self):
            super().__init__()
            self.out = layers.Conv2D(4, 1)

        def call(self, images):
            image = images[0]
            if image.shape[1] % 2:
                raise RuntimeError("odd size")
            return self.out(image)

    @pytest.mark.parametrize("kind", [list, tuple, dict])
    def test_several_arguments(self, kind):
        network = self.Two()
        inputs = {
            name: keras.Input((8, 8, n), name=name) for name, n in [("image", 3), ("depth", 1)]
        }
        model = to_functional(network, inputs if kind is dict else kind(inputs.values()))
        rng = np.random.default_rng(0)
        batch = {k: rng.normal(size=(2, *x.shape[1:])).astype("float32") for k, x in inputs.items()}
        answer = model(batch if kind is dict else [*batch.values()])
        np.testing.assert_allclose(answer, network(**batch), rtol=1e-5, atol=1e-6)
        pruned_like_its_twin(scramble(model))

    def test_a_list_stays_one_argument_where_one_is_wanted(self):
        model = to_functional(self.First(), [keras.Input((8, 8, 3))])
        assert model.output_shape == (None, 8, 8, 4)

    @pytest.mark.parametrize(
        "build, inputs, words",
        [
            (Two, lambda: keras.Input((8, 8, 3)), "can't be made functional.*Received: .*depth"),
            (Two, lambda: {"image": keras.Input((8, 8, 3))}, "can't be made functional.*depth"),
            (First, lambda: [keras.Input((9, 8, 3))], "can't be made functional.*odd size"),
            (First, lambda: [keras.Input((None, 8, 3))], "Remedy: .*sizes instead of None"),
            (First, lambda: (16, 16, 3), r"Expected: `keras.Input`.*Received: \(16, 16, 3\)"),
            (lambda: 3, lambda: None, "is no model. Expected: a `keras.Model`. Received: 3"),
        ],
    )
    def test_what_does_not_fit_is_one_clear_error(self, build, inputs, words):
        with pytest.raises(ValueError, match=words):
            to_functional(build(), inputs())
