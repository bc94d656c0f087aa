"""The segmentation networks of keras-hub, small, where it is installed."""

import keras
import pytest
from keras import layers

from tests.graph.nets import scramble
from tests.graph.shrink_test import random_plan
from tfseg_prune.graph import ChannelGraph, check_equal, masked_twin, shrink, to_functional

keras_hub = pytest.importorskip("keras_hub")
models = keras_hub.models
SHAPE = (64, 64, 3)


def deeplab():
    encoder = models.ResNetBackbone(
        input_conv_filters=[64],
        input_conv_kernel_sizes=[3],
        stackwise_num_filters=[64, 64],
        stackwise_num_blocks=[1, 2],
        stackwise_num_strides=[1, 2],
        block_type="basic_block",
        image_shape=SHAPE,
    )
    backbone = models.DeepLabV3Backbone(
        image_encoder=encoder,
        low_level_feature_key="P2",
        spatial_pyramid_pooling_key="P3",
        upsampling_size=2,
        dilation_rates=[2, 3],
        image_shape=SHAPE,
    )
    return models.DeepLabV3ImageSegmenter(backbone=backbone, num_classes=3)


def segformer():
    encoder = models.MiTBackbone(
        num_layers=2,
        layerwise_depths=[1, 2],
        hidden_dims=[8, 16],
        layerwise_num_heads=[1, 2],
        layerwise_sr_ratios=[4, 1],
        layerwise_patch_sizes=[7, 3],
        layerwise_strides=[4, 2],
        max_drop_path_rate=0.1,
        image_shape=SHAPE,
    )
    backbone = models.SegFormerBackbone(image_encoder=encoder, projection_filters=12)
    return models.SegFormerImageSegmenter(backbone=backbone, num_classes=3)


@pytest.mark.parametrize("build, reasons", [(deeplab, 1), (segformer, 2)])
def test_opened_it_is_pruned_like_its_twin(build, reasons, recwarn):
    closed = scramble(build())
    model = to_functional(closed)
    assert check_equal(closed, model) < 1e-6
    graph = ChannelGraph(model)
    assert not [w for w in recwarn if "No rule" in str(w.message)]
    kept = {reason.split("'")[0] for reason in graph.frozen.values()} - {"a model input"}
    assert len(kept) == reasons, kept  # the classes, and layer normalisation
    plan = random_plan(model)
    assert check_equal(masked_twin(model, plan), shrink(model, plan)) < 1e-5


def test_closed_it_keeps_what_the_hidden_layers_touch():
    model = deeplab()
    with pytest.warns(UserWarning, match=r"SpatialPyramidPooling.*to_functional"):
        graph = ChannelGraph(model)
    assert graph.prunable.any()
    with pytest.warns(UserWarning):
        plan = random_plan(model)
        assert check_equal(masked_twin(model, plan), shrink(model, plan)) < 1e-5


def test_learned_positions_follow_what_they_are_added_to():
    i = keras.Input((9, 6))
    x = layers.Dense(8)(i)
    x = layers.Dense(5)(x + keras_hub.layers.PositionEmbedding(12)(x))
    model = scramble(keras.Model(i, layers.Dense(3)(x)))
    plan = random_plan(model)
    assert ChannelGraph(model).prunable[1:].any() and len(plan.keep) == 2
    assert check_equal(masked_twin(model, plan), shrink(model, plan)) < 1e-5
