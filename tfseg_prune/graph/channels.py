"""Which channels of a Keras model belong together.

Every output channel of every producing layer gets an integer id, and arrays of ids flow through
the functional graph beside the tensors. What meets in an elementwise operation is united; a
concatenation concatenates ids; a reshape reshapes them. A *unit* is one class of united ids: the
least that can be removed. `tfseg_prune.graph.rules` says, one small function per layer type, how
ids pass through a layer; this module holds what the rules write into.
"""

import dataclasses
import functools
import math
import warnings

import keras
import numpy as np

# The id of whatever is no channel at all: a constant, a padded zero, an attention score.
CONSTANT = 0


@dataclasses.dataclass(frozen=True)
class Channels:
    """The ids of one tensor.

    Attributes:
        ids: int64 array of the tensor's rank, of length 1 along every axis on which the id
            doesn't change, and of the tensor's length elsewhere.
        shape: The tensor's shape, `None` where it isn't known.
    """

    ids: np.ndarray
    shape: tuple

    @property
    def varying(self):
        """The axes along which the ids change."""
        return [axis for axis, size in enumerate(self.ids.shape) if size > 1]

    @property
    def has_channels(self):
        return bool((self.ids != CONSTANT).any())


@dataclasses.dataclass(frozen=True)
class Product:
    """A cost that is `coefficient` times the number of kept channels in each of `sides`."""

    coefficient: float
    sides: tuple


@dataclasses.dataclass(frozen=True)
class Slot:
    """How one weight of a layer follows the channels.

    Attributes:
        index: Position in `layer.weights`.
        reads: {axis: ids that this axis reads}; the masked twin zeroes what is dropped here.
        writes: {axis: ids that this axis produces}.
        follows: {axis: ids that only pass by}, as the gamma of a batch normalisation.
        groups: Of a grouped convolution; `reads` then holds the ids of all groups in turn.
        statistic: A moving statistic, which is not counted as a parameter.
        scale: Function of `Kept` that gives a factor for the weight after surgery, or `None`.
    """

    index: int
    reads: dict
    writes: dict
    follows: dict
    groups: int = 1
    statistic: bool = False
    scale: object = None

    @property
    def axes(self):
        return {**self.reads, **self.writes, **self.follows}


@dataclasses.dataclass
class OpRecord:
    """All that the graph knows of one operation.

    Attributes:
        name: Path of the operation: `outer_model/inner_model/layer`.
        operation: The Keras layer or operation.
        inputs: `Channels` of the tensors it was first called with, in flat order.
        outputs: `Channels` of what it answered then.
        slots: One `Slot` per weight that follows channels.
        config: {key of `get_config()`: function of `Kept` that gives its value after surgery}.
        call: Function `(kept, new_operation, *args, **kwargs)` that calls the operation on the
            smaller tensors, where calling it as it is would be wrong.
        macs: Products whose sum is the number of multiply-accumulates per sample.
        produced: {name for plans: ids that the operation created}.
        contracts: Whether it sums over channels without weights (a matrix product of two
            activations): the masked twin then masks its inputs.
        calls: How often it stands in the graph.
    """

    name: str
    operation: object
    inputs: list
    outputs: list = dataclasses.field(default_factory=list)
    slots: list = dataclasses.field(default_factory=list)
    config: dict = dataclasses.field(default_factory=dict)
    call: object = None
    macs: list = dataclasses.field(default_factory=list)
    produced: dict = dataclasses.field(default_factory=dict)
    contracts: bool = False
    calls: int = 1


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Units (or classes of units) that are channels of exactly the same layers: one width.

    Attributes:
        members: Their indices.
        layers: {name of a producing layer: channels that one member has in it}.
    """

    members: np.ndarray
    layers: dict


class Kept:
    """Which ids stay, as the functions in `OpRecord.config` and `.call` ask for it."""

    def __init__(self, keep_ids):
        self._keep = keep_ids

    def mask(self, ids):
        """Boolean array of the shape of `ids`."""
        return self._keep[ids]

    def count(self, ids):
        return int(self._keep[ids].sum())


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


class ChannelGraph:
    """The channels of a functional Keras model: who writes, who reads, what is coupled.

    ```python
    graph = ChannelGraph(model)
    graph.num_units                      # how many decisions there are
    graph.prunable                       # boolean per unit
    graph.unit_of[graph.records["conv1"].produced["conv1"]]   # units of a layer's outputs
    ```

    Args:
        model: A functional or sequential `keras.Model`, nested and shared layers included.
        exclude: Function `layer name -> bool`; the outputs of these layers are never pruned.

    Attributes:
        records: {name: OpRecord} of every operation, in topological order.
        unit_of: int array, the unit of every id. Unit 0 is what is no channel; always kept.
        num_units: Number of units, unit 0 included.
        prunable: Boolean per unit.
        balanced: List of int arrays `[groups, n]` of units: every row must keep equally many.

    Raises:
        ValueError: If the model isn't functional.
    """

    def __init__(self, model, *, exclude=None):
        from tfseg_prune.graph import rules  # the rules import this module

        self.model = model
        trace = Trace(rules.find_rule)
        inputs = []
        for tensor in functional(model).inputs:
            ids = trace.fresh(tensor.shape[-1] or 1, reason="a model input")
            inputs.append(trace.channels(ids, tensor.shape))
        for channels in trace.run(model, inputs):
            trace.freeze(channels.ids, "a model output")
        for record in trace.records.values():
            for name, ids in record.produced.items():
                if exclude is not None and exclude(name):
                    trace.freeze(ids, "excluded by the caller")
        if trace.unknown:
            warnings.warn(
                "No rule says how channels pass through these layers, so the channels that they"
                f" read and answer are kept whole: {', '.join(trace.unknown)}. Teach them with"
                " `tfseg_prune.register_rule`.",
                stacklevel=2,
            )
        self.records = {record.name: record for record in trace.records.values()}
        self.unit_of = components(trace.num_ids, trace.edges)
        self.num_units = int(self.unit_of.max()) + 1
        self._reasons = trace.frozen
        self.prunable = np.ones(self.num_units, bool)
        self.prunable[self.unit_of[CONSTANT]] = False
        for ids, _ in trace.frozen:
            self.prunable[self.unit_of[ids]] = False
        self.balanced = [self.unit_of[ids] for ids in trace.balanced]

    @functools.cached_property
    def groups(self):
        """List of `UnitGroup`: a partition of the units that some layer produces."""
        return self.groups_of(np.arange(self.num_units))

    @functools.cached_property
    def producers(self):
        """{name for plans: units of the channels that it produced}, in topological order."""
        return {
            name: self.unit_of[ids]
            for record in self.records.values()
            for name, ids in record.produced.items()
        }

    @functools.cached_property
    def frozen(self):
        """{unit: why it is never pruned}."""
        reasons = {}
        for ids, reason in self._reasons:
            for unit in np.unique(self.unit_of[ids]):
                reasons.setdefault(int(unit), reason)
        return reasons

    def keep_ids(self, keep_units):
        """Boolean per id from boolean per unit."""
        return np.asarray(keep_units, bool)[self.unit_of]

    def check(self, keep_units):
        """Raises ValueError unless the units that stay leave a model that can exist.

        Args:
            keep_units: Boolean array of `num_units`.
        """
        keep_units = np.asarray(keep_units, bool)
        problems = []
        for unit in np.flatnonzero(~keep_units & ~self.prunable):
            layers = [name for name, units in self.producers.items() if unit in units]
            reason = self.frozen.get(int(unit), "no layer produces it")
            problems.append(f"a channel of {', '.join(layers) or 'an input'} is {reason}")
        for name, units in self.producers.items():
            if not keep_units[units].any():
                problems.append(f"no channel of '{name}' is left")
        for rows in self.balanced:
            counts = keep_units[rows].sum(axis=1)
            if len(set(counts.tolist())) > 1:
                layers = [n for n, units in self.producers.items() if np.isin(rows, units).any()]
                problems.append(
                    f"the groups fed or written by {', '.join(layers)} keep {counts.tolist()}"
                    " channels where a grouped convolution needs equally many in each"
                )
        if problems:
            shown = "; ".join(dict.fromkeys(problems[:5]))
            raise ValueError(f"These channels can't be removed: {shown}.")

    def groups_of(self, classes):
        """Partition of the produced classes of units into widths that can be chosen apart.

        Args:
            classes: int array `[num_units]`; units with one number are removed together.

        Returns:
            List of `UnitGroup`, `members` being classes that have equally many channels in
            exactly the same layers.
        """
        # A random number per layer, summed over the layers that hold a class, tells sets of
        # layers apart without a Python loop over classes.
        rng = np.random.default_rng(0)
        count = int(classes.max()) + 1
        signature = np.zeros(count, np.uint64)
        produced = np.zeros(count, bool)
        widths = {}
        for name, units in self.producers.items():
            channels = np.bincount(classes[units], minlength=count)
            widths[name] = channels
            signature += channels.astype(np.uint64) * rng.integers(1, 2**63, dtype=np.uint64)
            produced |= channels > 0
        # Frozen classes of a layer are no part of the width that can be chosen.
        fixed = np.zeros(count, bool)
        fixed[classes[~self.prunable]] = True
        signature += fixed.astype(np.uint64)
        members = np.flatnonzero(produced)
        inverse = np.unique(signature[members], return_inverse=True)[1]
        order = np.argsort(inverse, kind="stable")
        parts = np.split(members[order], np.cumsum(np.bincount(inverse))[:-1])
        groups_of_class = np.zeros(count, int)
        groups_of_class[members] = inverse
        layers = [{} for _ in parts]
        for name, units in self.producers.items():
            present = np.unique(classes[units])
            for group, first in zip(*np.unique(groups_of_class[present], return_index=True)):
                layers[group][name] = int(widths[name][present[first]])
        groups = [UnitGroup(part, held) for part, held in zip(parts, layers)]
        return sorted(groups, key=lambda group: group.members[0])


class Trace:
    """What a rule writes into while ids flow through a model.

    A rule is `rule(trace, operation, *args, **kwargs) -> Channels` (a list where the operation
    answers several tensors); `args` are those of the call with `Channels` in place of tensors.

    Attributes:
        shape: Shape of the first tensor that the operation answers.
        shapes: Shapes of all of them.
        record: The `OpRecord` that is being written.
    """

    def __init__(self, find_rule):
        self.num_ids = 1
        self.edges = []
        self.frozen = []
        self.balanced = []
        self.unknown = []
        self.records = {}
        self.record = None
        self.shapes = ()
        self._names = set()
        self._find_rule = find_rule

    @property
    def shape(self):
        return self.shapes[0]

    # What rules call.

    def fresh(self, count, reason=None):
        """`count` new ids; with a `reason` they are frozen."""
        ids = np.arange(self.num_ids, self.num_ids + count)
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
        ids = np.unique(ids)
        self.frozen.append((ids[ids != CONSTANT], reason))

    def balance(self, ids, groups):
        """Demands that every one of `groups` equal parts of `ids` keeps equally many."""
        self.balanced.append(np.reshape(ids, (groups, -1)))

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
        index = [id(weight) for weight in self.record.operation.weights].index(id(variable))
        rank = len(variable.shape)
        axes = [
            {axis % rank: np.asarray(ids) for axis, ids in (part or {}).items()}
            for part in (reads, writes, follows)
        ]
        self.record.slots.append(Slot(index, *axes, groups=groups, statistic=statistic, scale=scale))

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

    def macs(self, coefficient, *sides):
        """Adds `coefficient` times the number of kept ids of each side, per sample.

        Counted once per call of the operation.
        """
        self.record.macs.append(Product(coefficient, tuple(np.ravel(s) for s in sides)))

    def channels(self, ids, shape, axis=-1):
        """`Channels` of a tensor whose ids change along one axis only."""
        view = [1] * len(shape)
        view[axis] = len(ids)
        return Channels(np.reshape(ids, view), tuple(shape))

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
        self.unite(x.ids, np.broadcast_to(first, x.ids.shape))
        return Channels(first, x.shape)

    def elementwise(self, *xs):
        """Channels of an elementwise operation with broadcasting: what meets is united."""
        rank = len(self.shape)
        arrays = [
            x.ids.reshape((1,) * (rank - x.ids.ndim) + x.ids.shape)
            for x in xs
            if isinstance(x, Channels) and x.has_channels
        ]
        result = np.full((1,) * rank, CONSTANT)
        widest = max((ids.size for ids in arrays), default=1)
        for ids in arrays:
            if ids.size == 1 < widest:
                self.freeze(ids, "broadcast over the channels of another tensor")
                continue
            if result.size > 1 and ids.shape != result.shape:
                for crossing in (ids, result):
                    self.freeze(crossing, "combined with channels along another axis")
            one, other = np.broadcast_arrays(result, ids)
            self.unite(one, other)
            if result.size > 1:
                padded = (one == CONSTANT) != (other == CONSTANT)
                for met in (one, other):
                    self.freeze(met[padded], "combined with channels that are padding")
            result = np.where(one == CONSTANT, other, one)
        return Channels(result, self.shape)

    # The walk.

    def run(self, model, inputs):
        """Lets ids flow through a model; answers the `Channels` of its outputs."""
        return self._run(model, inputs, prefix="")

    def _run(self, model, inputs, prefix):
        graph = functional(model)
        tensors = {id(t): channels for t, channels in zip(graph.inputs, inputs)}
        for node in walk(model):
            args, kwargs = node.arguments.fill_in(tensors)
            answers = self._apply(node, args, kwargs, prefix)
            for tensor, channels in zip(node.outputs, answers):
                tensors[id(tensor)] = channels
        return [tensors[id(t)] for t in graph.outputs]

    def _apply(self, node, args, kwargs, prefix):
        operation = node.operation
        given = [x for x in keras.tree.flatten((args, kwargs)) if isinstance(x, Channels)]
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
            seen.calls += 1
            record = OpRecord(seen.name, operation, given)
        if is_nested(operation):
            if record is not seen:
                for first, now in zip(seen.inputs, given):
                    self.unite(*np.broadcast_arrays(first.ids, now.ids))
            record.outputs = self._run(operation, given, prefix=f"{record.name}/")
            return record.outputs
        outer = self.record, self.shapes
        self.record, self.shapes = record, tuple(tuple(t.shape) for t in node.outputs)
        rule = self._find_rule(operation)
        if rule is None:
            answers = self._untaught(operation, given)
        else:
            answers = rule(self, operation, *args, **kwargs)
        self.record, self.shapes = outer
        answers = [answers] if isinstance(answers, Channels) else list(answers)
        record.outputs = [self.rectangular(answer) for answer in answers]
        if record is not seen:
            self._merge(seen, record)
        return record.outputs

    def _merge(self, seen, again):
        """Unites what two calls of one operation do to its weights and settings."""
        for first, now in zip(seen.slots, again.slots):
            for axis, ids in first.axes.items():
                self.unite(ids, now.axes[axis])
        for name, ids in seen.produced.items():
            self.unite(ids, again.produced[name])
        if seen.config or seen.call:
            for first, now in zip(seen.inputs, again.inputs):
                if first.ids.shape == now.ids.shape:
                    self.unite(first.ids, now.ids)
                else:
                    self.freeze(first.ids, "read by a layer that is shared at other widths")
                    self.freeze(now.ids, "read by a layer that is shared at other widths")
        seen.macs.extend(again.macs)

    def _untaught(self, operation, given):
        self.unknown.append(f"{self.record.name} ({type(operation).__name__})")
        reason = f"touched by '{self.record.name}', a {type(operation).__name__} without a rule"
        for channels in given:
            self.freeze(channels.ids, reason)
        return [
            self.channels(self.fresh(shape[-1] or 1, reason), shape)
            if shape
            else Channels(np.array(CONSTANT), ())
            for shape in self.shapes
        ]


def reshape_ids(x, shape):
    """`Channels` of `x` reshaped to `shape`, without ever building what doesn't vary.

    Args:
        x: `Channels`.
        shape: The full new shape, `None` for the batch.

    Returns:
        `Channels`, or `None` where an unknown size hides which axes correspond.
    """
    old, new = list(x.shape), list(shape)
    lead = 0
    while lead < min(len(old), len(new)) and old[lead] == new[lead]:
        lead += 1
    tail = 0
    while tail < min(len(old), len(new)) - lead and old[-1 - tail] == new[-1 - tail]:
        tail += 1
    groups = [((axis,), (axis,)) for axis in range(lead)]
    middle_old = list(range(lead, len(old) - tail))
    middle_new = list(range(lead, len(new) - tail))
    if any(old[a] is None for a in middle_old) or any(new[a] is None for a in middle_new):
        if any(x.ids.shape[a] > 1 for a in middle_old):
            return None
        groups.append((tuple(middle_old), tuple(middle_new)))
    else:
        groups.extend(_aligned_axes(old, new, middle_old, middle_new))
    groups += [((len(old) - k,), (len(new) - k,)) for k in range(tail, 0, -1)]
    full, out = [], []
    for olds, news in groups:
        if all(x.ids.shape[axis] == 1 for axis in olds):
            full += [1] * len(olds)
            out += [1] * len(news)
        else:
            full += [old[axis] for axis in olds]
            out += [new[axis] for axis in news]
    return Channels(np.broadcast_to(x.ids, full).reshape(out), tuple(shape))


def _aligned_axes(old, new, old_axes, new_axes):
    """Splits two lists of axes into runs of equal product, in order."""
    groups = []
    i = j = 0
    while i < len(old_axes) or j < len(new_axes):
        first_i, first_j = i, j
        product_old = product_new = 1
        while True:
            if product_old <= product_new and i < len(old_axes):
                product_old *= old[old_axes[i]]
                i += 1
            elif j < len(new_axes):
                product_new *= new[new_axes[j]]
                j += 1
            else:
                product_old *= old[old_axes[i]]
                i += 1
            if product_old == product_new and (
                (i > first_i and j > first_j) or (i == len(old_axes) and j == len(new_axes))
            ):
                break
        groups.append((tuple(old_axes[first_i:i]), tuple(new_axes[first_j:j])))
    return groups


def components(count, edges):
    """Connected components of ids, numbered by their first id.

    Args:
        count: Number of ids.
        edges: List of pairs of int arrays, the ids that are coupled.

    Returns:
        int array `[count]`, the component of each id.
    """
    parent = np.arange(count)
    if edges:
        first = np.concatenate([a for a, _ in edges])
        second = np.concatenate([b for _, b in edges])
        while True:
            roots_a, roots_b = parent[first], parent[second]
            apart = roots_a != roots_b
            if not apart.any():
                break
            first, second = first[apart], second[apart]
            low = np.minimum(roots_a, roots_b)[apart]
            high = np.maximum(roots_a, roots_b)[apart]
            np.minimum.at(parent, high, low)
            while True:
                grand = parent[parent]
                if np.array_equal(grand, parent):
                    break
                parent = grand
    return np.unique(parent, return_inverse=True)[1]


def size_of(shape):
    """Product of the known sizes but the batch; NaN where one is unknown, so that no count is wrong."""
    return math.prod(math.nan if size is None else size for size in shape[1:])

