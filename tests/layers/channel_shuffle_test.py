"""The shuffle is the paper's permutation, can be undone, and can be pruned."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tfseg_prune.layers.channel_shuffle import channel_shuffle


def shuffled(shape, *groups):
    """A model that shuffles images of a shape by one number of groups after another."""
    x = inputs = keras.Input(shape)
    for number, count in enumerate(groups):
        x = channel_shuffle(x, count, f"shuffle{number}")
    return keras.Model(inputs, x)


def answer(model, images):
    return ops.convert_to_numpy(model(images))


def test_order_is_the_papers():
    images = np.arange(8.0, dtype="float32") * np.ones((1, 2, 3, 1), "float32")
    assert answer(shuffled((2, 3, 8), 2), images)[0, 1, 2].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize(
    "shape, groups",
    [((3, 5, 8), 2), ((1, 4, 12), 3), ((4, 1, 8), 8), ((2, 2, 6), 1), ((2, 3, 24), 4)],
)
def test_equals_the_permutation_and_is_undone_by_its_inverse(shape, groups):
    channels = shape[-1]
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    order = np.arange(channels).reshape(groups, -1).T.reshape(-1)
    np.testing.assert_array_equal(answer(shuffled(shape, groups), images), images[..., order])
    both = shuffled(shape, groups, channels // groups)
    np.testing.assert_array_equal(answer(both, images), images)


@pytest.mark.parametrize("shape", [(None, 4, 8), (3, None, 8)])
def test_one_side_may_be_open(shape):
    images = np.random.default_rng(1).normal(size=(2, 3, 4, 8)).astype("float32")
    model = shuffled(shape, 2)
    assert model.output_shape == (None, *shape)
    expected = images.reshape(2, 3, 4, 2, 4).swapaxes(3, 4).reshape(images.shape)
    np.testing.assert_array_equal(answer(model, images), expected)


def test_layers_are_plain_and_of_four_axes():
    model = shuffled((3, 4, 8), 2)
    for layer in model.layers:
        assert type(layer).__module__.startswith("keras.src.layers.")
        assert len(layer.output.shape) <= 4
    assert [layer.name for layer in model.layers[1:]] == [
        "shuffle0_split",
        "shuffle0_permute",
        "shuffle0_join",
    ]


@pytest.mark.parametrize("grouped", [False, True])
def test_pruning_goes_through(grouped):
    """Groups keep equally many channels, and the smaller model shuffles what is left."""
    inputs = keras.Input((4, 6, 3))
    x = layers.Conv2D(16, 3, padding="same", name="before")(inputs)
    x = layers.Conv2D(32, 1, groups=4 if grouped else 1, name="first")(x)
    x = channel_shuffle(x, 4, "shuffle")
    x = layers.DepthwiseConv2D(3, padding="same")(layers.BatchNormalization()(x))
    x = layers.Conv2D(16, 1, groups=4 if grouped else 1, name="second")(layers.ReLU()(x))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x))
    plan = tsp.plan(model, criterion="random", budget=tsp.Budget(macs=0.5))
    small = tsp.shrink(model, plan)  # raises unless it equals the masked twin
    width = small.get_layer("first").filters
    assert width < 32 and width % 4 == 0
    assert small.get_layer("shuffle_split").target_shape == (24, 4, width // 4)
    assert tsp.cost(small).macs == tsp.cost(model, plan).macs


@pytest.mark.parametrize(
    "shape, groups, message",
    [
        ((4, 4, 8), 3, "divides the 8 channels. Received: 3"),
        ((4, 4, 8), 0, "positive number of groups.* Received: 0"),
        ((4, 4, 8), 2.0, "positive number of groups.* Received: 2.0"),
        ((4, 4, 8), True, "positive number of groups.* Received: True"),
        ((None, None, 8), 2, "one may be open.* Received: shape .*Remedy: "),
        ((4, 8), 2, "channels\\].* Received: shape "),
    ],
)
def test_wrong_groups_are_one_clear_error(shape, groups, message):
    with pytest.raises(ValueError, match=f"at 'shuffle0'. Expected: .*{message}"):
        shuffled(shape, groups)
