"""What a network costs under any choice of channels.

**The counting rule.** One MAC is one multiplication with its addition; figures are per image
(batch 1), at the model's own input size. Convolutions count
`output pixels x kernel elements x inputs per group x outputs`; transposed convolutions the same at
their *input* resolution, which is what a good kernel executes; dense layers and products of two
activations (attention) likewise, recurrent kernels once a step. Biases, normalisation,
activations, pooling and resizing count nothing. Parameters are all weights but the moving
statistics of normalisation layers, as PyTorch counts them.

**Papers.** "FLOPs" in the five papers are MACs. The multi-task pruning paper's hook-based counter
adds BN, ReLU, pooling and upsampling (about 1.0065 times these figures); gradual grouping adds
biases and two operations per BN element and counts transposed convolutions at output resolution.
`tf.compat.v1.profiler` counts two per MAC.

**Padded MACs.** GPU delegates pack channels in slices of 4 and compute whole slices: padded MACs
count every width that a term multiplies (of a grouped convolution, that of each group) rounded up
to a multiple of 4, the 3 channels of an image and the classes included. What they exceed MACs by
is work for nothing. Widths that no rule follows (a constant kernel's answers) count as they are,
and so does, in a smaller model, the one channel that a plan leaves of a tensor whose tokens are
mixed or multiplied: of an axis of length 1 nobody sees that it holds channels.

Every term is a constant times sums of unit weights, so one function serves a keep-mask, soft
masks in [0, 1] (differentiable through `keras.ops`) and a budget search.
"""

import dataclasses
import math

import numpy as np
from keras import ops

from tfseg_prune.graph.channels import ChannelGraph
from tfseg_prune.graph.ids import Product
from tfseg_prune.graph.nodes import is_nested

# Channels that GPU delegates compute together.
SLICE = 4


@dataclasses.dataclass(frozen=True)
class LayerCost:
    """MACs per image (see `Cost`) and parameters of one layer, all its calls together."""

    macs: int | None
    params: int
    padded_macs: int | None


@dataclasses.dataclass(frozen=True)
class Cost:
    """MACs per image and parameters of a model.

    Attributes:
        macs: Multiply-accumulates per image; `None` where an open input size hides them.
        params: Parameters, moving statistics left out.
        padded_macs: MACs with every width rounded up to slices of 4, as GPU delegates compute.
        layers: {layer name: LayerCost} in topological order, of layers that cost anything.
    """

    macs: int | None
    params: int
    padded_macs: int | None
    layers: dict


def cost(model, plan=None):
    """The exact cost of a model, or of what it becomes under a plan.

    ```python
    tsp.cost(model).macs
    tsp.cost(model, plan).params      # without building the smaller model
    tsp.cost(model).padded_macs       # as a GPU computes them
    ```

    Args:
        model: Functional `keras.Model`.
        plan: Optional `PruningPlan` for this model.

    Returns:
        `Cost`.

    Raises:
        ValueError: If the model isn't functional.
    """
    graph = ChannelGraph(model)
    if plan is None:
        return CostModel(graph).table()
    return CostModel(graph, groups=plan.groups_in(model)).table(plan.keep_units(graph))


class CostModel:
    """Cost of one graph as a function of unit weights.

    Args:
        graph: `ChannelGraph`.
        groups: {layer name: groups} of dense convolutions that become grouped.

    Attributes:
        open_size: Why nobody knows the MACs, or `None`.
    """

    def __init__(self, graph, *, groups=None):
        groups = groups or {}
        for name in groups:
            if name not in graph.records:
                raise ValueError(
                    f"There is no layer '{name}' to be grouped in '{graph.model.name}'. Expected:"
                    " the name of a dense convolution"
                )
        self.num_units = graph.num_units
        self._sides, self._side_index = [], {}
        macs, params = [], []
        self._layers = []
        self.open_size = None
        for record in graph.records.values():
            divisor = groups.get(record.name, 1)
            layer = len(self._layers)
            self._layers.append(record.name)
            for product in record.macs:
                if math.isnan(product.coefficient):
                    self.open_size = (
                        f"The MACs of '{record.name}' depend on an input size that the model"
                        f" '{graph.model.name}' leaves open. Expected: known height and width."
                        " Remedy: rebuild the model on `keras.Input((height, width, 3))`, or ask"
                        " for parameters."
                    )
                    continue
                shared = divisor if len(product.sides) == 2 else 1
                parts = product.groups * shared
                macs.append((layer, Product(product.coefficient / shared, product.sides, parts)))
            params += [(layer, product) for product in _parameters(record, divisor)]
        self._macs = self._table(macs, graph)
        self._params = self._table(params, graph)
        self._flat = np.concatenate(self._sides) if self._sides else np.zeros(0, int)
        self._segments = np.repeat(
            np.arange(len(self._sides)), [len(side) for side in self._sides]
        )

    def macs(self, weights=None):
        """MACs per image.

        Args:
            weights: `[num_units]` array or tensor of unit weights in [0, 1]; all ones by default.

        Returns:
            A float for NumPy weights, else a scalar tensor with gradients in `weights`.

        Raises:
            ValueError: If they depend on a size that the model leaves open.
        """
        if self.open_size:
            raise ValueError(self.open_size)
        return self._total(self._macs, weights)

    def padded_macs(self, weights=None):
        """MACs with every width rounded up to slices of 4; only of NumPy weights.

        A rounded number has no gradient worth having.

        Raises:
            ValueError: As `macs`.
        """
        if self.open_size:
            raise ValueError(self.open_size)
        counts = self._counts(None if weights is None else np.asarray(weights, float))
        return float(self._padded(counts).sum())

    def params(self, weights=None):
        """Parameters; arguments as of `macs`."""
        return self._total(self._params, weights)

    def table(self, keep_units=None):
        """`Cost` under a boolean array of `num_units` (all by default)."""
        counts = self._counts(None if keep_units is None else np.asarray(keep_units, float))
        per_layer = [
            np.bincount(layers, values, minlength=len(self._layers))
            for layers, values in (
                (self._macs[0], self._values(self._macs, counts)),
                (self._params[0], self._values(self._params, counts)),
                (self._macs[0], self._padded(counts)),
            )
        ]

        def rounded(macs, params, padded):
            known = self.open_size is None
            whole = (int(round(macs)), int(round(params)), int(round(padded)))
            return whole if known else (None, whole[1], None)

        layers = {
            name: LayerCost(*rounded(*values))
            for name, *values in zip(self._layers, *per_layer)
            if values[0] or values[1]
        }
        return Cost(*rounded(*(values.sum() for values in per_layer)), layers)

    def _table(self, products, graph):
        """Arrays (layer, coefficient, sides, groups) of a list of products."""
        width = max((len(product.sides) for _, product in products), default=0)
        rows = np.zeros((len(products), width), int)
        for row, (_, product) in enumerate(products):
            for column in range(width):
                has_side = column < len(product.sides)
                units = graph.unit_of[product.sides[column]] if has_side else np.zeros(1, int)
                key = units.tobytes()
                if key not in self._side_index:
                    self._side_index[key] = len(self._sides)
                    self._sides.append(units)
                rows[row, column] = self._side_index[key]
        layers = np.array([layer for layer, _ in products], int)
        coefficients = np.array([p.coefficient for _, p in products], float)
        # What is no side is a factor of one, which is not rounded.
        groups = np.array(
            [[p.groups if k < len(p.sides) else 0 for k in range(width)] for _, p in products]
        )
        return layers, coefficients, rows, groups.reshape(rows.shape)

    def _counts(self, weights):
        if weights is None:
            weights = np.ones(self.num_units)
        if isinstance(weights, np.ndarray):
            # Unit 0 stands for what is no channel: one, whatever is asked.
            weights = np.concatenate([[1.0], weights[1:]])
            return np.bincount(self._segments, weights[self._flat], minlength=len(self._sides))
        weights = ops.concatenate([ops.ones((1,), weights.dtype), weights[1:]])
        return ops.segment_sum(
            ops.take(weights, self._flat.astype("int32")),
            self._segments.astype("int32"),
            num_segments=len(self._sides),
        )

    def _values(self, table, counts):
        _, coefficients, rows, _ = table
        return coefficients * np.prod(counts[rows], axis=1)

    def _padded(self, counts):
        _, coefficients, rows, groups = self._macs
        sides = counts[rows]
        # One channel read per group: a depthwise convolution, which computes all groups together.
        depthwise = (groups[:, :1] > 1) & (sides[:, :1] == groups[:, :1])
        part = SLICE * np.where(depthwise, 1, np.maximum(groups, 1))
        whole = part * np.ceil(sides / part - 1e-9)
        whole[:, :1] = np.where(depthwise, sides[:, :1], whole[:, :1])
        return coefficients * np.prod(np.where(groups, whole, 1), axis=1)

    def _total(self, table, weights):
        counts = self._counts(weights)
        if isinstance(counts, np.ndarray):
            return float(self._values(table, counts).sum())
        _, coefficients, rows, _ = table
        factors = ops.prod(ops.take(counts, rows.astype("int32"), axis=0), axis=1)
        return ops.sum(ops.cast(coefficients, factors.dtype) * factors)


def _parameters(record, divisor):
    """Products that sum to the parameters of one operation."""
    weights = getattr(record.operation, "weights", None)
    if not weights or is_nested(record.operation):
        return
    slots = record.slots_by_position()
    for index, weight in enumerate(weights):
        slot = slots.get(index)
        if slot is None:
            if "int" not in str(weight.dtype):  # a seed generator's state is no parameter
                yield Product(float(math.prod(weight.shape)), ())
        elif not slot.statistic:
            axes = slot.axes
            rest = [size for axis, size in enumerate(weight.shape) if axis not in axes]
            both = slot.reads and slot.writes
            yield Product(
                math.prod(rest) / slot.groups / (divisor if both else 1), tuple(axes.values())
            )
