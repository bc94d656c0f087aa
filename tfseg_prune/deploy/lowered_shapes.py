"""Tensors of more than four dimensions, which GPU delegates refuse, in at most four."""

import math

import numpy as np
from keras import layers, ops, saving

from tfseg_prune.deploy.forms import Lowering

_MOST = 4
_VIEWS = ("Reshape", "ExpandDims", "Squeeze", "Flatten")
_ORDERS = ("Permute", "Transpose", "Swapaxes", "Moveaxis")


@saving.register_keras_serializable(package="tfseg_prune")
class Moves(layers.Layer):
    """Moves numbers to other places, step by step.

    Args:
        steps: list of `["reshape", shape]`, -1 in one place of it, `["transpose", axes]` and
            `["take", [axis, index]]`, which leaves one entry of an axis.

    Example:

    >>> steps = [["reshape", [-1, 4, 2]], ["transpose", [0, 2, 1]], ["take", [1, 0]]]
    >>> Moves(steps)(keras.ops.arange(8))
    Array([[[0, 2, 4, 6]]], dtype=int32)
    """

    def __init__(self, steps, **kwargs):
        super().__init__(**kwargs)
        self.steps = [[kind, list(numbers)] for kind, numbers in steps]

    def call(self, inputs):
        x = inputs
        for kind, numbers in self.steps:
            if kind == "reshape":
                x = ops.reshape(x, numbers)
            elif kind == "transpose":
                x = ops.transpose(x, numbers)
            else:
                axis, index = numbers
                x = x[(slice(None),) * axis + (slice(index, index + 1),)]
        return x

    def get_config(self):
        return {**super().get_config(), "steps": self.steps}


@saving.register_keras_serializable(package="tfseg_prune")
class Enlarge(layers.UpSampling2D):
    """`UpSampling2D(interpolation="nearest")`, of the same values, as one resize of images.

    The layer itself repeats rows and columns in five dimensions.
    """

    def call(self, inputs):
        height, width = ops.shape(inputs)[1:3]
        size = height * self.size[0], width * self.size[1]
        return ops.image.resize(inputs, size, interpolation="nearest", data_format="channels_last")


def enlarged_by_repetition(node, graph, choice):
    """The `Lowering` of `UpSampling2D` by the nearest pixel, and of `ops.repeat` of rows."""
    operation, size = node.operation, None
    (*_, shape) = [tuple(tensor.shape) for tensor in node.arguments.keras_tensors]
    if type(operation) is layers.UpSampling2D:
        if operation.interpolation == "nearest" and operation.data_format == "channels_last":
            size = tuple(operation.size)
    elif raw(operation, "Repeat") and isinstance(operation.repeats, int) and len(shape) == 4:
        axis = None if operation.axis is None else operation.axis % 4
        size = {1: (operation.repeats, 1), 2: (1, operation.repeats)}.get(axis)
    if size is None or node.outputs[0].dtype != "float32":
        return None
    return Lowering("nearest upsampling: one resize of images", _enlarged, size)


def _enlarged(operation, name, fresh, *size):
    return Enlarge(size, "channels_last", dtype="float32", name=name)


def raw(operation, *kinds):
    """Whether it is a raw operation of Keras, `keras.ops`, of one of these classes."""
    kind = type(operation)
    own = kind.__module__.startswith("keras.") and not isinstance(operation, layers.Layer)
    return own and kind.__name__ in kinds


def moved_in_many_dimensions(node, graph, choice):
    """The `Lowering` of the last of a chain of operations that only move numbers, in many axes.

    The channel shuffle in five dimensions is one such: reshape to groups, transpose, reshape back.
    The partition into windows and a joint query, key and value that is taken apart are others.
    """
    if _rank(node.outputs[0]) > _MOST:
        return None
    chain = []
    while _is_move(node):
        chain.insert(0, node)
        (tensor,) = node.arguments.keras_tensors
        if _rank(tensor) <= _MOST:
            break
        node = graph.writer(tensor)
        if node is None:
            return None
    if len(chain) < 2 or node is not chain[0]:
        return None
    steps = _in_few_dimensions(chain)
    if steps is None:
        return None
    most = max(_rank(node.outputs[0]) for node in chain)
    return Lowering(
        f"numbers moved in {most} dimensions: in at most {_MOST}", _moved, steps, len(chain) - 1
    )


def _moved(operation, name, fresh, *steps):
    return Moves(steps, name=name)


def _rank(tensor):
    return len(tensor.shape)


def _is_move(node):
    operation, tensors = node.operation, node.arguments.keras_tensors
    if len(tensors) != 1 or len(node.outputs) != 1:
        return False
    shapes = tensors[0].shape, node.outputs[0].shape
    # More than one open size, and nobody knows which of them a -1 would be.
    if any(list(shape).count(None) > 1 for shape in shapes):
        return False
    if raw(operation, "GetItem"):
        return _taken(node) is not None
    kinds = tuple(getattr(layers, kind) for kind in ("Reshape", "Permute", "Flatten"))
    return type(operation) in kinds or raw(operation, *_VIEWS, *_ORDERS)


def _taken(node):
    """`(axis, index)` of a `GetItem` that takes one entry of one axis; `None` of any other."""
    _, key = node.arguments.args
    key = list(key) if isinstance(key, (tuple, list)) else [key]
    rank = _rank(node.arguments.keras_tensors[0])
    if Ellipsis in [part for part in key if part is Ellipsis]:
        place = next(k for k, part in enumerate(key) if part is Ellipsis)
        key[place : place + 1] = [slice(None)] * (rank - len(key) + 1)
    places = [axis for axis, part in enumerate(key) if part != slice(None)]
    if len(places) != 1 or type(key[places[0]]) is not int:
        return None
    size = node.arguments.keras_tensors[0].shape[places[0]]
    return None if size is None else (places[0], key[places[0]] % size)


def _order(node):
    """The axes in their new order, of an operation that transposes."""
    operation, rank = node.operation, _rank(node.outputs[0])
    if type(operation) is layers.Permute:
        return (0, *operation.dims)
    axes = np.empty(tuple(range(1, rank + 1)), "bool")
    if raw(operation, "Transpose"):
        moved = np.transpose(axes, operation.axes)
    elif raw(operation, "Swapaxes"):
        moved = np.swapaxes(axes, operation.axis1, operation.axis2)
    else:
        moved = np.moveaxis(axes, operation.source, operation.destination)
    return tuple(size - 1 for size in moved.shape)


def _in_few_dimensions(chain):
    """The `Moves` steps of at most four axes that do what `chain` does; `None`: there are none."""
    shape = tuple(chain[0].arguments.keras_tensors[0].shape)
    moves = []
    for node in chain:
        if raw(node.operation, "GetItem"):
            axis, index = _taken(node)
            # One entry of an axis can be taken before the axes change places.
            if moves and moves[-1][0] == "transpose":
                order = moves[-1][1]
                moved = tuple(k - (k > order[axis]) for k in order if k != order[axis])
                moves[-1:] = [("take", (order[axis], index)), ("transpose", moved)]
            else:
                moves.append(("take", (axis, index)))
        elif type(node.operation) is layers.Permute or raw(node.operation, *_ORDERS):
            moves.append(("transpose", _order(node)))
        else:
            moves.append(("reshape", tuple(node.outputs[0].shape)))
    steps = []
    for kind, numbers in moves:
        if kind == "reshape":
            shape = numbers
        elif kind == "take":
            axis, index = numbers
            if None in shape[axis:]:
                return None
            steps += [
                ("reshape", (_size(shape[:axis]), shape[axis], _size(shape[axis + 1 :]))),
                ("take", (1, index)),
            ]
            shape = (*shape[:axis], *shape[axis + 1 :])
        else:
            transposed = _transposed(shape, numbers)
            if transposed is None:
                return None
            steps += transposed
            shape = tuple(shape[axis] for axis in numbers)
    return (*steps, ("reshape", _open(chain[-1].outputs[0].shape)))


def _transposed(shape, order):
    """Steps that transpose a tensor of the shape, in at most four axes, up to a reshape."""
    kept = [axis for axis in order if shape[axis] != 1]
    order = [sorted(kept).index(axis) for axis in kept]
    shape = [size for size in shape if size != 1]
    for alone in (True, False):
        groups = _neighbours(shape, order, alone)
        if len(groups) <= _MOST:
            sizes = [_size([shape[axis] for axis in group]) for group in sorted(groups)]
            return [
                ("reshape", tuple(sizes)),
                ("transpose", tuple(sorted(groups).index(group) for group in groups)),
            ]
    if groups[0][0] or None in shape[len(groups[0]) :]:
        return None
    # One group after the other goes to its place, the last one first.
    sizes = [_size([shape[axis] for axis in group]) for group in sorted(groups)]
    order = [sorted(groups).index(group) for group in groups]
    last = max(k for k, axis in enumerate(order) if axis != k)
    axis = order[last]
    between = sizes[:axis], sizes[axis : axis + 1], sizes[axis + 1 : last + 1], sizes[last + 1 :]
    left = [k - (k > axis) for k in order[:last]]
    sizes = [*between[0], *between[2], *between[1], *between[3]]
    rest = _transposed(
        [None if size == -1 else size for size in sizes], [*left, *range(last, len(sizes))]
    )
    return [
        ("reshape", tuple(map(_size, between))),
        ("transpose", (0, 2, 1, 3)),
        *rest,
    ]


def _neighbours(shape, order, alone):
    """Axes in their new order, those that stay neighbours in one list; the open one by itself."""
    groups = []
    for axis in order:
        beside = groups and groups[-1][-1] == axis - 1
        if beside and not (alone and axis - 1 == 0):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups


def _size(sizes):
    return -1 if None in sizes or -1 in sizes else math.prod(sizes)


def _open(shape):
    return tuple(-1 if size is None else size for size in shape)
