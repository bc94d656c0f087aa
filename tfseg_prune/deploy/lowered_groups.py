"""Grouped convolutions as phones compute them: one op, one for each group, or a depthwise one."""

import itertools

import numpy as np
from keras import layers, ops, saving

from tfseg_prune.deploy.convert import ExportError
from tfseg_prune.deploy.forms import Lowering, Parts
from tfseg_prune.graph.nodes import again
from tfseg_prune.graph.rules import channel_axis, is_elementwise
from tfseg_prune.layers.gradual_conv import GradualConv2D

GROUPED = ("auto", "grouped", "split")
# GPU delegates pack channels in slices of so many and answer wrongly where a group ends inside one.
_SLICE = 4
# Precisions whose kernels are integers. GPU delegates take a 1x1 convolution of such a kernel for a
# matrix product and leave its groups out of account.
INTEGERS = ("dynamic", "int8", "int8x16", "mixed")


@saving.register_keras_serializable(package="tfseg_prune")
class Split(layers.Layer):
    """Equal parts of a tensor along an axis.

    A layer, since the raw operation gets its name from Keras, which a loaded model may have, too.

    Example:

    >>> [tuple(part.shape) for part in Split(2, -1)(keras.ops.ones((1, 4, 6, 8)))]
    [(1, 4, 6, 4), (1, 4, 6, 4)]
    """

    def __init__(self, parts, axis, **kwargs):
        super().__init__(**kwargs)
        self.parts, self.axis = parts, axis

    def call(self, inputs):
        return ops.split(inputs, self.parts, axis=self.axis)

    def get_config(self):
        return {**super().get_config(), "parts": self.parts, "axis": self.axis}


def grouped_convolution(node, graph, choice):
    """The `Lowering` of a grouped `Conv2D`.

    Args:
        node, graph: the call.
        choice: `(grouped, precision)`, see `lower`.
    """
    conv, (grouped, precision) = node.operation, choice
    if not isinstance(conv, layers.Conv2D) or conv.groups == 1:
        return None
    ins, outs = conv.kernel.shape[-2], conv.filters // conv.groups
    width = f"{ins} channels in and {outs} out" if ins != outs else f"{ins} channels"
    width = f"{width.replace('1 channels', '1 channel') if ins == 1 else width} per group"
    whole = ins % _SLICE == 0 and outs % _SLICE == 0
    product = precision in INTEGERS and tuple(conv.kernel_size) == (1, 1)
    if whole and product:
        width += " of a 1x1 kernel of integers"
    right = whole and not product
    if grouped == "grouped" or grouped == "auto" and right:
        warned = "" if right else ", which GPU delegates get wrong"
        return Lowering(f"{width}: one grouped convolution{warned}")
    plain = layers.Conv2D
    if type(conv).call is not plain.call or type(conv).convolution_op is not plain.convolution_op:
        if grouped == "split":
            raise ExportError(
                f"Can't split the layer '{conv.name}'. Expected: a keras.layers.Conv2D. Received:"
                f" a {type(conv).__name__}, which computes in a way of its own. Remedy:"
                " grouped='auto', or a Conv2D in its place."
            )
        return Lowering(
            f"{width}: a {type(conv).__name__}, which can't be split; GPU delegates get it wrong"
        )
    # TensorFlow has no depthwise convolution whose strides differ, and GPU delegates get one wrong
    # that has a 1x1 kernel and several answers to a channel.
    each = outs == 1 or tuple(conv.kernel_size) != (1, 1)
    if ins == 1 and len(set(conv.strides)) == 1 and each:
        return Lowering(f"{width}: one depthwise convolution", _depthwise)
    return Lowering(f"{width}: split into {conv.groups} convolutions", _split)


def gradual_convolution(node, graph, choice):
    """The `Lowering` of a `GradualConv2D`, which says that nothing is saved yet."""
    conv = node.operation
    if not isinstance(conv, GradualConv2D):
        return None
    alpha = float(ops.convert_to_numpy(conv.alpha))
    if alpha:
        return Lowering(
            f"a dense convolution, on its way to {conv.target_groups} groups at alpha = {alpha:.3g}"
        )
    return Lowering(
        f"a dense convolution, though its {conv.target_groups} groups have faded apart: shrink the"
        " model by a plan with groups to save them"
    )


def for_parts(operation, parts, fresh):
    """Layers, one per part, that together do what `operation` does to all; `None`: there are none.

    Args:
        operation: what reads the joined tensor.
        parts: `Parts`, equally large.
        fresh: see `Lowering`.
    """
    if type(operation) is layers.BatchNormalization:
        rank = len(parts.tensors[0].shape)
        if operation.axis % rank != parts.axis % rank:
            return None
        count = len(parts.tensors)
        each = [
            again(operation, {"name": fresh(f"{operation.name}_group_{i}")}, blank=True)
            for i in range(count)
        ]
        values = [np.split(np.asarray(value), count) for value in operation.get_weights()]
        for i, layer in enumerate(each):
            layer.build(parts.tensors[i].shape)
            layer.set_weights([value[i] for value in values])
        return each
    alone = isinstance(operation, layers.Layer) and is_elementwise(
        operation.activation if type(operation) is layers.Activation else operation
    )
    if not alone or operation.weights:
        return None
    return itertools.repeat(again(operation, {"name": fresh(f"{operation.name}_groups")}))


def _depthwise(conv, name, fresh):
    kernel, *bias = weights(conv)
    multiplier = conv.filters // conv.groups
    layer = layers.DepthwiseConv2D(
        conv.kernel_size,
        depth_multiplier=multiplier,
        activation=conv.activation,
        name=name,
        **_settings(conv),
    )
    layer.build(_shape(conv, conv.groups))
    layer.set_weights([kernel.reshape(*conv.kernel_size, conv.groups, multiplier), *bias])
    return layer


def _split(conv, name, fresh):
    axis, settings = channel_axis(conv), _settings(conv)
    # A softmax, say, needs all channels.
    alone = is_elementwise(conv.activation)
    split = Split(conv.groups, axis, name=fresh(f"{conv.name}_split"), dtype=conv.dtype_policy)
    each = []
    for i, values in enumerate(zip(*(np.split(w, conv.groups, -1) for w in weights(conv)))):
        layer = layers.Conv2D(
            conv.filters // conv.groups,
            conv.kernel_size,
            activation=conv.activation if alone else None,
            kernel_initializer="zeros",
            name=fresh(f"{conv.name}_group_{i}"),
            **settings,
        )
        layer.build(_shape(conv, values[0].shape[-2]))
        layer.set_weights(values)
        each.append(layer)
    join = layers.Concatenate(axis, name=fresh(f"{conv.name}_join"), dtype=conv.dtype_policy)
    activation = layers.Activation(conv.activation, name=name, dtype=conv.dtype_policy)

    def call(x):
        parts = tuple(layer(part) for layer, part in zip(each, split(x)))
        return Parts(parts, axis) if alone else activation(join(list(parts)))

    return call


def weights(conv):
    """The kernel, with what was learnt beside it (LoRA) in it, and the bias if there is one."""
    return [np.asarray(ops.convert_to_numpy(w)) for w in (conv.kernel, conv.bias) if w is not None]


def _settings(conv):
    names = ("strides", "padding", "data_format", "dilation_rate", "use_bias")
    return {"dtype": conv.dtype_policy, **{name: getattr(conv, name) for name in names}}


def _shape(conv, channels):
    shape = [None] * 4
    shape[channel_axis(conv)] = channels
    return tuple(shape)
