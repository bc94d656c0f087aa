"""From scores of layers' channels to one score per unit."""

import numpy as np

_COMBINE = {"mean": np.add, "sum": np.add, "max": np.maximum, "min": np.minimum}
_NORMALIZE = {
    "none": lambda scores: 1.0,
    "mean": np.nanmean,
    "max": np.nanmax,
    "l2": lambda scores: np.sqrt(np.nanmean(scores**2)),
}


def combine(graph, layer_scores, *, how="mean", normalize="mean"):
    """One score per unit, from the scores of the channels that are coupled in it.

    Args:
        graph: `ChannelGraph`.
        layer_scores: {layer name: float array of the layer's width}; NaN = can't be ranked.
        how: "mean", "max", "min" or "sum" over the channels of a unit that have a score.
        normalize: What each layer's scores are divided by first: "none", their "mean", "max" or
            "l2" (root mean square).

    Returns:
        float array `[num_units]`, NaN where nothing ranks the unit.

    Raises:
        ValueError: On an unknown name.
    """
    for key, value, choices in (("how", how, _COMBINE), ("normalize", normalize, _NORMALIZE)):
        if value not in choices:
            raise ValueError(
                f"Unknown {key} to combine scores. Expected: one of {', '.join(choices)}."
                f" Received: {value!r}"
            )
    units, scores = [], []
    for name, channels in layer_scores.items():
        channels = np.asarray(channels, float)
        if np.isnan(channels).all():
            continue
        scale = float(_NORMALIZE[normalize](channels))
        units.append(graph.producers[name])
        scores.append(channels / scale if scale > 0 else channels)
    combined = np.full(graph.num_units, np.nan)
    if not units:
        return combined
    units, scores = np.concatenate(units), np.concatenate(scores)
    ranked = ~np.isnan(scores)
    units, scores = units[ranked], scores[ranked]
    order = np.argsort(units, kind="stable")
    present, starts = np.unique(units[order], return_index=True)
    combined[present] = _COMBINE[how].reduceat(scores[order], starts)
    if how == "mean":
        combined[present] /= np.diff(np.append(starts, len(units)))
    return combined
