"""What of a model can be pruned, what can't and why, and which layers are coupled."""

import collections
import dataclasses
import json
import warnings

import keras
import numpy as np

from tfseg_prune.graph.channels import ChannelGraph
from tfseg_prune.graph.cost import CostModel
from tfseg_prune.graph.nodes import functional, is_nested, walk
from tfseg_prune.graph.rules import find_rule

_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ChannelSet:
    """A unit group, or the part of one that is kept whole for one reason.

    The shares of all sets sum to more than 1: a convolution counts for the set that it reads and
    for the one that it writes.

    Attributes:
        layers: {layer that creates channels of the set: how many of them}. Of channels that no
            layer with a rule creates: the inputs that hold them, or the layer at which they
            first appear.
        width: Number of units: of channels, with all that is coupled to each, that can go one by
            one.
        reads: Names of the layers that sum over these channels.
        macs: MACs per image that vanish if all of the set are dropped; `None` where the model
            leaves its input size open.
        params: Parameters that vanish then.
        macs_share: `macs` as a fraction of the model's, or `None`.
        params_share: `params` as a fraction of the model's.
        constraints: What else limits the choice, in words.
        reason: Why the set is never pruned; `None` if it can be.
    """

    layers: dict
    width: int
    reads: tuple
    macs: int | None
    params: int
    macs_share: float | None
    params_share: float
    constraints: tuple
    reason: str | None

    @property
    def prunable(self):
        return self.reason is None


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of an operation, or an input.

    Attributes:
        name: Path of the operation, `outer_model/inner_model/layer`; of a shared layer's later
            calls with ` (call 2)` and so on.
        kind: Its class.
        inputs: Names of the calls that it reads, in the order of its arguments.
        channels: {index in `Inspection.sets`: channels of the answer that belong to it}, in the
            order in which they first occur in the answer.
        creates: Whether it creates channels, as a convolution does and an addition doesn't.
        macs: MACs per image of all its calls together; 0 at later calls; `None` where open.
        params: Parameters; 0 at later calls.
        output: Whether it answers an output of the model.
    """

    name: str
    kind: str
    inputs: tuple
    channels: dict
    creates: bool
    macs: int | None
    params: int
    output: bool


@dataclasses.dataclass(frozen=True)
class Inspection:
    """What `inspect` found.

    Attributes:
        model: Name of the model.
        operations: Number of operations, nested models not counted beside what is in them.
        layers: Those of them that are Keras layers and no raw operations.
        macs: MACs per image, or `None` where the model leaves its input size open.
        params: Parameters, moving statistics left out.
        created: Output channels of all layers that create any: convolutions, dense layers, the
            projections of attention, embeddings. Depthwise convolutions create none, and layers
            without a rule aren't counted.
        classifier: Those of them that are a model output, or coupled to one.
        from_input: Those that are coupled to a model input, and to no output.
        prunable: Those that can be pruned.
        sets: `ChannelSet`s, in the order of the model.
        calls: `Call`s, inputs first, in topological order.
        without_rule: `name (class)` of the layers whose channels are kept since no rule is known.
    """

    model: str
    operations: int
    layers: int
    macs: int | None
    params: int
    created: int
    classifier: int
    from_input: int
    prunable: int
    sets: tuple
    calls: tuple
    without_rule: tuple

    @property
    def prunable_share(self):
        """`prunable / (created - classifier - from_input)`, or `None` of none at all."""
        countable = self.created - self.classifier - self.from_input
        return self.prunable / countable if countable else None

    @property
    def groups(self):
        """The sets that can be pruned."""
        return tuple(found for found in self.sets if found.prunable)

    @property
    def frozen(self):
        """The sets that can't."""
        return tuple(found for found in self.sets if not found.prunable)

    def to_json(self):
        """JSON text: the figures, then one set a line, then one call a line."""
        figures = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name not in ("sets", "calls")
        }
        figures = {"version": _VERSION, **figures, "prunable_share": self.prunable_share}
        sets = [{**dataclasses.asdict(found), "prunable": found.prunable} for found in self.sets]
        calls = []
        for call in self.calls:
            # JSON has no integer keys.
            calls.append({**dataclasses.asdict(call), "channels": list(call.channels.items())})
        parts = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in figures.items()]
        for key, items in (("sets", sets), ("calls", calls)):
            lines = ",\n".join(f"    {json.dumps(item)}" for item in items)
            parts.append(f"  {json.dumps(key)}: [\n{lines}\n  ]")
        return "{\n" + ",\n".join(parts) + "\n}\n"


def inspect(model):
    """Finds which channels of a model are coupled, which can be pruned, and why others can't.

    ```python
    found = tsp.inspect(model)
    found.prunable_share                                      # 1.0: all but the classifier
    [(list(s.layers), s.reason) for s in found.frozen]        # what is kept, and why
    max(found.groups, key=lambda s: s.macs_share).layers      # where the MACs are
    ```

    Args:
        model: A functional or sequential `keras.Model`, or its `ChannelGraph`.

    Returns:
        `Inspection`.

    Raises:
        ValueError: If the model isn't functional.
    """
    graph = model
    if not isinstance(model, ChannelGraph):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "No rule says")  # they are in the answer
            graph = ChannelGraph(model)
    visits, ends = _visits(graph)
    set_of, reasons = _sets_of_units(graph, visits)
    channels_of = [_count(set_of[graph.unit_of[visit.ids]]) for visit in visits]
    cost = CostModel(graph)
    whole = cost.table()
    operations = [r.operation for r in graph.records.values() if not is_nested(r.operation)]
    created = np.concatenate([np.zeros(0, int), *graph.producers.values()])
    classifier, from_input = (
        np.isin(created, np.concatenate([graph.unit_of[x.ids].reshape(-1) for x in tensors]))
        for tensors in (graph.outputs, graph.inputs)
    )
    return Inspection(
        model=graph.model.name,
        operations=len(operations),
        layers=sum(isinstance(operation, keras.layers.Layer) for operation in operations),
        macs=whole.macs,
        params=whole.params,
        created=len(created),
        classifier=int(classifier.sum()),
        from_input=int((from_input & ~classifier).sum()),
        prunable=int(graph.prunable[created].sum()),
        sets=_sets(graph, set_of, reasons, visits, channels_of, cost),
        calls=_calls(visits, ends, channels_of, whole.layers, cost.open_size is None),
        without_rule=tuple(
            f"{record.name} ({type(record.operation).__name__})"
            for record in graph.records.values()
            if not is_nested(record.operation) and find_rule(record.operation) is None
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Visit:
    """A call on the walk: `feeds` are positions of earlier visits; inputs have no record."""

    name: str
    record: object
    ids: np.ndarray
    feeds: tuple
    first: bool


def _visits(graph):
    """Every input and every call of every operation, in the order in which the graph met them."""
    records = {id(record.operation): record for record in graph.records.values()}
    made = collections.Counter()
    visits = [
        _Visit(tensor._keras_history.operation.name, None, channels.ids.reshape(-1), (), True)
        for tensor, channels in zip(functional(graph.model).inputs, graph.inputs)
    ]

    def follow(model, feeds):
        source = {id(tensor): feed for tensor, feed in zip(functional(model).inputs, feeds)}
        for node in walk(model):
            given = [source[id(tensor)] for tensor in node.arguments.keras_tensors]
            record = records[id(node.operation)]
            if is_nested(node.operation):
                answers = follow(node.operation, given)
            else:
                answers = [len(visits)] * len(node.outputs)
                tensors = record.calls[made[id(record)]]
                made[id(record)] += 1
                number = made[id(record)]
                name = record.name if number == 1 else f"{record.name} (call {number})"
                ids = np.concatenate([channels.ids.reshape(-1) for channels in tensors])
                visits.append(_Visit(name, record, ids, tuple(given), number == 1))
            source.update({id(tensor): answer for tensor, answer in zip(node.outputs, answers)})
        return [source[id(tensor)] for tensor in functional(model).outputs]

    return visits, frozenset(follow(graph.model, range(len(visits))))


def _sets_of_units(graph, visits):
    """The set of every unit, -1 of what is no channel of anything, and the reason of every set.

    A set is the units of one `UnitGroup` with one reason; frozen units that no layer produces
    belong to the input or call at which they first appear.
    """
    group = np.zeros(graph.num_units, int)
    for number, found in enumerate(graph.groups, 1):
        group[found.members] = number
    reasons = dict.fromkeys([None, *graph.frozen.values()])
    numbers = {reason: number for number, reason in enumerate(reasons)}
    reason_of = np.zeros(graph.num_units, int)
    for unit, reason in graph.frozen.items():
        reason_of[unit] = numbers[reason]
    for position in reversed(range(len(visits))):  # so that the first has the last word
        units = graph.unit_of[visits[position].ids]
        group[units[(group[units] <= 0) & (reason_of[units] > 0)]] = -1 - position
    members = np.flatnonzero(group)
    keys = np.stack([group, reason_of])[:, members]
    _, firsts, inverse = np.unique(keys, axis=1, return_index=True, return_inverse=True)
    rank = np.argsort(np.argsort(firsts))
    set_of = np.full(graph.num_units, -1)
    set_of[members] = rank[inverse.reshape(-1)]
    reasons = list(reasons)
    return set_of, [reasons[number] for number in reason_of[members[np.sort(firsts)]]]


def _count(sets):
    """{set: how often it occurs}, in the order of first occurrence."""
    found, firsts, counts = np.unique(sets, return_index=True, return_counts=True)
    return {int(found[k]): int(counts[k]) for k in np.argsort(firsts) if found[k] >= 0}


def _sets(graph, set_of, reasons, visits, channels_of, cost):
    layers, reads, constraints = ([{} for _ in reasons] for _ in range(3))
    for name, units in graph.producers.items():
        for index, count in _count(set_of[units]).items():
            layers[index][name] = count
    produced = [bool(held) for held in layers]
    for visit, counts in zip(visits, channels_of):
        for index, count in counts.items():
            if not produced[index] and (visit.record is None or not layers[index]):
                layers[index][visit.name] = count
    for record in graph.records.values():
        for ids in record.read_sets:
            for index in _count(set_of[graph.unit_of[ids]]):
                reads[index][record.name] = None
    widths = np.bincount(set_of[set_of >= 0], minlength=len(reasons)).tolist()
    for rows, name in zip(graph.balanced, graph.balanced_by):
        for index in _count(set_of[rows]):
            constraints[index][f"the {len(rows)} groups of '{name}' keep equally many"] = None
    for index, held in enumerate(layers):
        for name, count in held.items():
            if produced[index] and count > widths[index]:
                together = count // widths[index]
                constraints[index][f"{together} channels of '{name}' go together"] = None
    sized = cost.open_size is None
    macs, params = cost.macs() if sized else None, cost.params()
    sets = []
    for index, reason in enumerate(reasons):
        left = (set_of != index).astype(float)
        lost_macs = macs - cost.macs(left) if sized else None
        lost_params = params - cost.params(left)
        sets.append(
            ChannelSet(
                layers=layers[index],
                width=widths[index],
                reads=tuple(reads[index]),
                macs=round(lost_macs) if sized else None,
                params=round(lost_params),
                macs_share=(lost_macs / macs if macs else 0.0) if sized else None,
                params_share=lost_params / params if params else 0.0,
                constraints=tuple(constraints[index]) if reason is None else (),
                reason=reason,
            )
        )
    return tuple(sets)


def _calls(visits, ends, channels_of, costs, sized):
    calls = []
    for position, (visit, channels) in enumerate(zip(visits, channels_of)):
        record = visit.record
        spent = costs.get(record.name) if visit.first and record else None
        calls.append(
            Call(
                name=visit.name,
                kind="Input" if record is None else type(record.operation).__name__,
                inputs=tuple(visits[feed].name for feed in visit.feeds),
                channels=channels,
                creates=record is not None and bool(record.produced),
                macs=(spent.macs if spent else 0) if sized else None,
                params=spent.params if spent else 0,
                output=position in ends,
            )
        )
    return tuple(calls)
