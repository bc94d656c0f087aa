import keras
import pytest

import tfseg_prune as tsp
from tfseg_prune import models

SIRFP = {"output_stride": 8, "stem": "deep", "multi_grid": (1, 2, 4), "dilate_first": True}


@pytest.fixture(scope="module")
def resnet101():
    return models.deeplab_v3(21, (513, 513, 3), backbone="resnet101")


def _atrous_rates(model):
    convs = [x for x in model.layers if x.name.startswith("decoder_aspp_")]
    return [x.dilation_rate[0] for x in convs if getattr(x, "kernel_size", None) == (3, 3)]


def _costs(checks, model, params, macs):
    cost = tsp.cost(model)
    assert cost.params == checks.params(model) == params
    assert cost.macs == checks.macs(model) == macs
    assert model.output_shape[:3] == model.input_shape[:3]
    checks.plain_and_named(model)


def test_cost_on_resnet101_is_that_of_the_definition(checks, resnet101):
    _costs(checks, resnet101, 58_040_661, 71_061_387_712)
    assert _atrous_rates(resnet101) == [6, 12, 18]
    backbone = keras.Model(resnet101.input, resnet101.get_layer("backbone_conv5_block3_out").output)
    assert checks.params(backbone) == 42_500_160
    assert checks.params(resnet101) - checks.params(backbone) == 15_540_501


@pytest.mark.parametrize(
    "num_classes, size, params, macs",
    [
        (21, (720, 1080), 58_040_661, 200_575_290_368),
        (19, (1024, 2048), 58_040_147, 537_548_816_384),
        (11, (360, 480), 58_038_091, 45_129_348_608),
    ],
)
def test_cost_holds_at_every_size(checks, num_classes, size, params, macs):
    model = models.deeplab_v3(num_classes, (*size, 3), backbone="resnet101")
    _costs(checks, model, params, macs)


@pytest.mark.parametrize(
    "head, params, macs",
    [("refined", 41_270_483, 176_831_332_352), ("plus", 41_393_459, 200_647_639_040)],
)
def test_cost_of_the_sirfp_variants_is_that_of_the_definition(checks, head, params, macs):
    model = models.deeplab_v3(19, (512, 512, 3), head=head, **SIRFP)
    _costs(checks, model, params, macs)
    assert _atrous_rates(model) == [12, 24, 36]


def test_uniform_three_quarters_have_the_papers_parameters(resnet101):
    """Multi-task pruning, table of DeepLabV3: 0.75 of the inner, pyramid and projection widths."""
    plan = tsp.plan(
        resnet101,
        criterion="random",
        ranking="layer",
        budget=tsp.Budget(params=40_180_000),
        exclude=["^backbone_conv1_conv$", "^backbone_.*_[03]_conv$"],
    )
    assert {len(kept) / plan.widths[name] for name, kept in plan.keep.items()} == {0.75}
    assert len(plan.keep) == 2 * 33 + 5 + 1
    cost = tsp.cost(resnet101, plan)
    assert (cost.params, cost.macs) == (40_179_797, 49_277_240_192)


@pytest.mark.slow
def test_trains_at_odd_size(checks):
    model = models.deeplab_v3(3, (33, 47, 3), head="plus", output_stride=32)
    assert _atrous_rates(model) == [3, 6, 9]
    checks.trains(model, batch_size=2, learning_rate=1e-4, steps=3, whole_images=True)


def test_half_of_the_macs_shrinks_exactly(checks):
    model = models.deeplab_v3(3, (33, 48, 3), head="plus", atrous_rates=(1, 2))
    assert _atrous_rates(model) == [1, 2]
    checks.survives_rebuilding(model)
    plan = tsp.plan(model, budget=tsp.Budget(macs=0.5), ranking="scope", align=8)
    small = tsp.shrink(model, plan)  # raises unless it equals the masked twin
    assert tsp.check_equal(tsp.masked_twin(model, plan), small) < 1e-4
    assert tsp.cost(small) == tsp.cost(model, plan)
    assert 0.48 < tsp.cost(small).macs / tsp.cost(model).macs <= 0.5
    assert small.output_shape == model.output_shape


def test_momentum_and_epsilon_hold_throughout():
    model = models.deeplab_v3(2, (32, 32, 3), bn_momentum=0.8)
    norms = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert len(norms) == 53 + 6
    assert {norm.momentum for norm in norms} == {0.8}
    assert {norm.epsilon for norm in norms} == {1e-5}


@pytest.mark.parametrize(
    "arguments, options, message",
    [
        ((0, (32, 32, 3)), {}, "num_classes"),
        ((2, (32, 32)), {}, "input_shape"),
        ((2, (None, 32, 3)), {}, "input_shape"),
        ((2, (32, 32, 3)), {"backbone": "resnet18"}, "backbone"),
        ((2, (32, 32, 3)), {"output_stride": 4}, "output_stride"),
        ((2, (32, 32, 3)), {"stem": "wide"}, "stem"),
        ((2, (32, 32, 3)), {"head": None}, "head"),
        ((2, (32, 32, 3)), {"multi_grid": (1, 2)}, "multi_grid"),
        ((2, (32, 32, 3)), {"multi_grid": 1}, "multi_grid"),
        ((2, (32, 32, 3)), {"atrous_rates": ()}, "atrous_rates"),
        ((2, (32, 32, 3)), {"atrous_rates": (6, 0)}, "atrous_rates"),
        ((2, (32, 32, 3)), {"stride_on": "5x5"}, "stride_on"),
        ((2, (32, 32, 3)), {"dilate_first": 1}, "dilate_first"),
        ((2, (32, 32, 3)), {"bn_momentum": 1}, "bn_momentum"),
        ((2, (32, 32, 3)), {"dropout": -0.1}, "dropout"),
    ],
)
def test_wrong_argument_is_one_clear_error(arguments, options, message):
    with pytest.raises(ValueError, match=f"`{message}`. Expected: .* Received: "):
        models.deeplab_v3(*arguments, **options)
