"""Transposed convolutions as GPU delegates take them: no ReLU inside, and padded right."""

import numpy as np
from keras import activations, layers, ops, saving

from tfseg_prune.deploy.forms import Lowering
from tfseg_prune.deploy.lowered_groups import weights
from tfseg_prune.deploy.lowered_shapes import raw
from tfseg_prune.deploy.tail import is_identity
from tfseg_prune.graph.nodes import again

# Numbers that tell a ReLU, and a ReLU6, from any other activation.
_PROBES = np.array([-7.0, -1.5, -0.25, 0.0, 0.25, 1.5, 5.75, 6.25, 40.0], "float32")
# Raw operations that scale and shift where one factor or summand is a constant.
_AFFINE = ("Add", "Divide", "Multiply", "Subtract", "TrueDivide")
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
    if not _is_transposed(node) or type(node.operation) is not layers.Conv2DTranspose:
        return None
    unpadded, conv = _unpadded(node), node.operation
    if unpadded and _norm_behind(node, graph) is not None:
        # The crop comes behind the normalisation, which then still goes into the kernel.
        return Lowering(_CROPPED, _transposed, (True, (), False))
    apart = bool(_rectifier(conv.activation))
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
    shifted, before = False, graph.before(node)
    while before is not None and (shifts := _passes(before.operation)) is not None:
        shifted |= shifts
        before = graph.before(before)
    if before is None or not _is_transposed(before) or _is_cropped(before):
        return None
    conv = before.operation
    if conv.activation is not activations.linear or not (shifted or conv.use_bias):
        return None
    most = _rectifies(node)
    return Lowering(_APART, _rectified, most) if most else None


def _is_transposed(node):
    conv = node.operation
    return isinstance(conv, layers.Conv2DTranspose) and conv.data_format == "channels_last"


def _unpadded(node):
    """Whether the convolution is to be computed without padding."""
    if type(node.operation) is not layers.Conv2DTranspose:
        return False
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


def _rectifies(node):
    """`(largest number,)` that a ReLU lets pass, `(None,)` for a plain one; `()`: it is none."""
    operation = node.operation
    if type(operation) is layers.ReLU:
        plain = not operation.negative_slope and not operation.threshold
        return (operation.max_value,) if plain else ()
    if getattr(operation, "weights", ()) or isinstance(operation, Rectifier):
        return ()
    (tensor,) = node.arguments.keras_tensors

    def call(numbers):
        # As many channels as it reads, all of the same number.
        given = np.tile(numbers[:, None, None, None], (1, 1, 1, tensor.shape[-1]))
        args, kwargs = node.arguments.fill_in({id(tensor): ops.convert_to_tensor(given)})
        answer = ops.convert_to_numpy(operation(*args, **kwargs))
        same = answer.shape == given.shape and (answer == answer[..., :1]).all()
        return answer[:, 0, 0, 0] if same else None

    return _rectifier(call)


def _rectifier(function):
    """What `_rectifies` answers, of a function; converters know ReLUs by what they compute, too."""
    if function is activations.linear:
        return ()
    try:
        answer = np.asarray(function(_PROBES))
    except Exception:  # a function of the user's, made for other arguments
        return ()
    for most in (None, 6.0):
        expected = np.clip(_PROBES, 0.0, most)
        if answer.shape == expected.shape and (answer == expected).all():
            return (most,)
    return ()


def _passes(operation):
    """Whether an operation shifts what comes of a convolution; `None`: it does something else."""
    if type(operation) in (layers.BatchNormalization, layers.Rescaling, layers.Normalization):
        return True
    if raw(operation, *_AFFINE):
        return True
    return False if is_identity(operation) else None


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
        stages.append(_rectified(conv, name, fresh, *_rectifier(conv.activation)))
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
