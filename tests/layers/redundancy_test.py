"""An observer lets features pass as they are, and remembers how alike their channels were."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import layers, ops

from tfseg_prune.layers.redundancy import RedundancyObserver, edge_strength, redundancy


def _batches(count, shape=(2, 6, 5, 4), seed=0):
    return np.random.default_rng(seed).normal(size=(count, *shape)).astype("float32")


def _watched(batches, **options):
    """An observer that has trained on these batches."""
    observer = RedundancyObserver(**options)
    for features in batches:
        observer(features, training=True)
    return observer


def _alike(features, metric="cosine", pooled=False):
    """The redundancy of one batch in float64."""
    maps = np.asarray(features, "float64").reshape(len(features), -1, features.shape[-1])
    if pooled:
        maps = maps.mean(axis=1)[None]
    if metric == "correlation":
        maps = maps - maps.mean(axis=1, keepdims=True)
    order = 1 if metric == "official" else 2
    maps = maps / (np.linalg.norm(maps, order, axis=1, keepdims=True) + 1e-5)
    return np.mean([image.T @ image for image in maps], axis=0)


def _average(values, decay):
    """What an exponential average that starts with the first value weighs them with."""
    weights = decay ** np.arange(len(values))[::-1]
    return np.tensordot(weights / weights.sum(), np.asarray(values, "float64"), 1)


@pytest.mark.parametrize("decay", [0.0, 0.6, 0.999])
@pytest.mark.parametrize(
    "metric, pooled",
    [("cosine", False), ("correlation", False), ("official", False), ("cosine", 1)],
)
def test_averages_over_training_steps(metric, pooled, decay):
    batches = _batches(5)
    observer = _watched(batches, metric=metric, pooled=pooled, edges=True, decay=decay)
    found, edges = observer.averages()
    expected = _average([_alike(x, metric, pooled) for x in batches], decay)
    # 1 - 0.999^5 has lost three digits.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    strengths = [ops.convert_to_numpy(edge_strength(x)) for x in batches]
    np.testing.assert_allclose(edges, _average(strengths, decay), rtol=1e-4)


def test_without_edges_there_are_none():
    observer = _watched(_batches(1))
    assert observer.averages()[1] is None
    assert [v.name for v in observer.weights] == ["redundancy", "seen", "steps"]
    assert not observer.trainable_weights


def test_only_every_so_many_steps_are_observed():
    batches = _batches(8)
    observer = _watched(batches, every=3, decay=0.9)
    again = _watched(batches[[0, 3, 6]], decay=0.9)
    assert [int(observer.seen), int(observer.steps)] == [3, 8]
    np.testing.assert_allclose(observer.averages()[0], again.averages()[0], rtol=1e-6)


@pytest.mark.parametrize("training", [False, None])
def test_inference_leaves_no_trace(training):
    (features,) = _batches(1)
    observer = RedundancyObserver(edges=True, name="watch")
    np.testing.assert_array_equal(observer(features, training=training), features)
    assert all(not np.any(ops.convert_to_numpy(v)) for v in observer.weights)
    with pytest.raises(ValueError, match="'watch' has seen nothing.*Expected: .*Received: none"):
        observer.averages()


@pytest.mark.parametrize(
    "height, width, pixels",
    [(8, 8, 16), (9, 11, 10), (5, 5, 2), (1, 60, 10), (33, 7, 60), (6, 7, 1), (6, 7, 42)],
)
def test_at_most_so_many_pixels_are_looked_at(height, width, pixels):
    """Channel p is lit at pixel p alone, so it is like itself only if that pixel is looked at."""
    features = np.eye(height * width, dtype="float32").reshape(1, height, width, -1)
    looked, edges = _watched([features], pixels=pixels, edges=True).averages()
    seen = np.diag(looked).round(3).reshape(height, width)
    assert set(np.unique(seen)) <= {0, 1}
    assert pixels / 10 < seen.sum() <= pixels
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    assert seen.sum() == len(rows) * len(columns), "a grid"
    assert len({*np.diff(rows), *np.diff(columns)}) <= 1, "a regular one"
    # Those are of all pixels.
    np.testing.assert_allclose(edges, edge_strength(features), rtol=1e-3)


def test_a_model_with_it_saves_and_loads_its_state(tmp_path):
    i = keras.Input((6, 5, 4))
    options = dict(metric="official", edges=True, every=2, pixels=20, decay=0.9, name="watch")
    model = keras.Model(i, RedundancyObserver(**options)(i))
    for features in _batches(5):
        model(features, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    ours, theirs = model.get_layer("watch"), loaded.get_layer("watch")
    assert theirs.get_config() == ours.get_config()
    assert ours.get_config().items() >= options.items()
    assert [int(theirs.seen), int(theirs.steps)] == [3, 5]
    # Both go on alike: the sixth step isn't due, the seventh is.
    for features in _batches(2, seed=1):
        model(features, training=True)
        loaded(features, training=True)
    for one, other in zip(ours.averages(), theirs.averages()):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_keep_their_precision_and_the_state_is_float32(policy, dtype):
    features = _batches(1)[0].astype(dtype)
    observer = RedundancyObserver(edges=True, decay=0.999, dtype=policy)
    for _ in range(40):
        answer = observer(features, training=True)
    assert keras.backend.standardize_dtype(answer.dtype) == dtype
    np.testing.assert_array_equal(ops.convert_to_numpy(answer), features)
    assert {v.dtype for v in observer.weights} == {"float32", "int32"}
    # Half precision would have stopped to add thousandths long before.
    found, edges = observer.averages()
    exact = features.astype("float32")
    np.testing.assert_allclose(found, redundancy(exact), atol=1e-5)
    np.testing.assert_allclose(edges, edge_strength(exact), rtol=1e-4)


def test_the_gradient_passes_as_if_it_weren_t_there():
    i = keras.Input((6, 5, 4))
    conv = layers.Conv2D(3, 3)
    plain = keras.Model(i, conv(i))
    watched = keras.Model(i, RedundancyObserver(edges=True)(conv(i)))
    (features,), targets = _batches(1), _batches(1, (2, 4, 3, 3))[0]
    start, found = conv.get_weights(), []
    for model in (plain, watched):
        conv.set_weights(start)
        model.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        model.train_on_batch(features, targets)
        found.append(conv.get_weights())
    for one, other, old in zip(*found, start):
        np.testing.assert_array_equal(one, other)
        assert (one != old).any()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"metric": "l3"}, "Expected: one of cosine, correlation, official. Received: 'l3'"),
        ({"every": 0}, "Invalid `every`.*Received: every=0"),
        ({"pixels": 0}, "Invalid `pixels`.*Received: pixels=0"),
        ({"decay": 1}, "Invalid `decay`.*Received: decay=1"),
        ({"decay": -0.1}, "Invalid `decay`.*Received: decay=-0.1"),
    ],
)
def test_senseless_options_are_one_clear_error(options, message):
    with pytest.raises(ValueError, match=message):
        RedundancyObserver(**options)


CODE = """
import sys
import numpy as np
from tests.layers.redundancy_test import state

np.savez(sys.argv[1], *state())
"""


def state():
    """All that an observer holds after some compiled steps, as arrays."""
    i = keras.Input((6, 5, 4))
    options = dict(edges=True, every=2, pixels=20, decay=0.9)
    model = keras.Model(i, RedundancyObserver(name="watch", **options)(i))
    model.compile("sgd", "mse")
    batches = _batches(6).reshape(12, 6, 5, 4)
    model.fit(batches, batches, batch_size=2, shuffle=False, verbose=0)
    return [ops.convert_to_numpy(v) for v in model.get_layer("watch").weights]


def test_backends_agree_within_compiled_training(tmp_path):
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    run = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "found.npz"],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    expected = state()
    assert [int(value) for value in expected[2:]] == [3, 6]
    for name, value in zip(found.files, expected, strict=True):
        np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
