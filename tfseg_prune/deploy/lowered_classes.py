"""Classes that never win, so that a GPU delegate's argmax has whole slices of four to look at."""

import keras
import numpy as np
from keras import activations, layers, ops

from tfseg_prune.deploy import tail as tails
from tfseg_prune.deploy.forms import Graph, Lowering
from tfseg_prune.deploy.lowered_groups import weights
from tfseg_prune.graph.nodes import again, functional, is_nested

_SLICE = 4
# A copy is this much less than its original: small, lest it widens an int8 range. Where rounding
# takes that, the two are equal, as both are computed alike, and the first one wins.
_LESS = 1 / 32


@keras.saving.register_keras_serializable(package="tfseg_prune")
class SpareClasses(layers.Layer):
    """Class scores with more classes behind, each a copy of one, a little less.

    Args:
        count: how many more.

    Example:

    >>> SpareClasses(2)(keras.ops.ones((1, 1, 1, 2)))[0, 0, 0]
    Array([1.     , 1.     , 0.96875, 0.96875], dtype=float32)
    """

    def __init__(self, count, **kwargs):
        super().__init__(**kwargs)
        self.count = count

    def call(self, inputs):
        classes = inputs.shape[-1]
        parts = [inputs[..., : min(classes, self.count - k)] for k in range(0, self.count, classes)]
        return ops.concatenate([inputs, *(part - _LESS for part in parts)], axis=-1)

    def get_config(self):
        return {**super().get_config(), "count": self.count}


def last_scores(model):
    """The node whose class scores, resized perhaps, the model answers, and nobody else reads."""
    graph = Graph(model)
    node = graph.writer(functional(model).outputs[0])
    while node is not None and graph.alone(node):
        operation = node.operation
        if is_nested(operation):
            return last_scores(operation) if graph.once(node) else None
        if not tails.is_resize(operation) and not tails.is_identity(operation):
            return node if graph.once(node) else None
        node = graph.writer(node.arguments.keras_tensors[0])
    return None


def spare_classes(node, graph, choice):
    """The `Lowering` of the convolution that answers class scores; `choice` is `last_scores`."""
    conv = node.operation
    if node is not choice or type(conv) is not layers.Conv2D or conv.groups > 1:
        return None
    plain = conv.activation is activations.linear and conv.data_format == "channels_last"
    if not plain or not conv.filters % _SLICE:
        return None
    return Lowering(told(conv.filters), _widened)


def told(classes):
    """What the log says of so many classes."""
    return f"{classes} classes: {-classes % _SLICE} more that never win, for GPU delegates' argmax"


def with_spare_classes(model, fresh):
    """`model` with its classes filled up behind it; itself where they are a multiple of 4."""
    classes = model.outputs[0].shape[-1]
    if not classes % _SLICE:
        return model
    spare = SpareClasses(-classes % _SLICE, name=fresh("spare_classes"))
    return keras.Model(model.inputs, spare(model.outputs[0]), name=model.name)


def _widened(conv, name, fresh):
    count = -conv.filters % _SLICE
    kernel, *bias = weights(conv)
    bias = bias[0] if bias else np.zeros(conv.filters, "float32")
    copies = np.arange(count) % conv.filters
    changes = {"filters": conv.filters + count, "use_bias": True, "name": name}
    new = again(conv, changes, blank=True)
    new.build((None, None, None, kernel.shape[2]))
    new.set_weights(
        [np.concatenate([kernel, kernel[..., copies]], -1), np.append(bias, bias[copies] - _LESS)]
    )
    return new
