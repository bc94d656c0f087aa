"""Channels in another order are still the same network."""

import keras
import numpy as np
import pytest
from keras import layers

import tfseg_prune as tsp
from tests.graph.nets import NETS, conv, image, scramble
from tfseg_prune.graph import ChannelGraph
from tfseg_prune.graph.reorder import interchangeable, reorder

QUICK = (
    "chain residual inverted_residual concatenation_with_batch_normalization_after_it"
    " nested_models grouped_convolutions channel_shuffle_4d constants"
).split()
# Where raw operations or settings hold a number per channel, which nobody moves.
WITH_CONSTANTS = (
    "batch_normalization_of_constants chosen_by_a_condition constant_kernels constants"
    " constants_in_merging_layers constants_of_every_shape joined_with_constants"
    " positions_of_an_image products_with_constants rescaling_per_channel rms_normalization"
).split()


def shuffled(kinds, seed=0):
    """Units of one kind in each other's places, drawn."""
    rng = np.random.default_rng(seed)
    source = np.arange(len(kinds))
    for kind in set(kinds.tolist()) - {-1}:
        members = np.flatnonzero(kinds == kind)
        source[members] = rng.permutation(members)
    return source


def move(model):
    """Puts the channels in another order; answers how many have moved."""
    graph = ChannelGraph(model)
    source = shuffled(interchangeable(graph))
    reorder(graph, source)
    return int((source != np.arange(len(source))).sum())


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in NETS]
)
def test_answers_the_same(name):
    model, copy = (scramble(NETS[name]()) for _ in range(2))
    move(copy)
    if name in WITH_CONSTANTS:
        with pytest.raises(tsp.SurgeryError):
            tsp.check_equal(model, copy)
    else:
        tsp.check_equal(model, copy)


def test_every_free_channel_moves_and_every_bound_one_stays():
    i = image()
    x = shortcut = conv(i, 8, name="first")
    x = layers.Conv2D(8, 3, padding="same", groups=2, name="grouped")(conv(x, 8, name="before"))
    x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    x = layers.Conv2D(8, 1, name="after")(x)
    x = layers.Flatten()(layers.Add()([x, shortcut]))
    model = scramble(keras.Model(i, layers.Dense(3, name="last")(x)))
    graph = ChannelGraph(model)
    kinds = interchangeable(graph)
    names = {}
    for name, units in graph.producers.items():
        names.setdefault(name, set()).update(kinds[units].tolist())
    for name in ("before", "grouped", "last"):
        assert names[name] == {-1}
    assert names["first"] == names["after"] != {-1} and len(names["first"]) == 1
    copy = keras.models.clone_model(model)
    copy.set_weights(model.get_weights())
    assert move(copy) >= 4
    assert any((a != b).any() for a, b in zip(model.get_weights(), copy.get_weights()))
    tsp.check_equal(model, copy)


def test_places_can_be_restored():
    model = scramble(NETS["residual"]())
    graph = ChannelGraph(model)
    before = model.get_weights()
    source = shuffled(interchangeable(graph))
    reorder(graph, source)
    reorder(graph, np.argsort(source))
    for value, weight in zip(before, model.get_weights()):
        np.testing.assert_array_equal(value, weight)


def test_units_of_different_layers_can_not_change_places():
    model = scramble(NETS["chain"]())
    graph = ChannelGraph(model)
    before = model.get_weights()
    first, second = list(graph.producers.values())[:2]
    source = np.arange(graph.num_units)
    source[[first[0], second[0]]] = second[0], first[0]
    with pytest.raises(ValueError, match="can't change places"):
        reorder(graph, source)
    for value, weight in zip(before, model.get_weights()):
        np.testing.assert_array_equal(value, weight)
