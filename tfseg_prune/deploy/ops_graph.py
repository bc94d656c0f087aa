"""Who computes what in a LiteRT file: its ops as a graph, and the Keras layers behind them."""

import collections

from tfseg_prune.deploy import trace

_NOT_NEGATIVE = ("ABS", "EXP", "LOGISTIC", "RELU", "RELU6", "SOFTMAX", "SQRT", "SQUARE")
_FUSED_RELUS = (1, 3)  # numbers of RELU and RELU6 among the schema's fused activations


class Graph:
    """A file's tensors, with those who write and read them.

    Args:
        inside: `Contents`.
    """

    def __init__(self, inside):
        self.tensors = inside.tensors
        self._writer = {index: op for op in inside.ops for index in op.outputs}
        self._readers = collections.defaultdict(list)
        for op in inside.ops:
            for index in op.inputs:
                self._readers[index].append(op)
        self._given = set(inside.inputs)
        self._answers = set(inside.outputs)

    def shape(self, index):
        if index < 0:
            raise IndexError("an op lacks a tensor")
        return self.tensors[index].shape

    def writer(self, index):
        return self._writer.get(index)

    def readers(self, index):
        return self._readers[index]

    def is_answer(self, index):
        return index in self._answers

    def computed(self, index):
        """Whether a tensor comes from the images; weights that are unpacked first don't."""
        writer = self._writer.get(index)
        if writer is None:
            return index in self._given
        return writer.name != "DEQUANTIZE" or self.computed(writer.inputs[0])

    def not_negative(self, index):
        """Whether the op that writes a tensor writes no negative numbers."""
        writer = self._writer.get(index)
        return writer is not None and (
            writer.name in _NOT_NEGATIVE
            or writer.options.get("FusedActivationFunction") in _FUSED_RELUS
        )

    def groups(self, op):
        """Of a CONV_2D, whose kernel is `[outputs, height, width, inputs of a group]`."""
        return self.shape(op.inputs[0])[-1] // self.shape(op.inputs[1])[-1]

    def tensors_of(self, op):
        """Tensors that an op reads and writes, constants aside."""
        return [self.tensors[i] for i in (*op.inputs, *op.outputs) if i >= 0 and self.computed(i)]

    def values(self, op, place):
        """The constant that an op reads as its input number `place`, `None` if unknown."""
        if place >= len(op.inputs) or op.inputs[place] < 0:
            return None
        return self.tensors[op.inputs[place]].values


class Names:
    """Which Keras layers the ops of a file compute.

    Args:
        inside: `Contents`.
        graph: its `Graph`.
        model: the `keras.Model` that became the file, or `None`.
    """

    def __init__(self, inside, graph, model):
        self._graph = graph
        self._layers = {} if model is None else {x.name: x for x in trace.layers(model)}
        self._model = model
        # TensorFlow wraps grouped convolutions, and the converter loses their names.
        ops = [op for op in inside.ops if op.name == "CONV_2D" and graph.groups(op) > 1]
        layers = [x for x in self._layers.values() if getattr(x, "groups", 1) > 1]
        self._grouped = dict(zip(map(id, ops), layers)) if len(ops) == len(layers) else {}

    def of(self, op):
        """The layer's name, `"behind x"` of what follows layer `x`, or else the file's own name."""
        own = self._own(op)
        if own is None and self._model is not None:
            own = self._behind(op)
        if own is None:
            names = [self._graph.tensors[i].name for i in op.outputs]
            own = names[0].split(";")[0] if names else op.name
        return own

    def _own(self, op):
        if id(op) in self._grouped:
            return self._grouped[id(op)].name
        weights = [i for i in op.inputs if i >= 0 and self._graph.tensors[i].bytes]
        for index in (*op.outputs, *weights):
            if self._model is not None:
                layer = trace.name_in(self._graph.tensors[index].name, self._model)
                if layer in self._layers:
                    return layer
        return None

    def _behind(self, op):
        seen, found = set(), collections.deque([op])
        while found:
            for index in found.popleft().inputs:
                writer = self._graph.writer(index)
                if writer is None or id(writer) in seen:
                    continue
                seen.add(id(writer))
                own = self._own(writer)
                if own is not None:
                    return f"behind {own}"
                found.append(writer)
        return None
