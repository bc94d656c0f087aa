"""Where a LiteRT file and its Keras model first part: layer by layer, on one image."""

import dataclasses
import re

import keras
import numpy as np

from tfseg_prune.bench.inputs import dequantised, quantised
from tfseg_prune.bench.sandbox import Sandbox
from tfseg_prune.deploy import contents
from tfseg_prune.deploy.quiet import quiet
from tfseg_prune.deploy.tail import Argmax, is_graph
from tfseg_prune.graph.nodes import walk

# Root mean square difference of a tensor from Keras' over the standard deviation of Keras', beyond
# which the two have diverged.
TOLERANCES = {
    "float32": 1e-4,
    "float16": 0.01,
    "dynamic": 0.05,
    "int8": 0.1,
    "int8x16": 0.05,
    "mixed": 0.1,
}
_FADING = 0.05


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first layer whose output in the file is not what Keras computes.

    Args:
        layer: the Keras layer's name; inside a nested model, after the model's name and a slash.
            Of layers that the converter merged into one op, the one with most weights.
        fused_with: the others of these; any of them may be the one.
        tensor: name of the file's tensor that was compared; `None` where the file keeps none.
        difference: root mean square difference over the tensor's standard deviation in Keras.
        tolerance: what the file's precision allows.
        gradual: no layer is beyond the tolerance, and `layer` merely adds most to the difference.
    """

    layer: str
    fused_with: tuple[str, ...]
    tensor: str | None
    difference: float
    tolerance: float
    gradual: bool

    def __str__(self):
        if self.gradual:
            return (
                f"No single layer departs by more than {self.tolerance:.2g} of its deviation: the "
                f"differences gather. {self.layer!r} adds most, up to {self.difference:.2g}."
            )
        fused = f" (one op with {', '.join(map(repr, self.fused_with))})" if self.fused_with else ""
        return (
            f"The two first diverge at layer {self.layer!r}{fused}: by {self.difference:.2g} of "
            f"its deviation, beyond {self.tolerance:.2g}."
        )


@dataclasses.dataclass
class _Node:
    """One call of a Keras operation: its path of names, who feeds it, what it answers."""

    path: tuple[str, ...]
    operation: keras.Operation
    feeds: tuple[int, ...]
    values: list
    error: float = np.inf
    tensor: int | None = None

    @property
    def name(self):
        return "/".join(self.path[1:] or self.path)  # the first is the model itself, see with_tail


def first_divergence(model, path, image):
    """Finds the first layer at which a file and its model differ.

    Both run on one image, the file on TFLite's own kernels with all tensors kept, as XNNPACK hides
    what it computes inside. A layer's output is looked for among the file's tensors of its shape
    that carry its name: the converter names a tensor after the layers fused into it, each perhaps
    with a number behind, so that of several candidates the nearest counts. A layer is in order if
    its output is found within the tolerance, or if a layer behind it is (it was fused away). The
    first one that is not is the answer.

    Args:
        model: the model with the file's tail at its image size, as `with_tail` returns it.
        path: path of the `.tflite` file.
        image: float32 `[1, height, width, channels]`.

    Returns:
        `Divergence`.

    Example:

    >>> first_divergence(model, "broken.tflite", image).layer  # doctest: +SKIP
    'decoder_conv'
    """
    nodes = [n for n in _keras_nodes(model, image) if not isinstance(n.operation, Argmax)]
    inside = contents.load_contents(path)
    tolerance = TOLERANCES[inside.precision]
    for index, value in _file_tensors(path, inside, image):
        for place, node in enumerate(nodes):
            is_answer = index == inside.output and place == len(nodes) - 1
            if is_answer or _may_be(node, inside.names[index]):
                error = min(_difference(value, expected) for expected in node.values)
                if error < node.error:
                    node.error, node.tensor = error, index
    readers = _readers(nodes)
    in_order = _in_order(nodes, readers, tolerance)
    suspects = sorted(readers.keys() - in_order)
    if not suspects:
        chain = [nodes[_steepest(nodes, tolerance)]]
    else:
        chain = _fused(nodes, suspects[0], readers, in_order, inside.names)
    tensor = chain[-1].tensor
    heaviest = max(chain, key=lambda node: _weight_count(node.operation))
    return Divergence(
        layer=heaviest.name,
        fused_with=tuple(node.name for node in chain if node is not heaviest),
        tensor=None if tensor is None else inside.names[tensor],
        difference=float(chain[-1].error),
        tolerance=tolerance,
        gradual=not suspects,
    )


def name_in(scope, model):
    """The layer of `model` that a TensorFlow name such as `"net_1/conv_1/Relu"` speaks of.

    Args:
        scope: the name.
        model: functional `keras.Model`, perhaps of nested ones.

    Returns:
        Name of a layer that the name contains, or the name without the model's if there is none.
    """
    parts = scope.split("/")
    for layer in layers(model):
        if any(_is_called(layer.name, part) for part in parts):
            return layer.name
    return "/".join(part for part in parts if not _is_called(model.name, part))


def layers(model):
    """Yields the layers of `model` and of the models nested in it."""
    for operation in model.operations:
        if is_graph(operation):
            yield from layers(operation)
        elif isinstance(operation, keras.layers.Layer):
            yield operation


def _is_called(name, part):
    """Whether part of a TensorFlow name is `name`, or `name` made unique by a number."""
    return re.fullmatch(re.escape(name) + r"(_\d+)?", part) is not None


def _weight_count(operation):
    return operation.count_params() if isinstance(operation, keras.layers.Layer) else 0


def _may_be(node, tensor):
    """Whether the file's tensor, by its name, may be the output of `node`."""
    # Plain operations leave no name of their own: any tensor of the shape may be it.
    is_layer = isinstance(node.operation, keras.layers.Layer)
    return not is_layer or any(_speaks_of(node, part) for part in tensor.split(";"))


def _speaks_of(node, part):
    """Whether one of the names that a tensor's is joined from is inside the scope of `node`."""
    scopes = iter(part.split("/"))
    return all(any(_is_called(step, scope) for scope in scopes) for step in node.path)


def _keras_nodes(model, image):
    """Every call of an operation in the order of computation, with what it answers to `image`."""
    nodes = []
    image = keras.ops.convert_to_tensor(image, dtype=model.inputs[0].dtype)
    with quiet():  # TensorFlow complains that each grouped convolution is compiled anew
        _walk(model, [image], [()], (), nodes)
    return nodes


def _walk(model, inputs, feeds, path, nodes):
    """Appends the nodes of `model`, and of models in it; returns the feeds of its outputs."""
    graph = keras.Model(model.inputs, model.outputs)
    calls = list(walk(graph))
    symbols = [symbol for call in calls for symbol in call.outputs]
    values = keras.Model(graph.inputs, symbols)(inputs, training=False)
    value = dict(zip(map(id, [*graph.inputs, *symbols]), [*inputs, *values]))
    feed = dict(zip(map(id, graph.inputs), feeds))
    for call in calls:
        came_from = [feed[id(symbol)] for symbol in call.input_tensors]
        operation = call.operation
        if is_graph(operation):
            taken = [value[id(symbol)] for symbol in call.input_tensors]
            answers = _walk(operation, taken, came_from, (*path, operation.name), nodes)
        else:
            node = _Node(
                path=(*path, operation.name),
                operation=operation,
                feeds=tuple(place for places in came_from for place in places),
                values=[keras.ops.convert_to_numpy(value[id(symbol)]) for symbol in call.outputs],
            )
            answers = [(len(nodes),)] * len(call.outputs)
            nodes.append(node)
        feed.update(zip(map(id, call.outputs), answers))
    return [feed[id(symbol)] for symbol in graph.outputs]


def _file_tensors(path, inside, image):
    """Yields `(index, float32 value)` of all that the file computes, in its order."""
    with Sandbox(path, preserve_all_tensors=True, xnnpack=False) as model:
        model.run([quantised(image, model.inputs[0])])
        for op in inside.ops:
            for index, value in model.read(op.outputs).items():
                if index in model.tensors:  # a name that is no UTF-8 makes LiteRT leave it out
                    yield index, dequantised(value, model.tensors[index])


def _difference(value, expected):
    """Root mean square difference over the deviation of `expected`; infinite if shapes differ."""
    if value.ndim == expected.ndim == 4 and value.shape[-1] - expected.shape[-1] in (1, 2, 3):
        value = value[..., : expected.shape[-1]]  # what an argmax reads has spare classes
    if value.shape != expected.shape or not value.size or not np.isfinite(value).all():
        return np.inf
    value, expected = value.astype("float64"), expected.astype("float64")
    # A constant has no deviation: its magnitude serves.
    scale = expected.std() or np.abs(expected).max() or 1.0
    return float(np.sqrt(np.mean(np.square(value - expected))) / scale)


def _readers(nodes):
    """Places of the nodes that the answer depends on, each with the places of its readers."""
    readers = {len(nodes) - 1: []}
    for place in reversed(range(len(nodes))):
        if place in readers:
            for feed in set(nodes[place].feeds):
                readers.setdefault(feed, []).append(place)
    return readers


def _in_order(nodes, readers, tolerance):
    """Places of the nodes that the file computes right, as far as one can see.

    A node whose output is nowhere in the file, or only in a tensor that is another node's output,
    was fused away: one right reader shows that it was right. One with a wrong tensor of its own
    may still be right, as that tensor may be a step inside the layer: then all its readers are
    much nearer to Keras. (A wrong tensor's error does fade behind it, but not at once.)
    """
    claimed = {node.tensor for node in nodes if node.error <= tolerance}
    nearness = {}
    for place in sorted(readers, reverse=True):
        node = nodes[place]
        behind = [nearness[reader] for reader in readers[place]] or [np.inf]
        if node.error <= tolerance:
            nearness[place] = node.error
        elif node.tensor is None or node.tensor in claimed:
            nearness[place] = min(behind)
        else:
            nearness[place] = max(behind) if max(behind) < _FADING * node.error else np.inf
    return {place for place, error in nearness.items() if error <= tolerance}


def _steepest(nodes, tolerance):
    """Place of the node found in the file that adds most to the error of what feeds it."""
    inherited, steepest, most = [], len(nodes) - 1, -np.inf
    for place, node in enumerate(nodes):
        before = max((inherited[feed] for feed in node.feeds), default=0.0)
        found = node.error <= tolerance
        if found and node.error - before > most:
            steepest, most = place, node.error - before
        inherited.append(node.error if found else before)
    return steepest


def _fused(nodes, first, readers, in_order, names):
    """The wrong node `first` and those behind it that the converter merged with it into one op.

    The op's tensor is named after all of them, so that each has a part of the name to itself.
    """
    chain, place, tensor, parts = [], first, None, []
    while place not in in_order:
        node = nodes[place]
        is_layer = isinstance(node.operation, keras.layers.Layer)
        if tensor is not None:
            parts = [part for part in parts if not _speaks_of(chain[-1], part)]
            if not is_layer or not any(_speaks_of(node, part) for part in parts):
                break
        chain.append(node)
        if tensor is None and node.tensor is not None:
            tensor, parts = node.tensor, names[node.tensor].split(";")
        if not is_layer or len(readers[place]) != 1:
            break
        place = readers[place][0]
    return chain
