"""Folded constants: the smaller network answers what the whole one did, borders aside."""

import dataclasses
import random

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.nets import NETS, image, scramble
from tests.graph.properties import random_units
from tests.graph.random_models import draw
from tfseg_prune.graph import (
    ChannelGraph,
    PruningPlan,
    check_equal,
    cost,
    proof,
    shrink,
)
from tfseg_prune.graph.constants import Constancy
from tfseg_prune.graph.nodes import walk
from tfseg_prune.layers.gradual_conv import GradualConv2D


def block(x, filters, size=1, activation="relu", **options):
    x = layers.Conv2D(filters, size, padding="same", **options)(x)
    return layers.Activation(activation)(layers.BatchNormalization()(x))


def silent(model):
    """(model, plan): random weights, and gamma 0 for every channel that the plan drops.

    Only what a batch normalisation writes is dropped, about half of it.
    """
    graph = ChannelGraph(scramble(model))
    normalized = {
        record.operation: graph.unit_of[record.outputs[0].ids.reshape(-1)]
        for record in graph.records.values()
        if isinstance(record.operation, layers.BatchNormalization)
    }
    written = graph.prunable & np.isin(
        np.arange(graph.num_units), np.concatenate([*normalized.values()])
    )
    for seed in range(100):
        keep = random_units(graph, np.random.default_rng(seed)) | ~written
        if 0.4 < keep[written].mean() < 0.6:
            break
    for layer, units in normalized.items():
        layer.gamma.assign(layer.gamma * keep[units])
    return model, PruningPlan.from_units(graph, keep)


def difference(model, small, crop=0):
    """Largest difference, relative to the largest answer, without `crop` pixels of each border."""
    batch = np.random.default_rng(1).normal(size=(2, *model.inputs[0].shape[1:])).astype("float32")
    answers = proof.answers_of(model, batch), proof.answers_of(small, batch)
    worst = 0.0
    for first, second in zip(*answers):
        if crop and first.ndim == 4:
            first, second = (x[:, crop:-crop, crop:-crop] for x in (first, second))
        worst = max(worst, np.abs(first - second).max() / np.abs(first).max())
    return worst


BUILDERS = {}


def builder(build):
    BUILDERS[build.__name__] = build
    return build


@builder
def chain(i, size):
    return block(block(i, 12, size), 16, size)


@builder
def chain_without_biases(i, size):
    return block(block(i, 12, size, use_bias=False), 16, size, use_bias=False)


@builder
def residual(i, size):
    stem = block(i, 10, size)
    branch = block(stem, 10, size, activation="linear")
    return block(layers.ReLU()(layers.Add()([stem, branch])), 8, size)


@builder
def batch_normalization_after_a_concatenation(i, size):
    a, b = block(i, 6, size), block(i, 8, size)
    x = layers.BatchNormalization()(layers.Concatenate()([a, b, block(b, 4, size)]))
    return block(layers.ReLU()(x), 8, size)


@builder
def inverted_residual(i, size):
    stem = block(i, 8, size)
    x = layers.DepthwiseConv2D(size, padding="same")(block(stem, 20, activation="relu6"))
    x = layers.Activation("hard_silu")(layers.BatchNormalization()(x))
    x = layers.BatchNormalization()(layers.Conv2D(8, 1, use_bias=False)(x))
    return block(layers.Add()([stem, x]), 6)


@builder
def depthwise_without_batch_normalization(i, size):
    x = layers.DepthwiseConv2D(size, padding="same", depth_multiplier=2)(block(i, 9, size))
    return layers.SeparableConv2D(7, size, padding="same", depth_multiplier=2)(x)


@builder
def grouped(i, size):
    x = block(block(i, 16, size), 24, size, groups=4)
    return block(layers.Conv2D(24, size, groups=24, padding="same")(x), 8, size, groups=2)


@builder
def nested_model_called_twice(i, size):
    inside = image(8, 20)
    inner = keras.Model(inside, block(layers.ReLU()(block(inside, 6, size)), 8, size))
    outer = keras.Sequential([image(3, 20), layers.Conv2D(8, 1), layers.BatchNormalization()])
    x = layers.Add()([inner(outer(i)), inner(outer(-i))])
    return keras.Sequential([image(8, 20), layers.Conv2D(5, size, padding="same")])(x)


@builder
def shared_block(i, size):
    convolution, normalization = layers.Conv2D(10, 1, use_bias=False), layers.BatchNormalization()
    reader = layers.Conv2D(7, size, padding="same", use_bias=False)
    a, b = (layers.ReLU()(normalization(convolution(x))) for x in (i, -i))
    return layers.Concatenate()([reader(a), reader(b)])


@builder
def operations_and_slices(i, size):
    x = block(i, 12, size) * np.linspace(0.5, 1.5, 12).astype("float32") + 0.25
    a, b = ops.split(x, 2, axis=-1)
    x = ops.concatenate([ops.maximum(a, b), b[..., ::2], ops.take(-a, [4, 0, 3], -1)], axis=-1)
    return block(x, 6, size)


@builder
def channel_shuffle(i, size):
    x = ops.transpose(ops.reshape(block(i, 12, size), (-1, 20, 20, 3, 4)), (0, 1, 2, 4, 3))
    return block(layers.Reshape((20, 20, 12))(x), 6, size)


@builder
def pooling_and_resizing(i, size):
    x = layers.AveragePooling2D(3, strides=1, padding="same")(block(i, 8, size))
    low = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    high = layers.UpSampling2D(2, interpolation="bilinear")(block(low, 8, size))
    pooled = layers.UpSampling2D(20)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    return block(layers.PReLU(shared_axes=[1, 2])(layers.Concatenate()([x, high, pooled])), 6, size)


@builder
def resized_to_a_given_size(i, size):
    """Keras notes `training=True` down wherever it calls a `Resizing`."""
    return block(layers.Resizing(20, 20)(block(i, 8, size, strides=2)), 6, size)


@builder
def padded_dilated_and_transposed(i, size):
    x = layers.ZeroPadding2D(size - 1)(block(i, 8, size))
    x = block(layers.Conv2D(9, size, dilation_rate=2)(x), 6, size)
    return layers.Conv2DTranspose(5, size, padding="same", use_bias=False)(x)


@pytest.mark.filterwarnings("error:Constants of dropped channels")
@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", BUILDERS)
def test_nothing_is_lost_with_constant_channels(name, size):
    """1x1 convolutions see no border, so there it is exact for every pixel."""
    i = image(size=20)
    model, plan = silent(keras.Model(i, layers.Conv2D(4, 1)(BUILDERS[name](i, size))))
    crop = 0 if size == 1 else 8
    assert difference(model, shrink(model, plan, check=False), crop) > 1e-3, "it drops nothing"
    small = shrink(model, plan, fold_constants=True)  # proves the surgery itself
    assert difference(model, small, crop) < 1e-5


@pytest.mark.parametrize("global_pooling", [False, True])
def test_dense_layers_behind_all_pixels(global_pooling):
    i = image()
    x = layers.MaxPooling2D(2)(block(i, 10, 3))
    x = layers.GlobalAveragePooling2D()(x) if global_pooling else layers.Flatten()(x)
    model, plan = silent(keras.Model(i, layers.Dense(3)(layers.Dense(7, activation="relu")(x))))
    assert difference(model, shrink(model, plan, fold_constants=True)) < 1e-5


def test_squeeze_and_excite_reads_constants_and_scales_them_by_what_is_not():
    i = image()
    x = block(i, 12, 3)
    squeezed = layers.Conv2D(5, 1)(layers.GlobalAveragePooling2D(keepdims=True)(x))
    gate = layers.Conv2D(12, 1, activation="sigmoid")(layers.ReLU()(squeezed))
    scaled = layers.Conv2D(4, 1, name="reads_scaled")(layers.Multiply()([x, gate]))
    model, plan = silent(keras.Model(i, [squeezed, scaled]))
    small = shrink(model, plan, fold_constants=True)
    first, second = (keras.Model(m.input, m.outputs[0]) for m in (model, small))
    assert difference(first, second) < 1e-5
    bias = small.get_layer("reads_scaled").bias
    np.testing.assert_array_equal(bias, model.get_layer("reads_scaled").bias)


QUICK = (
    "depth_multiplier_and_separable nested_model_called_twice shared_reader split_and_slices"
    " pixel_shuffle attention_from_operations zero_padded_channels one_input_many_sizes"
    " channels_first batch_normalization_of_constants"
).split()


def check_claims(model):
    """Compares what is said to be constant with what the network answers, random gammas being 0.

    Returns:
        The number of constants.
    """
    rng = np.random.default_rng(0)
    for layer in model._flatten_layers():
        if isinstance(layer, layers.BatchNormalization) and layer.gamma is not None:
            layer.gamma.assign(layer.gamma * (rng.random(layer.gamma.shape) < 0.5))
    records = {id(record.operation): record for record in ChannelGraph(model).records.values()}
    known = Constancy(records).run(model)
    told = [t for node in walk(model) for t in node.outputs if known[id(t)].any_known]
    if not told:
        return 0
    seen = proof.answers_of(keras.Model(model.input, told), proof.random_batch(model, seed=1))
    for tensor, values in zip(told, seen):
        constants = known[id(tensor)]
        claimed = np.broadcast_to(constants.values, values.shape)
        everywhere = np.broadcast_to(~np.isnan(constants.values) & ~constants.inner, values.shape)
        # A float32 average over 64x64 equal pixels is off by up to 4e-5 of their value.
        np.testing.assert_allclose(
            values[everywhere], claimed[everywhere], rtol=1e-4, atol=1e-5, err_msg=tensor.name
        )
    return sum((~np.isnan(known[id(tensor)].values)).sum() for tensor in told)


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=() if x in QUICK else pytest.mark.slow) for x in NETS]
)
def test_what_is_called_constant_is_constant(name):
    count = check_claims(scramble(NETS[name]()))
    assert count > 0 or name not in QUICK


@pytest.mark.parametrize("first", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_called_constant_is_constant_in_random_networks(first):
    last = 3 if first == 0 else 200
    assert sum(check_claims(draw(random.Random(seed)).model) for seed in range(first, last)) > 0


@pytest.mark.filterwarnings("error:Constants of dropped channels")
@pytest.mark.parametrize("alpha", [0.0, 0.4])
def test_gradual_convolutions_take_up_what_they_read(alpha):
    """By the kernel that they convolve with, also those that the same plan makes grouped."""
    i = image()
    x = GradualConv2D(12, 1, 2, use_bias=False, name="without_bias")(block(i, 16))
    x = GradualConv2D(8, 3, 2, name="with_bias")(block(x, 16))
    x = GradualConv2D(8, 1, 4, use_bias=False, name="normalized")(block(x, 16))
    x = layers.ReLU()(layers.BatchNormalization()(x))
    model, plan = silent(keras.Model(i, layers.Conv2D(4, 1)(x)))
    gradual = [layer for layer in model.layers if isinstance(layer, GradualConv2D)]
    for layer in gradual:
        layer.alpha.assign(alpha)
    if alpha == 0:
        groups = {layer.name: layer.target_groups for layer in gradual}
        plan = dataclasses.replace(plan, groups=groups)
    assert difference(model, shrink(model, plan, check=False)) > 1e-3, "it drops nothing"
    small = shrink(model, plan, fold_constants="exact")
    assert difference(model, small) < 1e-5
    assert small.get_layer("without_bias").use_bias
    assert all((type(small.get_layer(x.name)) is layers.Conv2D) == (alpha == 0) for x in gradual)


class TestWhereTheConstantGoes:
    def build(self, *, use_bias, normalized):
        i = image()
        x = block(i, 8)
        x = layers.Conv2D(6, 1, use_bias=use_bias, name="reader")(x)
        if normalized:
            x = layers.BatchNormalization(name="after")(x)
        return silent(keras.Model(i, layers.Conv2D(2, 1)(layers.ReLU()(x))))

    def test_a_bias_or_a_mean_costs_nothing(self):
        for use_bias, normalized in [(True, False), (True, True), (False, True)]:
            model, plan = self.build(use_bias=use_bias, normalized=normalized)
            small = shrink(model, plan, fold_constants=True)
            assert cost(small) == cost(model, plan)
            plain = shrink(model, plan)
            where = "after" if not use_bias else "reader"
            changed = {
                layer.name
                for layer, other in zip(small.layers, plain.layers)
                for a, b in zip(layer.weights, other.weights)
                if not np.array_equal(a, b)
            }
            assert where in changed and {"reader", "after"} - changed

    def test_a_layer_with_neither_gets_a_bias(self, tmp_path):
        model, plan = self.build(use_bias=False, normalized=False)
        small = shrink(model, plan, fold_constants=True)
        reader = small.get_layer("reader")
        assert reader.use_bias and not model.get_layer("reader").use_bias
        assert cost(small).params == cost(model, plan).params + reader.filters
        assert cost(small).macs == cost(model, plan).macs
        small.save(tmp_path / "small.keras")
        assert check_equal(small, keras.saving.load_model(tmp_path / "small.keras")) == 0.0

    def test_a_mean_that_others_need_is_left_alone(self):
        i = image()
        x = block(i, 8)
        read = layers.Conv2D(6, 1, use_bias=False, name="reader")(x)
        x = layers.Conv2D(2, 1)(layers.BatchNormalization()(read))
        model, plan = silent(keras.Model(i, [x, read]))
        small = shrink(model, plan, fold_constants=True)
        assert small.get_layer("reader").use_bias
        assert difference(model, small) < 1e-5


class OwnConvolution(layers.Conv2D):
    """May do anything."""


class TestWhatIsLostIsNamed:
    READERS = {
        "einsum": lambda: layers.EinsumDense("bhwc,cd->bhwd", (8, 8, 5), name="lossy"),
        "norm": lambda: layers.RMSNormalization(name="lossy"),
        "strided": lambda: layers.Conv2DTranspose(5, 2, strides=2, name="lossy"),
        "subclass": lambda: OwnConvolution(5, 1, name="lossy"),
        "wrapper": lambda: layers.TimeDistributed(layers.Dense(5), name="lossy"),
    }

    def pruned(self, *lossy):
        i = image()
        x = block(i, 8)
        answers = [
            layers.Conv2D(2, 1, name="reader")(x),
            *(layers.Conv2D(2, 1)(r(x)) for r in lossy),
        ]
        return silent(keras.Model(i, answers))

    @pytest.mark.parametrize("reader", READERS)
    def test_layers_that_constants_cannot_be_put_into(self, reader):
        model, plan = self.pruned(self.READERS[reader]())
        with pytest.warns(UserWarning, match="Constants of dropped.*lost in 'lossy'"):
            shrink(model, plan, fold_constants=True, check=False)

    def test_sums_over_channels_too_and_many_in_short(self):
        def total(x):
            return ops.sum(x, axis=-1, keepdims=True)

        model, plan = self.pruned(*[total] * 20)
        with pytest.warns(UserWarning, match="'sum.* and 1[0-9] more") as caught:
            shrink(model, plan, fold_constants=True, check=False)
        (told,) = (str(x.message) for x in caught if x.category is UserWarning)
        assert "'reader'" not in told

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_a_dense_layer_along_another_axis_than_the_dropped_channels(self):
        i = image()
        x = layers.Permute((1, 3, 2))(block(i, 6))
        x = layers.Permute((1, 3, 2))(layers.Dense(8)(x))
        model, plan = silent(keras.Model(i, layers.Conv2D(2, 1)(x)))
        shrink(model, plan, fold_constants=True, check=False)

    @pytest.mark.filterwarnings("error::UserWarning")
    def test_nothing_is_lost_that_is_zero_or_that_nobody_asked_for(self):
        model, plan = self.pruned(self.READERS["einsum"]())
        shrink(model, plan, check=False)
        (normalization,) = (x for x in model.layers if isinstance(x, layers.BatchNormalization))
        normalization.beta.assign(ops.zeros_like(normalization.beta))
        shrink(model, plan, fold_constants=True, check=False)


class TestNothingIsGuessed:
    def unchanged(self, i, x, **options):
        """Asserts that folding changes no weight of the layer that reads `x`."""
        reader = options.pop("reader", None) or layers.Conv2D(5, 1)
        model = keras.Model(i, layers.Conv2D(2, 1)(reader(x)))
        model, plan = silent(model)
        for before, after in self.weights(model, plan):
            np.testing.assert_array_equal(before, after)

    def weights(self, model, plan):
        small, plain = shrink(model, plan, fold_constants=True), shrink(model, plan)
        assert len(small.weights) == len(plain.weights)
        return list(zip(plain.get_weights(), small.get_weights()))

    def test_gamma_of_one_branch_only(self):
        i = image()
        known = layers.BatchNormalization()(layers.Conv2D(8, 1)(i))
        self.unchanged(i, known + layers.Conv2D(8, 1)(i))

    def test_a_shared_reader_that_meets_two_constants(self):
        i = image()
        reader = layers.Conv2D(5, 1)
        both = [reader(layers.BatchNormalization()(layers.Conv2D(8, 1)(i))) for _ in range(2)]
        self.unchanged(i, layers.Concatenate()(both), reader=layers.Identity())

    def test_a_transposed_convolution_whose_outputs_see_parts_of_the_kernel(self):
        i = image()
        x = layers.BatchNormalization()(layers.Conv2D(8, 1)(i))
        self.unchanged(i, x, reader=layers.Conv2DTranspose(5, 2, strides=2))

    def test_a_window_that_never_lies_in_the_image(self):
        i = image()
        x = layers.BatchNormalization()(layers.Conv2D(8, 1)(i))
        self.unchanged(i, x, reader=layers.Conv2D(5, 3, padding="same", dilation_rate=4))

    def test_what_the_border_changes_is_no_average_over_all_pixels(self):
        i = image()
        x = layers.BatchNormalization()(layers.Conv2D(8, 1)(i))
        x = layers.GlobalAveragePooling2D(keepdims=True)(
            layers.DepthwiseConv2D(3, padding="same")(x)
        )
        self.unchanged(i, x)

    def test_a_subclass_may_do_anything(self):
        class Own(layers.Activation):
            def call(self, x):
                return x + ops.mean(x, axis=(1, 2), keepdims=True)

        i = image()
        self.unchanged(i, Own("relu")(layers.BatchNormalization()(layers.Conv2D(8, 1)(i))))

    def test_gammas_that_are_small_but_not_zero(self):
        i = image()
        normalization = layers.BatchNormalization()
        x = layers.ReLU()(normalization(layers.Conv2D(8, 1)(i)))
        model, plan = silent(keras.Model(i, layers.Conv2D(2, 1)(x)))
        normalization.gamma.assign(np.maximum(np.abs(normalization.gamma), 1e-6))
        for before, after in self.weights(model, plan):
            np.testing.assert_array_equal(before, after)


def test_beta_stands_for_every_dropped_channel():
    """SIRFP's formula: relu of the sum of the betas of a residual group, gammas as they are."""
    i = image()
    normalizations = [layers.BatchNormalization() for _ in range(2)]
    branches = [normalization(layers.Conv2D(8, 1)(i)) for normalization in normalizations]
    x = layers.ReLU()(layers.Add()(branches))
    model = scramble(keras.Model(i, layers.Conv2D(5, 3, padding="same", name="reader")(x)))
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    dropped = [1, 4, 6]
    keep[next(iter(graph.producers.values()))[dropped]] = False
    small = shrink(model, PruningPlan.from_units(graph, keep), fold_constants="beta")
    betas = sum(ops.convert_to_numpy(normalization.beta) for normalization in normalizations)
    kernel, bias = (ops.convert_to_numpy(w) for w in model.get_layer("reader").weights)
    offset = np.maximum(betas, 0)[dropped] @ kernel[:, :, dropped].sum(axis=(0, 1))
    np.testing.assert_allclose(small.get_layer("reader").bias, bias + offset, rtol=1e-5, atol=1e-6)


def test_the_model_is_untouched_and_folding_is_asked_for():
    i = image()
    model, plan = silent(keras.Model(i, layers.Conv2D(4, 1)(block(block(i, 8), 6))))
    before = model.get_weights()
    shrink(model, plan, fold_constants=True)
    for old, new in zip(before, model.get_weights()):
        np.testing.assert_array_equal(old, new)
    assert difference(shrink(model, plan), shrink(model, plan, fold_constants=False)) == 0
    with pytest.raises(ValueError, match="`fold_constants`.*Received: 'gamma'"):
        shrink(model, plan, fold_constants="gamma")
