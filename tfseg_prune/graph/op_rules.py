"""How channel ids pass through raw `keras.ops` that compute: elementwise, reductions, images.

The rules are found by the class name of the operation, since Keras doesn't export these classes.
"""

import math

import numpy as np

from tfseg_prune.graph.ids import Channels, size_of
from tfseg_prune.graph.rules import (
    axes_of,
    channel_axis,
    combined,
    cut_constants,
    mix,
    no_channels,
    register_rule,
    spatial,
    unary,
)

# What looks at each number alone, zeros and ones of the same shape included.
register_rule(
    *(
        "Abs Absolute Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctanh BitwiseInvert BitwiseNot"
        " Cast Cbrt Ceil Celu Conj Conjugate ConvertToTensor Copy Cos Cosh Deg2rad Elu"
        " Erf Erfc Erfinv Exp Exp2 Expm1 Fabs Floor Gelu HardShrink HardSigmoid"
        " HardSilu HardTanh I0 Imag Isfinite Isinf Isnan Isneginf Isposinf Isreal LeakyRelu Log"
        " Log10 Log1p Log2 LogSigmoid LogicalNot Mish NanToNum Negative OnesLike Rad2deg ReLU Real"
        " Reciprocal Relu Relu6 Round Rsqrt SaturateCast Selu Sigmoid Sign Signbit Silu Sin Sinc"
        " Sinh SoftShrink Softplus Softsign SparsePlus SparseSigmoid Sqrt Square Squareplus"
        " StopGradient Tan Tanh TanhShrink Threshold Trunc ZerosLike"
    ).split()
)(unary)

register_rule(
    *(
        "AdaptiveAveragePool AdaptiveMaxPool AffineTransform AveragePool CropImages GaussianBlur"
        " MaxPool PadImages PerspectiveTransform Resize"
    ).split()
)(spatial)


@register_rule(
    *(
        "Add Arctan2 BitwiseAnd BitwiseLeftShift BitwiseOr BitwiseRightShift BitwiseXor Divide"
        " DivideNoNan Equal FloorDivide Fmax Fmin Fmod FullLike Gcd Greater GreaterEqual Heaviside"
        " Hypot Isclose Lcm Ldexp LeftShift Less LessEqual Logaddexp Logaddexp2 LogicalAnd"
        " LogicalOr LogicalXor Maximum Minimum Mod Multiply Nextafter NotEqual Power RightShift"
        " Subtract TrueDivide Where"
    ).split()
)
def elementwise(trace, op, *xs):
    """What meets is united; a constant per channel loses the entries of dropped channels."""
    if any(x is None for x in xs):
        return trace.keep_whole("with one operand only")
    return combined(trace, xs)


@register_rule("Clip")
def clip(trace, op, x):
    if np.size(op.x_min) > 1 or np.size(op.x_max) > 1:
        trace.freeze(x.ids, f"clipped number by number by '{trace.record.name}'")
    return x


@register_rule("Argpartition", "Argsort", "Cumprod", "Cumsum", "Diff", "LogSoftmax", "Nancumprod")
@register_rule("Nancumsum", "Softmax", "Sort", "Sparsemax")
def along_axis(trace, op, x, *_, **__):
    mix(trace, x, axes_of(x, op.axis), type(op).__name__)
    return Channels(x.ids, trace.shape)


@register_rule("Tril", "Triu")
def triangle(trace, op, x):
    mix(trace, x, axes_of(x, (-2, -1)), type(op).__name__)
    return x


@register_rule("TopK")
def top_k(trace, op, x):
    mix(trace, x, {len(x.shape) - 1}, "TopK")
    ids = no_channels(x.shape).ids if len(x.shape) - 1 in x.varying else x.ids
    return [Channels(ids, shape) for shape in trace.shapes]


@register_rule("Glu")
def glu(trace, op, x):
    """The first half of the channels times the sigmoid of the second: both halves keep the same."""
    axis = op.axis % len(x.shape)
    if axis not in x.varying:
        return Channels(x.ids, trace.shape)
    first, second = x.ids.reshape(2, -1)
    return trace.channels(trace.meet(first, second), trace.shape, axis)


@register_rule("OneHot")
def one_hot(trace, op, x):
    return Channels(np.expand_dims(x.ids, op.axis), trace.shape)


# Reductions.


def _reduced(trace, op, x, axes):
    """`Channels` of what is left when `axes` are reduced."""
    ids = x.ids if axes.isdisjoint(x.varying) else no_channels(x.shape).ids
    if not getattr(op, "keepdims", False):
        ids = ids.reshape([n for axis, n in enumerate(ids.shape) if axis not in axes])
    return Channels(ids, trace.shape)


@register_rule("All", "Amax", "Amin", "Any", "Argmax", "Argmin", "Average", "CountNonzero")
@register_rule("Logsumexp", "Max", "Median", "Min", "Nanargmax", "Nanargmin", "Nanmax")
@register_rule(
    "Nanmean",
    "Nanmedian",
    "Nanmin",
    "Nanprod",
    "Nanstd",
    "Nansum",
    "Nanvar",
    "Prod",
    "Ptp",
    "Std",
    "Var",
)
def reduction(trace, op, x, weights=None, **_):
    if isinstance(weights, Channels) or np.ndim(weights) > 0:
        return trace.keep_whole("with weights")
    axes = axes_of(x, op.axis)
    mix(trace, x, axes, type(op).__name__)
    return _reduced(trace, op, x, axes)


@register_rule("Sum")
def total(trace, op, x):
    """Zeros add nothing."""
    axes = axes_of(x, op.axis)
    trace.record.contracts = not axes.isdisjoint(x.varying)
    return _reduced(trace, op, x, axes)


@register_rule("Mean")
def mean(trace, op, x):
    """A sum over C: of the C' channels that stay it is the mean times C' / C."""
    axes = axes_of(x, op.axis)
    if not axes.isdisjoint(x.varying):
        trace.record.contracts = True

        def scaled(kept, op, x_small):
            share = kept.count(x.ids) / x.ids.size
            return op(x_small) if share == 1 else op(x_small) * share

        trace.call(scaled)
    return _reduced(trace, op, x, axes)


@register_rule("Norm")
def norm(trace, op, x):
    """Of a vector a sum of powers (or the largest), of a matrix only Frobenius' is one."""
    axes = axes_of(x, op.axis)
    number = isinstance(op.ord, (int, float)) and op.ord > 0
    if op.ord is None or (op.ord == "fro" if len(axes) > 1 else number):
        trace.record.contracts = not axes.isdisjoint(x.varying)
    else:
        mix(trace, x, axes, f"the norm of order {op.ord}")
    return _reduced(trace, op, x, axes)


# Convolutions with a constant kernel.


def _constant_kernel(trace, x, kernel):
    if isinstance(x, Channels) and not isinstance(kernel, Channels):
        return True
    for given in (x, kernel):
        if isinstance(given, Channels):
            trace.freeze(given.ids, f"convolved with a computed kernel by '{trace.record.name}'")
    return False


@register_rule("Conv")
def convolution(trace, op, x, kernel):
    """The answer's width is fixed; the kernel loses the rows of dropped inputs."""
    if not _constant_kernel(trace, x, kernel):
        return no_channels(trace.shape)
    axis = channel_axis(op) % len(x.shape)
    ins = trace.along(x, axis, why=f"'{trace.record.name}' convolves along them")
    shape = np.shape(kernel)
    if shape[-2] != len(ins):
        trace.freeze(x.ids, f"convolved in groups by '{trace.record.name}'")
    elif x.varying:
        trace.record.contracts = True
        cut_constants(trace, {1: {len(shape) - 2: ins}})
    trace.macs(size_of(trace.shape) * math.prod(shape[:-1]) / len(ins), ins)
    return no_channels(trace.shape)


@register_rule("DepthwiseConv")
def depthwise_convolution(trace, op, x, kernel):
    if not _constant_kernel(trace, x, kernel):
        return no_channels(trace.shape)
    axis = channel_axis(op) % len(x.shape)
    ins = trace.along(x, axis, why=f"'{trace.record.name}' convolves along them")
    shape = np.shape(kernel)
    cut_constants(trace, {1: {len(shape) - 2: ins} if x.varying else {}})
    outs = np.repeat(ins, shape[-1])
    trace.macs(size_of(trace.shape) / len(outs) * math.prod(shape[:-2]), outs)
    return trace.channels(outs, trace.shape, axis)
