"""What rules say: which operations have one, what it costs, and what nobody taught us."""

import importlib
import pkgutil

import keras
import numpy as np
import pytest
from keras import layers, ops

from tests.graph.nets import NETS, conv, head, image, scramble
from tests.graph.shrink_test import random_plan
from tfseg_prune.graph import (
    ChannelGraph,
    check_equal,
    cost,
    masked_twin,
    register_rule,
    rules,
    shrink,
)


def operations_of_keras():
    """{class name: class} of all raw operations, and {full name: class} of all layers."""
    for module in pkgutil.walk_packages(keras.src.ops.__path__, "keras.src.ops."):
        if not module.name.endswith("_test"):
            importlib.import_module(module.name)
    found, pending = {}, [keras.Operation]
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        layer = issubclass(cls, layers.Layer)
        found[f"{cls.__module__}.{cls.__qualname__}" if layer else cls.__name__] = cls
    return found


def test_every_name_with_a_rule_is_one_of_keras():
    """Keras may rename what it doesn't export; its channels would then be frozen."""
    known = operations_of_keras()
    named = {key for key in rules._RULES if isinstance(key, str)}
    assert not {key for key in named if key not in known and "keras_hub" not in key}


def test_most_operations_have_a_rule():
    known = {n for n, cls in operations_of_keras().items() if cls.__module__.startswith("keras.")}
    raw = {name for name in known if "." not in name}
    assert len(raw & set(rules._RULES)) > 200


def test_a_layer_is_taught_by_its_full_name():
    @keras.saving.register_keras_serializable("tests")
    class Halved(layers.Layer):
        def call(self, x):
            return x / 2

    name = f"{Halved.__module__}.{Halved.__qualname__}"
    register_rule(name)(lambda trace, layer, x: x)
    try:
        i = image()
        model = scramble(head(i, Halved()(conv(i, 8))))
        shrink(model, random_plan(model))
    finally:
        del rules._RULES[name]


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_a_quantized_layer_is_refused_with_the_remedy(mode):
    i = keras.Input((9, 6))
    attend = layers.MultiHeadAttention(2, 4)
    x = layers.TimeDistributed(layers.Dense(8))(attend(i, i))
    model = keras.Model(i, layers.Dense(3, name="last")(x))
    for layer in (model.layers[-1], model.layers[-2].layer, attend._query_dense):
        layer.quantize(mode)
        with pytest.raises(ValueError, match=f"quantized.*'{mode}'.*prune before quantizing"):
            ChannelGraph(model)


class Flip(keras.Operation):
    """Called like an operation of Keras, but it isn't one."""

    def call(self, x):
        return ops.cumsum(x, axis=-1)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


@pytest.mark.parametrize(
    "unknown",
    [
        Flip(),
        layers.Lambda(lambda x: x - ops.max(x, axis=-1, keepdims=True)),
        lambda x: ops.real(ops.fft((x, ops.zeros_like(x)))[0]),
        lambda x: ops.image.hsv_to_rgb(x[..., :3]),
        lambda x: ops.segment_sum(x, np.array([0, 1]), num_segments=2),
    ],
)
def test_what_is_unknown_keeps_its_channels_and_the_rest_is_pruned(unknown):
    i = image()
    x = unknown(layers.Conv2D(5, 1, name="read")(conv(i, 16)))
    model = scramble(head(i, conv(conv(x, 12), 9)))
    with pytest.warns(UserWarning, match="No rule says"):
        graph = ChannelGraph(model)
        plan = random_plan(model)
        small = shrink(model, plan)
        check_equal(masked_twin(model, plan), small)
    assert not graph.prunable[graph.producers["read"]][:3].any()
    assert len(plan.keep) >= 3


def macs(inputs, answers):
    return cost(keras.Model(inputs, answers)).macs


class TestCounts:
    """Multiply-accumulates of products, counted by hand."""

    def setup_method(self):
        self.x, self.y = keras.Input((9, 6)), keras.Input((5, 6))

    def test_attention_with_heads(self):
        attend = layers.MultiHeadAttention(2, 3, value_dim=4, output_shape=7)
        projections = 9 * 6 * 2 * 3 + 5 * 6 * 2 * 3 + 5 * 6 * 2 * 4 + 9 * 2 * 4 * 7
        scores = 2 * 9 * 5 * (3 + 4)
        assert macs([self.x, self.y], attend(self.x, self.y)) == projections + scores

    def test_grouped_queries(self):
        attend = layers.GroupQueryAttention(3, 4, 2)
        projections = 9 * 6 * 4 * 3 + 2 * 5 * 6 * 2 * 3 + 9 * 4 * 3 * 6
        assert macs([self.x, self.y], attend(self.x, self.y)) == projections + 2 * 4 * 9 * 5 * 3

    def test_windows_in_the_batch(self):
        """A reshape that moves windows into the batch makes no layer cheaper."""
        i = image()
        x = ops.transpose(ops.reshape(i, (-1, 2, 4, 2, 4, 3)), (0, 1, 3, 2, 4, 5))
        x = layers.Dense(5)(ops.reshape(x, (-1, 16, 3)))
        x = ops.matmul(ops.matmul(x, ops.transpose(x, (0, 2, 1))), x)
        x = layers.Dense(7)(ops.reshape(x, (-1, 64, 5)))
        assert macs(i, x) == 64 * 3 * 5 + 2 * 4 * 16 * 16 * 5 + 64 * 5 * 7

    def test_recurrent_layers(self):
        images = keras.Input((9, 8, 8, 3))
        assert macs(self.x, layers.LSTM(5)(self.x)) == 9 * 4 * 5 * (6 + 5)
        both = layers.Bidirectional(layers.SimpleRNN(4, return_sequences=True))(self.x)
        assert macs(self.x, both) == 2 * 9 * 4 * (6 + 4)
        answer = layers.ConvLSTM2D(5, 3, padding="same")(images)
        assert macs(images, answer) == 9 * 64 * 4 * 5 * 9 * (3 + 5)

    def test_bare_attention(self):
        both = [self.x, self.y]
        assert macs(both, layers.Attention()(both)) == 2 * 9 * 5 * 6
        assert macs(both, layers.AdditiveAttention()(both)) == 2 * 9 * 5 * 6
        q, k = (layers.Reshape((n, 2, 3))(t) for t, n in ((self.x, 9), (self.y, 5)))
        assert macs(both, ops.dot_product_attention(q, k, k)) == 2 * 9 * 5 * 6

    @pytest.mark.parametrize(
        "product, expected",
        [
            (lambda x, y: ops.einsum("bnc,bmc->bnm", x, y), 9 * 5 * 6),
            (lambda x, y: ops.einsum("bnc,bmc->bc", x, y), 9 * 5 * 6),
            (lambda x, y: ops.einsum("bnc,bmc->nmb", x, y), 9 * 5 * 6),
            (lambda x, y: ops.einsum("bnc,bmc->", x, y), 9 * 5 * 6),
            (lambda x, y: ops.einsum("nbc,bmc->bnm", ops.swapaxes(x, 0, 1), y), 9 * 5 * 6),
            (lambda x, y: ops.matmul(x, ops.transpose(y, (0, 2, 1))), 9 * 5 * 6),
            (lambda x, y: layers.Dot(2)([x, y]), 9 * 5 * 6),
            (lambda x, y: ops.matmul(x, np.ones((6, 4), "float32")), 9 * 6 * 4),
            (lambda x, y: ops.tensordot(x, np.ones((6, 3)), 1), 9 * 6 * 3),
            (lambda x, y: layers.EinsumDense("abc,cde->abde", (9, 2, 4))(x), 9 * 6 * 2 * 4),
            (lambda x, y: layers.EinsumDense("abc,cde->abde", (None, 2, 4))(x), 9 * 6 * 2 * 4),
            (lambda x, y: layers.EinsumDense("abc,cd->bda", (4, None))(x), 9 * 6 * 4),
            (lambda x, y: layers.EinsumDense("...x,xy->...y", 4)(x), 9 * 6 * 4),
        ],
    )
    def test_products(self, product, expected):
        assert macs([self.x, self.y], [product(self.x, self.y), self.y]) == expected


FAMILIES = (
    "ConvNeXtTiny DenseNet121 EfficientNetB0 EfficientNetV2B0 InceptionResNetV2 InceptionV3"
    " MobileNet MobileNetV2 MobileNetV3Small NASNetMobile ResNet50 ResNet50V2 VGG16 Xception"
).split()


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_keras_applications_hold_nothing_unknown(family, recwarn):
    model = getattr(keras.applications, family)(weights=None)
    graph = ChannelGraph(model)
    assert not [w for w in recwarn if "No rule" in str(w.message)]
    reasons = set(graph.frozen.values())
    allowed = "normalised over all channels" if family == "ConvNeXtTiny" else "a model"
    assert all(reason.startswith(("a model", allowed)) for reason in reasons)


def test_a_norm_of_the_mean_of_squares_is_exact_for_any_part_of_the_channels():
    """The smaller layer's epsilon and scale make up for the channels that are gone."""
    model = scramble(NETS["rms_normalization"]())
    small = shrink(model, random_plan(model))
    before, after = (
        [x for x in m.layers if isinstance(x, layers.RMSNormalization)] for m in (model, small)
    )
    for old, new in zip(before, after):
        share = old.epsilon / new.epsilon
        assert 0 < share < 1 and np.isclose(share, new.scale.shape[-1] / old.scale.shape[-1])
