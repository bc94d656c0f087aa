"""The cost model counts what the layers' shapes say, under any choice of channels."""

import math

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.nets import NETS, conv, image
from tfseg_prune.graph import ChannelGraph, CostModel, cost, shrink
from tfseg_prune.methods.oneshot import plan
from tfseg_prune.search import Budget


def recount(model):
    """MACs from kernel and tensor shapes alone, with nothing of the package."""
    total = 0
    for layer in model.layers:
        out = layer.output.shape if not isinstance(layer.output, (list, tuple)) else None
        if isinstance(layer, layers.Conv2DTranspose):
            total += math.prod(layer.input.shape[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.SeparableConv2D):
            pixels = math.prod(out[1:3])
            total += pixels * math.prod(layer.depthwise_kernel.shape)
            total += pixels * math.prod(layer.pointwise_kernel.shape)
        elif isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
            total += math.prod(out[1:3]) * math.prod(layer.kernel.shape)
        elif isinstance(layer, layers.Dense):
            total += math.prod(out[1:-1]) * math.prod(layer.kernel.shape)
    return total


@pytest.mark.parametrize(
    "name",
    [
        "chain",
        "residual",
        "inverted_residual",
        "depth_multiplier_and_separable",
        "transposed_convolution_with_skip",
        "grouped_convolutions",
        "grouped_convolution_per_channel",
        "flatten_and_dense",
        "token_mixing",
    ],
)
def test_macs_and_parameters_equal_a_recount(name):
    model = NETS[name]()
    counted = cost(model)
    assert counted.macs == recount(model)
    statistics = sum(
        math.prod(v.shape) for v in model.weights if "moving_" in v.path or "seed" in v.path
    )
    assert counted.params == model.count_params() - statistics
    assert counted.macs == sum(layer.macs for layer in counted.layers.values())
    assert counted.params == sum(layer.params for layer in counted.layers.values())


def test_attention_counts_its_matrix_products():
    i = keras.Input((10, 12))
    attention = layers.MultiHeadAttention(3, 5, value_dim=7)
    macs = cost(keras.Model(i, attention(i, i))).macs
    projections = 10 * 12 * 3 * (5 + 5 + 7) + 10 * 3 * 7 * 12
    assert macs == projections + 10 * 10 * 3 * 5 + 10 * 10 * 3 * 7

    q, k = keras.Input((3, 10, 5)), keras.Input((3, 10, 5))
    scores = ops.matmul(q, ops.transpose(k, (0, 1, 3, 2)))
    assert cost(keras.Model([q, k], scores)).macs == 3 * 10 * 10 * 5


def test_a_shared_layer_computes_twice_and_weighs_once():
    i = image()
    shared = layers.Conv2D(3, 3, padding="same", use_bias=False)
    once, twice = cost(keras.Model(i, shared(i))), cost(keras.Model(i, shared(shared(i))))
    assert (twice.macs, twice.params) == (2 * once.macs, once.params)


def test_a_nested_model_is_counted_once():
    i, inner = image(), image()
    nested = keras.Model(inner, conv(inner, 6))
    flat = keras.Model(inner, conv(inner, 6))
    assert cost(keras.Model(i, nested(i))).params == cost(flat).params


def test_soft_weights_agree_with_masks_and_have_the_right_gradient():
    model = NETS["inverted_residual"]()
    graph = ChannelGraph(model)
    costs = CostModel(graph)
    rng = np.random.default_rng(0)
    soft = rng.uniform(0.2, 1, graph.num_units).astype("float32")
    for name in ("macs", "params"):
        exact = getattr(costs, name)(soft.astype("float64"))
        tensor = float(getattr(costs, name)(ops.convert_to_tensor(soft)))
        assert tensor == pytest.approx(exact, rel=1e-6)

    import tensorflow as tf

    variable = tf.Variable(soft)
    with tf.GradientTape() as tape:
        value = costs.macs(tf.convert_to_tensor(variable))
    gradient = tape.gradient(value, variable).numpy()
    # MACs are at most quadratic in any one unit, so a central difference is exact.
    for unit in rng.choice(np.flatnonzero(graph.prunable), 5, replace=False):
        up, down = soft.astype("float64"), soft.astype("float64")
        up[unit] += 0.5
        down[unit] -= 0.5
        assert gradient[unit] == pytest.approx(costs.macs(up) - costs.macs(down), rel=1e-5)


def test_masks_cost_what_the_remaining_channels_cost():
    i = image(size=4)
    x = layers.Conv2D(6, 3, padding="same", use_bias=False, name="a")(i)
    model = keras.Model(i, layers.Conv2D(2, 1, use_bias=False, name="b")(x))
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    keep[graph.producers["a"][:2]] = False
    table = CostModel(graph).table(keep)
    assert table.macs == 16 * 9 * 3 * 4 + 16 * 4 * 2
    assert table.params == 9 * 3 * 4 + 4 * 2


def up(width):
    return 4 * math.ceil(width / 4)


def test_padded_macs_count_whole_slices_of_four_channels():
    i = image(size=4)
    x = layers.Conv2D(6, 3, padding="same", name="a")(i)
    x = layers.Conv2D(10, 1, groups=2, name="grouped")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)
    x = layers.Conv2DTranspose(5, 2, strides=2, name="transposed")(x)
    found = cost(keras.Model(i, x))
    padded = {name: layer.padded_macs for name, layer in found.layers.items()}
    assert padded == {
        "a": 16 * 9 * up(3) * up(6),
        "grouped": 16 * 2 * up(3) * up(5),  # each group has slices of its own
        "depthwise": 16 * 9 * up(10),
        "transposed": 16 * 4 * up(10) * up(5),
    }
    assert found.padded_macs == sum(padded.values()) > found.macs


@pytest.mark.parametrize(
    "name",
    [
        "inverted_residual",
        "depth_multiplier_and_separable",
        "grouped_convolutions",
        "grouped_convolution_per_channel",
        "flatten_and_dense",
        "token_mixing",
        "shared_layer",
    ],
)
def test_padded_macs_of_a_plan_are_those_of_what_becomes_of_it(name):
    model = NETS[name]()
    graph = ChannelGraph(model)
    costs = CostModel(graph)
    assert costs.padded_macs() == pytest.approx(costs.table().padded_macs)
    assert costs.padded_macs() >= costs.macs()
    made = plan(model, budget=Budget(params=0.95), criterion="random", ranking="layer", floor=0.0)
    assert cost(model, made).padded_macs == cost(shrink(model, made)).padded_macs


def test_an_open_size_hides_padded_macs_as_well():
    i = keras.Input((None, None, 3))
    model = keras.Model(i, layers.Conv2D(4, 3)(i))
    assert cost(model).padded_macs is None
    with pytest.raises(ValueError, match="input size"):
        CostModel(ChannelGraph(model)).padded_macs()
