"""Where a LiteRT file and its Keras model first part: layer by layer, on one image."""

import dataclasses
import re

import keras
import numpy as np

from tfseg_prune.bench import runtime
from tfseg_prune.deploy import contents
from tfseg_prune.deploy.quiet import quiet
from tfseg_prune.deploy.tail import Argmax, is_graph

# Root mean square difference of a tensor over its range in Keras, beyond which it has diverged.
TOLERANCES = {"float32": 2e-5, "float16": 3e-3, "dynamic": 0.01, "int8": 0.02}


@dataclasses.dataclass(frozen=True)
class Divergence:
    """The first layer whose output in the file is not what Keras computes.

    Args:
        layer: the Keras layer's name; inside a nested model, after the model's name and a slash.
        fused_with: layers that the converter merged with it into one op, of which any may be it.
        tensor: name of the file's tensor that was compared; `None` where the file keeps none.
        difference: root mean square difference over the tensor's range in Keras.
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
                f"No single layer departs by more than {self.tolerance:.0e} of its range: the "
                f"differences gather. {self.layer!r} adds most, up to {self.difference:.1e}."
            )
        fused = f" (one op with {', '.join(map(repr, self.fused_with))})" if self.fused_with else ""
        return (
            f"The two first diverge at layer {self.layer!r}{fused}: by {self.difference:.1e} of its "
            f"range, beyond {self.tolerance:.0e}."
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
    inside = contents.read_contents(path.read_bytes())
    tolerance = TOLERANCES[inside.precision]
    for index, value in _file_tensors(path, inside, image):
        for place, node in enumerate(nodes):
            is_answer = index == inside.output and place == len(nodes) - 1
            if is_answer or _may_be(node, inside.tensors[index]):
                error = min(_difference(value, expected) for expected in node.values)
                if error < node.error:
                    node.error, node.tensor = error, index
    readers = _readers(nodes)
    in_order = _in_order(nodes, readers, tolerance)
    suspects = sorted(readers.keys() - in_order)
    if not suspects:
        chain = [nodes[_steepest(nodes, tolerance)]]
    else:
        chain = _fused(nodes, suspects[0], readers, in_order, inside.tensors)
    tensor = chain[-1].tensor
    return Divergence(
        layer=chain[0].name,
        fused_with=tuple(node.name for node in chain[1:]),
        tensor=None if tensor is None else inside.tensors[tensor],
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


def _may_be(node, tensor):
    """Whether the file's tensor, by its name, may be the output of `node`."""
    if not isinstance(node.operation, keras.layers.Layer):
        return True  # plain operations leave no name of their own: any tensor of the shape may be it
    for name in tensor.split(";"):
        parts = iter(name.split("/"))
        if all(any(_is_called(step, part) for part in parts) for step in node.path):
            return True
    return False


def _keras_nodes(model, image):
    """Every call of an operation in the order of computation, with what it answers to `image`."""
    nodes = []
    image = keras.ops.convert_to_tensor(image, dtype=model.inputs[0].dtype)
    with quiet():  # TensorFlow complains that each grouped convolution is compiled anew
        _walk(model, [image], [()], (), nodes)
    return nodes


def _walk(model, inputs, feeds, path, nodes):
    """Appends the nodes of `model` and returns the feeds of its outputs; nested models are entered."""
    graph = keras.Model(model.inputs, model.outputs)
    calls = [
        call
        for depth in sorted(graph._nodes_by_depth, reverse=True)
        for call in graph._nodes_by_depth[depth]
        if not call.is_input
    ]
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
    with quiet():
        model = runtime.interpreter(path, preserve_all_tensors=True, xnnpack=False)
    set_input(model, image)
    model.invoke()
    details = {entry["index"]: entry for entry in model.get_tensor_details()}
    for op in inside.ops:
        for index in op.outputs:
            try:
                yield index, dequantised(model.get_tensor(index), details[index])
            except (KeyError, ValueError):
                continue  # optimised away, or a temporary without memory of its own


def set_input(model, image):
    """Gives the interpreter its image float32 `[1, height, width, channels]`, quantised if it asks."""
    entry = model.get_input_details()[0]
    scale, zero = entry["quantization"]
    if scale:
        limits = np.iinfo(entry["dtype"])
        image = np.clip(np.round(image / scale) + zero, limits.min, limits.max)
    model.set_tensor(entry["index"], image.astype(entry["dtype"]))


def dequantised(value, entry):
    """The float32 values of a tensor; integers that are no quantised numbers stay as they are."""
    scale, zero = entry["quantization"]
    if not scale:
        return value if np.issubdtype(value.dtype, np.integer) else value.astype("float32")
    return (value.astype("float32") - zero) * np.float32(scale)


def _difference(value, expected):
    """Root mean square difference over the range of `expected`; infinite if the shapes differ."""
    if value.shape != expected.shape or not value.size:
        return np.inf
    expected = expected.astype("float32")
    # A tensor that is constant has no range: its magnitude serves, so that a bias isn't blamed.
    span = float(np.ptp(expected)) or float(np.abs(expected).max()) or 1.0
    error = float(np.sqrt(np.mean(np.square(value - expected), dtype="float64"))) / span
    return error if np.isfinite(error) else np.inf


def _readers(nodes):
    """Places of the nodes that the answer depends on, each with the places of those that read it."""
    readers = {len(nodes) - 1: []}
    for place in reversed(range(len(nodes))):
        if place in readers:
            for feed in set(nodes[place].feeds):
                readers.setdefault(feed, []).append(place)
    return readers


def _in_order(nodes, readers, tolerance):
    """Places of the nodes that the file computes right, as far as one can see.

    A node without a tensor of its own was fused away: one right reader shows that it was right. One
    whose only candidates are wrong is excused only if all its readers are right.
    """
    in_order = set()
    for place in sorted(readers, reverse=True):
        node = nodes[place]
        behind = [reader in in_order for reader in readers[place]]
        excused = any(behind) if node.tensor is None else bool(behind) and all(behind)
        if node.error <= tolerance or excused:
            in_order.add(place)
    return in_order


def _steepest(nodes, tolerance):
    """Place of the node, of those found in the file, that adds most to the error of what feeds it."""
    inherited, steepest, most = [], len(nodes) - 1, -np.inf
    for place, node in enumerate(nodes):
        before = max((inherited[feed] for feed in node.feeds), default=0.0)
        found = node.error <= tolerance
        if found and node.error - before > most:
            steepest, most = place, node.error - before
        inherited.append(node.error if found else before)
    return steepest


def _fused(nodes, first, readers, in_order, names):
    """The wrong node `first` and those behind it that the converter merged with it into one op."""
    chain, tensor = [nodes[first]], nodes[first].tensor
    place = first
    while isinstance(nodes[first].operation, keras.layers.Layer) and len(readers[place]) == 1:
        place = readers[place][0]
        node = nodes[place]
        if place in in_order:
            break
        if tensor is not None and (
            not isinstance(node.operation, keras.layers.Layer) or not _may_be(node, names[tensor])
        ):
            break
        chain.append(node)
        tensor = node.tensor if tensor is None else tensor
    return chain
