"""`shrink` answers what the masked twin answers, for every way of coupling channels."""

import gc
import subprocess
import sys
import weakref

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import NETS, conv, image, scramble
from tfseg_prune.graph import (
    ChannelGraph,
    CostModel,
    PruningPlan,
    SurgeryError,
    check_equal,
    cost,
    masked_twin,
    proof,
    register_rule,
    rules,
    shrink,
    verify,
)
from tfseg_prune.methods.oneshot import plan as make_plan
from tfseg_prune.search import Budget


def random_plan(model, seed=0, **fields):
    """A legal plan that drops 30 to 60 % of the MACs, groups kept equal."""
    open_size = any(None in tensor.shape[1:] for tensor in model.inputs)
    fraction = float(np.random.default_rng(seed).uniform(0.4, 0.7))
    budget = Budget(**{"params" if open_size else "macs": fraction})
    made = make_plan(model, criterion="random", budget=budget, floor=0.01, seed=seed)
    return PruningPlan(keep=made.keep, widths=made.widths, architecture=made.architecture, **fields)


COUPLED = [name for name, build in NETS.items() if build.__module__.endswith("coupling")]


@pytest.mark.parametrize("name, seed", [(n, 0) for n in NETS] + [(n, 1) for n in COUPLED])
def test_equals_the_masked_twin(name, seed):
    model = scramble(NETS[name](), seed)
    plan = random_plan(model, seed)
    small = shrink(model, plan)
    assert plan.keep, "the plan drops nothing, so this shows nothing"
    check_equal(masked_twin(model, plan), small)  # raises beyond float noise
    assert small.count_params() < model.count_params()


@pytest.mark.parametrize("name", NETS)
def test_costs_what_the_plan_said(name):
    model = NETS[name]()
    plan = random_plan(model)
    assert cost(shrink(model, plan, check=False)) == cost(model, plan)


def test_the_twin_ignores_dropped_channels():
    """The twin's dropped channels may hold anything: that is what makes it a reference."""
    model = scramble(NETS["residual"]())
    plan = random_plan(model)
    twin = masked_twin(model, plan)
    before = twin(np.ones((1, 8, 8, 3)))
    graph = ChannelGraph(model)
    for name, kept in plan.keep.items():
        layer = twin.get_layer(name)
        kernel = np.array(layer.kernel)
        dropped = np.setdiff1d(np.arange(kernel.shape[-1]), kept)
        kernel[..., dropped] = 1e3
        layer.kernel.assign(kernel)
    assert graph.producers
    np.testing.assert_array_equal(before, twin(np.ones((1, 8, 8, 3))))


def test_the_original_is_untouched():
    model = scramble(NETS["concatenation_with_batch_normalization_after_it"]())
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 3))
    before = np.asarray(model(x))
    config = model.to_json()
    shrink(model, random_plan(model))
    np.testing.assert_array_equal(before, model(x))
    assert model.to_json() == config


def test_saves_and_loads_in_a_process_without_this_package(tmp_path):
    model = scramble(NETS["split_and_slices"]())
    small = shrink(model, random_plan(model))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    small.save(tmp_path / "small.keras")
    code = f"""
import sys, keras, numpy as np
model = keras.saving.load_model(r"{tmp_path}/small.keras")
np.save(r"{tmp_path}/y.npy", model(np.load(r"{tmp_path}/x.npy")))
assert not any(name.startswith("tfseg_prune") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), small(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_every_net_of_the_list_survives_saving(part, tmp_path):
    for name, build in list(NETS.items())[part::4]:
        model = scramble(build())
        small = shrink(model, random_plan(model, 0), check=False)
        small.save(tmp_path / "small.keras")
        assert check_equal(small, keras.saving.load_model(tmp_path / "small.keras")) == 0.0, name


def test_a_wrong_rule_is_caught_and_the_layer_named():
    """A rule that forgets to scale what it should is found by the comparison, not by luck."""

    @keras.saving.register_keras_serializable("tests")
    class Roll(layers.Layer):
        def call(self, x):
            return keras.ops.roll(x, 1, axis=-1)

    register_rule(Roll)(lambda trace, layer, x: x)  # wrong: the channels move
    try:
        i = image()
        x = Roll(name="roll")(conv(i, 12))
        model = scramble(keras.Model(i, layers.Conv2D(4, 1, name="after_roll")(x)))
        with pytest.raises(SurgeryError, match="after_roll"):
            shrink(model, random_plan(model))
    finally:
        del rules._RULES[Roll]


def test_an_untaught_layer_freezes_what_it_touches_and_a_rule_teaches_it():
    @keras.saving.register_keras_serializable("tests")
    class Scale(layers.Layer):
        def build(self, shape):
            self.scale = self.add_weight(shape=(shape[-1],), initializer="random_normal")

        def call(self, x):
            return x * self.scale

        def get_config(self):
            return super().get_config()

    i = image()
    x = Scale(name="my_scale")(layers.Conv2D(12, 3, name="before")(i))
    model = keras.Model(i, layers.Conv2D(4, 1, name="out")(conv(x, 6)))
    with pytest.warns(UserWarning, match=r"my_scale \(Scale\).*register_rule"):
        graph = ChannelGraph(model)
    assert not graph.prunable[graph.producers["before"]].any()
    assert "without a rule" in graph.frozen[int(graph.producers["before"][0])]

    @register_rule(Scale)
    def scale(trace, layer, x):
        ids = trace.along(x, -1, why="Scale scales the last axis")
        trace.weight(layer.scale, follows={0: ids})
        return x

    try:
        graph = ChannelGraph(model)
        assert graph.prunable[graph.producers["before"]].all()
        shrink(scramble(model), random_plan(model))
    finally:
        del rules._RULES[Scale]


def test_outputs_and_inputs_are_never_pruned():
    graph = ChannelGraph(NETS["inner_layer_is_an_output"]())
    outputs = [name for name, units in graph.producers.items() if not graph.prunable[units].all()]
    reasons = {graph.frozen[int(graph.producers[name][0])] for name in outputs}
    assert len(outputs) == 2 and reasons == {"a model output"}


def test_a_subclassed_model_is_one_clear_error():
    class Mine(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="Only functional Keras models.*Received.*Mine"):
        ChannelGraph(Mine())


@pytest.mark.parametrize(
    "name, reason",
    [
        ("layer_normalization", "normalised over all channels by 'layer_normalization"),
        ("one_group", "normalised over all channels by 'group_normalization"),
        ("recurrent_layers", "a LSTM whose steps share one state"),
        ("along_the_channels", "mixed along the channel axis by Softmax"),
        ("extremes_over_channels", "mixed along the channel axis by Max"),
        ("products_that_cross", "multiplied with channels along another axis"),
        ("one_channel_many_times", "copied by"),
        ("pooled_to_a_fixed_width", "combined with a tensor whose width is fixed"),
        ("unequal_repeats", "repeated a different number of times"),
    ],
)
def test_what_mixes_channels_is_frozen_and_the_reason_says_how(name, reason):
    graph = ChannelGraph(NETS[name]())
    assert any(reason in why for why in graph.frozen.values()), set(graph.frozen.values())


@pytest.mark.parametrize(
    "name, free", [("linear_attention", "values"), ("bilinear_pooling", "longest")]
)
def test_of_channels_by_channels_the_longer_side_is_free(name, free):
    graph = ChannelGraph(NETS[name]())
    units = graph.producers[free]
    assert graph.prunable[units].all() and len(set(units.tolist())) == len(units)
    reasons = set(graph.frozen.values())
    assert any("multiplied with channels along another axis" in why for why in reasons)


def test_groups_of_a_grouped_convolution_keep_equally_many_but_not_the_same():
    model = scramble(NETS["grouped_convolutions"]())
    plan = random_plan(model, seed=3)
    kept = np.array(plan.keep[next(iter(plan.keep))])
    per_group = [set((kept[(kept // 4) == g] % 4).tolist()) for g in range(4)]
    assert len({len(group) for group in per_group}) == 1
    assert len({frozenset(group) for group in per_group}) > 1


def test_unequal_groups_are_refused():
    model = NETS["grouped_convolutions"]()
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    keep[next(iter(graph.producers.values()))[0]] = False
    with pytest.raises(ValueError, match=r"keep \[3, 4, 4, 4\] channels.*equally many"):
        PruningPlan.from_units(graph, keep)


class TestGrouping:
    def build(self):
        i = image()
        x = layers.Conv2D(12, 3, padding="same", name="a")(i)
        x = layers.Conv2D(16, 3, padding="same", name="b")(layers.ReLU()(x))
        return scramble(keras.Model(i, layers.Conv2D(4, 1, name="c")(layers.ReLU()(x))))

    def test_a_dense_convolution_becomes_grouped_and_equals_its_twin(self):
        model = self.build()
        made = make_plan(model, budget=Budget(macs=0.6), align=4)
        plan = PruningPlan(
            keep=made.keep, widths=made.widths, architecture=made.architecture, groups={"b": 4}
        )
        small = shrink(model, plan)
        assert small.get_layer("b").groups == 4
        assert cost(small) == cost(model, plan)
        assert cost(small).layers["b"].macs * 4 == cost(model, made).layers["b"].macs

    def test_groups_that_do_not_divide_are_refused(self):
        model = self.build()
        architecture = random_plan(model).architecture
        with pytest.raises(ValueError, match="12 inputs and 16 outputs"):
            shrink(model, PruningPlan(groups={"b": 5}, architecture=architecture))
        with pytest.raises(ValueError, match="no convolution of that name"):
            shrink(model, PruningPlan(groups={"z": 2}, architecture=architecture))


def test_attention_keeps_its_scale_when_the_keys_get_narrower():
    """MultiHeadAttention divides by sqrt(key_dim), which the surgery changes."""
    model = scramble(NETS["multi_head_attention"]())
    graph = ChannelGraph(model)
    keep = np.ones(graph.num_units, bool)
    name = next(name for name in graph.producers if name.endswith(":key_dim"))
    keep[graph.producers[name][:4]] = False
    small = shrink(model, PruningPlan.from_units(graph, keep))
    attention = next(x for x in small.layers if isinstance(x, layers.MultiHeadAttention))
    assert attention.key_dim == 2


def test_a_large_network_is_checked_at_a_smaller_size(monkeypatch):
    """The bound holds where layers state sizes too: resizing and image pooling shrink along."""
    sizes = []
    original = proof.compare

    def spy(names, reference, answers, batch, *options):
        sizes.append(keras.tree.flatten(batch)[0].shape[1])
        return original(names, reference, answers, batch, *options)

    monkeypatch.setattr(proof, "compare", spy)
    monkeypatch.setattr(verify, "_CHECK_MACS", 1e6)
    i = image(size=64)
    x = conv(i, 12, strides=2)
    pooled = layers.UpSampling2D(32)(conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 6))
    x = layers.Resizing(64, 64)(conv(layers.Concatenate()([x, pooled]), 8))
    model = scramble(keras.Model(i, layers.Conv2D(4, 1)(x)))
    small = shrink(model, random_plan(model))
    assert sizes == [32] and small.inputs[0].shape[1] == 64


def test_training_goes_on_after_surgery():
    model = scramble(NETS["inverted_residual"]())
    small = shrink(model, random_plan(model))
    small.compile("adam", "mse")
    x, y = np.ones((2, 8, 8, 3)), np.zeros((2, 8, 8, 4))
    first = small.evaluate(x, y, verbose=0)
    small.fit(x, y, epochs=5, verbose=0)
    assert small.evaluate(x, y, verbose=0) != first


def empty_plan(model):
    return PruningPlan.from_units(ChannelGraph(model), np.ones(ChannelGraph(model).num_units, bool))


@pytest.mark.parametrize("name", NETS)
def test_a_plan_that_drops_nothing_rebuilds_the_original(name):
    model = scramble(NETS[name]())
    assert check_equal(model, shrink(model, empty_plan(model), check=False)) < 1e-5


def test_state_beside_the_weights_survives():
    i = image()
    normalization = layers.Normalization()
    normalization.adapt(np.random.default_rng(0).normal(100, 20, (64, 8, 8, 3)))
    model = keras.Model(i, layers.Conv2D(4, 1)(conv(normalization(i), 10)))
    scramble(keras.Model(i, model.layers[-1].output))
    normalization.adapt(np.random.default_rng(0).normal(100, 20, (64, 8, 8, 3)))
    small = shrink(model, random_plan(model))
    assert check_equal(masked_twin(model, random_plan(model)), small) < 1e-5
    assert check_equal(model, shrink(model, empty_plan(model))) < 1e-5


@pytest.mark.parametrize("broken", ["bias", "kernel", "moving_mean", "gamma"])
def test_a_weight_lost_on_the_way_is_caught(broken, monkeypatch):
    """The reference is the model's own layers, so what a rebuild loses isn't lost on both sides."""
    surgery = sys.modules["tfseg_prune.graph.shrink"]._Surgery
    original = surgery._cut

    def lose(self, value, slot, name):
        path = slot.variable.path
        return original(self, value, slot, name) * (0 if broken in path else 1)

    monkeypatch.setattr(surgery, "_cut", lose)
    model = scramble(NETS["residual"]())
    with pytest.raises(SurgeryError, match="first differ at"):
        shrink(model, random_plan(model))


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_is_no_false_alarm(policy):
    keras.config.set_dtype_policy(policy)
    try:
        model = NETS["inverted_residual"]()
    finally:
        keras.config.set_dtype_policy("float32")
    small = shrink(model, random_plan(model))
    assert small.layers[1].dtype_policy.name == policy


def test_calls_by_keyword():
    i = image()
    x = layers.Conv2D(8, 3, padding="same")(inputs=i)
    x = layers.Add()(inputs=[x, layers.Conv2D(8, 1)(inputs=x)])
    model = scramble(keras.Model(i, layers.Conv2D(4, 1)(inputs=x)))
    shrink(model, random_plan(model))


def test_a_rule_that_forgets_a_change_of_width_keeps_what_it_touches():
    @keras.saving.register_keras_serializable("tests")
    class Gate(layers.Layer):
        def call(self, x):
            return keras.ops.glu(x)

    register_rule(Gate)(lambda trace, layer, x: x)  # wrong: half of the channels come out
    try:
        i = image()
        x = Gate()(layers.Conv2D(8, 1, name="gated")(i))
        model = scramble(keras.Model(i, layers.Conv2D(4, 1)(conv(x, 6))))
        graph = ChannelGraph(model)
        assert not graph.prunable[graph.producers["gated"]].any()
        shrink(model, random_plan(model))
    finally:
        del rules._RULES[Gate]


def test_a_nested_model_with_named_inputs_called_with_a_list():
    a, b = keras.Input((8, 8, 6), name="a"), keras.Input((8, 8, 6), name="b")
    both = layers.Conv2D(5, 1)(a) + layers.Conv2D(5, 3, padding="same")(b)
    inner = keras.Model({"a": a, "b": b}, both)
    i = image()
    model = keras.Model(i, layers.Conv2D(4, 1)(inner([conv(i, 6), conv(i, 6)])))
    shrink(scramble(model), random_plan(model))


def test_a_layer_shared_by_models_of_two_levels():
    """Keras can't load such a model, but build it and shrink it one can."""
    shared = layers.Conv2D(8, 3, padding="same")
    inner_in = image(8)
    inner = keras.Model(inner_in, layers.ReLU()(shared(conv(inner_in, 8))))
    middle_in = image(8)
    middle = keras.Model(middle_in, inner(conv(inner(middle_in), 8)) + shared(middle_in))
    i = image()
    model = keras.Model(i, layers.Conv2D(4, 1)(middle(shared(conv(i, 8))) + inner(conv(i, 8))))
    plan = random_plan(scramble(model))
    small = shrink(model, plan)
    assert check_equal(masked_twin(model, plan), small) < 1e-5
    assert small.count_params() < model.count_params()


def test_a_frozen_backbone_called_for_inference_stays_so():
    inner_in = image(6)
    inner = keras.Model(inner_in, conv(inner_in, 8))
    inner.trainable = False
    i = image()
    model = keras.Model(i, layers.Conv2D(4, 1)(inner(conv(i, 6), training=False)))
    small = shrink(scramble(model), random_plan(model))
    nested = next(x for x in small.layers if isinstance(x, keras.Model))
    assert not nested.trainable_variables
    x = np.ones((1, 8, 8, 3))
    np.testing.assert_allclose(small(x, training=False)[0], small(x)[0])


def test_functions_of_the_users_own_need_not_be_registered():
    def square(x):
        return x * x

    i = image()
    x = layers.Conv2D(8, 1, activation=square, kernel_constraint=square, name="own")(i)
    model = scramble(keras.Model(i, layers.Conv2D(4, 1)(conv(x, 10))))
    graph = ChannelGraph(model)
    assert not graph.prunable[graph.producers["own"]].any(), "nobody knows what `square` mixes"
    shrink(model, random_plan(model))


def test_of_an_open_input_size_parameters_can_be_limited_but_no_macs():
    model = scramble(NETS["one_input_many_sizes"]())
    with pytest.raises(ValueError, match="leaves open"):
        CostModel(ChannelGraph(model)).macs()
    with pytest.raises(ValueError, match="needs the model's input size.*limit `params`"):
        make_plan(model, budget=Budget(macs=0.5))
    before, plan = cost(model), make_plan(model, budget=Budget(params=0.5))
    assert before.macs is None and before.params == model.count_params() - 2 * statistics(model)
    small = shrink(model, plan)
    assert cost(small) == cost(model, plan)
    assert 0.4 < cost(small).params / before.params <= 0.5


def statistics(model):
    """How many channels the batch normalisations of a model have."""
    norms = [x for x in model.layers if isinstance(x, layers.BatchNormalization)]
    return sum(layer.gamma.shape[0] for layer in norms)


def test_a_model_without_channels_to_create():
    i = image()
    graph = ChannelGraph(keras.Model(i, layers.ReLU()(i)))
    assert graph.groups == [] and not graph.prunable.any()
    assert cost(keras.Model(i, i)).macs == 0


def test_a_graph_is_freed_at_once():
    """Cycles would leave whole models to Python's garbage collector, and so in memory."""
    model = NETS["inverted_residual"]()
    gc.collect()
    gc.disable()
    try:
        graph = ChannelGraph(model)
        alive = [weakref.ref(graph), *map(weakref.ref, graph.records.values())]
        del graph
        assert not any(reference() for reference in alive)
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["inverted_residual", "multi_head_attention", "embedding"])
def test_layers_keep_their_initializers(name):
    """Rebuilt layers start as zeros, for speed; who trains them anew must not notice."""
    model = NETS[name]()
    small = shrink(model, empty_plan(model))
    for old, new in zip(model.layers, small.layers):
        before, after = old.get_config(), new.get_config()
        initializers = [key for key in before if "initializer" in key]
        assert [before[key] for key in initializers] == [after[key] for key in initializers]
        assert getattr(old, "kernel_initializer", 0) is getattr(new, "kernel_initializer", 0)
