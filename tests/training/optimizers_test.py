import keras
import numpy as np
import pytest

from tests.training import toys
from tfseg_prune.training import optimizer


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_decay_spares_biases_and_normalisation(name):
    model = toys.network()
    for variable in model.trainable_variables:
        variable.assign(np.ones(variable.shape))
    built = optimizer(name, learning_rate=0.5, steps=10, weight_decay=0.1)
    built.apply([np.zeros(v.shape, "float32") for v in model.trainable_variables],
                model.trainable_variables)
    for variable in model.trainable_variables:
        expected = 0.95 if variable.name == "kernel" else 1.0
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, rtol=1e-6)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_adam_is_that_of_torch_with_its_penalty_on_all_weights(clip):
    rng = np.random.default_rng(0)
    kernel, bias = rng.normal(size=(3, 2)), rng.normal(size=2)
    variables = [keras.Variable(kernel, name="kernel"), keras.Variable(bias, name="bias")]
    built = optimizer("adam", learning_rate=0.1, steps=8, weight_decay=0.3, global_clipnorm=clip)
    built = type(built).from_config(built.get_config())
    expected = np.concatenate([kernel.reshape(-1), bias])
    m, v = np.zeros((2, 8))
    for step in range(1, 6):
        gradient = rng.normal(size=8)
        built.apply([gradient[:6].reshape(3, 2).astype("float32"), gradient[6:].astype("float32")],
                    variables)  # fmt: skip
        gradient /= max(1.0, np.linalg.norm(gradient) / (clip or np.inf))
        gradient += 0.3 * expected
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        rate = 0.1 * (1 - (step - 1) / 8) ** 0.9
        root = np.sqrt(v / (1 - 0.999**step))
        expected = expected - rate * m / (1 - 0.9**step) / (root + 1e-8)
    found = [keras.ops.convert_to_numpy(variable).reshape(-1) for variable in variables]
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-4)


def test_poly_schedule():
    built = optimizer("sgd", learning_rate=0.2, steps=10)
    variable = keras.Variable(np.zeros(1))
    rates = []
    for _ in range(11):
        rates.append(float(built.learning_rate))
        built.apply([np.zeros(1, "float32")], [variable])
    np.testing.assert_allclose(rates, 0.2 * (1 - np.arange(11) / 10) ** 0.9, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    "change", [{"name": "adagrad"}, {"learning_rate": 0.0}, {"steps": 0}, {"weight_decay": -1.0}]
)
def test_bad_arguments_are_refused(change):
    with pytest.raises(ValueError, match="Expected"):
        optimizer(**{"name": "sgd", "learning_rate": 0.1, "steps": 5, **change})
