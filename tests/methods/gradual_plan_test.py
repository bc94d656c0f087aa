"""Plans that group: when there is one, what it holds beside channels, and which channels meet."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tests.methods.gradual import (
    GRADUAL,
    answers,
    fade,
    network,
    trained,
    values,
)
from tfseg_prune import criteria
from tfseg_prune.layers.gradual_conv import GradualConv2D, group_mask


def test_no_plan_before_all_has_faded(model):
    gradual = tsp.GradualGrouping(model)
    gradual.model.get_layer("backbone_a").alpha.assign(0.0)
    gradual.model.get_layer("backbone_b").alpha.assign(0.125)
    with pytest.raises(ValueError, match="haven't faded.*Received: alpha = 0.125"):
        gradual.plan()


@pytest.mark.parametrize(
    "options, alpha, message",
    [
        ({}, 0.5, "at alpha = 0.5"),
        ({"target_groups": 2}, 0, "a gradual one with 2 groups"),
        ({"output_groups": [0, 1] * 4}, 0, "an order of their own"),
    ],
)
def test_shrink_groups_only_what_has_faded(options, alpha, message):
    i = keras.Input((4, 4, 8))
    x = GradualConv2D(8, 1, **{"target_groups": 4 if not options else 2, **options}, name="conv")(i)
    model = keras.Model(i, layers.Conv2D(2, 1)(x))
    fade(model, alpha)
    graph = tsp.ChannelGraph(model)
    groups = 2 if "output_groups" in options else 4
    plan = tsp.PruningPlan.from_units(
        graph, np.ones(graph.num_units, bool), groups={"conv": groups}
    )
    with pytest.raises(ValueError, match=message):
        tsp.shrink(model, plan)


# With channel pruning.


def test_one_plan_prunes_and_groups(finished):
    plan = tsp.plan(finished.model, budget=tsp.Budget(macs=0.6))
    assert plan.keep and dict(plan.groups) == {"backbone_a": 4, "backbone_b": 4}
    small = tsp.shrink(finished.model, plan)
    grouped = tsp.cost(finished.model, finished.plan())
    assert tsp.cost(small) == tsp.cost(finished.model, plan)
    assert 0.5 < tsp.cost(small).macs / grouped.macs <= 0.6
    assert all(type(layer) is not GradualConv2D for layer in small.layers)
    # The same as grouping first and pruning then.
    first = tsp.shrink(finished.model, finished.plan())
    later = tsp.plan(first, budget=tsp.Budget(macs=0.6))
    assert later.keep == plan.keep
    both = finished.plan().followed_by(later)
    assert both.keep == plan.keep and both.groups == plan.groups
    np.testing.assert_allclose(
        answers(tsp.shrink(finished.model, both)), answers(tsp.shrink(first, later)), atol=1e-5
    )


def test_pruned_while_it_fades_it_stays_gradual(model):
    gradual = tsp.GradualGrouping(model)
    fade(gradual.model, 0.5)
    plan = tsp.plan(gradual.model, budget=tsp.Budget(macs=0.6))
    assert not plan.groups
    small = tsp.shrink(gradual.model, plan)
    layer = small.get_layer("backbone_a")
    assert layer.target_groups == 4 and float(layer.alpha) == 0.5
    # Whose fading another one goes on with.
    rest = trained(tsp.GradualGrouping(small, where=[], until=0.5))
    tsp.shrink(rest.model, rest.plan())


def test_criteria_see_what_the_convolution_reads(model):
    gradual = tsp.GradualGrouping(model)
    fade(gradual.model, 0.5)
    layer = gradual.model.get_layer("backbone_a")
    between = ~group_mask(8, 16, 4)
    kernel = ops.convert_to_numpy(layer.kernel)
    graph = tsp.ChannelGraph(gradual.model)
    l1 = criteria.find("l1")
    np.testing.assert_allclose(
        l1.score(graph)["backbone_a"],
        np.abs(kernel * np.where(between, 0.5, 1)).sum((0, 1, 2)),
        rtol=1e-6,
    )
    fade(gradual.model)
    before = l1.score(graph)["backbone_a"]
    layer.kernel.assign(np.where(between, 100.0, kernel))
    np.testing.assert_array_equal(l1.score(graph)["backbone_a"], before)


# Which channels form a group.


def planted(seed=0):
    """A network whose 1x1 convolutions connect 4 hidden groups and nothing else."""
    model = network(seed)
    rng = np.random.default_rng(seed)
    stream, inner = (rng.permutation(np.repeat(np.arange(4), n)) for n in (2, 4))
    for name, ins, outs in (("backbone_a", stream, inner), ("backbone_b", inner, stream)):
        layer = model.get_layer(name)
        kernel = rng.normal(size=layer.kernel.shape) * group_mask(len(ins), len(outs), 4, ins, outs)
        layer.kernel.assign(kernel.astype("float32"))
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 2, w.shape) for w in layer.weights])
    return model


@pytest.mark.parametrize("seed", range(3))
def test_balanced_groups_find_what_belongs_together(seed):
    """Residual branches share one order, and nothing but names of places changes."""
    model = planted(seed)
    before = values(model)
    contiguous = tsp.GradualGrouping(model).kept_mass()
    gradual = tsp.GradualGrouping(model, assign="balanced")
    assert max(contiguous.values()) < 0.8
    np.testing.assert_allclose(list(gradual.kept_mass().values()), 1)
    np.testing.assert_allclose(answers(gradual.model), answers(model), atol=1e-5)
    fade(gradual.model)
    small = tsp.shrink(gradual.model, gradual.plan())
    np.testing.assert_allclose(answers(small), answers(model), atol=1e-5)
    for value, weight in zip(before, values(model)):
        np.testing.assert_array_equal(value, weight)


@pytest.mark.parametrize("groups", [2, 4])
def test_balanced_groups_keep_no_less(groups):
    model = network(seed=groups)
    kept = {
        assign: tsp.GradualGrouping(
            model, groups, where=[*GRADUAL, "decoder_mix"], assign=assign
        ).kept_mass()
        for assign in ("contiguous", "balanced")
    }
    masses = {
        name: np.square(ops.convert_to_numpy(model.get_layer(name).kernel)).sum()
        for name in kept["balanced"]
    }
    totals = {a: sum(part * masses[n] for n, part in k.items()) for a, k in kept.items()}
    assert totals["balanced"] > 1.05 * totals["contiguous"]


def test_channels_that_differ_by_more_than_weights_can_not_move():
    i = keras.Input((4, 4, 8))
    x = layers.Conv2D(8, 1, name="conv")(layers.Conv2D(8, 3, name="before")(i))
    x = x + np.arange(8, dtype="float32")
    model = keras.Model(i, layers.Conv2D(2, 1, name="last")(x))
    tsp.GradualGrouping(model, where="conv")
    with pytest.raises(ValueError, match="can't be put in another order.*assign='contiguous'"):
        tsp.GradualGrouping(model, where="conv", assign="balanced")


# Whole networks, and the other backend.


@pytest.mark.slow
@pytest.mark.parametrize("block", ["DG4", "DG8S"])
def test_erfnet_becomes_its_grouped_twin(block):
    options = {"num_classes": 11, "input_shape": (64, 64, 3), "block": block}
    dense = tsp.models.erfnet(grouped=False, **options)
    grouped = tsp.models.erfnet(**options)
    groups = int(block[2])
    for assign in ("contiguous", "balanced"):
        gradual = tsp.GradualGrouping(dense, groups, assign=assign)
        assert len(gradual.kept_mass()) == 26
        fade(gradual.model)
        small = tsp.shrink(gradual.model, gradual.plan())
        assert [w.shape for w in small.weights] == [w.shape for w in grouped.weights]
        assert tsp.cost(small) == tsp.cost(grouped)
