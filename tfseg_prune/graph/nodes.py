"""The graph of operations inside a functional model, read from the notes that Keras keeps."""

import keras


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
            f" {type(model).__module__}.{type(model).__name__}, a subclassed model. Remedy: call"
            " it on a `keras.Input` of its parts inside a functional model."
        )
    return graph


def is_nested(operation):
    return isinstance(operation, keras.Model) and (
        isinstance(operation, keras.Sequential) or hasattr(operation, "_nodes_by_depth")
    )
