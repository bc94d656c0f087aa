"""Scores mean what they say, for every kind of kernel."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import NETS, image, scramble
from tfseg_prune import criteria
from tfseg_prune.criteria.units import combine
from tfseg_prune.graph import ChannelGraph


def test_the_list_of_criteria():
    assert criteria.names() == ["bn_gamma", "dcfp", "fpgm", "l1", "l2", "random", "taylor"]
    with pytest.raises(ValueError, match="Did you mean 'bn_gamma'"):
        criteria.find("bn_gama")


@pytest.mark.parametrize("order", [1, 2])
def test_norms_are_those_of_whole_filters(order):
    i = image()
    x = layers.Conv2D(6, 3, name="conv")(i)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="deconv")(x)
    x = layers.SeparableConv2D(7, 3, name="separable")(x)
    model = scramble(keras.Model(i, layers.Dense(4, name="dense")(x)))
    scores = criteria.find(f"l{order}").score(ChannelGraph(model))

    def norm(rows):
        return np.linalg.norm(np.reshape(rows, (len(rows), -1)), order, axis=1)

    expected = {
        "conv": norm(np.moveaxis(np.array(model.get_layer("conv").kernel), -1, 0)),
        # Keras' transposed kernels are [height, width, out, in].
        "deconv": norm(np.moveaxis(np.array(model.get_layer("deconv").kernel), 2, 0)),
        "separable": norm(
            np.moveaxis(np.array(model.get_layer("separable").pointwise_kernel), -1, 0)
        ),
        "dense": norm(np.array(model.get_layer("dense").kernel).T),
    }
    assert scores.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(scores[name], expected[name], rtol=1e-6)


def test_fpgm_sums_the_distances_between_filters():
    i = image()
    x = layers.Conv2D(6, 3, name="conv")(i)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="deconv")(x)
    model = scramble(keras.Model(i, layers.Dense(4, name="dense")(x)))
    scores = criteria.find("fpgm").score(ChannelGraph(model))
    for name, axis in {"conv": -1, "deconv": 2, "dense": -1}.items():
        kernel = np.array(model.get_layer(name).kernel, "float64")
        filters = np.moveaxis(kernel, axis, 0).reshape(kernel.shape[axis], -1)
        expected = [sum(np.linalg.norm(one - other) for other in filters) for one in filters]
        np.testing.assert_allclose(scores[name], expected, rtol=1e-9)


def test_fpgm_ranks_the_filter_between_the_others_lowest():
    i = image(channels=1)
    model = keras.Model(i, layers.Conv2D(2, 1)(layers.Conv2D(3, 1, name="conv")(i)))
    model.get_layer("conv").kernel.assign(np.reshape([-10.0, 5.0, 6.0], (1, 1, 1, 3)))
    scores = criteria.find("fpgm").score(ChannelGraph(model))["conv"]
    np.testing.assert_allclose(scores, [31, 16, 17])
    # Biases don't matter, nor does a shift of all filters, unlike to a norm.
    model.get_layer("conv").kernel.assign(np.reshape([0.0, 15.0, 16.0], (1, 1, 1, 3)))
    model.get_layer("conv").bias.assign([3.0, -1.0, 7.0])
    np.testing.assert_allclose(criteria.find("fpgm").score(ChannelGraph(model))["conv"], scores)


def test_fpgm_can_not_rank_what_has_no_weights():
    graph = ChannelGraph(scramble(NETS["multi_head_attention"]()))
    scores = criteria.find("fpgm").score(graph)
    norms = criteria.find("l1").score(graph)
    assert scores.keys() == norms.keys()
    for name in scores:
        np.testing.assert_array_equal(np.isnan(scores[name]), np.isnan(norms[name]))


def test_attention_channels_have_norms_too():
    model = scramble(NETS["multi_head_attention"]())
    scores = criteria.find("l1").score(ChannelGraph(model))
    assert all(np.isfinite(values).all() for values in scores.values())


def test_gamma_is_found_through_concatenation_and_its_sign_ignored():
    i = image()
    a, b = layers.Conv2D(3, 1, name="a")(i), layers.Conv2D(2, 1, name="b")(i)
    x = layers.BatchNormalization(name="bn")(layers.Concatenate()([a, b]))
    x = layers.Conv2D(4, 1, name="c")(x)  # no batch normalisation follows
    model = keras.Model(i, layers.Conv2D(2, 1, name="out")(x))
    model.get_layer("bn").gamma.assign([-5, 1, 2, -3, 4])
    scores = criteria.find("bn_gamma").score(ChannelGraph(model))
    np.testing.assert_array_equal(scores["a"], [5, 1, 2])
    np.testing.assert_array_equal(scores["b"], [3, 4])
    assert np.isnan(scores["c"]).all()


def test_gamma_needs_batch_normalisation():
    i = image()
    x = layers.BatchNormalization(scale=False)(layers.Conv2D(4, 1)(i))
    with pytest.raises(ValueError, match="criterion='l1'"):
        criteria.find("bn_gamma").score(ChannelGraph(keras.Model(i, layers.Conv2D(2, 1)(x))))


def test_random_is_reproducible_and_seeded():
    graph = ChannelGraph(NETS["residual"]())
    first, again, other = (criteria.find("random").score(graph, seed=s) for s in (1, 1, 2))
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert (first[name] != other[name]).all()


def test_coupled_scores_are_combined_by_name():
    graph = ChannelGraph(NETS["residual"]())
    group = next(group for group in graph.groups if len(group.layers) == 3)
    scores = {name: np.full(len(units), np.nan) for name, units in graph.producers.items()}
    for value, name in zip((1.0, 2.0, 6.0), group.layers):
        scores[name] = np.full(len(graph.producers[name]), value)
    for how, expected in {"mean": 3, "max": 6, "min": 1, "sum": 9}.items():
        combined = combine(graph, scores, how=how, normalize="none")
        np.testing.assert_allclose(combined[group.members], expected)
        assert np.isnan(np.delete(combined, group.members)).all()


def test_normalising_makes_layers_comparable():
    graph = ChannelGraph(NETS["chain"]())
    rng = np.random.default_rng(0)
    scores = {name: rng.random(len(units)) for name, units in graph.producers.items()}
    scaled = {name: values * 10.0**k for k, (name, values) in enumerate(scores.items())}
    for normalize in ("mean", "max", "l2"):
        np.testing.assert_allclose(
            combine(graph, scores, normalize=normalize),
            combine(graph, scaled, normalize=normalize),
        )
