"""What decides on the form that an operation gets in a file: see `lowering`."""

import dataclasses

from tfseg_prune.graph.nodes import functional, walk


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What becomes of a call of an operation.

    Args:
        says: what the log says of it, behind its name.
        build: function `(operation, name, fresh, *how) -> call` that makes what takes its place,
            once for all calls with an equal lowering. The layer that answers is called `name`;
            `fresh(name)` is a name that nobody has. `call` maps the operation's tensors to its
            answer or to `Parts`. `None`, it stays.
        how: what `build` must know besides, hashable.
        skip: how many operations before it, each of one tensor, are left out, too.
    """

    says: str | None
    build: object = None
    how: tuple = ()
    skip: int = 0


@dataclasses.dataclass(frozen=True)
class Parts:
    """Tensors that stand for one that they would be along an axis."""

    tensors: tuple
    axis: int


class Graph:
    """Who stands before and behind whom in a functional model, models in it not opened."""

    def __init__(self, model):
        self.nodes = list(walk(model))
        self._writers, self._readers, self._calls = {}, {}, {}
        for node in self.nodes:
            self._calls.setdefault(id(node.operation), []).append(node)
            self._writers.update((id(tensor), node) for tensor in node.outputs)
            for tensor in node.arguments.keras_tensors:
                self._readers.setdefault(id(tensor), []).append(node)
        for tensor in functional(model).outputs:
            self._readers.setdefault(id(tensor), []).append(None)

    def once(self, node):
        """Whether the graph has no other call of the node's operation."""
        return len(self._calls[id(node.operation)]) == 1

    def alone(self, node):
        """Whether the operation answers one tensor, and one reader alone takes it."""
        return len(node.outputs) == 1 and len(self._readers.get(id(node.outputs[0]), ())) == 1

    def behind(self, node):
        """The node that alone reads the one tensor of `node`; `None` if there is no such."""
        return self._readers[id(node.outputs[0])][0] if self.alone(node) else None

    def before(self, node):
        """The node whose tensor `node` alone reads, and reads nothing else; `None`: no such."""
        if len(node.arguments.keras_tensors) != 1:
            return None
        writer = self._writers.get(id(node.arguments.keras_tensors[0]))
        return writer if writer is not None and self.behind(writer) is node else None

    def writer(self, tensor):
        """The node that answers `tensor`; `None`: an input of the model."""
        return self._writers.get(id(tensor))
