"""Asked 0.5, users get 0.5; and what can't be met says what can."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import NETS, conv, image
from tfseg_prune import models
from tfseg_prune.deploy import lower
from tfseg_prune.graph import ChannelGraph, CostModel, cost, shrink
from tfseg_prune.methods.oneshot import plan
from tfseg_prune.search import Budget, BudgetError, meet_budget


def wide_net():
    i = image(size=16)
    stem = conv(i, 48)
    x = layers.Add()([stem, conv(conv(stem, 64), 48)])
    x = layers.Concatenate()([conv(x, 40), conv(conv(x, 96, 1), 32, groups=4)])
    x = layers.DepthwiseConv2D(3, padding="same")(conv(x, 80))
    return keras.Model(i, layers.Conv2D(5, 1)(x))


@pytest.fixture(scope="module")
def model():
    return wide_net()


@pytest.mark.parametrize("what", ["macs", "params", "padded_macs"])
@pytest.mark.parametrize("fraction", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("ranking", ["global", "layer", "scope"])
def test_no_dropped_channel_would_fit_the_budget_any_more(model, what, fraction, ranking):
    """The budget is met from below, and used up to the cost of the cheapest unit."""
    budget = Budget(**{what: fraction})
    graph = ChannelGraph(model)
    scores = np.random.default_rng(0).random(graph.num_units)
    keep = meet_budget(graph, scores, budget, ranking=ranking)
    cost_of = getattr(CostModel(graph), what)
    target = fraction * cost_of()
    assert cost_of(keep.astype(float)) <= target
    grouped = {unit for rows in graph.balanced for unit in rows.ravel().tolist()}
    dropped = [unit for unit in np.flatnonzero(~keep) if unit not in grouped]
    assert dropped
    for unit in dropped:
        more = keep.astype(float)
        more[unit] = 1
        assert cost_of(more) > target


@pytest.fixture(scope="module", params=["deeplab_v3_plus", "erfnet", "unet"])
def network(request):
    options = {"width": 16} if request.param == "unet" else {}
    return getattr(models, request.param)(11, (64, 96, 3), **options)


@pytest.mark.parametrize("fraction", [0.4, 0.5, 0.7])
@pytest.mark.parametrize("ranking", ["global", "layer", "scope"])
@pytest.mark.parametrize("align, tolerance", [(1, 0.01), (4, 0.02), (8, 0.02)])
def test_the_networks_get_what_was_asked(network, fraction, ranking, align, tolerance):
    made = plan(network, budget=Budget(macs=fraction), ranking=ranking, align=align)
    reached = cost(network, made).macs / cost(network).macs
    assert fraction - tolerance <= reached <= fraction
    assert [name for name, kept in made.keep.items() if len(kept) % align] == []


def group_widths(model):
    return [
        width
        for layer in model.layers
        if isinstance(layer, layers.Conv2D) and layer.groups > 1
        for width in (layer.kernel.shape[2], layer.filters // layer.groups)
    ]


@pytest.mark.parametrize("align, narrow", [(4, 4), (8, 1)])
def test_groups_are_aligned_each_for_itself_where_they_can(align, narrow):
    """Of 8 channels per group 4 are a multiple of 4; of 8 there is none, but for all 8."""
    i = image(size=16)
    wide = conv(conv(i, 64, 1), 64, 1, groups=4)
    x = layers.Concatenate()([wide, conv(conv(i, 64, 1), 64, 1, groups=8)])
    model = keras.Model(i, layers.Conv2D(4, 1)(conv(x, 32)))
    small = shrink(model, plan(model, budget=Budget(macs=0.5), align=align))
    widths = group_widths(small)
    assert min(widths) < 16 and {width % align for width in widths[:2]} == {0}
    assert {width % narrow for width in widths} == {0} and min(widths[2:]) < 8


@pytest.mark.slow
def test_aligned_grouped_networks_need_no_other_form():
    model = models.erfnet(11, (32, 32, 3), block="DG8", placement="selective")
    small = shrink(model, plan(model, budget=Budget(macs=0.6), align=4))
    lowered, log = lower(small)
    assert lowered is small and len(log) == 12
    assert all(line.endswith("one grouped convolution") for line in log)
    assert {width % 4 for width in group_widths(small)} == {0} and min(group_widths(small)) < 8


def test_an_absolute_budget_and_both_at_once(model):
    full = cost(model)
    made = plan(model, budget=Budget(macs=int(full.macs * 0.6), params=0.4))
    reached = cost(model, made)
    assert reached.macs <= 0.6 * full.macs and reached.params <= 0.4 * full.params
    assert reached.macs > 0.58 * full.macs or reached.params > 0.39 * full.params


def test_a_budget_in_padded_macs_fills_the_slices_that_gpus_compute(model):
    full = cost(model)
    made = plan(model, budget=Budget(padded_macs=0.5))
    reached = cost(model, made)
    assert 0.48 * full.padded_macs < reached.padded_macs <= 0.5 * full.padded_macs
    aligned = plan(model, budget=Budget(padded_macs=0.5), align=4)
    assert cost(model, aligned).padded_macs <= 0.5 * full.padded_macs
    # No width ends inside a slice, but for what the groups of a convolution must share equally.
    odd = [name for name, kept in made.keep.items() if len(kept) % 4]
    assert len(odd) <= 1, odd
    assert reached.macs > 0.95 * reached.padded_macs * full.macs / full.padded_macs


def test_a_budget_of_everything_drops_nothing(model):
    assert plan(model, budget=Budget(macs=1.0)).keep == {}


def test_only_the_worst_go_within_a_layer(model):
    graph = ChannelGraph(model)
    scores = np.random.default_rng(0).random(graph.num_units)
    keep = meet_budget(graph, scores, Budget(macs=0.5))
    for group in graph.groups:
        stays = keep[group.members]
        grouped = any(np.isin(rows, group.members).any() for rows in graph.balanced)
        if stays.all() or grouped:
            continue
        assert scores[group.members[stays]].min() > scores[group.members[~stays]].max()


def test_the_floor_holds(model):
    made = plan(model, budget=Budget(macs=0.3), floor=0.25, criterion="random")
    assert min(len(kept) / made.widths[name] for name, kept in made.keep.items()) >= 0.25


def test_uniform_means_the_same_fraction_everywhere(model):
    made = plan(model, budget=Budget(macs=0.5), ranking="layer", criterion="random")
    fractions = [len(kept) / made.widths[name] for name, kept in made.keep.items()]
    assert max(fractions) - min(fractions) < 0.1


def test_scopes_have_thresholds_of_their_own():
    """Scores that would empty the decoder globally leave both scopes equally pruned."""
    i = image(size=16)
    x = layers.Conv2D(40, 3, name="backbone_a")(i)
    x = layers.Conv2D(40, 3, name="backbone_b")(x)
    x = layers.Conv2D(40, 3, name="decoder_a")(x)
    model = keras.Model(i, layers.Conv2D(4, 1, name="decoder_logits")(x))
    graph = ChannelGraph(model)
    scores = np.random.default_rng(0).random(graph.num_units)
    scores[graph.producers["decoder_a"]] -= 10
    costs = {}
    for ranking in ("global", "scope"):
        keep = meet_budget(graph, scores, Budget(macs=0.6), ranking=ranking)
        costs[ranking] = keep[graph.producers["decoder_a"]].mean()
    assert costs["global"] < 0.2 and costs["scope"] > 0.6


def test_out_of_reach_says_what_is_reachable(model):
    with pytest.raises(BudgetError, match="least reachable") as error:
        plan(model, budget=Budget(macs=0.02), floor=0.5)
    reachable = float(str(error.value).rsplit("(", 1)[1].split(")")[0])
    made = plan(model, budget=Budget(macs=reachable + 0.001), floor=0.5)
    assert cost(model, made).macs / cost(model).macs == pytest.approx(reachable, abs=0.002)


@pytest.mark.parametrize(
    "value", [0, 0.0, -0.1, 1.5, float("nan"), float("inf"), -3, "0.5", True, [0.5]]
)
@pytest.mark.parametrize("what", ["macs", "params"])
def test_senseless_budgets_are_one_clear_error(what, value):
    with pytest.raises(BudgetError, match=f"(?s){what}.*Expected.*Received"):
        Budget(**{what: value})


def test_an_empty_budget_is_an_error():
    with pytest.raises(BudgetError, match="Expected"):
        Budget()


@pytest.mark.parametrize(
    "option, message",
    [
        ({"ranking": "best"}, "ranking"),
        ({"align": 0}, "align"),
        ({"align": 2.0}, "align"),
        ({"floor": 1.1}, "floor"),
        ({"criterion": "bn_gama"}, "Did you mean"),
        ({"combine_by": "median"}, "how"),
        ({"normalize": "z"}, "normalize"),
        ({"exclude": ["^nothing_of_the_kind"]}, "matches no layer"),
        ({"exclude": ["("]}, "regular expression"),
        ({"scopes": {"x": "("}}, "regular expression"),
        ({"budget": 0.5}, "tsp.Budget"),
    ],
)
def test_senseless_options_are_one_clear_error(model, option, message):
    with pytest.raises(ValueError, match=message):
        plan(model, **{"budget": Budget(macs=0.5), **option})


def test_shared_channels_of_two_grouped_convolutions_stay_balanced():
    i = image(size=16)
    x = conv(i, 24)
    y = layers.Concatenate()([conv(x, 12, groups=2), conv(x, 12, groups=3), conv(x, 8)])
    model = keras.Model(i, layers.Conv2D(4, 1)(conv(y, 16, groups=4)))
    graph = ChannelGraph(model)
    for seed in range(5):
        scores = np.random.default_rng(seed).random(graph.num_units)
        keep = meet_budget(graph, scores, Budget(macs=0.9), floor=0.01)
        graph.check(keep)
        assert CostModel(graph).macs(keep.astype(float)) <= 0.9 * CostModel(graph).macs()


def test_every_net_can_be_budgeted():
    for name, build in NETS.items():
        if name == "one_input_many_sizes":
            continue
        model = build()
        made = plan(model, budget=Budget(macs=0.85), floor=0.01, criterion="random")
        assert cost(model, made).macs <= 0.85 * cost(model).macs, name


def test_a_slice_with_a_reader_of_its_own_is_never_emptied():
    i = image(size=16)
    x = layers.Conv2D(8, 3, padding="same", name="a")(i)
    weak, strong = keras.ops.split(x, 2, axis=-1)
    y = layers.Conv2D(6, 3, name="reads_weak")(weak) + layers.Conv2D(6, 3)(strong)
    model = keras.Model(i, layers.Conv2D(4, 1)(y))
    kernel = np.array(model.get_layer("a").kernel)
    kernel[..., :4] *= 1e-3
    model.get_layer("a").kernel.assign(kernel)
    made = plan(model, budget=Budget(macs=0.35), floor=0.01)
    assert min(made.keep["a"]) < 4
    shrink(model, made)
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    keep[graph.producers["a"][:4]] = False
    with pytest.raises(ValueError, match="'reads_weak' would read no channel"):
        graph.check(keep)


def test_a_budget_above_the_model_is_an_error(model):
    with pytest.raises(BudgetError, match="no limit.*Received: macs=1,000,000,000,000"):
        plan(model, budget=Budget(macs=10**12))


def test_numpy_numbers_are_numbers(model):
    made = plan(model, budget=Budget(macs=np.float32(0.5)), align=np.int64(4))
    assert made.to_json() and Budget(macs=np.int64(7)) == Budget(macs=7)


def test_weights_that_are_not_finite_are_an_error():
    model = wide_net()
    for variable in model.trainable_variables:
        variable.assign(np.full(variable.shape, np.nan))
    with pytest.raises(ValueError, match="can't rank any channel"):
        plan(model, budget=Budget(macs=0.5))
