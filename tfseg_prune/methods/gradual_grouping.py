"""Gradual grouping: dense convolutions that become grouped while they train.

Vallurupalli et al., "Efficient Semantic Segmentation using Gradual Grouping" (CVPR Workshops 2018).
A training that starts dense may use all connections while it looks for a good place; those between
groups then fade by a factor alpha from 1 to 0, and what is left *is* a grouped convolution (see
`tfseg_prune.layers.gradual_conv`).
"""

import math
import numbers

import keras
import numpy as np
from keras import ops

from tfseg_prune.graph import ChannelGraph, CostModel, PruningPlan, SurgeryError, check_equal
from tfseg_prune.graph.nodes import again, finish, rewire
from tfseg_prune.graph.reorder import interchangeable, reorder
from tfseg_prune.layers.gradual_conv import GradualConv2D, group_mask
from tfseg_prune.methods.planning import compiled, faded_groups
from tfseg_prune.search.grouping import DenseKernel, balanced_order

SCHEDULES = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
PER = ("step", "epoch")
ASSIGN = ("contiguous", "balanced")
_FROZEN = "one that is frozen (trainable=False)"


class GradualGrouping(keras.callbacks.Callback):
    """Fades the connections between the groups of chosen convolutions while they train.

    ```python
    gradual = tsp.GradualGrouping(model, groups=4)
    gradual.model.compile(optimizer, loss)
    gradual.model.fit(train, epochs=100, callbacks=[gradual])
    small = tsp.shrink(gradual.model, gradual.plan())  # plain Keras, real grouped convolutions
    ```

    `gradual.model` is a copy of `model` with layers of the same names, in which the chosen
    convolutions are `GradualConv2D`. It starts with the weights of `model` and answers the same,
    shares none of them, and `model` stays as it is, to be a teacher or a control.
    (`tsp.models.copy_weights(other, gradual.model)` hands it those of another dense one.)

    With n of N steps (or epochs) done, alpha is `schedule(n / (until * N))`, and 0 from `until` on.
    It is a weight, which checkpoints hold, and it never grows, whatever the schedule says: a
    training that goes on where it was killed, or another one after it, fine-tunes what has faded.
    Steps and epochs count as `initial_epoch` says and N is that of the training, so an interrupted
    `fit` goes on with the same `epochs`. (`tsp.fit(keep="best")` may bring back an epoch before
    alpha was 0: keep the last.)

    Args:
        model: Functional `keras.Model`. Gradual convolutions that it has already fade as well.
        groups: int, at least 2: of every chosen convolution. For other numbers elsewhere, give
            `gradual.model` to a further one, with its own `groups` and `where`.
        where: Which convolutions. Names of layers and regular expressions for names of `Conv2D`
            layers; or a function `Conv2D layer -> bool`. Defaults to `None`: those 1x1
            convolutions of the backbone (names that start with `backbone_`; the whole model if
            there are none, its outputs left out) that are dense, without strides, and of widths
            that `groups` divides.
        schedule: "linear", "cosine", or a function from the progress in [0, 1] to alpha in [0, 1],
            which falls to 0 (looked at in 101 places; where it grows between them, alpha stays).
            Defaults to `"linear"`.
        until: float in (0, 1], the part of the training after which alpha is 0.
        per: "step" or "epoch": how often alpha changes. By epoch, the first is dense and the last
            must be grouped. By step, JAX hands the weights to the model and back at every change,
            which took 6 ms a step of ERFNet on a CPU.
        assign: "contiguous" (equal runs of channels are a group, as in the paper) or "balanced":
            first the channels change places, wherever in the network they are written or read,
            such that groups keep more of the squared weights (see `search.grouping`); the network
            answers the same, which is checked. Layers on one residual stream share one order.

    Raises:
        ValueError: On a senseless option; if no convolution is chosen; or one that can't become
            grouped: no `Conv2D`, grouped already, frozen, or of widths that `groups` doesn't
            divide.
    """

    def __init__(
        self,
        model,
        groups=4,
        *,
        where=None,
        schedule="linear",
        until=0.65,
        per="step",
        assign="contiguous",
    ):
        super().__init__()
        _check_options(groups, schedule, until, per, assign)
        graph = ChannelGraph(model)
        chosen = _chosen(graph, where, groups)
        self._schedule = schedule if callable(schedule) else SCHEDULES[schedule]
        self._until, self._per = until, per
        self._about = {
            "groups": int(groups),
            "schedule": getattr(schedule, "__name__", str(schedule)),
            "until": float(until),
            "per": per,
            "assign": assign,
        }
        self._trained = _gradual(graph, chosen, groups)
        graph = ChannelGraph(self._trained)
        if assign == "balanced" and chosen:
            _balance(model, graph, chosen)
        self._gradual = {
            name: record.operation
            for name, record in graph.records.items()
            if isinstance(record.operation, GradualConv2D)
        }
        self._highest = dict.fromkeys(self._gradual, 1.0)
        self._epoch = 0
        self.set_model(self._trained)

    def set_model(self, model):
        """Called by Keras when a training begins."""
        if model is not self._trained:
            raise ValueError(
                "Gradual grouping fades its own copy of the model. Expected:"
                " `gradual.model.fit(..., callbacks=[gradual])`. Received: a training of"
                f" '{model.name}', which is another one"
            )
        super().set_model(model)

    @property
    def alpha(self):
        """The largest alpha of all gradual convolutions, a float: 0 when all are grouped."""
        return max(_alpha(layer) for layer in self._convolutions.values())

    def kept_mass(self):
        """{layer name: part of its squared weights that is within groups}.

        Of the kernel as it is stored, as if nothing had faded: what decay and momentum do to the
        faded weights shows in it.
        """
        found = {}
        for name, layer in self._convolutions.items():
            mass = _mass(layer)
            mask = group_mask(
                *mass.shape, layer.target_groups, layer.input_groups, layer.output_groups
            )
            found[name] = float(mass[mask].sum() / max(mass.sum(), np.finfo(float).tiny))
        return found

    @property
    def _convolutions(self):
        """{layer name: gradual convolution}, of weights that can be read and set.

        With JAX a training keeps the weights from the model until someone asks for `self.model`;
        the next step then takes them from there.
        """
        self.model
        return self._gradual

    def on_epoch_begin(self, epoch, logs=None):
        layers = self._convolutions
        # Read here, since checkpoints are restored when a training begins.
        self._highest = {name: _alpha(layer) for name, layer in layers.items()}
        self._epoch = epoch
        for name, layer in layers.items():
            if self._highest[name] and not layer.trainable:
                raise ValueError(
                    f"The convolution '{name}' is frozen while its connections fade. Expected:"
                    " weights that can make up for what is lost. Received: trainable=False, at"
                    f" alpha = {self._highest[name]:.3g}. Remedy: freeze it once alpha is 0"
                )
        epochs, steps = self.params["epochs"], self.params["steps"]
        if self._per == "epoch":
            if self._fades and self._until * epochs > epochs - 1 + 1e-9:
                raise ValueError(
                    "The training has no epoch without the faded connections. Expected: a whole"
                    f" epoch after the first {self._until:.0%} of them. Received: {epochs} epochs."
                    " Remedy: more epochs, or per='step'"
                )
            self._fade(epoch, epochs)
        else:
            if self._fades and steps is None:
                raise ValueError(
                    "Nobody knows how many steps an epoch has. Expected: data of known length."
                    " Received: some of unknown length. Remedy: `steps_per_epoch`, or per='epoch'"
                )
            self._fade(epoch * (steps or 0), epochs * (steps or 0))

    def on_train_batch_end(self, batch, logs=None):
        if self._per == "step" and self._fades:
            steps = self.params["steps"]
            self._fade(self._epoch * steps + batch + 1, self.params["epochs"] * steps)

    @property
    def _fades(self):
        return any(self._highest.values())

    def _fade(self, done, whole):
        """Sets alpha for what follows `done` of `whole` steps or epochs."""
        if not self._fades:
            return
        progress = done / (self._until * whole)
        alpha = 0.0 if progress > 1 - 1e-9 else max(0.0, float(self._schedule(progress)))
        fading = [name for name, highest in self._highest.items() if alpha < highest]
        layers = self._convolutions if fading else {}
        for name in fading:
            layers[name].alpha.assign(alpha)
            self._highest[name] = alpha

    def plan(self):
        """The `PruningPlan` for `gradual.model` that makes its convolutions grouped.

        Raises:
            ValueError: If alpha isn't 0 yet.
        """
        if self.alpha:
            raise ValueError(
                "The connections between the groups haven't faded. Expected: alpha = 0, as after"
                f" {self._until:.0%} of the training. Received: alpha = {self.alpha:.3g}. Remedy:"
                " train on; or, if an earlier epoch was restored as the best, keep the last"
            )
        graph = ChannelGraph(self.model)
        groups = faded_groups(graph)
        dense, grouped = CostModel(graph).table(), CostModel(graph, groups=groups).table()
        return PruningPlan.from_units(
            graph,
            np.ones(graph.num_units, bool),
            groups=groups,
            method="gradual_grouping",
            scores={
                **self._about,
                "macs": [dense.macs, grouped.macs],
                "params": [dense.params, grouped.params],
                "padded_macs": [dense.padded_macs, grouped.padded_macs],
            },
        )


def _check_options(groups, schedule, until, per, assign):
    if isinstance(groups, bool) or not isinstance(groups, numbers.Integral) or groups < 2:
        raise ValueError(
            f"Invalid `groups`. Expected: an integer of 2 or more. Received: {groups!r}"
        )
    for name, value, choices in (("per", per, PER), ("assign", assign, ASSIGN)):
        if value not in choices:
            raise ValueError(
                f"Invalid `{name}`. Expected: one of {', '.join(choices)}. Received: {value!r}"
            )
    if not isinstance(until, numbers.Real) or isinstance(until, bool) or not 0 < until <= 1:
        raise ValueError(f"Invalid `until`. Expected: a part in (0, 1]. Received: {until!r}")
    if callable(schedule):
        values = [float(schedule(progress)) for progress in np.linspace(0, 1, 101)]
        falls = all(after <= before for before, after in zip(values, values[1:]))
        if not (falls and values[0] <= 1 and abs(values[-1]) < 1e-6):
            raise ValueError(
                "Invalid `schedule`. Expected: a function from the progress in [0, 1] to alpha in"
                " [0, 1] that never grows and ends at 0. Received: one from"
                f" {values[0]:.3g} to {values[-1]:.3g}{'' if falls else ', which grows'}"
            )
    elif schedule not in SCHEDULES:
        raise ValueError(
            f"Invalid `schedule`. Expected: one of {', '.join(SCHEDULES)}, or a function of the"
            f" progress. Received: {schedule!r}"
        )


def _chosen(graph, where, groups):
    """{id(layer): name} of the convolutions that become gradual."""
    convolutions = {
        name: record.operation
        for name, record in graph.records.items()
        if isinstance(record.operation, keras.layers.Conv2D)
    }
    if where is None:
        names = _default(graph, convolutions, groups)
    elif callable(where):
        names = [name for name, layer in convolutions.items() if where(layer)]
    else:
        names = _named(graph, convolutions, [where] if isinstance(where, str) else where)
    if not names and not any(isinstance(c, GradualConv2D) for c in convolutions.values()):
        raise ValueError(
            f"No convolution of '{graph.model.name}' is chosen to become grouped. Expected: by"
            f" `where`, some of {', '.join(list(convolutions)[:5]) or 'none that there are'}; by"
            f" default dense 1x1 convolutions of widths that {groups} divides. Received: none"
        )
    for name in names:
        problem = _problem(graph.records[name].operation, groups)
        if problem:
            raise ValueError(
                f"'{name}' can't become a grouped convolution gradually. Expected: a dense `Conv2D`"
                f" that trains, with inputs and outputs that {groups} divides. Received: {problem}."
                " Remedy: leave it out by `where`, or change what is received"
            )
    return {id(graph.records[name].operation): name for name in names}


def _default(graph, convolutions, groups):
    in_backbone = [name for name in convolutions if name.startswith("backbone_")]
    found = []
    for name in in_backbone or convolutions:
        layer = convolutions[name]
        units = graph.producers.get(name, ())
        ends = {graph.frozen.get(int(unit)) for unit in units} & {"a model output"}
        simple = set(layer.kernel_size) == set(layer.strides) == {1}
        if simple and not ends and _problem(layer, groups) in (None, _FROZEN):
            found.append(name)
    return found


def _named(graph, convolutions, entries):
    names = []
    for entry in entries:
        if entry in graph.records:
            found = [entry]
        else:
            (pattern,) = compiled([entry])
            found = [name for name in convolutions if pattern.search(name)]
        if not found:
            raise ValueError(
                f"{entry!r} in `where` matches no convolution of '{graph.model.name}'. Expected: a"
                " layer's name, or a regular expression that matches one of"
                f" {', '.join(list(convolutions)[:5])}, ..."
            )
        names += [name for name in found if name not in names]
    return names


def _problem(layer, groups):
    if type(layer) is not keras.layers.Conv2D:
        return f"a {type(layer).__name__}"
    if layer.groups > 1:
        return f"one of {layer.groups} groups already"
    ins, outs = layer.kernel.shape[-2:]
    if ins % groups or outs % groups:
        return f"one with {ins} inputs and {outs} outputs"
    if layer.kernel_constraint is not None:
        return "one with a kernel constraint, which would look at the faded weights, too"
    return None if layer.trainable else _FROZEN


def _gradual(graph, chosen, groups):
    """A copy of the graph's model in which the chosen convolutions are gradual."""
    made = {}

    def call(operation, args, kwargs):
        if id(operation) not in made:
            if id(operation) in chosen:
                new = GradualConv2D.from_conv(operation, groups)
            else:
                # Raw operations as well: one that is called remembers it for as long as it lives.
                new = again(operation, blank=True)
            new.name = operation.name  # which raw operations have from Keras
            made[id(operation)] = operation, new
        return made[id(operation)][1](*args, **kwargs)

    copy = rewire(graph.model, call)
    for old, new in made.values():
        if not isinstance(old, keras.layers.Layer):
            continue
        for variable, value in zip(new.weights, old.weights):  # alpha, the last, stays at 1
            # A copy: JAX trains in the memory of the weights that it is given.
            variable.assign(np.array(ops.convert_to_numpy(value)))
            variable.trainable = value.trainable
        finish(old, new)
    return copy


def _balance(model, graph, chosen):
    """Moves channels of the graph's model, a copy, so that `chosen` keep more of their weights."""
    kernels = []
    for name in chosen.values():
        (slot, *_) = graph.records[name].slots
        (ins,), (outs,) = slot.reads.values(), slot.writes.values()
        layer = graph.records[name].operation
        kernels.append(
            DenseKernel(_mass(layer), graph.unit_of[ins], graph.unit_of[outs], layer.target_groups)
        )
    kinds = interchangeable(graph, grouping=set(chosen.values()))
    reorder(graph, balanced_order(kernels, kinds))
    try:
        check_equal(model, graph.model)
    except SurgeryError as error:
        raise ValueError(
            f"The channels of '{model.name}' can't be put in another order. Expected: layers that"
            " take each channel alike, wherever it stands. Received: a network that then answers"
            " something else, as one that adds constants of its own to channels. Remedy:"
            " assign='contiguous'"
        ) from error


def _alpha(layer):
    return float(ops.convert_to_numpy(layer.alpha))


def _mass(layer):
    """float64 array `[in, out]` of squared weights."""
    kernel = np.asarray(ops.convert_to_numpy(layer.kernel)).astype("float64")
    return np.square(kernel).sum(axis=tuple(range(kernel.ndim - 2)))
