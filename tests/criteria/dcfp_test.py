"""The score is that of the scales, compared between layers only relative to their means."""

import types

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import conv, image
from tfseg_prune import criteria
from tfseg_prune.criteria.gates import gates
from tfseg_prune.criteria.units import combine
from tfseg_prune.graph import ChannelGraph


def _graph():
    i = image()
    x = layers.Conv2D(3, 1, name="bare")(conv(conv(i, 4), 5))
    return ChannelGraph(keras.Model(i, layers.Conv2D(2, 1, name="out")(x)))


def test_scores_are_those_of_the_scales():
    graph, asked = _graph(), []
    scaled = [gate for gate in gates(graph) if gate.scale is not None]
    values = {g.key: 10.0**k * (1 + np.arange(len(g.ids))) for k, g in enumerate(scaled)}

    def collected(criterion):
        asked.append(criterion)
        return values

    dcfp = criteria.find("dcfp")
    fake = types.SimpleNamespace(name="fake", keys=list(values), scores=collected)
    scores = dcfp.score(graph, gradients=fake)
    assert asked == ["dcfp"]
    assert np.isnan(scores["bare"]).all() and np.isnan(scores["out"]).all()
    first, second = scores.keys() - {"bare", "out"}
    if len(scores[first]) > len(scores[second]):
        first, second = second, first
    np.testing.assert_allclose(scores[first], [1, 2, 3, 4])
    np.testing.assert_allclose(scores[second], [10, 20, 30, 40, 50])
    # Ten times the gradients are no ten times the worth.
    units = combine(graph, scores, normalize=dcfp.NORMALIZE)
    np.testing.assert_allclose(units[graph.producers[first]].mean(), 1)
    np.testing.assert_allclose(units[graph.producers[second]].mean(), 1)


def test_needs_gradients():
    with pytest.raises(ValueError, match="'dcfp' ranks channels by gradients.*Received: None"):
        criteria.find("dcfp").score(_graph())
