"""Which channels of a model are constant whatever the image, and what their constants are.

Beside every tensor runs an array with one number per channel, NaN where nothing is known. Constants
arise in a `BatchNormalization` whose gamma is 0 (beta is all that is left) and behind kernels that
are 0; activations, sums, concatenations, reshapes, pooling, resizing and depthwise convolutions
pass them on. What an operation that isn't named here answers, a subclass of a Keras layer included,
is not known.
"""

import dataclasses

import numpy as np
from keras import layers, ops

from tfseg_prune.graph import rules
from tfseg_prune.graph.ids import CONSTANT, Channels
from tfseg_prune.graph.nodes import functional, is_nested, walk
from tfseg_prune.graph.trace import Trace
from tfseg_prune.layers.gradual_conv import GradualConv2D


def _layers(names):
    return {getattr(layers, name) for name in names.split()}


_CONVOLUTIONS = _layers("Conv1D Conv2D Conv3D") | {GradualConv2D}
_TRANSPOSED = _layers("Conv1DTranspose Conv2DTranspose Conv3DTranspose")
_DEPTHWISE = _layers("DepthwiseConv1D DepthwiseConv2D")
_SEPARABLE = _layers("SeparableConv1D SeparableConv2D")
_WITH_KERNEL = _CONVOLUTIONS | _TRANSPOSED | _DEPTHWISE | _SEPARABLE | {layers.Dense}
# What answers for each number, or each few that meet, one number. (So does each `rules.unary`.)
_ELEMENTWISE = _layers("Activation Add Average Maximum Minimum Multiply Rescaling Subtract")
_ELEMENTWISE_OPS = set(
    "Add Clip Divide DivideNoNan Maximum Minimum Multiply Power Subtract TrueDivide".split()
)
_PADDING = _layers("ZeroPadding1D ZeroPadding2D ZeroPadding3D")
# What only moves or spreads channels, or answers their maximum or average over pixels.
_MOVES = _PADDING | _layers(
    "AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D"
    " AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D"
    " AveragePooling1D AveragePooling2D AveragePooling3D MaxPooling1D MaxPooling2D MaxPooling3D"
    " GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D"
    " GlobalMaxPooling2D GlobalMaxPooling3D UpSampling1D UpSampling2D UpSampling3D Resizing"
    " Cropping1D Cropping2D Cropping3D CenterCrop Concatenate Flatten Permute RepeatVector Reshape"
)
_MOVES_OPS = set(
    "AdaptiveAveragePool AdaptiveMaxPool Amax Amin AveragePool BroadcastTo Concatenate ExpandDims"
    " Flip GetItem Max MaxPool Mean Min Moveaxis Pad Reshape Resize Split Squeeze Stack Swapaxes"
    " Take Transpose Unstack".split()
)
# Of these, what only says anew along which axes the channels lie.
_RESHAPES = _layers("Flatten Permute Reshape")
_RESHAPES_OPS = {"ExpandDims", "Moveaxis", "Reshape", "Squeeze", "Swapaxes", "Transpose"}


@dataclasses.dataclass(frozen=True)
class Constants:
    """What is known of the channels of one tensor.

    Attributes:
        values: float64 array of the tensor's rank, of length 1 along every axis along which nothing
            changes; NaN where the channel isn't known to be constant.
        inner: Boolean array of that shape: the value holds only where no window that gave it
            reached over the border.
        shape: The tensor's shape, `None` where it isn't known.
    """

    values: np.ndarray
    inner: np.ndarray
    shape: tuple

    @property
    def any_known(self):
        return not np.isnan(self.values).all()

    def along(self, axis):
        """(values, inner), both of the axis' length, 1-D."""
        axis %= len(self.shape)
        count = self.shape[axis]
        if self.values.size not in (1, count) or self.values.shape[axis] != self.values.size:
            return np.full(count, np.nan), np.zeros(count, bool)
        return tuple(np.broadcast_to(x.reshape(-1), count) for x in (self.values, self.inner))


def unknown(shape):
    """`Constants` of a tensor of which nothing is known."""
    ones = (1,) * len(shape)
    return Constants(np.full(ones, np.nan), np.zeros(ones, bool), tuple(shape))


class Constancy:
    """The walk of constants through a model.

    Args:
        records: {id(operation): OpRecord} of the model's `ChannelGraph`.
        as_beta: Function from ids to booleans: channels that count as their beta whatever their
            gamma; none by default.

    Attributes:
        read: {id(layer): constants [inputs] that its kernel meets in every one of its calls, NaN
            where they aren't known, differ between calls, or lie in no window as a whole}.
        met: {id(layer): booleans [inputs], whether a constant other than 0 meets its kernel in one
            of its calls}, of the layers in `read`.
        summed: {id(operation): list of arrays of ids of its inputs that are constants other than
            0}, of the other operations that sum over channels.
    """

    def __init__(self, records, as_beta=None):
        self.read = {}
        self.met = {}
        self.summed = {}
        self._records = records
        self._as_beta = as_beta

    def run(self, model, inputs=None):
        """Lets constants flow through a model; answers {id(tensor): Constants}."""
        graph = functional(model)
        if inputs is None:
            inputs = [unknown(tensor.shape) for tensor in graph.inputs]
        known = {id(t): constants for t, constants in zip(graph.inputs, inputs)}
        for node in walk(model):
            given = [known[id(tensor)] for tensor in node.arguments.keras_tensors]
            if is_nested(node.operation):
                inside = self.run(node.operation, given)
                answers = [inside[id(t)] for t in functional(node.operation).outputs]
            else:
                answers = self._answers(node, given)
            for tensor, constants in zip(node.outputs, answers):
                known[id(tensor)] = constants
        return known

    def _answers(self, node, given):
        operation = node.operation
        kind = type(operation)
        shapes = [tuple(tensor.shape) for tensor in node.outputs]
        nothing = [unknown(shape) for shape in shapes]
        if node.arguments.kwargs.get("training") and kind not in _MOVES:
            return nothing  # statistics of the batch, or noise; Keras says it to every `Resizing`
        record = self._records[id(operation)]
        elementwise = _is_elementwise(operation)
        if not (elementwise or kind in _RESHAPES or _is_op(operation, _RESHAPES_OPS)):
            given = [
                _along_one_axis(x, (channels.varying or [-1])[0])
                for x, channels in zip(given, record.inputs)
            ]
        reads = [ids for slot in record.slots for ids in slot.reads.values()]
        if kind not in _WITH_KERNEL and (record.contracts or reads):
            self.summed.setdefault(id(operation), []).extend(
                _constant_ids(x, channels) for x, channels in zip(given, record.inputs)
            )
        if kind is layers.BatchNormalization:
            answers = [self._normalized(operation, *given)]
        elif kind in _WITH_KERNEL:
            answers = [self._convolved(operation, *given, shapes[0])]
        elif not any(constants.any_known for constants in given):
            return nothing
        elif kind is layers.PReLU:
            answers = [_leaking(operation, *given)]
        elif elementwise:
            answers = [_computed(node, given)]
        elif kind in _MOVES or _is_op(operation, _MOVES_OPS):
            answers = _moved(node, given)
        else:
            return nothing
        return [_checked(x.values, x.inner, shape) for x, shape in zip(answers, shapes)]

    def _normalized(self, layer, x):
        values, inner = x.along(layer.axis)
        gamma, beta = _array(layer.gamma, 1.0), _array(layer.beta, 0.0)
        scale = gamma / np.sqrt(_array(layer.moving_variance) + layer.epsilon)
        fixed = np.broadcast_to(gamma == 0, values.shape)
        follows = self._records[id(layer)].slots[-1].follows
        if self._as_beta is not None and follows:
            fixed = fixed | self._as_beta(follows[0])
        values = np.where(fixed, beta, scale * (values - _array(layer.moving_mean)) + beta)
        return _on_axis(values, inner & ~fixed, x.shape, layer.axis)

    def _convolved(self, layer, x, shape):
        """Constants behind a convolution or dense layer; notes what its last kernel reads."""
        axis = rules.channel_axis(layer)
        met = np.nan_to_num(x.along(axis)[0]) != 0
        values, inner = _in_windows(layer, x, axis)
        *first, (kernel, groups) = kernels_of(layer)
        for early, early_groups in first:
            values, inner = _summed(values, inner, early, early_groups)
        seen = self.read.get(id(layer), values)
        self.read[id(layer)] = np.where(seen == values, values, np.nan)
        met = np.repeat(met, len(values) // len(met))
        self.met[id(layer)] = self.met.get(id(layer), False) | met
        values, inner = _summed(values, inner, kernel, groups)
        values = values + _array(layer.bias, 0.0)
        if not rules.is_elementwise(layer.activation):
            return unknown(shape)
        if layer.activation is not None and not np.isnan(values).all():
            answer = layer.activation(ops.convert_to_tensor(np.nan_to_num(values), "float32"))
            values = np.where(np.isnan(values), np.nan, _array(answer))
        return _on_axis(values, inner, shape, axis)


def kernels_of(layer):
    """The kernels by which a layer multiplies in turn.

    Args:
        layer: Convolution or dense layer.

    Returns:
        List of (array `[..., inputs per group, outputs]`, groups).
    """
    kind = type(layer)
    if kind in _SEPARABLE:
        pointwise = ops.convert_to_numpy(layer.pointwise_kernel)
        return [_per_channel(layer.depthwise_kernel), (pointwise, 1)]
    if kind in _DEPTHWISE:
        return [_per_channel(layer.kernel)]
    gradual = kind is GradualConv2D
    kernel = ops.convert_to_numpy(layer.effective_kernel() if gradual else layer.kernel)
    if kind in _TRANSPOSED:
        return [(np.swapaxes(kernel, -1, -2), 1)]
    return [(kernel, getattr(layer, "groups", 1))]


def products(values, kernel, groups):
    """`sum_k values_k * sum_xy kernel[x, y, k, o]`, an array `[outputs]`."""
    if groups == 1:
        rows = np.flatnonzero(values)
        values, kernel = values[rows], kernel[..., rows, :]
    inputs, outputs = kernel.shape[-2:]
    taps = kernel.sum(axis=tuple(range(kernel.ndim - 2)), dtype=np.float64)
    blocks = taps.reshape(inputs, groups, outputs // groups)
    return np.einsum("gi,igo->go", values.reshape(groups, inputs), blocks).reshape(-1)


def _per_channel(kernel):
    """A depthwise kernel `[..., channels, multiplier]` as that of a grouped convolution."""
    kernel = ops.convert_to_numpy(kernel)
    return kernel.reshape(*kernel.shape[:-2], 1, -1), kernel.shape[-2]


def _summed(values, inner, kernel, groups):
    """(values, inner) behind a kernel; known where all is that it multiplies by other than 0."""
    nothing = np.full(kernel.shape[-1], np.nan), np.zeros(kernel.shape[-1], bool)
    hiding = np.flatnonzero(np.isnan(values))
    if groups == 1 and len(hiding):
        # Mostly one channel that isn't known is enough to hide every output.
        if kernel[..., hiding[0], :].reshape(-1, kernel.shape[-1]).any(axis=0).all():
            return nothing
    touches = kernel != 0

    def touched(which):
        return products(which.astype(float), touches, groups) > 0

    hidden = touched(np.isnan(values))
    if hidden.all():
        return nothing
    total = products(np.nan_to_num(values), kernel, groups)
    return np.where(hidden, np.nan, total), touched(inner)


def _in_windows(layer, x, axis):
    """(values, inner) of the channels of `x` as the windows of a layer see them.

    Zero padding makes windows at the border see less of a constant. Where no window lies in the
    image as a whole, or not all outputs see the same part of the kernel (strides of a transposed
    convolution), there is nothing constant to see.
    """
    values, inner = x.along(axis)
    if type(layer) is layers.Dense:
        return values, inner
    transposed = type(layer) in _TRANSPOSED
    sizes = x.shape[2:] if axis == 1 else x.shape[1:-1]
    padded, whole = False, not (transposed and max(layer.strides) > 1)
    for size, k, dilation, stride in zip(
        sizes, layer.kernel_size, layer.dilation_rate, layer.strides
    ):
        extent = dilation * (k - 1) + 1
        if extent > 1 and (transposed or layer.padding != "valid"):
            padded = True
            whole &= size is None or size >= extent + stride - 1
    if not whole:
        values = np.where(values == 0, 0.0, np.nan)
    return values, inner | (padded & (values != 0))


def _leaking(layer, x):
    """PReLU: `max(x, 0) + alpha * min(x, 0)`, whose slopes may differ from pixel to pixel."""
    slopes = _array(layer.alpha)[None]
    values = np.maximum(x.values, 0) + slopes * np.minimum(x.values, 0)
    return Constants(values, np.broadcast_to(x.inner, values.shape), x.shape)


def _is_op(operation, names):
    """Whether it is a raw Keras operation of one of these names."""
    kind = type(operation)
    is_layer = isinstance(operation, layers.Layer)
    return not is_layer and kind.__module__.startswith("keras.") and kind.__name__ in names


def _is_elementwise(operation):
    if type(operation) is layers.Activation:
        return rules.is_elementwise(operation.activation)
    named = type(operation) in _ELEMENTWISE or _is_op(operation, _ELEMENTWISE_OPS)
    return named or rules.find_rule(operation) is rules.unary


def _computed(node, given):
    """The operation itself on the constants; not known where it meets what isn't known."""
    arrays = {
        id(tensor): ops.convert_to_tensor(np.nan_to_num(x.values), tensor.dtype)
        for tensor, x in zip(node.arguments.keras_tensors, given)
    }
    args, kwargs = node.arguments.fill_in(arrays)
    values = _array(node.operation(*args, **kwargs))
    inner = np.zeros(values.shape, bool)
    for x in given:
        values = np.where(np.isnan(x.values), np.nan, values)
        inner = inner | x.inner
    return Constants(values, inner, ())


class _Moving(Trace):
    """A trace whose ids may change along several axes, as those of a channel shuffle half-way."""

    def rectangular(self, x):
        return x


def _moved(node, given):
    """Where an operation that moves or spreads channels puts them, as its rule says of ids."""
    trace = _Moving(rules.find_rule)
    sources = {}
    for tensor, x in zip(node.arguments.keras_tensors, given):
        ids = trace.fresh(x.values.size).reshape(x.values.shape)
        sources[id(tensor)] = Channels(ids, x.shape), x
    answers = trace.apply(node, {key: channels for key, (channels, _) in sources.items()})
    values, inner = np.full(trace.num_ids, np.nan), np.zeros(trace.num_ids, bool)
    for channels, x in sources.values():
        values[channels.ids], inner[channels.ids] = x.values, x.inner
    if type(node.operation) in _PADDING:
        inner |= values != 0
    elif _is_op(node.operation, {"Pad"}) or getattr(node.operation, "pad_to_aspect_ratio", False):
        inner[:] = True
    # Of ids that a rule unites or freezes it is the rule, not the place, that says what they hold.
    for first, second in trace.edges:
        apart = values[first] != values[second]
        values[first[apart]] = values[second[apart]] = np.nan
    for ids, _ in trace.frozen:
        values[ids] = np.nan
    values[CONSTANT] = np.nan
    # Channels laid out pixel by pixel have no inner part that all of their copies share.
    if sum(x.ids.size for x in answers) > sum(x.values.size for x in given):
        values[inner] = np.nan
    return [Constants(values[x.ids], inner[x.ids], x.shape) for x in answers]


def _constant_ids(x, channels):
    """Ids of a tensor's channels that are known to be constant and not 0."""
    constant = ~np.isnan(x.values) & (x.values != 0)
    return np.unique(np.extract(*np.broadcast_arrays(constant, channels.ids)))


def _along_one_axis(x, axis):
    """The same constants, known only where they change along no other axis than this one."""
    values, inner = x.values, x.inner
    for other in set(range(values.ndim)) - {axis % values.ndim}:
        if values.shape[other] > 1:
            first = np.take(values, [0], axis=other)
            same = (values == first).all(axis=other, keepdims=True)
            values, inner = np.where(same, first, np.nan), inner.any(axis=other, keepdims=True)
    return Constants(values, inner, x.shape)


def _checked(values, inner, shape):
    """`Constants` that are numbers, and claim no inner part of a tensor that has one pixel only."""
    values = np.where(np.isfinite(values), values, np.nan)
    if all(size == 1 for size, own in zip(shape[1:], values.shape[1:]) if own == 1):
        values = np.where(inner, np.nan, values)
    return Constants(values, inner, shape)


def _on_axis(values, inner, shape, axis):
    view = [1] * len(shape)
    view[axis] = len(values)
    return Constants(values.reshape(view), inner.reshape(view), tuple(shape))


def _array(variable, default=None):
    if variable is None:
        return np.asarray(default)
    return np.asarray(ops.convert_to_numpy(variable)).astype(np.float64)
