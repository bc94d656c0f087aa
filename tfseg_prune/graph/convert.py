"""Layers that are made of layers, as nested functional models, so that their channels can be seen.

A layer that calls other layers in its `call` hides them from the graph that Keras keeps. Where it
has no weights of its own, running `call` on symbolic tensors says what it does: the answer is a
functional model that shares the layers, and so the weights, with the original.
"""

import inspect
import re
import warnings

import keras
import numpy as np
from keras import ops

from tfseg_prune.graph import proof
from tfseg_prune.graph.nodes import functional, is_nested, is_tensor, tensors_in, walk
from tfseg_prune.graph.rules import find_rule

# Batch of the symbolic run: shapes then hold no unknown, whatever `call` computes from them.
_BATCH = 17
_NAMED = 8  # a warning names at most so many layers


def to_functional(model, inputs=None):
    """The same model with layers that are made of layers as nested functional models.

    ```python
    segmenter = keras_hub.models.SegFormerImageSegmenter(backbone, num_classes=19)
    model = tsp.to_functional(segmenter)          # its attention blocks can now be pruned
    model = tsp.to_functional(MyUNet(), keras.Input((256, 256, 3)))   # a subclassed model
    model = tsp.to_functional(MyRGBD(), [image, depth])               # `call(self, image, depth)`
    ```

    Layers that have a rule, weights of their own, or a `call` that symbolic tensors can't run stay
    as they are, and a warning says why: `ChannelGraph` keeps what they touch whole. Every layer
    that is replaced is compared on random input first. What its `call` does in training only, other
    than through the layers that it calls, is lost.

    Args:
        model: `keras.Model`. It isn't changed, and shares its weights with the answer.
        inputs: `keras.Input`, or a list or dict of them, for a subclassed model. Where its `call`
            demands several arguments a list holds them, in order; a dict whose keys are names of
            its arguments holds them by name.

    Returns:
        A functional `keras.Model`; `model` itself where it hides nothing.

    Raises:
        ValueError: If a subclassed model comes without inputs or can't be converted.
    """
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(f"That is no model. Expected: a `keras.Model`. Received: {model!r}")
    conversion = _Conversion()
    if is_nested(model):
        converted = conversion.convert(model)
    else:
        converted = _of_subclassed(model, inputs, conversion)
    if conversion.reasons:
        told = [f"'{name}' ({why})" for name, why in conversion.reasons.items()]
        more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
        warnings.warn(
            f"These layers stay as they are: {', '.join(told[:_NAMED])}{more}. Expected"
            " of a layer that can be opened: a `call` that only calls layers and `keras.ops`, and"
            " no weights but those of its layers. Remedy: teach others with"
            " `tfseg_prune.register_rule`.",
            stacklevel=2,
        )
    return converted


def _of_subclassed(model, inputs, conversion):
    """The functional model of a subclassed one; arguments and errors as of `to_functional`."""
    if inputs is None:
        raise ValueError(
            f"The subclassed model '{model.name}' has no graph. Expected: its inputs, from which"
            " one can be made. Received: none. Remedy: `to_functional(model, keras.Input((height,"
            " width, 3)))`"
        )
    flat = keras.tree.flatten(inputs)
    if not all(isinstance(x, keras.KerasTensor) for x in flat):
        raise ValueError(
            f"The inputs of '{model.name}' make no sense. Expected: `keras.Input`, or a list or"
            f" dict of them. Received: {inputs!r}. Remedy: `keras.Input((height, width, 3))`"
        )
    args, kwargs = _arguments(model, inputs)
    try:
        model(*args, **kwargs)  # builds its layers
        opened = conversion.opened(model, args, kwargs)
        why = conversion.reasons.get(model.name)
    except Exception as error:  # whatever the `call` of somebody's model may raise
        opened, why = None, _in_short(error)
    if opened is None:
        is_open = any(None in x.shape[1:] for x in flat)
        raise ValueError(
            f"The subclassed model '{model.name}' can't be made functional. Expected: a `call` that"
            " takes these inputs, and only calls layers and `keras.ops`, and no weights but those"
            f" of its layers. Received: {why}"
            + (". Remedy: inputs with sizes instead of None" if is_open else "")
        )
    return opened


def _arguments(model, inputs):
    """(args, kwargs) by which a model is called on its inputs."""
    parameters = [
        p
        for p in inspect.signature(model.call).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if isinstance(inputs, dict) and set(inputs) <= {p.name for p in parameters}:
        return (), inputs
    demanded = [p for p in parameters if p.default is p.empty]
    if isinstance(inputs, (list, tuple)) and len(demanded) > 1:
        return tuple(inputs), {}
    return (inputs,), {}


def _in_short(error):
    # Keras wraps what a `call` raised, in bold, once for every layer around it.
    plain = re.sub("\x1b\\[[0-9]*m", "", str(error))
    said = re.split(r"Exception encountered when calling .*|Error encountered:", plain)[-1]
    first = said.strip().split("\n")[0][:200]
    return f"{type(error).__name__}: {first}"


class _Conversion:
    """Opens layers, each of them once.

    Attributes:
        reasons: {layer name: why it stays as it is}.
    """

    def __init__(self):
        self.reasons = {}
        self._opened = {}
        self._converted = {}

    def convert(self, model):
        """`model` with its layers opened; itself where that changes nothing."""
        if id(model) not in self._converted:
            hides = any(self._replacement(node) is not None for node in walk(model))
            self._converted[id(model)] = self._rebuilt(model, batch=None) if hides else model
        return self._converted[id(model)]

    def _replacement(self, node):
        """The functional model to be called in place of a node's operation, or `None`."""
        operation = node.operation
        if is_nested(operation):
            converted = self.convert(operation)
            return None if converted is operation else converted
        if not isinstance(operation, keras.layers.Layer) or find_rule(operation) is not None:
            return None
        return self.opened(operation, node.arguments.args, node.arguments.kwargs)

    def opened(self, layer, args, kwargs):
        """A functional model of the call's tensors that does what the layer does, or `None`."""
        given = tensors_in((args, kwargs))
        key = id(layer), tuple((tuple(x.shape[1:]), x.dtype) for x in given)
        if key not in self._opened:
            try:
                self._opened[key] = self._open(layer, args, kwargs, given)
            except Exception as error:  # whatever the `call` of somebody's layer may raise
                self.reasons[layer.name] = _in_short(error)
                self._opened[key] = None
        return self._opened[key]

    def _open(self, layer, args, kwargs, given):
        own = layer._trainable_variables + layer._non_trainable_variables
        if own:
            raise ValueError(f"it has weights of its own, such as '{own[0].path}'")
        fixed = [_input_like(x, _BATCH) for x in given]
        args_now, kwargs_now = _replaced(args, kwargs, fixed)
        alone = len(args) == 1 and not tensors_in(kwargs)
        answers = layer.call(*args_now, **kwargs_now)
        structure = args_now[0] if alone else kwargs_now if not args else fixed
        traced = keras.Model(structure, answers, name=layer.name)
        opened = self._rebuilt(traced, batch=_BATCH)

        def original(batch, rounded=None):  # one layer, into which no rounding can be put
            tensors = [ops.convert_to_tensor(x) for x in keras.tree.flatten(batch)]
            args_now, kwargs_now = _replaced(args, kwargs, tensors)
            return _arrays(layer(*args_now, **{**kwargs_now, "training": False}))

        batch = proof.random_batch(opened, seed=0)
        names = [layer.name] * len(opened.outputs)
        tolerance = proof.scaled_tolerance(opened, proof.TOLERANCE)
        proof.compare(names, original, _arrays(opened(batch, training=False)), batch, tolerance)
        return opened

    def _rebuilt(self, model, batch):
        """The model with layers opened, and with an open batch size where its own is `batch`."""
        graph = functional(model)
        inputs = [_input_like(t, None if batch else t.shape[0]) for t in graph.inputs]
        tensors = {id(t): x for t, x in zip(graph.inputs, inputs)}
        for node in walk(model):
            args, kwargs = node.arguments.fill_in(tensors)
            if kwargs.get("training") is True:
                # Keras notes down the default of layers for augmentation, Resizing among them,
                # which would put the layers behind them in training, too.
                kwargs = {**kwargs, "training": False}
            replacement = self._replacement(node)
            if replacement is not None:
                structure = functional(replacement)._inputs_struct
                flat = tensors_in((args, kwargs))
                answers = replacement(keras.tree.pack_sequence_as(structure, flat))
            elif batch and hasattr(node.operation, "newshape"):
                answers = ops.reshape(args[0], (-1, *node.outputs[0].shape[1:]))
            else:
                answers = node.operation(*args, **kwargs)
            for old, new in zip(node.outputs, keras.tree.flatten(answers)):
                tensors[id(old)] = new
        structure = [
            keras.tree.map_structure(lambda t: tensors[id(t)], struct)
            for struct in (graph._inputs_struct, graph._outputs_struct)
        ]
        return keras.Model(*structure, name=model.name)


def _replaced(args, kwargs, tensors):
    """A call's arguments with other tensors in place of its own."""
    pending = iter(tensors)
    return keras.tree.map_structure(lambda x: next(pending) if is_tensor(x) else x, (args, kwargs))


def _arrays(answers):
    return [np.asarray(ops.convert_to_numpy(x)) for x in keras.tree.flatten(answers)]


def _input_like(tensor, batch):
    creator = tensor._keras_history.operation
    name = creator.name if isinstance(creator, keras.layers.InputLayer) else None
    return keras.Input(batch_shape=(batch, *tensor.shape[1:]), dtype=tensor.dtype, name=name)
