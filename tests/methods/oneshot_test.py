"""One call from a model to a plan, on the networks that the package ships."""

import re

import pytest

from tfseg_prune import models
from tfseg_prune.graph import ChannelGraph, PruningPlan, cost, shrink
from tfseg_prune.methods.oneshot import plan
from tfseg_prune.search import Budget

NETWORKS = {
    "deeplab_v3_plus": lambda: models.deeplab_v3_plus(11, (64, 96, 3)),
    "unet": lambda: models.unet(11, (64, 96, 3), width=8),
    "erfnet": lambda: models.erfnet(11, (64, 96, 3)),
}


@pytest.fixture(scope="module", params=NETWORKS)
def model(request):
    return NETWORKS[request.param]()


@pytest.mark.parametrize("criterion", ["l1", "l2", "bn_gamma", "fpgm", "random"])
def test_half_of_the_macs_of_every_network(model, criterion):
    if criterion == "bn_gamma" and model.name == "unet":
        with pytest.raises(ValueError, match="criterion='l1'"):
            plan(model, budget=Budget(macs=0.5), criterion=criterion)
        return
    made = plan(model, budget=Budget(macs=0.5), criterion=criterion, align=4)
    share = cost(model, made).macs / cost(model).macs
    assert 0.48 <= share <= 0.5
    assert "decoder_logits" not in made.keep
    assert made.scores["macs"] == [cost(model).macs, cost(model, made).macs]
    assert PruningPlan.from_json(made.to_json()) == made


def test_surgery_is_exact_and_saves_what_it_promised(model):
    made = plan(model, budget=Budget(macs=0.5), ranking="scope", align=8)
    small = shrink(model, made)
    assert cost(small) == cost(model, made)
    assert small.output_shape == model.output_shape


def test_almost_all_channels_can_be_pruned(model):
    graph = ChannelGraph(model)
    prunable = total = 0
    for name, units in graph.producers.items():
        if name != "decoder_logits":
            prunable += graph.prunable[units].sum()
            total += len(units)
    assert prunable / total >= 0.98, graph.frozen


def test_the_same_call_gives_the_same_plan(model):
    options = dict(budget=Budget(params=0.5), criterion="random", seed=3)
    assert plan(model, **options) == plan(model, **options)
    assert plan(model, **options) != plan(model, **{**options, "seed": 4})


def test_excluded_layers_stay_whole(model):
    first = next(name for name in ChannelGraph(model).producers if name.startswith("backbone_"))
    made = plan(model, budget=Budget(macs=0.6), exclude=[f"^{re.escape(first)}$"])
    assert first not in made.keep
