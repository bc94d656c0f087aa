"""A gate turns its channel off, and stands where its gradient says something."""

import types

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import conv, image, scramble
from tfseg_prune.criteria import gates
from tfseg_prune.graph import ChannelGraph


def _every_producer():
    i = image()
    x = layers.Conv2D(6, 3, name="conv")(i)
    x = layers.Conv2DTranspose(5, 2, strides=2, use_bias=False, name="deconv")(x)
    x = layers.SeparableConv2D(7, 3, name="separable")(x)
    x = layers.Conv2D(6, 1, use_bias=False, name="normed")(x)
    x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(5, 1, name="unscaled")(x)
    x = layers.BatchNormalization(scale=False, name="no_scale")(x)
    x = layers.Conv2D(4, 1, name="centred")(x)
    x = layers.BatchNormalization(center=False, name="no_center")(x)
    return scramble(keras.Model(i, layers.Dense(3, name="dense")(x)))


def _owners(model, found):
    """{name of the layer whose weights a gate holds: names of those weights}."""
    owner = {id(v): layer.name for layer in model.layers for v in layer.weights}
    return {owner[id(gate.weights[0][0])]: [v.name for v, _ in gate.weights] for gate in found}


def test_stand_behind_batch_normalisation_and_at_producers_without():
    model = _every_producer()
    found = gates.gates(ChannelGraph(model))
    assert _owners(model, found) == {
        "bn": ["gamma", "beta"],
        "no_center": ["gamma"],
        "conv": ["kernel", "bias"],
        "deconv": ["kernel"],
        "separable": ["pointwise_kernel", "bias"],
        "dense": ["kernel", "bias"],
    }
    for gate in found:
        scaled = gate.weights[0][0].name == "gamma"
        assert gate.scale is (gate.weights[0][0] if scaled else None)


def test_times_zero_turns_the_channel_off_and_leaves_the_others():
    model = _every_producer()
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3)).astype("float32")
    for gate in gates.gates(ChannelGraph(model)):
        layer = next(n for n in model.layers if any(v is gate.weights[0][0] for v in n.weights))
        answer = keras.Model(model.input, layer.output)
        before, start = np.array(answer(x)), layer.get_weights()
        for variable, axis in gate.weights:
            value = np.array(variable)
            np.moveaxis(value, axis, 0)[2] = 0
            variable.assign(value)
        after = np.array(answer(x))
        layer.set_weights(start)
        assert np.abs(before[..., 2]).max() > 1e-3
        assert (after[..., 2] == 0).all(), layer.name
        np.testing.assert_array_equal(np.delete(after, 2, -1), np.delete(before, 2, -1))


def test_a_channel_is_worth_the_mean_of_the_gates_on_its_way():
    i = image()
    a, b = layers.Conv2D(3, 1, name="a")(i), layers.Conv2D(2, 1, name="b")(i)
    x = layers.BatchNormalization()(layers.Concatenate()([a, b]))
    x = layers.BatchNormalization()(layers.ReLU()(x))
    x = layers.Conv2D(2, 1, name="c")(
        layers.BatchNormalization(scale=False)(layers.Conv2D(4, 1)(x))
    )
    graph = ChannelGraph(keras.Model(i, x))
    both, other, last = gates.gates(graph)
    values = {
        both.key: np.array([1.0, 2, 3, 4, 5]),
        other.key: np.array([5.0, 4, 3, 2, 1]) * 2,
        last.key: np.array([7.0, 8]),
    }
    scores = gates.by_layer(graph, values)
    np.testing.assert_allclose(scores["a"], [5.5, 5, 4.5])
    np.testing.assert_allclose(scores["b"], [4, 3.5])
    np.testing.assert_array_equal(scores["c"], [7, 8])
    (unranked,) = scores.keys() - {"a", "b", "c"}
    assert np.isnan(scores[unranked]).all()
    # A gate that collected nothing, since it is frozen, doesn't count.
    del values[other.key]
    np.testing.assert_array_equal(gates.by_layer(graph, values)["a"], [1, 2, 3])


def test_keys_find_the_gates_of_another_graph_of_the_same_model():
    model = _every_producer()
    keys = [{gate.key for gate in gates.gates(ChannelGraph(model))} for _ in range(2)]
    assert keys[0] == keys[1] and len(keys[0]) == 6


def _net():
    i = image()
    return keras.Model(i, layers.Conv2D(2, 1)(conv(conv(i, 4), 5)))


@pytest.mark.parametrize("criterion", ["taylor", "dcfp"])
def test_what_is_missing_or_of_another_model_is_one_clear_error(criterion):
    graph, other = ChannelGraph(_net()), ChannelGraph(_net())
    with pytest.raises(ValueError, match=f"'{criterion}'.*Expected: .*Received: None"):
        gates.collected(graph, None, criterion)
    values = {gate.key: np.ones(len(gate.ids)) for gate in gates.gates(other)}
    theirs = types.SimpleNamespace(
        name="theirs", keys=list(values), scores=lambda criterion: values
    )
    with pytest.raises(ValueError, match="another model.*Expected: .*Received: those of 'theirs'"):
        gates.collected(graph, theirs, criterion)
    assert gates.collected(other, theirs, criterion) is values
    theirs.scores = lambda criterion: {}
    with pytest.raises(ValueError, match=f"'{criterion}' can rank no channel"):
        gates.collected(other, theirs, criterion)
