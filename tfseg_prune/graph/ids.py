"""Ids of channels beside tensors, and what the graph notes down about each operation."""

import dataclasses
import math

import numpy as np

# The id of whatever is no channel at all: a constant, a padded zero, an attention score.
CONSTANT = 0


class Channels:
    """The ids of one tensor. A value: nobody changes it.

    Attributes:
        ids: int array of the tensor's rank, of length 1 along every axis on which the id
            doesn't change, and of the tensor's length elsewhere.
        shape: The tensor's shape, `None` where it isn't known.
        varying: The axes along which the ids change.
        per_image: Entries of the first axis per image: more than one of windows, say, that a
            reshape moved into the batch.
    """

    __slots__ = ("ids", "shape", "varying", "per_image")

    def __init__(self, ids, shape):
        self.ids = ids
        self.shape = shape
        self.per_image = 1
        self.varying = [axis for axis, size in enumerate(ids.shape) if size > 1]

    @property
    def has_channels(self):
        return bool(self.ids.any())  # CONSTANT is zero


@dataclasses.dataclass(frozen=True)
class Product:
    """A cost that is `coefficient` times the number of kept channels in each of `sides`.

    Each side is `groups` equal parts, of which one is multiplied with one at a time.
    """

    coefficient: float
    sides: tuple
    groups: int = 1


@dataclasses.dataclass(slots=True)
class Slot:
    """How one weight of a layer follows the channels.

    Attributes:
        variable: The weight.
        reads: {axis: ids that this axis reads}; the masked twin zeroes what is dropped here.
        writes: {axis: ids that this axis produces}.
        follows: {axis: ids that only pass by}, as the gamma of a batch normalisation.
        groups: Of a grouped convolution; `reads` then holds the ids of all groups in turn.
        statistic: A moving statistic, which is not counted as a parameter.
        scale: Function of `Kept` that gives a factor for the weight after surgery, or `None`.
        effective: Function that answers what the layer computes with in place of the weight, of its
            shape, or `None` where that is the weight itself.
    """

    variable: object
    reads: dict
    writes: dict
    follows: dict
    groups: int = 1
    statistic: bool = False
    scale: object = None
    effective: object = None

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
        calls: `outputs` of every call, in the order in which the model makes them.
        slots: One `Slot` per weight that follows channels.
        config: {key of `get_config()`: function of `Kept` that gives its value after surgery}.
        call: Function `(kept, new_operation, *args, **kwargs)` that calls the operation on the
            smaller tensors, where calling it as it is would be wrong.
        macs: Products whose sum is the number of multiply-accumulates per sample.
        produced: {name for plans: ids that the operation created}.
        contracts: Whether it sums over channels without weights (a matrix product of two
            activations): the masked twin then masks its inputs.
        selects: Whether it answers some channels of a tensor: of each answer one must stay.
    """

    name: str
    operation: object
    inputs: list
    outputs: list = dataclasses.field(default_factory=list)
    calls: list = dataclasses.field(default_factory=list)
    slots: list = dataclasses.field(default_factory=list)
    config: dict = dataclasses.field(default_factory=dict)
    call: object = None
    macs: list = dataclasses.field(default_factory=list)
    produced: dict = dataclasses.field(default_factory=dict)
    contracts: bool = False
    selects: bool = False

    def slots_by_position(self):
        """{position in `layer.weights`: Slot}.

        Raises:
            ValueError: If the rule of the layer names a weight that isn't the layer's.
        """
        slots = {id(slot.variable): slot for slot in self.slots}
        found = {}
        if slots:
            for position, weight in enumerate(self.operation.weights):
                if id(weight) in slots:
                    found[position] = slots.pop(id(weight))
        for slot in slots.values():
            raise ValueError(
                f"The rule of the layer '{self.name}' names a weight of another layer."
                f" Expected: one of `layer.weights`. Received: '{slot.variable.path}'"
            )
        return found

    @property
    def places(self):
        """{place: ids} of all that a call writes and reads, to compare it with another call."""
        found = dict(self.produced)
        for slot in self.slots:
            found.update({(id(slot.variable), axis): ids for axis, ids in slot.axes.items()})
        return found

    @property
    def read_sets(self):
        """Arrays of ids, of each of which at least one must stay for the operation to exist."""
        sets = [ids for slot in self.slots for ids in slot.reads.values()]
        sets += [x.ids.reshape(-1) for x in self.inputs if self.contracts and x.varying]
        return sets + [x.ids.reshape(-1) for x in self.outputs if self.selects]


class Kept:
    """Which ids stay, as the functions in `OpRecord.config` and `.call` ask for it."""

    def __init__(self, keep_ids):
        self._keep = keep_ids

    def mask(self, ids):
        """Boolean array of the shape of `ids`."""
        return self._keep[ids]

    def count(self, ids):
        return int(self._keep[ids].sum())


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
    middle_old = tuple(range(lead, len(old) - tail))
    middle_new = tuple(range(lead, len(new) - tail))
    taken, given = [old[axis] for axis in middle_old], [new[axis] for axis in middle_new]
    if None in taken + given or math.prod(taken) != math.prod(given):
        # An unknown size takes part, were it by swallowing its neighbours.
        before, after = tuple(range(len(old) - tail)), tuple(range(len(new) - tail))
        if any(x.ids.shape[axis] > 1 for axis in before):
            return None
        groups = [(before, after)]
    else:
        groups = [((axis,), (axis,)) for axis in range(lead)]
        groups += _aligned_axes(old, new, middle_old, middle_new)
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
    parent = np.arange(count, dtype=np.int32)
    if edges:
        first = np.concatenate([a for a, _ in edges]).astype(np.int32)
        second = np.concatenate([b for _, b in edges]).astype(np.int32)
        while len(first):
            low, high = np.minimum(first, second), np.maximum(first, second)
            np.minimum.at(parent, high, low)
            # A root that got a parent moved; only what hangs below such roots can move again.
            while True:
                grand = parent[parent]
                if np.array_equal(grand, parent):
                    break
                parent = grand
            first, second = parent[first], parent[second]
            apart = first != second
            first, second = first[apart], second[apart]
    return (np.cumsum(parent == np.arange(count)) - 1)[parent]  # every root is its lowest id


def size_of(shape):
    """Product of the sizes but the batch; NaN where one is unknown, so that no count is wrong."""
    sizes = shape[1:]
    return math.nan if None in sizes else math.prod(sizes)
