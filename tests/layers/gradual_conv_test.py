"""Dense at alpha = 1, grouped at alpha = 0, and nothing that faded comes back."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tfseg_prune.layers import gradual_conv
from tfseg_prune.layers.gradual_conv import GradualConv2D, channel_order, grouped_kernel


def assigned(rng, channels, groups):
    """The group of each channel, drawn."""
    return rng.permutation(np.repeat(np.arange(groups), channels // groups))


def drawn(seed):
    """A random case: the options of the convolution, its grouping, and images for it."""
    rng = np.random.default_rng(seed)
    groups = int(rng.choice([1, 2, 3, 4, 8]))
    if seed % 5 == 0:
        width = int(rng.integers(2, 9))
        ins, outs, groups = width, width * int(rng.integers(1, 3)), width  # depthwise
    else:
        ins, outs = (groups * int(n) for n in rng.integers(1, 4, 2))
    factor, strided = int(rng.integers(1, 4)), rng.random() < 0.5
    options = {
        "filters": outs,
        "kernel_size": tuple(int(n) for n in rng.integers(1, 4, 2)),
        "strides": factor if strided else 1,
        "dilation_rate": 1 if strided else factor,
        "padding": str(rng.choice(["valid", "same"])),
        "use_bias": bool(rng.random() < 0.5),
        "bias_initializer": "random_normal",
    }
    grouping = {"target_groups": groups}
    if seed % 2:
        grouping["input_groups"] = assigned(rng, ins, groups)
        grouping["output_groups"] = assigned(rng, outs, groups)
    return options, grouping, rng.normal(size=(2, 9, 8, ins)).astype("float32")


def assert_close(found, expected):
    expected = ops.convert_to_numpy(expected)
    scale = max(np.abs(expected).max(), 1e-3)
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=3e-6 * scale)


def grouped_twin(layer):
    """What the layer is at alpha = 0, of a plain grouped convolution, as a function."""
    config = layer.get_config()
    how = [config.pop(key) for key in ("target_groups", "input_groups", "output_groups")]
    conv = layers.Conv2D.from_config({**config, "groups": how[0]})
    ins, outs = layer.kernel.shape[-2:]
    reads, writes = channel_order(ins, how[0], how[1]), channel_order(outs, how[0], how[2])
    conv.build((None, None, None, ins))
    kernel = grouped_kernel(ops.convert_to_numpy(layer.kernel), *how)
    bias = [ops.convert_to_numpy(layer.bias)[writes]] if layer.use_bias else []
    conv.set_weights([kernel, *bias])
    return lambda x: ops.convert_to_numpy(conv(x[..., reads]))[..., np.argsort(writes)]


def kernel_gradient(layer, images, direction):
    """Derivative of sum(direction * layer(images)) with respect to the stored kernel."""
    before = ops.convert_to_numpy(layer.kernel)
    inputs = keras.Input(images.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(
        keras.optimizers.SGD(1.0), lambda y, x: ops.sum(y * x, axis=(1, 2, 3)), run_eagerly=True
    )
    model.train_on_batch(images, direction)
    found = before - ops.convert_to_numpy(layer.kernel)
    layer.kernel.assign(before)
    return found


@pytest.mark.parametrize("seed", range(14))
def test_dense_equals_conv_and_faded_equals_grouped_conv(seed):
    options, grouping, images = drawn(seed)
    layer = GradualConv2D(**options, **grouping)
    answers = {}
    for alpha in (1.0, 0.0, 0.3):
        if alpha < 1:
            layer.alpha.assign(alpha)
        answers[alpha] = ops.convert_to_numpy(layer(images))
    dense = layers.Conv2D(**options)
    dense.build(images.shape)
    dense.set_weights(layer.get_weights()[:-1])
    np.testing.assert_array_equal(answers[1.0], ops.convert_to_numpy(dense(images)))
    assert_close(answers[0.0], grouped_twin(layer)(images))
    assert_close(answers[0.3], 0.3 * answers[1.0] + 0.7 * answers[0.0])


def between_groups(seeds):
    """Those whose groups are more than one and no depthwise convolution, some of them strided."""
    found = []
    for seed in seeds:
        options, grouping, images = drawn(seed)
        if 1 < grouping["target_groups"] < min(images.shape[-1], options["filters"]):
            found.append((options["strides"] > 1, seed))
    strided, plain = ([seed for s, seed in found if s is wanted] for wanted in (True, False))
    return [*strided[:2], *plain[:2]]


@pytest.mark.parametrize("seed", between_groups(range(100, 140)))
def test_gradients_between_groups_scale_with_alpha(seed):
    options, grouping, images = drawn(seed)
    layer = GradualConv2D(**options, **grouping)
    mask = gradual_conv.group_mask(images.shape[-1], options["filters"], *grouping.values())
    direction = np.random.default_rng(seed).normal(size=layer(images).shape).astype("float32")
    whole = kernel_gradient(layer, images, direction)
    assert np.abs(whole).max() > 0.1
    for alpha in (0.5, 0.125, 0.0):
        layer.alpha.assign(alpha)
        found = kernel_gradient(layer, images, direction)
        assert_close(found[..., mask], whole[..., mask])
        assert_close(found[..., ~mask], alpha * whole[..., ~mask])
    assert np.abs(whole[..., ~mask]).max() > 0.1 and (found[..., ~mask] == 0).all()


def trained(layer, kernel, images, direction, optimizer):
    """The layer's kernel after some steps from `kernel`, decayed, regularised and clipped."""
    layer.build(images.shape)
    layer.kernel.assign(kernel)
    if isinstance(layer, GradualConv2D):
        layer.alpha.assign(0.0)
    inputs = keras.Input(images.shape[1:])
    model = keras.Model(inputs, layer(inputs))
    model.compile(
        optimizer, lambda y, x: ops.mean(ops.square(y - x), axis=(1, 2, 3)), run_eagerly=True
    )
    for _ in range(4):
        model.train_on_batch(images, direction)
    return ops.convert_to_numpy(layer.kernel)


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_what_has_faded_neither_returns_nor_matters(optimizer):
    """At alpha = 0 it trains as the grouped convolution does, whatever the faded weights are."""
    rng = np.random.default_rng(0)
    images = rng.normal(size=(2, 5, 5, 8)).astype("float32")
    direction = rng.normal(size=(2, 5, 5, 12)).astype("float32")
    kernel = rng.normal(size=(3, 3, 8, 12)).astype("float32")
    mask = gradual_conv.group_mask(8, 12, 4)

    def make_optimizer():
        if optimizer == "sgd":
            return keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1, global_clipnorm=1.0)
        return tsp.training.optimizer(
            optimizer, learning_rate=0.01, steps=9, weight_decay=0.1, global_clipnorm=0.1
        )

    options = {"padding": "same", "use_bias": False, "kernel_regularizer": "l2"}
    gradual = GradualConv2D(12, 3, 4, **options)
    found = trained(gradual, kernel, images, direction, make_optimizer())
    assert (found[..., ~mask] != kernel[..., ~mask]).all()  # decay moves what nobody reads
    assert not ops.convert_to_numpy(gradual.effective_kernel())[..., ~mask].any()
    assert_close(gradual(images), grouped_twin(gradual)(images))

    other = trained(
        GradualConv2D(12, 3, 4, **options),
        np.where(mask, kernel, -50 * kernel),
        images,
        direction,
        make_optimizer(),
    )
    np.testing.assert_array_equal(other[..., mask], found[..., mask])

    grouped = trained(
        layers.Conv2D(12, 3, groups=4, **options),
        grouped_kernel(kernel, 4),
        images,
        direction,
        make_optimizer(),
    )
    np.testing.assert_allclose(grouped, grouped_kernel(found, 4), atol=2e-6)


def test_momentum_from_before_revives_nothing():
    """And a compiled step sees alpha as it is then, not as it was when it was compiled."""
    rng = np.random.default_rng(1)
    images = rng.normal(size=(2, 4, 4, 4)).astype("float32")
    layer = GradualConv2D(4, 1, 2)
    model = keras.Sequential([keras.Input((4, 4, 4)), layer])
    model.compile(keras.optimizers.AdamW(0.05, weight_decay=0.1), "mse")
    faded = ~gradual_conv.group_mask(4, 4, 2)
    for alpha in (1.0, 0.5, 0.0, 0.0):
        layer.alpha.assign(alpha)
        loss = model.evaluate(images, 10 * images, verbose=0)
        assert float(model.train_on_batch(images, 10 * images)) == pytest.approx(loss, rel=1e-5)
        used = ops.convert_to_numpy(layer.effective_kernel())[0, 0, faded]
        assert (used != 0).all() if alpha else not used.any()
    assert_close(layer(images), grouped_twin(layer)(images))


def test_alpha_is_fixed_where_only_it_could_be_trained():
    layer = GradualConv2D(4, 1, 2)
    layer.build((None, 4, 4, 4))
    assert [weight.name for weight in layer.non_trainable_weights] == ["alpha"]
    assert layer.alpha.shape == () and float(layer.alpha) == 1.0


def test_regularizer_sees_what_the_convolution_reads():
    layer = GradualConv2D(4, 1, 2, kernel_regularizer=keras.regularizers.L1(1.0))
    layer.build((None, 4, 4, 4))
    layer.kernel.assign(np.ones((1, 1, 4, 4)))
    for alpha in (1.0, 0.5, 0.0):
        layer.alpha.assign(alpha)
        assert float(sum(layer.losses)) == pytest.approx(8 + 8 * alpha)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_survives_saving(tmp_path, policy):
    rng = np.random.default_rng(2)
    images = rng.normal(size=(2, 6, 6, 6)).astype("float32")
    layer = GradualConv2D(
        9,
        3,
        3,
        input_groups=assigned(rng, 6, 3),
        output_groups=assigned(rng, 9, 3),
        activation="relu",
        kernel_regularizer="l2",
        dtype=policy,
    )
    model = keras.Sequential([keras.Input((6, 6, 6)), layer])
    layer.alpha.assign(0.37)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert float(loaded.layers[0].alpha) == np.float32(0.37)
    np.testing.assert_array_equal(
        loaded.predict(images, verbose=0), model.predict(images, verbose=0)
    )
    assert len(loaded.losses) == 1


def test_takes_the_place_of_a_dense_convolution():
    dense = layers.Conv2D(
        8, (3, 1), strides=2, padding="same", activation="relu", kernel_regularizer="l2", name="a"
    )
    dense.trainable = False
    images = np.random.default_rng(3).normal(size=(2, 7, 7, 4)).astype("float32")
    expected = ops.convert_to_numpy(dense(images))
    layer = GradualConv2D.from_conv(dense, 2)
    layer.build(images.shape)
    layer.set_weights([*dense.get_weights(), np.ones(())])
    assert layer.name == "a" and not layer.trainable
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(images)), expected)


def doubled(x):
    return 2 * x


@pytest.mark.filterwarnings("ignore:The object being serialized includes a `lambda`")
@pytest.mark.parametrize("own", [doubled, lambda x: 2 * x], ids=["function", "lambda"])
def test_functions_of_the_users_own_go_along(own):
    def penalty(kernel):
        return ops.sum(own(kernel))

    dense = layers.Conv2D(4, 1, activation=own, kernel_regularizer=penalty, name="a")
    dense.build((None, 2, 2, 4))
    gradual = GradualConv2D.from_conv(dense, 2)
    for layer in (gradual, gradual.to_grouped()):
        layer.build((None, 2, 2, 4))
        layer.kernel.assign(np.ones(layer.kernel.shape))
        ones = np.ones((1, 2, 2, 4), "float32")
        answer = layer(ones)
        (loss,) = layer.losses
        reads = 4 if layer is gradual else 2
        assert float(loss) == 2 * 4 * reads
        assert (ops.convert_to_numpy(answer) == 2 * reads).all()


def network(make):
    """Two convolutions in a row, a residual, and a classifier."""
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(12, 3, padding="same", name="first")(inputs)
    y = make(12, "second")(layers.BatchNormalization()(x))
    y = layers.ReLU()(y)
    x = layers.Add()([x, make(12, "third")(y)])
    return keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x))


def test_a_plan_of_groups_is_the_faded_network():
    """`shrink` makes plain grouped convolutions, equal to the network at alpha = 0."""
    rng = np.random.default_rng(4)
    dense = network(lambda filters, name: layers.Conv2D(filters, 1, name=name))
    gradual = network(lambda filters, name: GradualConv2D(filters, 1, 4, name=name))
    for twin, layer in zip(dense.layers, gradual.layers):
        weights = [np.abs(rng.normal(size=w.shape)) + 0.1 for w in twin.weights]
        twin.set_weights(weights)
        zero = [np.zeros(())] if isinstance(layer, GradualConv2D) else []
        layer.set_weights([*weights, *zero])
    graph = tsp.ChannelGraph(dense)
    plan = tsp.PruningPlan.from_units(
        graph, np.ones(graph.num_units, bool), groups={"second": 4, "third": 4}
    )
    small = tsp.shrink(dense, plan)
    assert [small.get_layer(name).groups for name in ("second", "third")] == [4, 4]
    images = rng.normal(size=(2, 6, 6, 3)).astype("float32")
    assert_close(small(images), gradual(images))


@pytest.mark.parametrize("permuted", [False, True])
def test_pruning_keeps_groups_of_equal_size(permuted):
    rng = np.random.default_rng(5)
    ins, outs = (assigned(rng, 12, 3) if permuted else None for _ in range(2))
    gradual = GradualConv2D(
        12, 3, 3, padding="same", input_groups=ins, output_groups=outs, name="gradual"
    )
    inputs = keras.Input((6, 6, 3))
    x = layers.Conv2D(12, 3, name="before")(inputs)
    x = layers.ReLU()(gradual(x))
    model = keras.Model(inputs, layers.Conv2D(2, 1, name="last")(x))
    gradual.alpha.assign(0.25)
    plan = tsp.plan(model, criterion="random", budget=tsp.Budget(macs=0.5))
    small = tsp.shrink(model, plan)  # raises unless it equals the masked twin
    assert tsp.cost(small) == tsp.cost(model, plan)
    ins, outs = (plan.keep[name] for name in ("before", "gradual"))
    mask, kept = (
        gradual_conv.group_mask(*layer.kernel.shape[2:], 3, layer.input_groups, layer.output_groups)
        for layer in (gradual, small.get_layer("gradual"))
    )
    assert kept.sum() < mask.sum()
    np.testing.assert_array_equal(kept, mask[np.ix_(ins, outs)])


@pytest.mark.parametrize(
    "ins, options, message",
    [
        (6, {"target_groups": 4}, "inputs of 'conv'.* that 4 divides. Received: 6"),
        (8, {"target_groups": 3}, "outputs of 'conv'.* that 3 divides. Received: 8"),
        (8, {"target_groups": 0}, "positive integer as the number of groups. Received: 0"),
        (8, {"target_groups": 2.0}, "positive integer as the number of groups. Received: 2.0"),
        (8, {"target_groups": True}, "positive integer as the number of groups. Received: True"),
        (8, {"target_groups": 2, "groups": 2}, "`groups` of .*'conv'. Expected: 1. Received: 2"),
        (8, {"target_groups": 2, "kernel_constraint": "non_neg"}, "`kernel_constraint`.*Remedy"),
        (8, {"target_groups": 2, "lora_rank": 2}, "`lora_rank`.*Remedy"),
        (8, {"target_groups": 2, "input_groups": [0, 1]}, "inputs of .* each of 8 channels"),
        (8, {"target_groups": 2, "output_groups": [0] * 7 + [1]}, "outputs of .*each 4 times"),
        (8, {"target_groups": 2, "output_groups": [0, 2] * 4}, "outputs of .*from 0 to 1"),
    ],
)
def test_wrong_groups_are_one_clear_error(ins, options, message):
    with pytest.raises(ValueError, match=message):
        GradualConv2D(8, 1, name="conv", **options).build((None, 4, 4, ins))


def test_an_error_has_the_name_that_keras_gives():
    with pytest.raises(ValueError, match="convolution 'gradual_conv2d"):
        GradualConv2D(8, 1, 2, kernel_constraint="non_neg")


@pytest.mark.parametrize(
    "layer, message",
    [
        (layers.Conv2D(8, 1, groups=2, name="conv"), "`groups` of .*'conv'.*Received: 2"),
        (layers.DepthwiseConv2D(3, name="conv"), "'conv' .*Received: a DepthwiseConv2D"),
        (layers.Conv2DTranspose(8, 1, name="conv"), "'conv' .*Received: a Conv2DTranspose"),
        (GradualConv2D(8, 1, 2, name="conv"), "'conv' .*Received: a GradualConv2D"),
    ],
)
def test_only_dense_convolutions_become_gradual(layer, message):
    with pytest.raises(ValueError, match=message):
        GradualConv2D.from_conv(layer, 2)


@pytest.mark.slow
def test_the_other_backend_does_the_same():
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    chosen = (
        "dense_equals_conv_and_faded_equals_grouped_conv[1]",
        "momentum_from_before_revives_nothing",
        "survives_saving[float32]",
    )
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [f"{__file__}::test_{name}" for name in chosen],
        env={**os.environ, "KERAS_BACKEND": other},
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert "3 passed" in run.stdout, run.stdout[-2000:]
