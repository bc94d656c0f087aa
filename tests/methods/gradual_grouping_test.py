"""It starts as the dense network, ends as the grouped one, and never turns back on the way."""

import math
import os
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tests.methods.gradual import (
    GRADUAL,
    STEPS,
    answers,
    compiled,
    fade,
    network,
    trained,
    values,
)
from tests.training import toys
from tfseg_prune.layers.gradual_conv import GradualConv2D, group_mask


class Spy(keras.callbacks.Callback):
    """Notes alpha at every step, and what is there when an epoch has ended."""

    def __init__(self):
        super().__init__()
        self.steps, self.epochs = [], []

    def alpha(self):
        return float(self.model.get_layer("backbone_a").alpha)

    def on_train_batch_begin(self, batch, logs=None):
        self.steps.append(self.alpha())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.alpha())


# The model.


def test_starts_as_a_copy_that_answers_the_same(model):
    gradual = tsp.GradualGrouping(model)
    kinds = {layer.name: type(layer) for layer in gradual.model.layers}
    assert [name for name, kind in kinds.items() if kind is GradualConv2D] == list(GRADUAL)
    assert list(kinds) == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(answers(gradual.model), answers(model))
    before = values(model)
    trained(gradual, 1)
    assert (answers(gradual.model) != answers(model)).any()
    for value, weight in zip(before, values(model)):
        np.testing.assert_array_equal(value, weight)


def test_takes_the_weights_of_a_dense_network(model):
    gradual = tsp.GradualGrouping(network(seed=1))
    copied = tsp.models.copy_weights(model, gradual.model, prefix="")
    assert copied == tuple(layer.name for layer in model.layers if layer.weights)
    np.testing.assert_array_equal(answers(gradual.model), answers(model))
    fade(gradual.model, 0.25)
    tsp.models.copy_weights(model, gradual.model)
    assert gradual.alpha == 0.25
    other = tsp.GradualGrouping(network(seed=2))
    tsp.models.copy_weights(gradual.model, other.model, prefix="")
    assert other.alpha == 0.25
    np.testing.assert_array_equal(answers(other.model), answers(gradual.model))
    with pytest.raises(ValueError, match="do not fit.*backbone_a"):
        tsp.models.copy_weights(gradual.model, model)


def test_ends_as_a_plain_grouped_network(finished, tmp_path):
    assert finished.alpha == 0
    plan = finished.plan()
    assert dict(plan.groups) == {"backbone_a": 4, "backbone_b": 4} and not plan.keep
    small = tsp.shrink(finished.model, tsp.PruningPlan.from_json(plan.to_json()))
    for layer in small.layers:
        assert type(layer).__module__.startswith("keras.")
        assert getattr(layer, "groups", 1) == (4 if layer.name in GRADUAL else 1)
    np.testing.assert_allclose(answers(small), answers(finished.model), atol=1e-5)
    assert tsp.cost(small) == tsp.cost(finished.model, plan)
    assert [small.get_layer(name).kernel.shape[2] for name in GRADUAL] == [2, 4]
    small.save(tmp_path / "small.keras")
    with zipfile.ZipFile(tmp_path / "small.keras") as file:
        assert b"tfseg_prune" not in file.read("config.json")
    np.testing.assert_array_equal(
        answers(keras.saving.load_model(tmp_path / "small.keras")), answers(small)
    )


def test_the_proof_is_against_the_faded_network_itself(finished, monkeypatch):
    surgery = sys.modules["tfseg_prune.graph.shrink"]  # a function hides it
    right = surgery._diagonal_blocks
    monkeypatch.setattr(surgery, "_diagonal_blocks", lambda *args: right(*args)[..., ::-1])
    with pytest.raises(tsp.SurgeryError, match="backbone_"):
        tsp.shrink(finished.model, finished.plan())


def test_what_has_faded_is_gone(finished):
    """Momentum and decay go on with the faded weights, and nothing comes of it."""
    for name in GRADUAL:
        layer = finished.model.get_layer(name)
        between = ~group_mask(*layer.kernel.shape[2:], 4)
        assert ops.convert_to_numpy(layer.kernel)[..., between].any()
        assert not ops.convert_to_numpy(layer.effective_kernel())[..., between].any()


def test_one_frozen_weight_stays_frozen():
    model = network()
    model.get_layer("backbone_a").bias.trainable = False
    model.get_layer("decoder_mix").kernel.trainable = False
    gradual = tsp.GradualGrouping(model)

    def trainable(copy):
        return [(w.path.split("/")[-2:], w.shape) for w in copy.trainable_weights]

    assert trainable(gradual.model) == trainable(model)
    fade(gradual.model)
    small = tsp.shrink(gradual.model, gradual.plan())
    assert [path for path, _ in trainable(small)] == [path for path, _ in trainable(model)]


def test_raw_operations_of_the_users_own_network_are_left_alone():
    i = keras.Input((4, 4, 4))
    x = ops.relu(layers.Conv2D(8, 1, name="conv")(i)) + np.ones(8, "float32")
    model = keras.Model(i, layers.Conv2D(2, 1, name="last")(x))
    before = [(op.name, len(op._inbound_nodes), len(op._outbound_nodes)) for op in model.operations]
    copies = [tsp.GradualGrouping(model).model for _ in range(2)]
    assert before == [
        (op.name, len(op._inbound_nodes), len(op._outbound_nodes)) for op in model.operations
    ]
    names = [[op.name for op in m.operations] for m in (model, *copies)]
    assert names[0][1:] == names[1][1:] == names[2][1:]
    np.testing.assert_array_equal(
        *(answers(m, np.ones((1, 4, 4, 4), "float32")) for m in (model, copies[1]))
    )


# The schedule.

QUADRATIC = {"quadratic": lambda progress: (1 - progress) ** 2}
SHAPES = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 + 0.5 * math.cos(math.pi * progress),
    **QUADRATIC,
}


@pytest.mark.parametrize(
    "schedule, until, per",
    [
        ("linear", 0.65, "step"),
        ("cosine", 1.0, "step"),
        ("quadratic", 0.5, "step"),
        ("cosine", 0.5, "epoch"),
        ("linear", 0.75, "epoch"),
    ],
)
def test_alpha_follows_the_schedule(model, schedule, until, per):
    epochs, steps = 4, STEPS
    spy = Spy()
    gradual = tsp.GradualGrouping(
        model, schedule=QUADRATIC.get(schedule, schedule), until=until, per=per
    )
    trained(gradual, epochs, [spy])

    def at(done, whole):
        progress = done / (until * whole)
        return np.float32(0 if progress >= 1 else SHAPES[schedule](progress))

    if per == "step":
        expected = [at(n, epochs * steps) for n in range(epochs * steps + 1)]
        ends = expected[steps::steps]
    else:
        expected = [at(epoch, epochs) for epoch in range(epochs) for _ in range(steps)]
        ends = expected[::steps]
    np.testing.assert_allclose(spy.steps, expected[: epochs * steps], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(spy.epochs, ends, rtol=1e-6, atol=1e-7)
    assert spy.steps[0] == 1 and gradual.alpha == 0


def test_a_schedule_that_ends_a_hair_below_0_ends_at_0(model):
    gradual = tsp.GradualGrouping(model, schedule=lambda p: max(1 - 1.25 * p, -5e-7), until=1.0)
    trained(gradual, 2)
    assert gradual.alpha == 0 and gradual.plan().groups


def test_a_later_training_does_not_begin_anew(model):
    gradual, spy = tsp.GradualGrouping(model, until=1.0), Spy()
    trained(gradual, 1, [spy])
    assert spy.epochs == [0]
    trained(gradual, 1, [spy])
    assert spy.steps[2:] == [0, 0]
    fade(gradual.model, 0.5)
    trained(gradual, 1, [spy])  # whose second step the schedule puts at 0.5 itself
    np.testing.assert_allclose(spy.steps[4:], [0.5, 0.5])


def test_each_keeps_its_own_alpha(model):
    """As when a faded encoder meets a new decoder."""
    gradual = tsp.GradualGrouping(model, where=[*GRADUAL, "decoder_mix"], until=1.0)
    fade(gradual.model)
    gradual.model.get_layer("decoder_mix").alpha.assign(1.0)
    spy = Spy()
    trained(gradual, 1, [spy])
    assert spy.steps == [0, 0] and gradual.alpha == 0


def test_a_compiled_step_sees_alpha():
    """Of a convolution that is nothing but connections between groups, the answer is alpha."""
    inputs = keras.Input((4, 4, 4))
    x = layers.Conv2D(4, 1, use_bias=False, name="conv")(inputs)
    gradual = tsp.GradualGrouping(keras.Model(inputs, x), 2, where="conv", until=0.5)
    between = ~group_mask(4, 4, 2)
    gradual.model.get_layer("conv").kernel.assign(between[None, None].astype("float32"))
    gradual.model.compile(keras.optimizers.SGD(0.0), lambda _, found: ops.mean(found) / 2)
    ones = np.ones((12, 4, 4, 4), "float32")
    means = []
    note = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: means.append(float(logs["loss"]) * (batch + 1))
    )
    gradual.model.fit(ones, ones, batch_size=2, epochs=2, callbacks=[gradual, note], verbose=0)
    losses = [np.diff([0, *means[:6]]), np.diff([0, *means[6:]])]
    expected = np.maximum(0, 1 - np.arange(12) / 6).reshape(2, 6)
    np.testing.assert_allclose(losses, expected, atol=1e-5)
    assert not gradual.model.evaluate(ones, ones, verbose=0)


class Kill(keras.callbacks.Callback):
    """Ends a run in the middle of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.epoch, self.now = epoch, 0

    def on_epoch_begin(self, epoch, logs=None):
        self.now = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if self.now == self.epoch and batch == 1:
            raise InterruptedError


def fitted(directory, seed, callbacks=(), **options):
    gradual = tsp.GradualGrouping(network(seed=seed), until=0.6, **options)
    compiled(gradual.model)
    tsp.fit(
        gradual.model,
        toys.Toy(STEPS),
        epochs=4,
        checkpoint_dir=directory,
        callbacks=[gradual, *callbacks],
        verbose=False,
    )
    return gradual


@pytest.mark.parametrize("per", ["step", pytest.param("epoch", marks=pytest.mark.slow)])
def test_goes_on_where_it_was_killed(tmp_path, per):
    spy = Spy()
    whole = fitted(tmp_path / "whole", 0, [spy], per=per)
    with pytest.raises(InterruptedError):
        fitted(tmp_path / "killed", 0, [Spy(), Kill(2)], per=per)
    again = Spy()
    resumed = fitted(tmp_path / "killed", 1, [again], per=per)  # all comes from the checkpoint
    assert again.steps == spy.steps[2 * STEPS :] and 0 < again.steps[0] < 1
    for one, other in zip(values(whole.model), values(resumed.model), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert fitted(tmp_path / "whole", 2, per=per).alpha == 0  # done, so it only comes back


# Which convolutions.


@pytest.mark.parametrize(
    "where, chosen",
    [
        (None, GRADUAL),
        (["backbone_a"], ("backbone_a",)),
        ("_(a|mix)$", ("backbone_a", "decoder_mix")),
        (["decoder_mix", "^backbone_b"], ("backbone_b", "decoder_mix")),
        (
            lambda layer: layer.filters == 8 and layer.kernel_size == (1, 1),
            ("backbone_b", "decoder_mix"),
        ),
    ],
)
def test_where(model, where, chosen):
    gradual = tsp.GradualGrouping(model, 2, where=where)
    assert set(gradual.kept_mass()) == set(chosen)


def test_without_a_backbone_all_but_the_outputs():
    i = keras.Input((4, 4, 8))
    x = layers.Conv2D(8, 1, name="first")(i)
    x = layers.Conv2D(8, 1, strides=2, name="strided")(x)
    x = layers.Conv2D(8, 3, padding="same", name="wide")(x)
    x = layers.Conv2D(8, 1, groups=2, name="grouped")(x)
    x = layers.Conv2D(8, 1, kernel_constraint="non_neg", name="bound")(x)
    x = layers.Conv2D(12, 1, name="odd")(x)
    model = keras.Model(i, layers.Conv2D(8, 1, name="last")(layers.Conv2D(8, 1, name="inner")(x)))
    assert set(tsp.GradualGrouping(model, 8).kept_mass()) == {"first"}
    assert set(tsp.GradualGrouping(model, 4).kept_mass()) == {"first", "odd", "inner"}
    # Wide and strided kernels become grouped as well, and as many groups as channels are depthwise.
    gradual = tsp.GradualGrouping(model, 8, where=["wide", "strided"])
    fade(gradual.model)
    small = tsp.shrink(gradual.model, gradual.plan())
    assert small.get_layer("wide").kernel.shape == (3, 3, 1, 8)


def test_other_groups_by_a_further_one(model):
    first = tsp.GradualGrouping(model, 2, where="backbone_a")
    gradual = tsp.GradualGrouping(first.model, 4, where="backbone_b", until=0.5)
    trained(gradual)
    assert dict(gradual.plan().groups) == {"backbone_a": 2, "backbone_b": 4}
    tsp.shrink(gradual.model, gradual.plan())


def test_nested_and_shared_layers():
    i = keras.Input((4, 4, 8))
    inner = keras.Model(i, layers.ReLU()(layers.Conv2D(8, 1, name="conv")(i)), name="inner")
    twice = layers.Conv2D(8, 1, name="twice")
    x = twice(inner(twice(i)))
    model = keras.Model(i, layers.Conv2D(3, 1, name="last")(x))
    gradual = tsp.GradualGrouping(model, 4)
    assert set(gradual.kept_mass()) == {"inner/conv", "twice"}
    assert sum(isinstance(layer, GradualConv2D) for layer in gradual.model.layers) == 1
    fade(gradual.model)
    fade(gradual.model.get_layer("inner"))
    small = tsp.shrink(gradual.model, gradual.plan())
    assert small.get_layer("inner").get_layer("conv").groups == 4


@pytest.mark.parametrize(
    "options, message",
    [
        ({"groups": 1}, "`groups`.*2 or more. Received: 1"),
        ({"groups": True}, "`groups`.*Received: True"),
        ({"groups": 4.0}, "`groups`.*Received: 4.0"),
        ({"until": 0}, "`until`.*Received: 0"),
        ({"until": 1.5}, "`until`.*Received: 1.5"),
        ({"per": "batch"}, "`per`.*step, epoch. Received: 'batch'"),
        ({"assign": "random"}, "`assign`.*Received: 'random'"),
        ({"schedule": "poly"}, "`schedule`.*linear, cosine.*Received: 'poly'"),
        ({"schedule": lambda p: 1 - p / 2}, "`schedule`.*from 1 to 0.5"),
        ({"schedule": lambda p: math.sin(math.pi * p)}, "`schedule`.*which grows"),
        ({"groups": 3}, "No convolution .* is chosen.*widths that 3 divides"),
        ({"where": []}, "No convolution .* is chosen"),
        ({"where": lambda layer: False}, "No convolution .* is chosen"),
        ({"where": "nowhere"}, "'nowhere' in `where` matches no convolution"),
        ({"where": "("}, "no regular expression"),
        ({"where": "backbone_stem$"}, "'backbone_stem' can't.*Received: one with 3 inputs"),
        ({"where": "backbone_depthwise"}, "'backbone_depthwise' can't.*a DepthwiseConv2D"),
        ({"where": "decoder_logits"}, "'decoder_logits' can't.*8 inputs and 3 outputs"),
    ],
)
def test_senseless_options(model, options, message):
    with pytest.raises(ValueError, match=message):
        tsp.GradualGrouping(model, **options)


def test_what_is_frozen_or_grouped_already_is_an_error():
    frozen = network()
    frozen.get_layer("backbone_a").trainable = False
    for where in (None, "backbone_(a|b)$"):
        with pytest.raises(ValueError, match="'backbone_a' can't.*Received: one that is frozen"):
            tsp.GradualGrouping(frozen, where=where)
    model = network()
    gradual = tsp.GradualGrouping(model)
    with pytest.raises(ValueError, match="'backbone_a' can't.*a GradualConv2D"):
        tsp.GradualGrouping(gradual.model, where="backbone_a")
    fade(gradual.model)
    small = tsp.shrink(gradual.model, gradual.plan())
    with pytest.raises(ValueError, match="'backbone_a' can't.*4 groups already"):
        tsp.GradualGrouping(small, where="backbone_a")


def test_frozen_later_is_an_error_until_it_has_faded(model):
    gradual = tsp.GradualGrouping(model)
    gradual.model.get_layer("backbone_b").trainable = False
    with pytest.raises(ValueError, match="'backbone_b' is frozen while its connections fade"):
        trained(gradual, 1)
    fade(gradual.model)
    trained(gradual, 1)


def test_trainings_that_can_not_fade(model):
    gradual = tsp.GradualGrouping(model, per="epoch")
    with pytest.raises(ValueError, match="no epoch without.*Received: 2 epochs"):
        trained(gradual, 2)
    gradual = tsp.GradualGrouping(model)
    compiled(gradual.model)
    with pytest.raises(ValueError, match="how many steps"):
        gradual.model.fit((batch for batch in [toys.Toy()[0]]), callbacks=[gradual], verbose=0)
    compiled(model)
    with pytest.raises(ValueError, match="gradual.model.fit"):
        model.fit(toys.Toy(), callbacks=[gradual], verbose=0)


ON_THE_OTHER = (
    "gradual_grouping_test.py::test_a_compiled_step_sees_alpha",
    "gradual_grouping_test.py::test_starts_as_a_copy_that_answers_the_same",
    "gradual_grouping_test.py::test_alpha_follows_the_schedule[cosine-0.5-epoch]",
    "gradual_grouping_test.py::test_goes_on_where_it_was_killed[step]",
    "gradual_grouping_test.py::test_ends_as_a_plain_grouped_network",
    "gradual_grouping_test.py::test_each_keeps_its_own_alpha",
    "gradual_plan_test.py::test_balanced_groups_find_what_belongs_together[0]",
)


@pytest.mark.slow
def test_the_other_backend_does_the_same():
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    here = pathlib.Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        + [str(here / name) for name in ON_THE_OTHER],
        env={**os.environ, "KERAS_BACKEND": other},
        cwd=here.parents[1],
        capture_output=True,
        text=True,
    )
    assert f"{len(ON_THE_OTHER)} passed" in run.stdout, run.stdout[-2000:]
