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
