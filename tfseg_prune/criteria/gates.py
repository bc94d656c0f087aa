"""Where a channel can be turned off by one number, shared by the criteria that look at gradients.

Multiplying a channel by a gate m = 1 changes the loss at the rate `dL/dm = sum_w w dL/dw`, summed
over the weights that write it (Molchanov et al., "Importance Estimation for Neural Network
Pruning", CVPR 2019). Before a batch normalisation that sum is zero, whatever the channel does,
because the scale of its input is taken out again; the gate then stands behind it, and its weights
are gamma and beta.
"""

import dataclasses

import keras
import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Gate:
    """One number per channel that would turn it off.

    Attributes:
        ids: int array `[channels]`, ids of the channels in the graph.
        weights: ((variable, axis of its channels), ...): what the number multiplies.
        scale: The gamma of a batch normalisation, or `None`.
    """

    ids: np.ndarray
    weights: tuple
    scale: object

    @property
    def key(self):
        """What finds it again in another graph of the same model."""
        variable, axis = self.weights[0]
        return id(variable), axis


def gates(graph):
    """The gates of a model: behind every batch normalisation, and at producers without one.

    Channels behind a batch normalisation without a scale have none.

    Args:
        graph: `ChannelGraph`.
    """
    found, normed = [], set()
    for record in graph.records.values():
        layer = record.operation
        if isinstance(layer, keras.layers.BatchNormalization):
            follows = {id(s.variable): s.follows[0] for s in record.slots if 0 in s.follows}
            for ids in follows.values():
                normed.update(ids.tolist())
            if layer.gamma is not None and id(layer.gamma) in follows:
                weights = tuple((w, 0) for w in (layer.gamma, layer.beta) if w is not None)
                found.append(Gate(follows[id(layer.gamma)], weights, layer.gamma))
    for record in graph.records.values():
        for ids in record.produced.values():
            weights = tuple(
                (slot.variable, axis)
                for slot in record.slots
                for axis, written in slot.axes.items()
                if written is ids
            )
            if weights and not normed.intersection(ids.tolist()):
                found.append(Gate(ids, weights, None))
    return found


def by_layer(graph, values):
    """{layer: the mean of the values of the gates that each channel passes, NaN without any}.

    Args:
        graph: `ChannelGraph`.
        values: {`Gate.key`: float array `[channels]`}.
    """
    total, count = np.zeros(len(graph.unit_of)), np.zeros(len(graph.unit_of))
    for gate in gates(graph):
        if gate.key in values:
            np.add.at(total, gate.ids, values[gate.key])
            np.add.at(count, gate.ids, 1)
    mean = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return {
        name: mean[ids]
        for record in graph.records.values()
        for name, ids in record.produced.items()
    }


def collected(graph, gradients, criterion):
    """What a training collected on the model of this graph.

    Raises:
        ValueError: If nothing was collected, or on another model.
    """
    wanted = (
        "Expected: `gradients=` a `tsp.Gradients(model)` that was a callback of some training of"
        " this very model"
    )
    if gradients is None:
        raise ValueError(
            f"The criterion '{criterion}' ranks channels by gradients. {wanted}. Received: None."
            " On the command line `tfseg-prune run` collects them (pruning.observe_epochs)"
        )
    values = gradients.scores(criterion)
    known = {gate.key for gate in gates(graph)}
    if not known & set(gradients.keys):
        raise ValueError(
            f"The gradients were collected on another model than '{graph.model.name}'. {wanted}."
            f" Received: those of '{gradients.name}', perhaps the same model before it was saved"
            " and loaded"
        )
    if not known & set(values):
        raise ValueError(
            f"The criterion '{criterion}' can rank no channel of '{graph.model.name}'. Expected:"
            " weights that train"
            + (", and a BatchNormalization(scale=True)" if criterion == "dcfp" else "")
            + ". Received: none. Remedy: another criterion"
        )
    return values
