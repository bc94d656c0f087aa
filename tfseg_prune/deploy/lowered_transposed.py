"""Transposed convolutions as GPU delegates take them: no ReLU inside, and padded right."""

from keras import activations, layers, ops, saving

from tfseg_prune.deploy.forms import Lowering
from tfseg_prune.deploy.lowered_groups import weights
from tfseg_prune.deploy.lowered_shapes import raw
from tfseg_prune.graph.nodes import again

# {activation that the converter puts into the convolution before: the most that it lets pass}
_RECTIFIERS = {activations.relu: None, activations.relu6: 6.0}
_CROPPED = "a transposed convolution that GPU delegates pad wrongly: unpadded, and cropped"
_APART = "an op of its own, since GPU delegates refuse it within a transposed convolution"


@saving.register_keras_serializable(package="tfseg_prune")
class Rectifier(layers.Layer):
    """ReLU, of the same values, that the converter leaves out of the convolution before.

    A leaky one of slope 0: LiteRT's version 4 of TRANSPOSE_CONV, which has an activation, is
    refused by GPU delegates, and the converter makes one of whatever it knows to be a ReLU.

    Args:
        max_value: the most that it lets pass. Defaults to `None`, anything.
    """

    def __init__(self, max_value=None, **kwargs):
        super().__init__(**kwargs)
        self.max_value = max_value

    def call(self, inputs):
        x = ops.leaky_relu(inputs, negative_slope=0.0)
        return x if self.max_value is None else ops.minimum(x, self.max_value)

    def get_config(self):
        return {**super().get_config(), "max_value": self.max_value}


def padded_wrong(size, kernel, stride):
    """Whether delegates place the answer of a transposed convolution of padding "same" wrongly.

    They pad as a convolution of the same stride would, seen from the input's size.

    Args:
        size: pixels of the input along one axis.
        kernel, stride: along that axis.
    """
    return max(kernel - stride, 0) // 2 != max(kernel - (size - 1) % stride - 1, 0) // 2


def transposed_convolution(node, graph, choice):
    """The `Lowering` of a `Conv2DTranspose` that has a ReLU inside or is padded wrongly."""
    if not _is_transposed(node):
        return None
    unpadded, conv = _unpadded(node), node.operation
    if unpadded and _norm_behind(node, graph) is not None:
        # The crop comes behind the normalisation, which then still goes into the kernel.
        return Lowering(_CROPPED, _transposed, (True, (), False))
    apart = conv.activation in _RECTIFIERS
    if unpadded:
        return Lowering(_CROPPED, _transposed, (True, _crop(conv), apart))
    return Lowering(f"its ReLU is {_APART}", _transposed, (False, (), True)) if apart else None


def normalised_transposed(node, graph, choice):
    """The `Lowering` of a batch normalisation between an unpadded convolution and its crop."""
    before = graph.before(node)
    if before is None or not _is_transposed(before) or not _unpadded(before):
        return None
    if _norm_behind(before, graph) is not node:
        return None
    return Lowering(None, _normalised, (_crop(before.operation),))


def rectified_transposed(node, graph, choice):
    """The `Lowering` of a ReLU that the converter would put into a transposed convolution."""
    most = _rectifies(node.operation)
    if not most:
        return None
    shifted, before = False, graph.before(node)
    while before is not None and _passes(before.operation):
        shifted |= type(before.operation) is layers.BatchNormalization
        before = graph.before(before)
    if before is None or not _is_transposed(before) or _is_cropped(before):
        return None
    conv = before.operation
    if conv.activation is not activations.linear or not (shifted or conv.use_bias):
        return None
    return Lowering(_APART, _rectified, most)


def _is_transposed(node):
    conv = node.operation
    return type(conv) is layers.Conv2DTranspose and conv.data_format == "channels_last"


def _unpadded(node):
    """Whether the convolution is to be computed without padding."""
    conv, sizes = node.operation, node.arguments.keras_tensors[0].shape[1:3]
    if conv.padding != "same" or conv.output_padding is not None or None in sizes:
        return False
    if set(conv.dilation_rate) != {1}:
        return False
    return any(map(padded_wrong, sizes, conv.kernel_size, conv.strides))


def _is_cropped(node):
    return _unpadded(node) and any(map(any, _crop(node.operation)))


def _crop(conv):
    """Rows and columns that it answers too many of without padding: `((top, bottom), ...)`."""
    extra = [max(side - stride, 0) for side, stride in zip(conv.kernel_size, conv.strides)]
    return tuple((size // 2, size - size // 2) for size in extra)


def _norm_behind(node, graph):
    """The batch normalisation that goes into the kernel of a transposed convolution, or `None`."""
    norm = graph.behind(node)
    if norm is None or type(norm.operation) is not layers.BatchNormalization:
        return None
    alone = graph.once(node) and graph.once(norm) and norm.operation.axis in (-1, 3)
    return norm if alone and node.operation.activation is activations.linear else None


def _rectifies(operation):
    """`(largest number,)` that a ReLU lets pass, `(None,)` for a plain one; `()`: it is none."""
    if type(operation) is layers.ReLU:
        plain = not operation.negative_slope and not operation.threshold
        return (operation.max_value,) if plain else ()
    if type(operation) is layers.Activation and operation.activation in _RECTIFIERS:
        return (_RECTIFIERS[operation.activation],)
    if raw(operation, "Relu"):
        return (None,)
    return (6.0,) if raw(operation, "Relu6") else ()


def _passes(operation):
    if type(operation) is layers.Activation:
        return operation.activation is activations.linear
    return type(operation) in (layers.BatchNormalization, layers.Dropout, layers.Identity)


def _transposed(conv, name, fresh, unpadded, crop, apart):
    cropped = any(map(any, crop))
    changes = {"name": fresh(f"{name}_unpadded") if cropped or apart else name}
    if unpadded:
        changes["padding"] = "valid"
    if apart:
        changes["activation"] = None
    new = again(conv, changes, blank=True)
    new.build((None, None, None, conv.kernel.shape[-1]))
    new.set_weights(weights(conv))
    stages = [new]
    policy = conv.dtype_policy
    if cropped:
        own = fresh(f"{name}_crop") if apart else name
        stages.append(layers.Cropping2D(crop, "channels_last", name=own, dtype=policy))
    if apart:
        stages.append(_rectified(conv, name, fresh, _RECTIFIERS[conv.activation]))
    return in_turn(stages)


def _normalised(norm, name, fresh, crop):
    new = again(norm, {"name": fresh(f"{name}_uncropped")}, blank=True)
    new.build((None, None, None, norm.moving_mean.shape[0]))
    new.set_weights(norm.get_weights())
    if not any(map(any, crop)):
        return new
    return in_turn([new, layers.Cropping2D(crop, name=name, dtype=norm.dtype_policy)])


def _rectified(operation, name, fresh, most):
    dtype = getattr(operation, "dtype_policy", None)
    return Rectifier(most, name=name, dtype=dtype)


def in_turn(stages):
    """A function that calls one after the other."""

    def call(x):
        for stage in stages:
            x = stage(x)
        return x

    return call
