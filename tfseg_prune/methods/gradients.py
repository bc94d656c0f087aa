"""Collects, while a network trains, what its gradients say about each channel."""

import keras
import numpy as np
from keras import ops

from tfseg_prune.criteria.gates import gates
from tfseg_prune.graph import ChannelGraph


class Gradients(keras.callbacks.Callback):
    """Moving averages of channel gradients, for the criteria "taylor" and "dcfp".

    ```python
    gradients = tsp.Gradients(model)
    model.fit(train, epochs=1, callbacks=[gradients])
    plan = tsp.plan(model, criterion="taylor", gradients=gradients, budget=tsp.Budget(macs=0.5))
    ```

    The gradients are those of the training step itself, before clipping and weight decay, so
    collecting them costs next to nothing. The averages are variables of the model's optimizer,
    so whatever saves and restores the optimizer (`tsp.fit`, `BackupAndRestore`) resumes them; list
    this callback before such ones. A further `fit` with the same optimizer goes on with them.

    Args:
        model: Functional `keras.Model`, or one that shares its layers with the model that trains.
        decay: Of the moving averages, per step. Defaults to `0.999`.

    Raises:
        ValueError: If no channel of the model could be ranked by its gradient.
    """

    def __init__(self, model, *, decay=0.999):
        super().__init__()
        if not 0 <= decay < 1:
            raise ValueError(f"`decay` must be in [0, 1). Received: {decay!r}")
        self.name = model.name
        self._decay = decay
        self._gates = gates(ChannelGraph(model))
        if not self._gates:
            raise ValueError(
                f"No channel of '{model.name}' has a gradient of its own. Expected: a batch"
                " normalisation or a weight that writes channels. Received: none"
            )
        self._optimizer = None
        self._active = False

    def set_model(self, model):
        """Called by Keras when a training begins; begins to collect in its optimizer."""
        super().set_model(model)
        optimizer = getattr(model, "optimizer", None)
        # A loss-scaling optimizer hands unscaled gradients to the one inside.
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if optimizer is None:
            return
        self._active = True
        model.train_function = None  # one of an earlier training may not observe
        if optimizer is self._optimizer:
            return
        trainable = {id(variable) for variable in model.trainable_variables}
        if not any(id(v) in trainable for gate in self._gates for v, _ in gate.weights):
            raise ValueError(
                f"The gradients are those of '{self.name}'. Expected: a training of that very"
                f" model. Received: '{model.name}', which shares no trainable weight with it"
            )
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
        self._optimizer = optimizer
        state_of = self._state_of = object()  # an optimizer may come back after another one

        def state(name, shape=()):
            return optimizer.add_variable(shape, dtype="float32", name=name)

        self._steps = state("gradients_steps")
        self._taylor = [state("gradients_taylor", gate.ids.shape) for gate in self._gates]
        self._dcfp = [
            None if gate.scale is None else state("gradients_dcfp", gate.ids.shape)
            for gate in self._gates
        ]
        # The one place that sees the gradients of a training step on every backend.
        apply = optimizer.apply

        def observed_apply(grads, trainable_variables=None):
            grads = list(grads)
            variables = trainable_variables
            variables = optimizer._trainable_variables if variables is None else list(variables)
            if self._active and state_of is self._state_of:
                self._observe({id(v): g for v, g in zip(variables, grads) if g is not None})
            return apply(grads, variables if trainable_variables is not None else None)

        optimizer.apply = observed_apply

    def on_train_end(self, logs=None):
        # A later training without this callback is none of its business.
        self._active = False
        self.model.train_function = None

    def _observe(self, gradients):
        def average(variable, new):
            variable.assign(self._decay * variable + (1 - self._decay) * new)

        for gate, taylor, dcfp in zip(self._gates, self._taylor, self._dcfp):
            if not all(id(variable) in gradients for variable, _ in gate.weights):
                continue  # frozen
            change = 0.0
            for variable, axis in gate.weights:
                product = ops.cast(variable, "float32") * ops.cast(
                    gradients[id(variable)], "float32"
                )
                others = [a for a in range(len(variable.shape)) if a != axis]
                change = change + (ops.sum(product, axis=others) if others else product)
            average(taylor, ops.square(change))
            if dcfp is not None:
                gradient = ops.cast(gradients[id(gate.scale)], "float32")
                shrinks = ops.cast(gate.scale, "float32") * gradient > 0
                average(dcfp, ops.where(shrinks, ops.abs(gradient), ops.convert_to_tensor(dcfp)))
        self._steps.assign_add(1)

    @property
    def keys(self):
        """`Gate.key` of all gates."""
        return [gate.key for gate in self._gates]

    def blank(self):
        """What stands for these gradients before anything was collected: all channels alike."""
        return _Blank(self.name, self._gates)

    def scores(self, criterion):
        """{`Gate.key`: float array `[channels]`} of "taylor" or "dcfp".

        Raises:
            ValueError: If no training step was seen.
        """
        steps = 0 if self._optimizer is None else int(ops.convert_to_numpy(self._steps))
        if not steps:
            raise ValueError(
                f"The gradients of '{self.name}' were not collected yet. Expected: some steps of"
                " `model.fit(..., callbacks=[gradients])`. Received: none"
            )
        # Freed of the start at zero. What trains from a frozen layer stays zero: not ranked.
        weight = 1 - self._decay**steps
        variables = {"taylor": self._taylor, "dcfp": self._dcfp}[criterion]
        found = {}
        for gate, variable in zip(self._gates, variables):
            values = None if variable is None else np.asarray(ops.convert_to_numpy(variable))
            if values is not None and values.any():
                found[gate.key] = values.astype("float64") / weight
        return found


class _Blank:
    def __init__(self, name, gates):
        self.name = name
        self.keys = [gate.key for gate in gates]
        self._gates = gates

    def scores(self, criterion):
        return {
            gate.key: np.ones(gate.ids.size)
            for gate in self._gates
            if criterion == "taylor" or gate.scale is not None
        }
