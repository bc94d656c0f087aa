"""A functional model as one list of calls, the models nested in it unfolded."""

import dataclasses

import keras

from tfseg_prune.graph.nodes import functional, is_nested, walk


@keras.saving.register_keras_serializable(package="tfseg_prune")
@dataclasses.dataclass(frozen=True)
class Slot:
    """Stands for a tensor in the arguments of a call.

    Args:
        index: of a whole list of calls, the tensor's own number; of one call's arguments, its
            place among the tensors in them.
    """

    index: int

    def get_config(self):
        return {"index": self.index}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation.

    Args:
        operation: a Keras layer or operation, no model.
        path: its name; inside a nested model, behind the model's name and a slash.
        args, kwargs: its arguments, a `Slot` for each tensor.
        outputs: numbers of the tensors that it answers.
    """

    operation: keras.Operation
    path: str
    args: tuple
    kwargs: dict
    outputs: tuple[int, ...]

    @property
    def inputs(self):
        """Numbers of the tensors that it takes, in the order of the arguments."""
        return slots_in((self.args, self.kwargs))


def slots_in(structure):
    """The indices of the `Slot`s in a structure, in order."""
    return tuple(leaf.index for leaf in keras.tree.flatten(structure) if isinstance(leaf, Slot))


def filled(structure, values):
    """The structure with `values[slot.index]` in place of each `Slot`."""
    return keras.tree.map_structure(
        lambda leaf: values[leaf.index] if isinstance(leaf, Slot) else leaf, structure
    )


def flatten(model):
    """The calls of a functional model in an order in which they can run.

    Args:
        model: functional `keras.Model`, perhaps of nested ones.

    Returns:
        `(calls, inputs, outputs)`: a list of `Call`, and the numbers of the model's input and
        output tensors.
    """
    graph = functional(model)
    calls, counter = [], iter(range(10**9))
    inputs = [Slot(next(counter)) for _ in graph.inputs]
    outputs = _visit(model, inputs, (), calls, counter)
    return calls, [s.index for s in inputs], [s.index for s in outputs]


def _visit(model, given, path, calls, counter):
    graph = functional(model)
    slots = {id(tensor): slot for tensor, slot in zip(graph.inputs, given)}
    for node in walk(model):
        operation = node.operation
        args, kwargs = node.arguments.fill_in(slots)
        here = (*path, operation.name)
        if is_nested(operation):
            inside = [leaf for leaf in keras.tree.flatten((args, kwargs)) if isinstance(leaf, Slot)]
            answers = _visit(operation, inside, here, calls, counter)
        else:
            answers = [Slot(next(counter)) for _ in node.outputs]
            numbers = tuple(slot.index for slot in answers)
            calls.append(Call(operation, "/".join(here), tuple(args), dict(kwargs), numbers))
        slots.update(zip(map(id, node.outputs), answers))
    return [slots[id(tensor)] for tensor in graph.outputs]


def readers(calls, outputs):
    """`{number: [calls that take the tensor]}`; `None` among them for the model's own answer."""
    found = {}
    for call in calls:
        for number in call.inputs:
            found.setdefault(number, []).append(call)
    for number in outputs:
        found.setdefault(number, []).append(None)
    return found
