"""The walk of ids through a model, and what a rule writes into on the way."""

import inspect

import keras
import numpy as np

from tfseg_prune.graph.ids import CONSTANT, Channels, OpRecord, Product, Slot
from tfseg_prune.graph.nodes import functional, is_nested, walk


class Trace:
    """What a rule writes into while ids flow through a model.

    A rule is `rule(trace, operation, *args, **kwargs) -> Channels` (a list where the operation
    answers several tensors); `args` are those of the call with `Channels` in place of tensors.

    Attributes:
        shape: Shape of the first tensor that the operation answers.
        shapes: Shapes of all of them.
        record: The `OpRecord` that is being written.
        per_image: Entries of the first axis per image, of what the operation answers.
        channels_of: {id(tensor of the model): Channels}, of nested models those of the last call.
    """

    def __init__(self, find_rule):
        self.num_ids = 1
        self.edges = []
        self.frozen = []
        self.balanced = []
        self.balanced_by = []
        self.unknown = []
        self.records = {}
        self.record = None
        self.shapes = ()
        self.per_image = 1
        self.channels_of = {}
        self._names = set()
        self._find_rule = find_rule

    @property
    def shape(self):
        return self.shapes[0]

    # What rules call.

    def fresh(self, count, reason=None):
        """`count` new ids; with a `reason` they are frozen."""
        ids = np.arange(self.num_ids, self.num_ids + count, dtype=np.int32)
        self.num_ids += count
        if reason is not None:
            self.freeze(ids, reason)
        return ids

    def produce(self, count, part=None):
        """New ids for channels that this layer creates, known to plans by the layer's name."""
        ids = self.fresh(count)
        name = self.record.name if part is None else f"{self.record.name}:{part}"
        self.record.produced[name] = ids
        return ids

    def unite(self, first, second):
        """Couples two id arrays of one shape, elementwise."""
        first, second = np.ravel(first), np.ravel(second)
        both = (first != CONSTANT) & (second != CONSTANT) & (first != second)
        self.edges.append((first[both], second[both]))

    def freeze(self, ids, reason):
        """Keeps these ids whatever the scores say."""
        ids = np.ravel(ids)
        ids = ids[ids != CONSTANT]
        if len(ids):
            self.frozen.append((ids, reason))

    def balance(self, ids, groups):
        """Demands that every one of `groups` equal parts of `ids` keeps equally many."""
        self.balanced.append(np.reshape(ids, (groups, -1)))
        self.balanced_by.append(self.record.name)

    def weight(
        self,
        variable,
        *,
        reads=None,
        writes=None,
        follows=None,
        groups=1,
        statistic=False,
        scale=None,
    ):
        """Says which axes of a weight of the layer follow which ids (see `Slot`).

        Args:
            variable: A weight of the layer; `None` is skipped.
            reads: {axis: ids}.
            writes: {axis: ids}.
            follows: {axis: ids}.
            groups: Groups of a convolution.
            statistic: Whether it is a moving statistic.
            scale: Function of `Kept`; the weight is multiplied by what it answers.
        """
        if variable is None:
            return
        mode = None if self.record.slots else _quantization(self.record.operation)
        if mode is not None:
            raise ValueError(
                f"The layer '{self.record.name}' is quantized: its scales belong to all channels"
                " together. Expected: weights in floating point. Received: quantization mode"
                f" {mode!r}. Remedy: prune before quantizing"
            )
        if not isinstance(variable, keras.Variable):
            raise ValueError(
                f"The layer '{self.record.name}' has no weight of its own where its rule names one."
                " Expected: one of `layer.weights`. Received: a computed tensor, as a layer with"
                " LoRA answers. Remedy: merge the adaptation into the kernel before pruning"
            )
        rank = variable.ndim
        axes = [
            {axis % rank: ids for axis, ids in part.items()} if part else {}
            for part in (reads, writes, follows)
        ]
        slot = Slot(variable, *axes, groups=groups, statistic=statistic, scale=scale)
        self.record.slots.append(slot)

    def config(self, key, value):
        """Says what becomes of one entry of the layer's config.

        Args:
            key: Entry of `get_config()`.
            value: An id array, whose number of kept ids becomes the entry, or a function of `Kept`.
        """
        if not callable(value):
            ids = value
            value = lambda kept: kept.count(ids)  # noqa: E731
        self.record.config[key] = value

    def call(self, function):
        """Replaces how the operation is called on the smaller tensors (see `OpRecord.call`)."""
        self.record.call = function

    def macs(self, coefficient, *sides, groups=1):
        """Adds `coefficient` times the number of kept ids of each side, per sample.

        Counted once per call of the operation. `groups` says of how many parts each side is, of
        which one is multiplied with one.
        """
        sides = tuple([side.reshape(-1) for side in sides])
        self.record.macs.append(Product(coefficient * self.per_image, sides, groups))

    def channels(self, ids, shape, axis=-1):
        """`Channels` of a tensor whose ids change along one axis only."""
        view = [1] * len(shape)
        view[axis] = len(ids)
        return Channels(ids.reshape(view), tuple(shape))

    def along(self, x, axis, *, why):
        """The ids of `x` along one axis, as a 1-D array of the axis' length.

        Ids that change along another axis are frozen, with `why` as the reason.
        """
        axis %= len(x.shape)
        others = [a for a in x.varying if a != axis]
        if others:
            self.freeze(x.ids, why)
            return np.full(x.shape[axis], CONSTANT)
        ids = x.ids.reshape(-1)
        length = x.shape[axis]
        if len(ids) == 1 and length is not None and length > 1:
            self.freeze(ids, why)
            return np.full(length, CONSTANT)
        return ids

    def rectangular(self, x):
        """Couples ids so that what is kept of `x` is a box, and so still a tensor.

        Of several axes along which ids change the longest stays free (the last of equals); ids
        that differ only along the others become one.
        """
        if len(x.varying) < 2:
            return x
        free = max(x.varying, key=lambda axis: (x.ids.shape[axis], axis))
        first = x.ids
        for axis in x.varying:
            if axis != free:
                first = np.take(first, [0], axis=axis)
        self.meet(x.ids, np.broadcast_to(first, x.ids.shape))
        return Channels(first, x.shape)

    def elementwise(self, *xs):
        """Channels of an elementwise operation with broadcasting: what meets is united."""
        rank = len(self.shape)
        given = [x for x in xs if isinstance(x, Channels)]
        held = [x for x in given if x.has_channels]
        arrays = [x.ids.reshape((1,) * (rank - x.ids.ndim) + x.ids.shape) for x in held]
        result, narrow = None, False
        widest = max((ids.size for ids in arrays), default=1)
        for ids in arrays:
            if ids.size == 1 < widest:
                self.freeze(ids, "broadcast over the channels of another tensor")
                narrow = True
            elif result is None:
                result = ids
            else:
                result = self.meet(result, ids)
        if result is None:
            result = np.full((1,) * rank, CONSTANT)
        if narrow or len(held) < len(given):
            for x in given:
                if x.ids.size == 1 or x not in held:
                    self._meet_fixed(x, result)
        return Channels(result, self.shape)

    def meet(self, one, other):
        """Unites two id arrays of an elementwise operation; answers those of the result."""
        if one.shape != other.shape:
            for crossing in (one, other):
                self.freeze(crossing, "combined with channels along another axis")
            one, other = np.broadcast_arrays(one, other)
        if one.all() and other.all():
            first, second = one.reshape(-1), other.reshape(-1)
            self.edges.append((first, second))
            # The older ids, so that a long chain of additions becomes a star, not a chain.
            return one if first[0] <= second[0] else other
        self.unite(one, other)
        blank = one == CONSTANT
        padded = blank != (other == CONSTANT)
        for met in (one, other):
            self.freeze(met[padded], "combined with channels that are padding")
        return np.where(blank, other, one)

    def _meet_fixed(self, x, ids):
        """Freezes ids that meet a tensor without channels whose width they would have to keep."""
        sizes = (1,) * (ids.ndim - len(x.shape)) + tuple(x.shape)
        if any(own > 1 and size != 1 for own, size in zip(ids.shape, sizes)):
            self.freeze(ids, "combined with a tensor whose width is fixed")

    def keep_whole(self, why):
        """Freezes all that the operation touches; answers frozen channels.

        Args:
            why: Ends the sentence "touched by 'x', a LSTM ...".
        """
        return self._whole(self.record.inputs, why)

    # The walk.

    def run(self, model, inputs):
        """Lets ids flow through a model; answers the `Channels` of its outputs."""
        return self._run(model, inputs, prefix="")

    def _run(self, model, inputs, prefix):
        graph = functional(model)
        tensors = self.channels_of
        tensors.update({id(t): channels for t, channels in zip(graph.inputs, inputs)})
        for node in walk(model):
            answers = self.apply(node, tensors, prefix)
            for tensor, channels in zip(node.outputs, answers):
                tensors[id(tensor)] = channels
        return [tensors[id(t)] for t in graph.outputs]

    def apply(self, node, tensors, prefix=""):
        """Lets ids flow through one call: `{id(tensor): Channels}` to the call's `Channels`."""
        operation = node.operation
        given = [tensors[id(tensor)] for tensor in node.arguments.keras_tensors]
        seen = self.records.get(id(operation))
        if seen is None:
            name = prefix + operation.name
            if name in self._names:
                name = f"{name}#{len(self.records)}"
            self._names.add(name)
            seen = self.records[id(operation)] = OpRecord(name, operation, given)
            record = seen
        else:
            # Another call of a shared layer: the rule runs again on a record that is thrown
            # away, and whatever the two calls read or wrote through one weight is united.
            record = OpRecord(seen.name, operation, given)
        if is_nested(operation):
            if record is not seen:
                for first, now in zip(seen.inputs, given):
                    self._same(first.ids, now.ids)
            record.outputs = self._run(operation, given, prefix=f"{record.name}/")
            return record.outputs
        outer = self.record, self.shapes, self.per_image
        self.record, self.shapes = record, [t.shape for t in node.outputs]
        self.per_image = max([x.per_image for x in given], default=1)
        rule = self._find_rule(operation)
        if rule is None:
            self.unknown.append(f"{record.name} ({type(operation).__name__})")
            answers = self._whole(given, "without a rule")
        else:
            args, kwargs = _first_by_position(operation, *_fill_in(node.arguments, tensors))
            answers = rule(self, operation, *args, **kwargs)
            answers = [answers] if isinstance(answers, Channels) else list(answers)
            if not _fit(answers, self.shapes):
                answers = self._whole(given, "that changes the number of channels")
        record.outputs = [x if len(x.varying) < 2 else self.rectangular(x) for x in answers]
        if self.per_image != 1:
            for answer in record.outputs:
                answer.per_image = self.per_image
        self.record, self.shapes, self.per_image = outer
        seen.calls.append(record.outputs)
        if record is not seen:
            self._merge(seen, record)
        return record.outputs

    def _merge(self, seen, again):
        """Unites what two calls of one operation do to its weights and settings."""
        nothing = np.zeros(0, int)  # where the channels run along other axes than in the first call
        first, now = seen.places, again.places
        for place in {**first, **now}:
            self._same(first.get(place, nothing), now.get(place, nothing))
        if seen.config or seen.call or seen.contracts or again.contracts:
            for x, now in zip(seen.inputs, again.inputs):
                one, other = x.ids, now.ids
                if seen.slots and one.shape[-1] == one.size and other.shape[-1] == other.size:
                    one, other = one.ravel(), other.ravel()  # a dense layer takes maps and vectors
                self._same(one, other)
        seen.contracts |= again.contracts
        seen.macs.extend(again.macs)

    def _same(self, first, again):
        """Demands of two calls' ids that what is kept of them is the same."""
        if first.shape == again.shape:
            self.unite(first, again)
            mixed = (first == CONSTANT) != (again == CONSTANT)
        else:
            mixed = slice(None)
        for ids in (first, again):
            self.freeze(ids[mixed], "read by a layer that is also called on something else")

    def _whole(self, given, why):
        """Freezes all that an operation touches; answers frozen channels."""
        record = self.record
        reason = f"touched by '{record.name}', a {type(record.operation).__name__} {why}"
        for ids in (*(channels.ids for channels in given), *record.produced.values()):
            self.freeze(ids, reason)
        return [
            self.channels(self.fresh(shape[-1] or 1, reason), shape)
            if shape
            else Channels(np.array(CONSTANT), ())
            for shape in self.shapes
        ]


def _quantization(layer):
    """The quantization mode of a layer, or of one inside it; `None` of most."""
    modes = (getattr(part, "quantization_mode", None) for part in layer._flatten_layers())
    return next((mode for mode in modes if mode is not None), None)


def _first_by_position(operation, args, kwargs):
    """The call's arguments with a layer's first one by position, as rules take it."""
    if args or not isinstance(operation, keras.layers.Layer):
        return args, kwargs
    first = next(iter(inspect.signature(operation.call).parameters))
    rest = {name: value for name, value in kwargs.items() if name != first}
    return (kwargs[first],), rest


def _fill_in(arguments, tensors):
    """A call's arguments with `Channels` for tensors, quicker than Keras for a list of them."""
    args, kwargs, given = arguments.args, arguments.kwargs, arguments.keras_tensors
    if len(given) == 1 and args and args[0] is given[0]:
        return (tensors[id(args[0])], *args[1:]), kwargs
    if len(args) == 1 and isinstance(args[0], (list, tuple)) and not kwargs:
        if all(isinstance(x, keras.KerasTensor) for x in args[0]):
            return ([tensors[id(tensor)] for tensor in given],), {}
    return arguments.fill_in(tensors)


def _fit(answers, shapes):
    """Whether ids can be those of tensors of these shapes."""
    for channels, shape in zip(answers, shapes):
        own = channels.ids.shape
        if len(own) != len(shape):
            return False
        for axis in channels.varying:
            if own[axis] != shape[axis]:
                return False
    return True
