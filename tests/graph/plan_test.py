"""A plan survives JSON, fits every checkpoint of its architecture, and no other architecture."""

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import NETS, image, scramble
from tests.graph.shrink_test import random_plan
from tfseg_prune.graph import (
    ChannelGraph,
    PruningPlan,
    check_equal,
    cost,
    masked_twin,
    shrink,
)


@pytest.fixture
def model():
    return scramble(NETS["residual"]())


def test_json_round_trip(model, tmp_path):
    fields = {"method": "test", "budget": {"macs": 0.5}, "scores": {"a": 1.5}, "groups": {"x": 2}}
    plan = random_plan(model, **fields)
    plan.save(tmp_path / "plan.json")
    assert PruningPlan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_json_is_readable(model):
    plan = random_plan(model)
    name, kept = next(iter(plan.keep.items()))
    assert json.dumps({"of": plan.widths[name], "keep": list(kept)}) in plan.to_json()


def test_it_is_frozen(model):
    with pytest.raises(dataclasses.FrozenInstanceError):
        random_plan(model).method = "other"
    with pytest.raises(TypeError):
        random_plan(model).keep["a"] = (0,)


def test_applies_to_another_checkpoint_and_to_the_same_code_run_again(model):
    plan = random_plan(model)
    again = scramble(NETS["residual"](), seed=5)
    assert [x.name for x in again.layers] != [x.name for x in model.layers]
    small = shrink(again, plan)
    assert check_equal(masked_twin(again, plan), small) < 1e-5
    assert [w.shape for w in small.weights] == [w.shape for w in shrink(model, plan).weights]


def test_another_architecture_is_an_error_with_the_first_differences(model):
    plan = random_plan(model)
    i = image()
    other = keras.Model(i, layers.Conv2D(4, 1, name="wider")(layers.Conv2D(99, 3)(i)))
    with pytest.raises(ValueError, match="another architecture") as error:
        shrink(other, plan)
    assert plan.fingerprint in str(error.value) and "3x3x3x99" in str(error.value)


@pytest.mark.parametrize("option", [{"strides": 2}, {"dilation_rate": 2}, {"activation": "relu"}])
def test_other_settings_are_another_architecture(option):
    def build(**options):
        i = image()
        return keras.Model(i, layers.Conv2D(4, 1)(layers.Conv2D(9, 3, **options)(i)))

    with pytest.raises(ValueError, match=f"another architecture(?s:.*){next(iter(option))}"):
        shrink(build(**option), random_plan(build()))


def test_groups_follow_the_model_s_own_names():
    def build():
        i = image()
        return keras.Model(i, layers.Conv2D(4, 1)(layers.Conv2D(8, 1)(layers.Conv2D(8, 1)(i))))

    first, second = build(), build()
    name = first.layers[2].name
    plan = PruningPlan(groups={name: 2}, architecture=random_plan(first).architecture)
    assert cost(first, plan).macs == cost(second, plan).macs == cost(shrink(second, plan)).macs
    with pytest.raises(ValueError, match="no layer 'nothing'"):
        cost(first, PruningPlan(groups={"nothing": 2}, architecture=plan.architecture))


def test_the_input_size_does_not_matter():
    def build(size):
        i = image(size=size)
        return keras.Model(i, layers.Conv2D(4, 1)(layers.Conv2D(9, 3)(i)))

    assert shrink(build(32), random_plan(build(8))).input_shape == (None, 32, 32, 3)


def test_tearing_coupled_channels_apart_is_an_error(model):
    graph = ChannelGraph(model)
    plan = random_plan(model)
    members = graph.groups[0].members
    coupled = [name for name, units in graph.producers.items() if np.array_equal(units, members)]
    assert len(coupled) == 3
    keep = {**plan.keep, coupled[0]: list(range(plan.widths[coupled[0]]))}
    torn = dataclasses.replace(plan, keep=keep)
    with pytest.raises(ValueError, match="coupled"):
        shrink(model, torn)


def test_pruning_an_output_is_an_error(model):
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    keep[list(graph.producers.values())[-1][0]] = False
    with pytest.raises(ValueError, match="a model output"):
        PruningPlan.from_units(graph, keep)


def test_nothing_left_is_an_error(model):
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    keep[list(graph.producers.values())[1]] = False
    with pytest.raises(ValueError, match="no channel of"):
        PruningPlan.from_units(graph, keep)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"version": 1}', '{"version": 99}', "no json", '{"version": 1, "layers": 3}'],
)
def test_what_is_no_plan_is_one_clear_error(text, tmp_path):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match="plan.json.*no pruning plan"):
        PruningPlan.load(tmp_path / "plan.json")


def test_a_plan_changed_by_hand_is_an_error(model, tmp_path):
    text = random_plan(model).to_json().replace("3x3", "5x5", 1)
    with pytest.raises(ValueError, match="fingerprint"):
        PruningPlan.from_json(text)


@pytest.mark.parametrize("kept", [[], [0, 0], [-1, 2], [3, 12]])
def test_senseless_channels_are_an_error(kept):
    with pytest.raises(ValueError, match="distinct indices"):
        PruningPlan(keep={"a": kept}, widths={"a": 12})
