"""What is collected is how the loss changes with each channel, whatever optimizer trains."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

import tfseg_prune as tsp
from tests.training import toys
from tfseg_prune.criteria.gates import gates
from tfseg_prune.graph import ChannelGraph

DECAY = 0.7
CRITERIA = ("taylor", "dcfp")


def _network(dtype="float32", epsilon=1e-3):
    """One convolution before a batch normalisation, one without, one transposed."""
    keras.utils.set_random_seed(0)
    i = keras.Input((6, 5, 2), dtype=dtype.replace("mixed_float16", "float32"))
    x = layers.Conv2D(4, 3, use_bias=False, dtype=dtype, name="normed")(i)
    x = layers.BatchNormalization(epsilon=epsilon, dtype=dtype, name="bn")(x)
    x = layers.ReLU(dtype=dtype)(x)
    x = layers.Conv2D(3, 1, activation="tanh", dtype=dtype, name="bare")(x)
    x = layers.Conv2DTranspose(5, 2, activation="tanh", dtype=dtype, name="deconv")(x)
    model = keras.Model(i, layers.Conv2D(2, 1, dtype=dtype, name="out")(x))
    rng = np.random.default_rng(0)
    bn = model.get_layer("bn")
    bn.gamma.assign(rng.normal(size=4))  # of both signs
    bn.beta.assign(rng.normal(size=4))
    return model


def _data(steps=4, seed=1):
    """(images, targets) for so many batches of 2."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(2 * steps, 6, 5, 2)), rng.normal(size=(2 * steps, 5, 4, 2))


def _fit(model, callbacks, optimizer=None, *, data=None, epochs=1, eager=True, compiled=False):
    if not compiled:
        optimizer = optimizer or keras.optimizers.SGD(0.05)
        # Tracing would take longer than the steps.
        model.compile(optimizer, _loss(model), run_eagerly=eager)
    options = dict(batch_size=2, shuffle=False, verbose=0, epochs=epochs)
    model.fit(*(data or _data()), callbacks=callbacks, **options)


def _loss(model):
    return keras.losses.MeanSquaredError(dtype=model.input.dtype)


def _scores(gradients, model, criterion):
    """{name of the weight at the gate: its scores}, whatever process the model is in."""
    graph = ChannelGraph(model)
    found = gradients.scores(criterion)
    return {
        "/".join(gate.weights[0][0].path.split("/")[-2:]): found[gate.key]
        for gate in gates(graph)
        if gate.key in found
    }


def _assert_same(ours, theirs, **tolerance):
    assert ours.keys() == theirs.keys() and ours
    for name, values in ours.items():
        np.testing.assert_allclose(values, theirs[name], err_msg=name, **tolerance)


class _Slopes(keras.callbacks.Callback):
    """How the loss of each batch changes with each channel, by central differences in float64."""

    def __init__(self, model, data):
        super().__init__()
        self._net, self._data = model, data
        self._gates = gates(ChannelGraph(model))
        self.changes = {gate.key: [] for gate in self._gates}
        self.scales = {gate.key: [] for gate in self._gates if gate.scale is not None}
        self.gammas = {key: [] for key in self.scales}

    def on_train_batch_begin(self, batch, logs=None):
        images, targets = (x[2 * batch : 2 * batch + 2] for x in self._data)
        state = self._net.get_weights()

        def slope(weights, channel, step, change):
            losses = []
            for sign in (1, -1):
                for variable, axis in weights:
                    value = np.array(variable)
                    rows = np.moveaxis(value, axis, 0)
                    rows[channel] = change(rows[channel], sign * step)
                    variable.assign(value)
                error = ops.convert_to_numpy(self._net(images, training=True)) - targets
                losses.append(np.mean(error**2))
                self._net.set_weights(state)
            return (losses[0] - losses[1]) / (2 * step)

        for gate in self._gates:
            channels = range(len(gate.ids))
            self.changes[gate.key].append(
                [slope(gate.weights, c, 1e-5, lambda w, step: w * (1 + step)) for c in channels]
            )
            if gate.scale is not None:
                alone = ((gate.scale, 0),)
                self.gammas[gate.key].append(np.array(gate.scale))
                self.scales[gate.key].append(
                    [slope(alone, c, 1e-5, lambda w, step: w + step) for c in channels]
                )


def _averaged(values, decay=DECAY):
    total = 0.0
    for value in values:
        total = decay * total + (1 - decay) * value
    return total / (1 - decay ** len(values))


def test_scores_equal_finite_differences_over_steps_of_sgd():
    model, data = _network("float64"), _data()
    slopes = _Slopes(model, data)
    gradients = tsp.Gradients(model, decay=DECAY)
    start = model.get_weights()
    _fit(model, [slopes, gradients], data=data)
    assert np.abs(model.get_weights()[0] - start[0]).max() > 1e-3, "it trained in between"
    taylor, dcfp = (gradients.scores(criterion) for criterion in CRITERIA)
    assert len(taylor) == 4 and len(dcfp) == 1
    for key, changes in slopes.changes.items():
        expected = _averaged(np.square(changes))
        np.testing.assert_allclose(taylor[key], expected, rtol=1e-4, atol=1e-5 * expected.max())
    ((key, scales),) = slopes.scales.items()
    expected, shrank = np.zeros(4), []
    for gamma, slope in zip(slopes.gammas[key], np.array(scales)):
        shrinks = gamma * slope > 0
        shrank += shrinks.tolist()
        expected = np.where(shrinks, DECAY * expected + (1 - DECAY) * np.abs(slope), expected)
    assert {True, False} <= set(shrank), "both cases occur"
    # In the others it stays: the average of itself with itself.
    np.testing.assert_allclose(dcfp[key], expected / (1 - DECAY**4), rtol=1e-4)


def test_before_a_batch_normalisation_a_gate_would_say_nothing():
    """Why gates stand behind: the normalisation takes out whatever the channel is scaled by."""
    model = _network("float64", epsilon=1e-12)
    images, targets = _data(steps=1)
    kernel = model.get_layer("normed").kernel

    def loss():
        return np.mean((ops.convert_to_numpy(model(images, training=True)) - targets) ** 2)

    values, before = np.array(kernel), loss()
    for factor in (0.1, 5):
        kernel.assign(values * [1, factor, 1, 1])
        assert abs(loss() / before - 1) < 1e-9
    kernel.assign(values)
    bn = model.get_layer("bn")
    bn.gamma.assign(np.array(bn.gamma) * [1, 5, 1, 1])
    assert abs(loss() / before - 1) > 1e-3
    assert not any(v is kernel for gate in gates(ChannelGraph(model)) for v, _ in gate.weights)


def test_frozen_layers_are_not_ranked_and_so_never_pruned():
    model = _network()
    model.get_layer("bn").trainable = model.get_layer("deconv").trainable = False
    gradients = tsp.Gradients(model)
    _fit(model, [gradients])
    assert _scores(gradients, model, "taylor").keys() == {"bare/kernel", "out/kernel"}
    made = tsp.plan(model, criterion="taylor", gradients=gradients, budget=tsp.Budget(macs=0.8))
    assert made.keep.keys() == {"bare"}


def test_collecting_changes_nothing_in_training():
    found = []
    for watch in (False, True):
        model = _network()
        _fit(model, [tsp.Gradients(model)] if watch else [], keras.optimizers.Adam(0.01))
        found.append(model.get_weights())
    for one, other in zip(*found):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("eager", [True, False])
def test_a_model_that_was_trained_before_is_observed_too(eager):
    """Keras keeps the compiled training step of the first `fit`."""
    model, images = _network(), _data()
    _fit(model, [], eager=eager)
    gradients = tsp.Gradients(model, decay=DECAY)
    state = model.get_weights()
    _fit(model, [gradients], compiled=True)
    alone = _network()
    alone.set_weights(state)
    expected = tsp.Gradients(alone, decay=DECAY)
    _fit(alone, [expected], data=images)
    for criterion in CRITERIA:
        ours = _scores(gradients, model, criterion)
        _assert_same(ours, _scores(expected, alone, criterion), rtol=1e-4)


def test_a_further_fit_goes_on_with_the_averages():
    together, apart = _network(), _network()
    images, targets = _data()
    one, other = tsp.Gradients(together, decay=DECAY), tsp.Gradients(apart, decay=DECAY)
    _fit(together, [one])
    _fit(apart, [other], data=(images[:4], targets[:4]))
    _fit(apart, [other], data=(images[4:], targets[4:]), compiled=True)
    for criterion in CRITERIA:
        ours, theirs = _scores(one, together, criterion), _scores(other, apart, criterion)
        _assert_same(ours, theirs, rtol=1e-6)


def test_two_at_once_see_the_same():
    model = _network()
    both = [tsp.Gradients(model, decay=DECAY) for _ in range(2)]
    _fit(model, both)
    first, second = (_scores(gradients, model, "taylor") for gradients in both)
    _assert_same(first, second, rtol=0)


def test_gradients_are_those_before_clipping_and_weight_decay():
    plain, clipped = _network(), _network()
    found = []
    for model, options in ((plain, {}), (clipped, {"clipvalue": 1e-3, "weight_decay": 0.1})):
        gradients = tsp.Gradients(model, decay=DECAY)
        # A rate of almost nothing, so that both see the same weights.
        _fit(model, [gradients], keras.optimizers.SGD(1e-9, **options))
        found.append(_scores(gradients, model, "taylor"))
    _assert_same(*found, rtol=1e-4)


@pytest.mark.parametrize("eager", [True, False])
def test_a_scaled_loss_leaves_no_trace(eager):
    found = []
    for scaled in (False, True):
        model = _network()
        gradients = tsp.Gradients(model, decay=DECAY)
        optimizer = keras.optimizers.SGD(0.05)
        if scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**12)
        _fit(model, [gradients], optimizer, eager=eager or not scaled)
        found.append([_scores(gradients, model, criterion) for criterion in CRITERIA])
    for plain, scaled in zip(*found):
        _assert_same(plain, scaled, rtol=1e-4, atol=1e-8)


def test_half_precision_is_collected_in_float32():
    found = []
    for policy in ("float32", "mixed_float16"):
        model = _network(policy)
        gradients = tsp.Gradients(model, decay=DECAY)
        optimizer = keras.optimizers.SGD(1e-3)
        if policy == "mixed_float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0**8)
        _fit(model, [gradients], optimizer)
        found.append(_scores(gradients, model, "taylor"))
    for name, values in found[0].items():
        np.testing.assert_allclose(found[1][name], values, atol=0.05 * values.max(), err_msg=name)


def test_nothing_collected_and_wrong_models_are_one_clear_error():
    model, other = _network(), _network()
    gradients = tsp.Gradients(model)
    with pytest.raises(ValueError, match="not collected yet. Expected: .*Received: none"):
        gradients.scores("taylor")
    with pytest.raises(ValueError, match="that very model. Received: .*no trainable weight"):
        _fit(other, [gradients])
    _fit(model, [gradients])
    for criterion in CRITERIA:
        with pytest.raises(ValueError, match="another model"):
            tsp.plan(other, criterion=criterion, gradients=gradients, budget=tsp.Budget(macs=0.8))
        with pytest.raises(ValueError, match="Received: None"):
            tsp.plan(model, criterion=criterion, budget=tsp.Budget(macs=0.8))


def test_a_model_without_anything_to_rank_is_refused():
    i = keras.Input((4, 4, 3))
    with pytest.raises(ValueError, match="No channel of 'still' has a gradient.*Received: none"):
        tsp.Gradients(keras.Model(i, layers.ReLU()(i), name="still"))


@pytest.mark.parametrize("decay", [1, 1.5, -0.1])
def test_a_senseless_decay_is_refused(decay):
    with pytest.raises(ValueError, match=f"decay.*Received: {decay}"):
        tsp.Gradients(_network(), decay=decay)


class _Stop(keras.callbacks.Callback):
    """Ends the training in its second epoch, as a kill would."""

    def on_train_batch_end(self, batch, logs=None):
        if self.model.optimizer.iterations >= 4:
            raise RuntimeError("stopped")


def _resumable(directory, *others, seed=0):
    keras.utils.set_random_seed(seed)
    model = toys.compiled()
    gradients = tsp.Gradients(model, decay=DECAY)
    options = dict(epochs=3, checkpoint_dir=directory, verbose=False)
    try:
        tsp.fit(model, toys.Toy(), callbacks=[gradients, *others], **options)
    except RuntimeError:
        return None
    return [list(gradients.scores(criterion).values()) for criterion in CRITERIA]


def test_resumed_training_ends_with_the_same_scores(tmp_path):
    whole = _resumable(tmp_path / "whole")
    assert _resumable(tmp_path / "killed", _Stop()) is None
    # Other random weights at the start: all that counts comes from the checkpoint.
    resumed = _resumable(tmp_path / "killed", seed=1)
    # All epochs are done: nothing trains, all is restored.
    restored = _resumable(tmp_path / "whole", seed=2)
    for ours, again, theirs in zip(resumed, restored, whole, strict=True):
        assert len(ours) == len(theirs) > 0
        for one, same, other in zip(ours, again, theirs, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4)
            np.testing.assert_array_equal(same, other)


CODE = """
import sys
import numpy as np
from tests.methods.gradients_test import compiled

np.savez(sys.argv[1], **compiled())
"""


def compiled():
    """Scores after some steps of a compiled training, those of SIRFP with them as prior too."""
    model = _network()
    rng = np.random.default_rng(5)
    for variable in model.trainable_variables:  # backends draw other weights
        variable.assign(rng.normal(size=variable.shape) / 2)
    options = dict(budget=tsp.Budget(macs=0.5), prior="gradient", every=2, decay=DECAY)
    pruner, gradients = tsp.SIRFP(model, **options), tsp.Gradients(model, decay=DECAY)
    _fit(pruner.model, [pruner, gradients], eager=False)
    return {"sirfp": pruner.scores()} | {
        f"{criterion}/{name}": values
        for criterion in CRITERIA
        for name, values in _scores(gradients, model, criterion).items()
    }


def test_backends_agree_within_compiled_training(tmp_path):
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    run = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "found.npz"],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = dict(np.load(tmp_path / "found.npz"))
    assert len(found) == 6
    _assert_same(compiled(), found, rtol=1e-3)
