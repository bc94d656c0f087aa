"""A rewired model is the old one, weights and all, but for what was asked to be different."""

import keras
import numpy as np
import pytest
from keras import layers

from tests.graph.nets import NETS, image, scramble
from tfseg_prune.graph import proof
from tfseg_prune.graph.nodes import rewire


def as_it_was(operation, args, kwargs):
    return operation(*args, **kwargs)


def answers(model, batch, **options):
    flat = keras.tree.flatten(model(batch, **options))
    return [keras.ops.convert_to_numpy(answer) for answer in flat]


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs):
        np.testing.assert_array_equal(one, other)


NAMES = [
    "chain",
    "residual",
    "concatenation_with_batch_normalization_after_it",
    "squeeze_and_excite",
    "spatial_gate",
    "shared_layer",
    "shared_reader",
    "nested_models",
    "nested_model_called_twice",
    "nested_sequential",
    "sequential",
    "multi_head_attention",
]


@pytest.mark.parametrize("name", NAMES)
def test_shares_weights_and_answers_the_same(name):
    model = scramble(NETS[name]())
    before, seen = model.to_json(), []

    def call(operation, args, kwargs):
        seen.append(operation)
        return operation(*args, **kwargs)

    rewired = rewire(model, call)
    assert rewired is not model and rewired.name == model.name
    assert {id(v) for v in rewired.variables} == {id(v) for v in model.variables}
    assert len(rewired.variables) == len(model.variables)
    called = [layer for layer in seen if isinstance(layer, layers.Layer)]
    assert {id(v) for layer in called for v in layer.weights} == {id(v) for v in model.weights}
    assert not any(isinstance(operation, keras.Model) for operation in seen), "it walks into them"
    assert model.to_json() == before
    batch = proof.random_batch(model, 0)
    assert_same(answers(rewired, batch), answers(model, batch))
    # Learning goes both ways.
    scramble(model, seed=1)
    assert_same(answers(rewired, batch), answers(model, batch))


def test_what_is_called_instead_is_what_counts():
    """Also inside a nested model, at each of its calls."""
    inner_in = image(4)
    inner = keras.Model(inner_in, layers.Conv2D(4, 1, name="inner_conv")(inner_in))
    i = image(4)
    model = scramble(keras.Model(i, inner(layers.ReLU()(inner(i)))))
    called = []

    def call(operation, args, kwargs):
        called.append(operation.name)
        return -operation(*args, **kwargs)

    rewired = rewire(model, call)
    assert called.count("inner_conv") == 1, "both calls are of one new model"
    x = np.random.default_rng(0).normal(size=(1, 8, 8, 4)).astype("float32")
    conv = inner.get_layer("inner_conv")
    expected = -conv(-np.maximum(-np.array(conv(x)), 0))
    np.testing.assert_allclose(rewired(x), expected, rtol=1e-6)


def test_layers_put_in_between_belong_to_the_new_model_alone():
    model = scramble(NETS["residual"]())
    count = len(model.layers)

    def call(operation, args, kwargs):
        answer = operation(*args, **kwargs)
        if isinstance(operation, layers.BatchNormalization):
            return layers.BatchNormalization(name=f"{operation.name}_again")(answer)
        return answer

    rewired = rewire(model, call)
    added = [layer for layer in rewired.layers if layer.name.endswith("_again")]
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    assert len(added) == len(norms) and len(rewired.layers) == count + len(norms)
    assert len(model.layers) == count
    assert len(rewired.weights) == len(model.weights) + 4 * len(norms)


def test_structures_of_inputs_and_outputs_stay():
    i, j = keras.Input((8, 8, 3), name="left"), keras.Input((8, 8, 2), name="right")
    a, b = layers.Conv2D(4, 1)(i), layers.Conv2D(4, 1)(j)
    model = keras.Model({"left": i, "right": j}, {"sum": a + b, "pair": [a, b]})
    rewired = rewire(model, as_it_was)
    rng = np.random.default_rng(0)
    batch = {"left": rng.normal(size=(2, 8, 8, 3)), "right": rng.normal(size=(2, 8, 8, 2))}
    found, expected = rewired(batch), model(batch)
    keras.tree.assert_same_structure(found, expected)
    assert_same(keras.tree.flatten(found), keras.tree.flatten(expected))


def test_shapes_and_types_of_inputs_stay():
    i = keras.Input(batch_shape=(3, None, 5), dtype="float16", name="words")
    model = keras.Model(i, layers.Dense(2)(i))
    (given,) = rewire(model, as_it_was).inputs
    assert (given.shape, given.dtype, given.name) == ((3, None, 5), "float16", "words")


@pytest.mark.parametrize("training", [None, False, True])
def test_training_mode_reaches_the_same_layers(training):
    """With an argument baked in at the call of a layer, and at that of a nested model."""
    inner_in = image()
    inner = keras.Model(inner_in, layers.Dropout(0.5, seed=1)(inner_in))
    i = image()
    x = layers.Dropout(0.5, seed=2)(i, training=True)
    model = keras.Model(i, [x, inner(i, training=True), layers.Dropout(0.5, seed=3)(i)])
    rewired = rewire(model, as_it_was)
    ones = np.ones((1, 8, 8, 3))
    options = {} if training is None else {"training": training}
    dropped = [[(y == 0).any() for y in answers(m, ones, **options)] for m in (model, rewired)]
    assert dropped[0] == dropped[1]
    assert any(dropped[0]) == (training is not False)


def test_a_subclassed_model_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    with pytest.raises(ValueError, match="functional.*Received: .*Own.*Remedy"):
        rewire(Own(), as_it_was)
