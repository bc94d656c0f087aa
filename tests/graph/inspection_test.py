"""An inspection says of every channel what the graph says, and nothing else."""

import collections
import json
import warnings

import keras
import pytest
from keras import layers

from tests.graph.nets import NETS, conv, image
from tfseg_prune.graph import ChannelGraph, cost, inspect
from tfseg_prune.graph.nodes import is_nested


class Unknown(layers.Layer):
    """A layer without a rule."""

    def call(self, x):
        return x


@pytest.fixture(params=NETS, scope="module")
def graph(request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ChannelGraph(NETS[request.param]())


def test_every_channel_is_in_one_set_with_its_reason(graph):
    found = inspect(graph)
    counted = collections.Counter()
    for one in found.frozen:
        counted[one.reason] += one.width
    assert counted == collections.Counter(graph.frozen.values())
    units = set(graph.frozen).union(*(set(u.tolist()) for u in graph.producers.values()))
    assert sum(one.width for one in found.sets) == len(units)
    for name, units in graph.producers.items():
        assert sum(one.layers.get(name, 0) for one in found.sets) == len(units)
    expected = [
        (group.layers.keys(), len(group.members))
        for group in graph.groups
        if graph.prunable[group.members].all()
    ]
    assert [(one.layers.keys(), one.width) for one in found.groups] == expected
    for one in found.groups:
        assert all(channels % one.width == 0 for channels in one.layers.values())
    assert found.created == sum(map(len, graph.producers.values()))
    assert found.prunable == sum(sum(one.layers.values()) for one in found.groups)
    assert found.prunable <= found.created - found.classifier - found.from_input


def test_calls_are_those_of_the_model(graph):
    found = inspect(graph)
    operations = [r for r in graph.records.values() if not is_nested(r.operation)]
    names = [call.name for call in found.calls]
    inputs = [call.name for call in found.calls if call.kind == "Input"]
    assert len(set(names)) == len(names)
    first = [name for name in names if " (call " not in name]
    assert first == inputs + [record.name for record in operations]
    assert found.operations == len(operations)
    for position, call in enumerate(found.calls):
        assert set(call.inputs) <= set(names[:position])
        assert set(call.channels) <= set(range(len(found.sets)))
    assert any(call.output for call in found.calls)
    assert sum(call.params for call in found.calls) == found.params
    if found.macs is not None:
        assert sum(call.macs for call in found.calls) == found.macs


def test_json_holds_all_of_it(graph):
    found = inspect(graph)
    read = json.loads(found.to_json())
    assert read["version"] == 1 and read["prunable_share"] == found.prunable_share
    for name in ("model", "operations", "layers", "macs", "params", "created", "prunable"):
        assert read[name] == getattr(found, name)
    for one, kept in zip(found.sets, read["sets"], strict=True):
        for name in ("layers", "width", "macs", "params_share", "reason", "prunable"):
            assert kept[name] == getattr(one, name)
        assert kept["reads"] == list(one.reads) and kept["constraints"] == list(one.constraints)
    for call, kept in zip(found.calls, read["calls"], strict=True):
        assert kept["name"] == call.name and kept["inputs"] == list(call.inputs)
        assert {index: count for index, count in kept["channels"]} == call.channels


def test_shares_are_what_vanishes_with_the_set():
    model = NETS["chain"]()
    found = inspect(model)
    (first, second), (image_set, logits) = found.groups, found.frozen
    macs = [64 * 9 * 3 * 12, 64 * 9 * 12 * 16, 64 * 16 * 4]
    assert found.macs == sum(macs) == cost(model).macs
    assert (image_set.macs, first.macs) == (macs[0], macs[0] + macs[1])
    assert (second.macs, logits.macs) == (macs[1] + macs[2], macs[2])
    assert first.macs_share == first.macs / found.macs
    assert first.params == 9 * 3 * 12 + 12 + 2 * 12 + 9 * 12 * 16  # kernels, bias, gamma and beta
    assert sum(one.macs for one in found.sets) == 2 * found.macs
    assert first.reads == tuple(second.layers) and second.reads == tuple(logits.layers)


def test_coupled_layers_are_one_group():
    found = inspect(NETS["residual"]())
    widths = {len(one.layers): one.width for one in found.groups}
    assert widths == {3: 12, 1: 8}
    (coupled,) = (one for one in found.groups if len(one.layers) == 3)
    assert coupled.macs_share == 1.0  # every convolution reads or writes it


def test_a_concatenation_holds_the_sets_of_its_inputs_in_order():
    found = inspect(NETS["concatenation_with_batch_normalization_after_it"]())
    calls = {call.name: call for call in found.calls}
    (concatenation,) = (call for call in found.calls if call.kind == "Concatenate")
    parts = [pair for name in concatenation.inputs for pair in calls[name].channels.items()]
    assert list(concatenation.channels.items()) == parts


def test_the_classifier_and_what_meets_the_image_are_counted_apart():
    i = image()
    x = layers.Add()([i, layers.Conv2D(3, 1)(i)])
    x = layers.Conv2D(5, 1)(x)
    model = keras.Model(i, layers.Dense(4, activation="softmax", name="classes")(x))
    found = inspect(model)
    assert (found.created, found.from_input, found.classifier, found.prunable) == (12, 3, 4, 5)
    assert found.prunable_share == 1.0
    reasons = {tuple(one.layers)[-1]: one.reason for one in found.frozen}
    assert reasons["classes"] == "a model output"
    assert sorted(reasons.values()) == ["a model input", "a model output"]


def test_a_model_without_channels_to_choose_has_no_share():
    i = image()
    assert inspect(keras.Model(i, layers.Conv2D(3, 1)(i))).prunable_share is None


def test_a_layer_without_a_rule_is_named_and_not_warned_of():
    i = image()
    x = layers.Conv2D(6, 1, name="before")(i)
    model = keras.Model(i, layers.Conv2D(2, 1)(Unknown(name="odd")(x)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = inspect(model)
    assert found.without_rule == ("odd (Unknown)",)
    reasons = {name: one.reason for one in found.frozen for name in one.layers}
    assert "'odd', a Unknown without a rule" in reasons["before"] and "'odd'" in reasons["odd"]


def test_what_the_caller_excludes_is_frozen():
    graph = ChannelGraph(NETS["chain"](), exclude=lambda name: name.startswith("conv2d"))
    assert not inspect(graph).groups
    assert "excluded by the caller" in {one.reason for one in inspect(graph).frozen}


def test_shared_layers_are_seen_at_every_call():
    i, j = image(), image()
    shared, passing = layers.Conv2D(6, 1, name="shared"), layers.ReLU(name="passing")
    a, b = conv(i, 4), conv(j, 5)
    x = layers.Concatenate()([passing(a), passing(b), shared(i), shared(j)])
    found = inspect(keras.Model([i, j], layers.Conv2D(2, 1)(x)))
    calls = {call.name: call for call in found.calls}
    first, second = calls["passing"].channels, calls["passing (call 2)"].channels
    assert list(first.values()) == [4] and list(second.values()) == [5]
    assert not set(first) & set(second)
    assert calls["shared"].channels == calls["shared (call 2)"].channels
    assert calls["shared"].params == 3 * 6 + 6 and calls["shared (call 2)"].params == 0
    (joined,) = (one for one in found.frozen if len(one.layers) == 2)
    assert joined.reason == "a model input" and joined.width == 3


def test_constraints_are_said():
    i = image()
    x = layers.Conv2D(16, 1, name="fed")(i)
    x = layers.Conv2D(24, 1, groups=4, name="grouped")(x)
    x = layers.Flatten()(layers.Conv2D(6, 8, name="last")(x))
    model = keras.Model(i, layers.Dense(2)(layers.Reshape((2, 3))(x)))
    found = {name: one for one in inspect(model).sets for name in one.layers}
    for name in ("fed", "grouped"):
        assert found[name].constraints == ("the 4 groups of 'grouped' keep equally many",)
    assert found["last"].constraints == ("2 channels of 'last' go together",)
    assert found["last"].width == 3


def test_an_open_input_size_leaves_parameters():
    i = keras.Input((None, None, 3))
    found = inspect(keras.Model(i, layers.Conv2D(4, 1)(conv(conv(i, 12), 16))))
    assert found.macs is None and found.params == 4 * 17 + (27 + 3) * 12 + (108 + 3) * 16
    assert all(one.macs is None and one.macs_share is None for one in found.sets)
    assert all(call.macs is None for call in found.calls)
    assert 1 < sum(one.params_share for one in found.sets) < 2
    assert json.loads(found.to_json())["macs"] is None


def test_only_functional_models_have_channels():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Only functional Keras models"):
        inspect(Subclassed())


def test_frozen_sets_of_one_layer_are_told_apart_by_reason():
    i = image()
    x = layers.Conv2D(8, 1, name="split")(i)
    a, b = x[..., :3], x[..., 3:]
    model = keras.Model(i, [a, layers.Conv2D(2, 1)(layers.Softmax()(b))])
    found = [one for one in inspect(model).frozen if "split" in one.layers]
    assert sorted(one.width for one in found) == [3, 5]
    assert len({one.reason for one in found}) == 2
    assert sum(one.layers["split"] for one in found) == 8
