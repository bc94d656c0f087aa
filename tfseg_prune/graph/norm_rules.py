"""How channel ids pass through normalisation, as layers and as raw `keras.ops`."""

import math

import keras
import numpy as np
from keras import layers, ops

from tfseg_prune.graph.ids import Channels
from tfseg_prune.graph.rules import axes_of, cut_constants, no_channels, register_rule


@register_rule(layers.BatchNormalization)
def batch_normalization(trace, layer, x, *_, **__):
    axis, follows = layer.axis % len(x.shape), {}
    if not x.varying or axis in x.varying:
        ids = trace.along(x, axis, why=f"'{layer.name}' normalises another axis")
        follows = {0: ids}
    # Else every number is scaled alone, whatever channel it is of.
    trace.weight(layer.gamma, follows=follows)
    trace.weight(layer.beta, follows=follows)
    trace.weight(layer.moving_mean, follows=follows, statistic=True)
    trace.weight(layer.moving_variance, follows=follows, statistic=True)
    if layer.renorm:
        for statistic in (layer.renorm_mean, layer.renorm_stddev, layer.moving_stddev):
            trace.weight(statistic, follows=follows, statistic=True)
    return x


@register_rule("BatchNorm")
def batch_norm(trace, op, x, *constants, **named):
    axis = op.axis % len(x.shape)
    given = [*constants, *named.values()]
    if x.varying and axis not in x.varying:
        return x
    if named or any(isinstance(constant, Channels) for constant in given):
        trace.freeze(x.ids, f"normalised by computed statistics by '{trace.record.name}'")
        return x
    if x.varying:
        present = [i for i, constant in enumerate(constants, 1) if constant is not None]
        cut_constants(trace, {i: {0: x.ids.reshape(-1)} for i in present})
    return x


def whole_by_mean_and_variance(trace, x, axes):
    """Freezes `x` where it has channels along the axes over which a layer norm averages."""
    if not axes.isdisjoint(x.varying):
        trace.freeze(
            x.ids,
            f"normalised over all channels by '{trace.record.name}': without some of them the mean"
            " and the variance of those that stay would be others",
        )
    return x


@register_rule(layers.LayerNormalization)
def layer_normalization(trace, layer, x, *_, **__):
    return whole_by_mean_and_variance(trace, x, axes_of(x, layer.axis))


@register_rule("LayerNorm")
def layer_norm(trace, op, x, *_, **__):
    return whole_by_mean_and_variance(trace, x, axes_of(x, op.axis))


# Root mean square: x / sqrt(S / C + eps) with S the sum of squares over all C channels. Zeros add
# nothing to S, so C' channels that stay answer the same with eps' = eps C / C' and a scale that is
# larger by sqrt(C / C').


def _share(kept, ids):
    """The part C' / C of the channels that stays."""
    return kept.count(ids) / ids.size


@register_rule(layers.RMSNormalization)
def rms_normalization(trace, layer, x, *_, **__):
    axes = axes_of(x, layer.axis)
    if axes.isdisjoint(x.varying):
        return x
    ids, place = x.ids.reshape(-1), sorted(axes).index(x.varying[0])
    epsilon = keras.config.epsilon() if layer.epsilon is None else layer.epsilon
    trace.record.contracts = True
    trace.config("epsilon", lambda kept: epsilon / _share(kept, ids))
    trace.weight(
        layer.scale, follows={place: ids}, scale=lambda kept: math.sqrt(1 / _share(kept, ids))
    )
    return x


@register_rule("RMSNorm")
def rms_norm(trace, op, x, scale=None, *_, **__):
    axes = axes_of(x, op.axis)
    if axes.isdisjoint(x.varying):
        return x
    if isinstance(scale, Channels):
        trace.freeze(x.ids, f"scaled by another tensor by '{trace.record.name}'")
        return x
    ids, place = x.ids.reshape(-1), sorted(axes).index(x.varying[0])
    epsilon = keras.config.epsilon() if op.epsilon is None else op.epsilon
    trace.record.contracts = True

    def rescaled(kept, op, x, scale=None):
        share = _share(kept, ids)
        factor = np.asarray(1.0 if scale is None else ops.convert_to_numpy(scale), "float32")
        if factor.ndim and factor.shape[place] > 1:
            factor = factor.compress(kept.mask(ids), axis=place)
        return ops.rms_normalization(
            x, scale=factor / math.sqrt(share), axis=op.axis, epsilon=epsilon / share
        )

    trace.call(rescaled)
    return x


@register_rule(layers.UnitNormalization, "Normalize")
def unit_normalization(trace, operation, x, *_, **__):
    """A norm is a sum over channels, to which zeros add nothing."""
    if not axes_of(x, operation.axis).isdisjoint(x.varying):
        trace.record.contracts = True
    return x


@register_rule(layers.GroupNormalization)
def group_normalization(trace, layer, x):
    """Whole groups go: the mean and the variance of a group are over all of its channels."""
    axis, groups = layer.axis % len(x.shape), layer.groups
    if x.varying and axis not in x.varying:
        trace.freeze(x.ids, f"averaged over by '{layer.name}'")
        return x
    ids = trace.along(x, axis, why=f"'{layer.name}' normalises another axis")
    if groups == 1:
        return whole_by_mean_and_variance(trace, x, {axis})
    rows = ids.reshape(groups, -1)
    trace.meet(rows, np.broadcast_to(rows[:, :1], rows.shape))
    trace.weight(layer.gamma, follows={0: ids})
    trace.weight(layer.beta, follows={0: ids})
    trace.config("groups", rows[:, 0])
    return x


@register_rule(layers.Normalization)
def feature_normalization(trace, layer, x):
    trace.freeze(x.ids, f"normalised by the fixed statistics of '{layer.name}'")
    return x


@register_rule(layers.Rescaling)
def rescaling(trace, layer, x, *_, **__):
    """A scale or an offset per channel loses the entries of dropped channels."""
    settings = {"scale": layer.scale, "offset": layer.offset}
    for key, value in settings.items():
        array = np.asarray(value)
        if array.size == 1 or not x.varying:
            continue
        last = keras.config.image_data_format() == "channels_last"
        if array.ndim > 1 or not last or x.varying != [len(x.shape) - 1]:
            trace.freeze(x.ids, f"rescaled number by number by '{layer.name}'")
            continue
        ids = x.ids.reshape(-1)
        trace.config(key, lambda kept, ids=ids, array=array: array[kept.mask(ids)].tolist())
    return x


@register_rule("Moments")
def moments(trace, op, x, *_, **__):
    axes = axes_of(x, op.axes)
    whole_by_mean_and_variance(trace, x, axes)
    if not axes.isdisjoint(x.varying):
        return [no_channels(shape) for shape in trace.shapes]
    keep = [n for axis, n in enumerate(x.ids.shape) if op.keepdims or axis not in axes]
    return [Channels(x.ids.reshape(keep), shape) for shape in trace.shapes]
