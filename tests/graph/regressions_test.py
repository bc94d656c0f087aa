"""What went wrong once: most of it found by random graphs (`tests.graph.random_models`)."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.nets import conv, image, scramble
from tests.graph.properties import check_pruning
from tests.graph.recount import recount
from tfseg_prune.graph import (
    ChannelGraph,
    PruningPlan,
    SurgeryError,
    check_equal,
    cost,
    masked_twin,
    shrink,
    verify,
)


def pruned(model, **dropped):
    """(model, plan, smaller model) with these channels of these layers dropped."""
    scramble(model)
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    for name, channels in dropped.items():
        keep[graph.producers[name][list(channels)]] = False
    plan = PruningPlan.from_units(graph, keep)
    return model, plan, shrink(model, plan)


def test_names_of_a_loaded_model_do_not_meet_those_of_new_operations(tmp_path):
    """A new process counts Keras' own names from 0, also those that a file has used already."""
    i = image()
    x = layers.Reshape((64, 12))(conv(i, 12))
    x = ops.reshape(x, (-1, 8, 8, 12))  # rebuilt by a new `ops.reshape`
    scores = ops.matmul(x, ops.transpose(x * 2.0, (0, 1, 3, 2)))  # its twin multiplies by masks
    model = scramble(keras.Model(i, layers.Conv2D(4, 1)(ops.matmul(scores, x))))
    model.save(tmp_path / "model.keras")
    keras.backend.clear_session()
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    names = [operation.name for operation in loaded.operations]
    graph = ChannelGraph(loaded)
    keep = np.ones(graph.num_units, bool)
    keep[next(iter(graph.producers.values()))[:5]] = False
    plan = PruningPlan.from_units(graph, keep)
    small = shrink(loaded, plan)
    assert [operation.name for operation in small.operations] == names
    check_equal(masked_twin(loaded, plan), small)


def test_every_part_of_a_split_keeps_a_channel():
    """Not every operation takes a tensor without channels: `Resizing` doesn't."""
    i = image()
    a, b = ops.split(layers.Conv2D(8, 1, name="halves")(i), [3], axis=-1)
    a = layers.Resizing(4, 4)(a)
    b = layers.MaxPooling2D(2)(b)
    model = keras.Model(i, layers.Conv2D(4, 1)(layers.Concatenate()([a, b])))
    with pytest.raises(ValueError, match="would read no channel"):
        pruned(model, halves=[0, 1, 2])
    pruned(model, halves=[0, 1, 4])


@pytest.mark.parametrize("pick", [lambda x: x[..., 5:], lambda x: ops.take(x, [6, 1], axis=-1)])
def test_every_slice_keeps_a_channel(pick):
    i = image()
    x = layers.Conv2D(8, 1, name="sliced")(i)
    y = layers.Resizing(8, 8)(pick(x))
    model = keras.Model(i, layers.Conv2D(4, 1)(layers.Concatenate()([x, y])))
    with pytest.raises(ValueError, match="would read no channel"):
        pruned(model, sliced=[1, 5, 6, 7])
    pruned(model, sliced=[1, 5, 7])


def test_padding_that_meets_channels_in_a_reshape_stays_with_them():
    """Rows of a reshape that hold padding and channels have one width, so the channels stay."""
    i = image()
    x = layers.Conv2D(5, 1, name="padded")(i)
    x = ops.pad(x, ((0, 0), (0, 0), (0, 0), (2, 1)))
    x = layers.Permute((1, 3, 2))(layers.Reshape((64, 2, 4))(x))
    x = layers.Reshape((8, 8, 8))(x)
    model = scramble(keras.Model(i, layers.Conv2D(4, 1)(x)))
    graph = ChannelGraph(model)
    # The rows are [0 0 a b] and [c d e 0]: only a and e meet each other.
    assert graph.prunable[graph.producers["padded"]].tolist() == [True, False, False, False, True]
    pruned(model, padded=[0, 4])


def test_statistics_are_no_parameters_whatever_axis_they_follow():
    i = image()
    x = layers.BatchNormalization(axis=1)(layers.Conv2D(6, 1)(i))
    model = keras.Model(i, layers.Conv2D(4, 1)(x))
    assert (cost(model).macs, cost(model).params) == recount(model)


def test_a_constant_kernel_costs_what_its_shape_says():
    i = image()
    x = ops.conv(layers.Conv2D(6, 1)(i), np.ones((5, 2, 6, 4), "float32"), padding="same")
    model = keras.Model(i, layers.Conv2D(4, 1)(x))
    assert (cost(model).macs, cost(model).params) == recount(model)


@pytest.mark.parametrize("first", [0, 1])
def test_a_layer_that_is_called_along_channels_and_along_places(first):
    """In one call its kernel reads channels, in the other places, whose number is fixed."""
    i = keras.Input((8, 3))
    x = layers.Dense(8, name="x")(i)
    shared = layers.Dense(8)
    along = [lambda: shared(x), lambda: layers.Permute((2, 1))(shared(layers.Permute((2, 1))(x)))]
    y = layers.Add()([along[first](), along[1 - first]()])
    model = scramble(keras.Model(i, layers.Dense(3)(layers.Dense(6)(y))))
    for seed in range(2):
        check_pruning(model, seed)


def test_a_normalization_that_is_called_along_channels_and_along_places():
    i = keras.Input((8, 3))
    x = layers.Dense(8)(i)
    shared = layers.BatchNormalization()
    y = layers.Permute((2, 1))(shared(layers.Permute((2, 1))(x)))
    model = scramble(keras.Model(i, layers.Dense(3)(layers.Concatenate()([shared(x), y]))))
    for seed in range(2):
        check_pruning(model, seed)


def ill_conditioned(kind):
    """What amplifies rounding, though it doesn't amplify a change of its input."""
    i = image()
    x = layers.Conv2D(12, 3, padding="same")(i)
    pooled = layers.GlobalAveragePooling2D(keepdims=True)(x)
    if kind == "the norm of what is constant":
        x = layers.LayerNormalization(axis=1)(layers.Resizing(6, 6)(pooled))
        return keras.Model(i, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))
    x = layers.Flatten()(pooled)
    y = layers.Dense(12)(x)
    return keras.Model(i, layers.Dense(1)((x + y) - y - x * (1 - 1e-6)))


@pytest.mark.parametrize("kind", ["the norm of what is constant", "a difference of equals"])
def test_rounding_that_a_network_amplifies_is_no_false_alarm(kind):
    model = scramble(ill_conditioned(kind))
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    keep[next(iter(graph.producers.values()))[::2]] = False
    plan = PruningPlan.from_units(graph, keep)
    assert check_equal(masked_twin(model, plan), shrink(model, plan)) > 1e-5


def rounding_of_a_sum(size, beside):
    """What rounding leaves of zero, alone or beside an answer."""
    i = image()
    zero = (i + size) - size - i
    return keras.Model(i, [zero, i * 2.0] if beside else zero)


def test_rounding_in_the_place_of_a_zero_says_nothing():
    first, second = rounding_of_a_sum(1e3, beside=True), rounding_of_a_sum(1.1e3, beside=True)
    assert check_equal(first, second) == 0


def test_nothing_is_proven_by_rounding_alone():
    with pytest.raises(SurgeryError, match="rounding noise"):
        check_equal(rounding_of_a_sum(1e3, beside=False), rounding_of_a_sum(1.1e3, beside=False))


def test_rounding_of_a_mean_of_many_numbers_is_no_false_alarm():
    """The mean of one channel is summed in another order than that of one among several."""
    i = image(1, size=128)
    x = layers.Conv2D(5, 1, activation="sigmoid", name="conv")(i)
    x = layers.GlobalAveragePooling2D()(x * 0.1)
    model = keras.Model(i, layers.Dense(3, use_bias=False)(x))
    model, plan, small = pruned(model, conv=[1, 2, 3, 4])
    assert check_equal(masked_twin(model, plan), small) > 1e-5


def test_a_layer_that_is_called_on_maps_and_on_vectors():
    """What the twin masks and what is compared has the shape of the call, not of the first one."""
    i = image()
    x = layers.Conv2D(10, 3, name="conv")(i)
    pooled = layers.GlobalAveragePooling2D()(x)
    shared = layers.Dense(8, name="shared")
    gate = layers.Reshape((1, 1, 8))(shared(pooled))
    model = keras.Model(i, layers.Dense(3)(shared(x) * gate))
    model, plan, small = pruned(model, conv=[0, 4, 5], shared=[2])
    check_equal(masked_twin(model, plan), small)


def test_attention_that_is_kept_whole_costs_what_it_computes():
    """Queries change from channel to channel and values from head to head: both are kept."""
    i = keras.Input((6, 4))
    query = layers.Reshape((6, 2, 4))(layers.Dense(8, name="query")(i))
    value = ops.repeat(ops.expand_dims(layers.Dense(2)(i), -1), 4, axis=-1)
    y = ops.dot_product_attention(query, query, value)
    model = keras.Model(i, layers.Dense(3)(layers.Reshape((6, 8))(y)))
    graph = ChannelGraph(model)
    assert not graph.prunable[graph.producers["query"]].any()
    assert (cost(model).macs, cost(model).params) == recount(model)


def test_a_division_by_what_pruning_zeroes_is_named_as_a_cause_of_nan():
    i = image()
    x = ops.relu(layers.Conv2D(6, 1, name="conv")(i))
    model = keras.Model(i, layers.Conv2D(3, 1)(x / ops.sum(x, axis=-1, keepdims=True)))
    with pytest.raises(SurgeryError, match="answers NaN.*Remedy: .*division by zero"):
        pruned(model, conv=range(5))  # the sixth is 0 somewhere


def test_shrink_says_from_how_many_macs_on_it_compares_at_a_reduced_size():
    assert f"above {verify._CHECK_MACS / 1e9:g} GMACs" in shrink.__doc__
