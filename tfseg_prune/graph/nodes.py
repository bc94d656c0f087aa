"""The graph of operations inside a functional model, read from the notes that Keras keeps."""

import collections

import keras
from keras import ops

from tfseg_prune.layers.settings import config_of


def walk(model):
    """Yields the nodes of a functional model in topological order, its inputs left out.

    Raises:
        ValueError: If the model is neither functional nor sequential.
    """
    nodes_by_depth = functional(model)._nodes_by_depth
    for depth in sorted(nodes_by_depth, reverse=True):
        for node in nodes_by_depth[depth]:
            if not node.is_input:
                yield node


def functional(model):
    """The functional graph of `model`.

    Raises:
        ValueError: If there is none (a subclassed model, or a Sequential one without input).
    """
    graph = model
    if isinstance(model, keras.Sequential):
        if not model.built:
            raise ValueError(
                f"The Sequential model '{model.name}' has no input shape yet, so it has no graph."
                " Expected: a built model. Remedy: start it with `keras.Input(shape)` or call"
                " `model.build(input_shape)`."
            )
        graph = model._functional
    if graph is None or not hasattr(graph, "_nodes_by_depth"):
        raise ValueError(
            "Only functional Keras models have a graph of channels to prune."
            " Expected: a model built as `keras.Model(inputs, outputs)` or `keras.Sequential`."
            f" Received: '{getattr(model, 'name', model)}' of type"
            f" {type(model).__module__}.{type(model).__name__}, a subclassed model. Remedy:"
            " `tfseg_prune.to_functional(model, keras.Input(shape))`."
        )
    return graph


def is_nested(operation):
    return isinstance(operation, keras.Model) and (
        isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth")
    )


def is_tensor(x):
    return isinstance(x, keras.KerasTensor) or ops.is_tensor(x)


def tensors_in(structure):
    return [x for x in keras.tree.flatten(structure) if is_tensor(x)]


def interpret(model, batch, call, wanted):
    """Values of the tensors `wanted` of a model, its operations being called by `call`.

    Args:
        model: Functional model.
        batch: Its input, in the model's structure.
        call: Function `(operation, node, args, kwargs) -> answers`; nested models are walked into.
        wanted: Keras tensors of the model.
    """
    graph = functional(model)
    given = [ops.convert_to_tensor(x) for x in keras.tree.flatten(batch)]
    values = {id(t): x for t, x in zip(graph.inputs, given)}
    nodes = list(walk(model))
    # A value is dropped after its last use: those of a large network wouldn't fit.
    left = collections.Counter(id(t) for node in nodes for t in node.arguments.keras_tensors)
    left.update(id(t) for t in wanted)
    for node in nodes:
        args, kwargs = node.arguments.fill_in(values)
        if is_nested(node.operation):
            inner = functional(node.operation)
            inside = tensors_in((args, kwargs))
            answers = interpret(node.operation, inside, call, inner.outputs)
        else:
            if isinstance(node.operation, keras.layers.Layer):
                # Layers for augmentation, and those that hold one, train by default.
                kwargs = {**kwargs, "training": False}
            answers = keras.tree.flatten(call(node.operation, node, args, kwargs))
        values.update({id(t): value for t, value in zip(node.outputs, answers)})
        for tensor in node.arguments.keras_tensors:
            left[id(tensor)] -= 1
            if not left[id(tensor)]:
                values.pop(id(tensor), None)
    return [values[id(t)] for t in wanted]


def again(operation, changes=None, *, blank=False):
    """A new operation of the same config, but for the changes.

    Args:
        operation: A Keras operation.
        changes: Entries of its config to replace.
        blank: Whether weights start as zeros, since the caller sets them: drawing random ones takes
            longer than all other surgery. `finish` gives the layer its own initializers back.
    """
    if isinstance(operation, keras.layers.Lambda):
        # Its function needn't be serialisable to be used again.
        return keras.layers.Lambda(
            operation.function,
            output_shape=operation._output_shape,
            arguments=operation.arguments,
            name=operation.name,
        )
    try:
        config = config_of(operation)
    except NotImplementedError:
        if isinstance(operation, keras.layers.Layer):
            raise
        return operation  # raw operations have no weights, so this one serves twice
    for key in config:
        if blank and key.endswith("_initializer") and hasattr(operation, key):
            config[key] = "zeros"
    try:
        return type(operation).from_config({**config, **(changes or {})})
    except Exception as error:
        first = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"The layer '{operation.name}' ({type(operation).__name__}) can't be built anew from"
            " its config. Expected: a `get_config` that holds every argument of `__init__`."
            f" Received: {type(error).__name__}: {first}. Remedy: where it is made of layers,"
            " `tfseg_prune.to_functional(model)`."
        ) from error


def finish(operation, new):
    """Gives a layer that was built `blank` the initializers of the original."""
    for key, value in vars(operation).items():
        if key.endswith("_initializer") and hasattr(new, key):
            setattr(new, key, value)
    if hasattr(new, "finalize_state"):
        new.finalize_state()  # Normalization computes with copies of its statistics


def rewire(model, call, shapes=None):
    """A functional model that shares the layers of another and calls them in another way.

    Args:
        model: Functional model. It isn't changed.
        call: Function `(operation, args, kwargs) -> answers` in place of
            `operation(*args, **kwargs)`; nested models are walked into.
        shapes: Shapes of its inputs, for a model that takes others, too; models in it that are
            called once are fixed as well. Defaults to `None`, those of `model`.

    Returns:
        A `keras.Model` with the inputs and the outputs of `model`.
    """
    return _rewire(model, call, shapes, {})


def _rewire(model, call, shapes, done):
    if id(model) in done:
        return done[id(model)]
    graph = functional(model)
    own = shapes or [t.shape for t in graph.inputs]
    inputs = [
        keras.Input(batch_shape=shape, dtype=t.dtype, name=t._keras_history.operation.name)
        for t, shape in zip(graph.inputs, own)
    ]
    tensors = {id(t): new for t, new in zip(graph.inputs, inputs)}
    for node in walk(model):
        args, kwargs = node.arguments.fill_in(tensors)
        if is_nested(node.operation):
            taken = tensors_in((args, kwargs))
            once = sum(other.operation is node.operation for other in walk(model)) == 1
            inside = [x.shape for x in taken] if shapes and once else None
            inner = _rewire(node.operation, call, inside, done)
            structure = functional(inner)._inputs_struct
            given = keras.tree.pack_sequence_as(structure, taken)
            answers = inner(given, training=kwargs.get("training"))
        else:
            answers = call(node.operation, args, kwargs)
        for old, new in zip(node.outputs, keras.tree.flatten(answers)):
            tensors[id(old)] = new
    structure = [
        keras.tree.map_structure(lambda t: tensors[id(t)], struct)
        for struct in (graph._inputs_struct, graph._outputs_struct)
    ]
    done[id(model)] = keras.Model(*structure, name=model.name)
    return done[id(model)]
