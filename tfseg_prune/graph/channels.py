"""Which channels of a Keras model belong together.

Every output channel of every producing layer gets an integer id, and arrays of ids flow through
the functional graph beside the tensors. What meets in an elementwise operation is united; a
concatenation concatenates ids; a reshape reshapes them. A *unit* is one class of united ids: the
least that can be removed. `tfseg_prune.graph.rules` says, one small function per layer type, how
ids pass through a layer.
"""

import dataclasses
import functools
import warnings

import numpy as np

from tfseg_prune.graph.ids import CONSTANT, components
from tfseg_prune.graph.nodes import functional
from tfseg_prune.graph.rules import find_rule
from tfseg_prune.graph.trace import Trace


@dataclasses.dataclass(frozen=True)
class UnitGroup:
    """Units (or classes of units) that are channels of exactly the same layers: one width.

    Attributes:
        members: Their indices.
        layers: {name of a producing layer: channels that one member has in it}.
    """

    members: np.ndarray
    layers: dict


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
        balanced_by: Names of the layers that demand it, in the same order.
        inputs: `Channels` of the model's inputs.
        outputs: `Channels` of its outputs.
        channels_of: {id(tensor of the model): Channels}; those of a nested model are of its last
            call, and keep the same whichever call it is.

    Raises:
        ValueError: If the model isn't functional.
    """

    def __init__(self, model, *, exclude=None):
        self.model = model
        trace = Trace(find_rule)
        self.inputs = []
        for tensor in functional(model).inputs:
            ids = trace.fresh(tensor.shape[-1] or 1, reason="a model input")
            self.inputs.append(trace.channels(ids, tensor.shape))
        self.outputs = trace.run(model, self.inputs)
        self.channels_of = trace.channels_of
        for channels in self.outputs:
            trace.freeze(channels.ids, "a model output")
        for record in trace.records.values():
            for name, ids in record.produced.items():
                if exclude is not None and exclude(name):
                    trace.freeze(ids, "excluded by the caller")
        if trace.unknown:
            warnings.warn(
                "No rule says how channels pass through these layers, so the channels that they"
                f" read and answer are kept whole and their MACs aren't counted:"
                f" {', '.join(trace.unknown)}. Teach them with `tfseg_prune.register_rule`, or open"
                " those that are made of layers with `tfseg_prune.to_functional`, which says why"
                " others stay closed.",
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
        # Copies of a channel that meet no layer's channels: no plan could name them.
        produced = np.zeros(self.num_units, bool)
        for units in self.producers.values():
            produced[units] = True
        self.prunable &= produced
        self.balanced = [self.unit_of[ids] for ids in trace.balanced]
        self.balanced_by = trace.balanced_by

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
        """{unit: why it is never pruned}: that it is an input or output, or the first reason."""
        reasons = {}
        ends = ("a model input", "a model output")
        for ids, reason in sorted(self._reasons, key=lambda pair: pair[1] not in ends):
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
        for record in self.records.values():
            for ids in record.read_sets:
                if not keep_units[self.unit_of[ids]].any():
                    problems.append(f"'{record.name}' would read no channel at all")
        for rows, layer in zip(self.balanced, self.balanced_by):
            counts = keep_units[rows].sum(axis=1)
            if len(set(counts.tolist())) > 1:
                layers = [n for n, units in self.producers.items() if np.isin(rows, units).any()]
                problems.append(
                    f"the groups fed or written by {', '.join(layers)} keep {counts.tolist()}"
                    f" channels where '{layer}' needs equally many in each"
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
        held = {
            name: np.unique(classes[units], return_counts=True)
            for name, units in self.producers.items()
        }
        for present, channels in held.values():
            number = rng.integers(1, 2**63, dtype=np.uint64)
            signature[present] += channels.astype(np.uint64) * number
            produced[present] = True
        # Frozen classes of a layer are no part of the width that can be chosen.
        fixed = np.zeros(count, bool)
        fixed[classes[~self.prunable]] = True
        signature += fixed.astype(np.uint64)
        members = np.flatnonzero(produced)
        if not len(members):
            return []
        inverse = np.unique(signature[members], return_inverse=True)[1]
        order = np.argsort(inverse, kind="stable")
        parts = np.split(members[order], np.cumsum(np.bincount(inverse))[:-1])
        groups_of_class = np.zeros(count, int)
        groups_of_class[members] = inverse
        layers = [{} for _ in parts]
        for name, (present, channels) in held.items():
            for group, first in zip(*np.unique(groups_of_class[present], return_index=True)):
                layers[group][name] = int(channels[first])
        groups = [UnitGroup(part, held) for part, held in zip(parts, layers)]
        return sorted(groups, key=lambda group: group.members[0])
