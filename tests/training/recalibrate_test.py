import keras
import numpy as np
import pytest

from tests.training import toys
from tfseg_prune.training import recalibrate


def _norm(model):
    return next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))


def test_statistics_become_the_mean_of_the_batches():
    model, batches = toys.network(dropout=0.5), toys.Toy(num_batches=3)
    before = [keras.ops.convert_to_numpy(v).copy() for v in model.variables]
    assert recalibrate(model, batches, steps=2) == 1
    norm = _norm(model)
    features = keras.Model(model.inputs, norm.input)
    batch = [features.predict_on_batch(batches[i][0]).astype("float64") for i in range(2)]
    mean = np.mean([x.mean((0, 1, 2)) for x in batch], axis=0)
    variance = np.mean([x.var((0, 1, 2)) for x in batch], axis=0)
    np.testing.assert_allclose(norm.moving_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(norm.moving_variance, variance, rtol=1e-4)
    assert norm.momentum == 0.9 and model.layers[-2].rate == 0.5
    changed = (norm.moving_mean, norm.moving_variance)
    for variable, value in zip(model.variables, before):
        if not any(variable is v for v in changed):
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), value)


def test_heals_statistics_that_diverged():
    model = toys.network()
    _norm(model).moving_mean.assign(np.full(8, np.nan))
    recalibrate(model, toys.Toy())
    assert np.isfinite(keras.ops.convert_to_numpy(_norm(model).moving_mean)).all()


def test_second_normalisation_sees_the_first_one_recalibrated():
    inputs = keras.Input((4, 4, 3))
    inner = keras.Sequential([keras.Input((4, 4, 3)), keras.layers.BatchNormalization()])
    model = keras.Model(inputs, keras.layers.BatchNormalization()(inner(inputs)))
    images = np.random.default_rng(0).normal(5, 3, (8, 4, 4, 3)).astype("float32")
    assert recalibrate(model, [(images, None)]) == 2
    outputs = model.predict_on_batch(images)
    np.testing.assert_allclose(outputs.mean((0, 1, 2)), 0.0, atol=1e-5)
    np.testing.assert_allclose(outputs.std((0, 1, 2)), 1.0, atol=2e-3)


def test_frozen_layers_stay_and_failure_restores():
    model = toys.network()
    before = keras.ops.convert_to_numpy(_norm(model).moving_variance).copy()
    with pytest.raises(ValueError, match="No batch"):
        recalibrate(model, [])
    np.testing.assert_array_equal(_norm(model).moving_variance, before)
    assert _norm(model).momentum == 0.9
    with pytest.raises(ValueError, match="steps"):
        recalibrate(model, toys.Toy(), steps=0)
    _norm(model).trainable = False
    assert recalibrate(model, toys.Toy()) == 0
