"""The score is what was collected for each gate, and comparable between layers as it is."""

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
    x = layers.Conv2D(3, 1, name="bare")(conv(i, 4))
    return ChannelGraph(keras.Model(i, layers.Conv2D(2, 1, name="out")(x)))


def _gradients(graph, asked):
    values = {g.key: 10.0**k * (1 + np.arange(len(g.ids))) for k, g in enumerate(gates(graph))}

    def scores(criterion):
        asked.append(criterion)
        return values

    return types.SimpleNamespace(name="fake", keys=list(values), scores=scores)


def test_scores_are_those_of_the_gates():
    graph, asked = _graph(), []
    taylor = criteria.find("taylor")
    scores = taylor.score(graph, gradients=_gradients(graph, asked))
    assert asked == ["taylor"]
    (normed,) = scores.keys() - {"bare", "out"}
    np.testing.assert_allclose(scores[normed], [1, 2, 3, 4])
    np.testing.assert_allclose(scores["bare"], [10, 20, 30])
    # Not normalised: a layer that changes the loss less goes first.
    units = combine(graph, scores, normalize=taylor.NORMALIZE)
    assert units[graph.producers[normed]].max() < units[graph.producers["bare"]].min()


def test_needs_gradients():
    with pytest.raises(ValueError, match="'taylor' ranks channels by gradients.*Received: None"):
        criteria.find("taylor").score(_graph())
