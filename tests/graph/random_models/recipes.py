"""Models as plain JSON: a recipe says, step by step, what a functional model is built of.

A recipe is `{"inputs": [[8, 8, 3]], "steps": [...], "outputs": [4], "seed": 0}`. Tensors are
numbered: the inputs first, then what each step answers, in turn. A step is one of

    {"layer": "Conv2D", "with": {"filters": 8, "kernel_size": 3}, "on": [0]}
    {"op": "transpose", "with": {"axes": [0, 2, 1, 3]}, "on": [4]}
    {"op": "multiply", "on": [4], "constant": [8]}        an array of that shape as second operand
    {"op": "einsum", "on": ["bqc,bkc->bqk", 5, 6]}
    {"slice": ["...", [1, null, 2]], "on": [4]}           x[..., 1::2]
    {"model": {another recipe}, "on": [5, 6]}
    {"again": 3, "on": [7]}                               the layer or model of step 3 once more

and `"on": [[4, 5]]` gives the call a list of tensors, `"call": {"training": false}` options. An
input `["int", 6]` is one of six whole numbers. Further keys of a recipe: `"sequential": true`,
`"named": true` for a model whose inputs and outputs are dicts, and `"open": true` for one that
takes images of any size.
"""

import functools
import math

import keras
import numpy as np
from keras import layers, ops

from tfseg_prune.graph.nodes import functional


class Building:
    """A model under construction: the tensors so far, and what each step called.

    Args:
        inputs: Shapes of the inputs, without the batch.
        any_size: Whether images may have any size.
    """

    def __init__(self, inputs, any_size=False):
        if any_size:
            inputs = [[None, None, shape[-1]] for shape in inputs]
        self.inputs = [_input(shape, f"x{i}") for i, shape in enumerate(inputs)]
        self.tensors = list(self.inputs)
        self.called = []

    def add(self, step):
        """Carries out one step; answers the numbers of its tensors."""
        given = keras.tree.map_structure(self._given, step["on"])
        call = self._callable(step)
        self.called.append(call)
        answers = keras.tree.flatten(call(*given, **step.get("call", {})))
        first = len(self.tensors)
        self.tensors += answers
        return list(range(first, len(self.tensors)))

    def _given(self, x):
        return x if isinstance(x, str) else self.tensors[x]

    def _callable(self, step):
        settings = _tuples(step.get("with", {}))
        if "again" in step:
            return self.called[step["again"]]
        if "model" in step:
            return functools.partial(_call_model, build(step["model"]))
        if "slice" in step:
            key = tuple(_key(k) for k in step["slice"])
            return lambda x: x[key]
        if "layer" in step:
            layer = getattr(layers, step["layer"])(**settings)
            return getattr(layers, step["inside"])(layer) if "inside" in step else layer
        op = functools.reduce(getattr, step["op"].split("."), ops)
        if "constant" in step:
            array = constant(step["constant"])
            swapped = step.get("first", False)
            op = functools.partial(op, **settings)
            return lambda x: op(array, x) if swapped else op(x, array)
        return functools.partial(op, **settings)

    def model(self, recipe):
        """The model that answers the tensors that the recipe names as outputs."""
        if recipe.get("sequential"):
            return keras.Sequential([self.inputs[0], *self.called])
        answers = [self.tensors[i] for i in recipe["outputs"]]
        ends = self.inputs, answers
        if recipe.get("named"):
            return keras.Model(*({f"x{i}": x for i, x in enumerate(end)} for end in ends))
        return keras.Model(*(end if len(end) > 1 else end[0] for end in ends))


def build(recipe):
    """The model of a recipe, with weights that depend on `recipe["seed"]` alone."""
    building = Building(recipe["inputs"], recipe.get("open", False))
    for step in recipe["steps"]:
        building.add(step)
    model = building.model(recipe)
    if "seed" in recipe:
        fill(model, recipe["seed"])
    return model


def constant(shape):
    """The same array for the same shape; no element is 0, and no two along an axis are equal."""
    return np.random.default_rng(len(shape)).uniform(0.5, 1.5, shape).astype("float32")


def fill(model, seed):
    """Random weights and statistics that let every channel speak however deep the model is.

    Kernels are scaled by what they sum over, so that values neither vanish nor explode; biases,
    statistics and slopes are far from the values at which they do nothing.
    """
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if "int" in str(variable.dtype):
            continue
        name, shape = variable.path.rsplit("/", 1)[-1], tuple(variable.shape)
        if "kernel" in name:
            value = rng.normal(size=shape) * 1.3 / math.sqrt(_fan_in(variable.path, shape))
        elif name in ("gamma", "scale") or "variance" in name:
            value = rng.uniform(0.5, 1.5, shape)
        elif name == "alpha":
            value = rng.uniform(0.1, 0.6, shape)
        else:
            value = rng.normal(size=shape) * 0.4
        variable.assign(value)
    return model


def _fan_in(path, shape):
    if "depthwise" in path:
        return math.prod(shape[:-2])
    if "transpose" in path:
        return math.prod(shape[:-2]) * shape[-1]
    if len(shape) == 3 and "attention" in path and "output" not in path:
        return shape[0]
    return math.prod(shape[:-1])


def _call_model(model, *xs, **options):
    """Calls a model on tensors in the order of its inputs, whatever structure these have."""
    structure = functional(model)._inputs_struct
    return model(keras.tree.pack_sequence_as(structure, xs), **options)


def _input(shape, name):
    if shape[0] == "int":
        return keras.Input(tuple(shape[1:]), dtype="int32", name=name)
    return keras.Input(tuple(shape), name=name)


def _tuples(value):
    """JSON knows no tuples, and Keras no lists where it asks for sizes."""
    if isinstance(value, list):
        return tuple(_tuples(x) for x in value)
    if isinstance(value, dict):
        return {key: _tuples(x) for key, x in value.items()}
    return value


def _key(key):
    if isinstance(key, list):
        return slice(*key)
    return ... if key == "..." else key
