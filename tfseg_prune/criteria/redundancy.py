"""Spatial-aware redundancy between channels, and the order in which a greedy clique drops them.

SIRFP (Wu et al., "Structural Pruning via Spatial-aware Information Redundancy for Semantic
Segmentation", AAAI 2025). Channels whose feature maps light up at the same places say the same
twice. With F the features of a layer (after its normalisation, before its activation, at full
resolution), `f_bc` the map of channel c of image b as a vector over pixels and `|.|` a norm,

    R = 1/B sum_b fhat_b fhat_b^T,   fhat_bc = f_bc / |f_bc|          [channels, channels]

and keeping K channels is the maximum-edge-weight clique problem on the complete graph with edge
weights `-|R_ij|`. It is solved greedily: delete the vertex that is most redundant with those still
there, and go on (`eliminate`).

These are pure functions; what collects R while a network trains is `tfseg_prune.methods.sirfp`.
"""

import dataclasses

import numpy as np
from keras import ops

METRICS = ("cosine", "official")
PRIORS = ("none", "edge", "gradient")
_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class Elimination:
    """How the channels of a layer fall.

    Attributes:
        order: int array `[channels]`, the channels from the first that falls to the last.
        scores: float array `[channels]`, higher = keep: minus the redundancy of a channel with
            those that were still there when it fell.
    """

    order: np.ndarray
    scores: np.ndarray


def redundancy(features, *, metric="cosine", pooled=False):
    """The redundancy matrix of one batch of features.

    Args:
        features: Tensor `[batch, height, width, channels]`, unpooled.
        metric: "cosine" (maps of Euclidean norm 1: a small map weighs no more than a large one) or
            "official" (maps of L1 norm 1, as in the released code: entries grow as the maps get
            smaller).
        pooled: Whether each map is averaged to one number first, which leaves one vector over the
            batch per channel: the ablation that forgets where things are.

    Returns:
        float32 tensor `[channels, channels]`, symmetric, diagonal included.

    Raises:
        ValueError: On an unknown metric.
    """
    _check_metric(metric)
    features = ops.cast(features, "float32")
    channels = features.shape[-1]
    if pooled:
        maps = ops.expand_dims(ops.mean(features, axis=(1, 2)), 0)
    else:
        maps = ops.reshape(features, (ops.shape(features)[0], -1, channels))
    if metric == "official":
        norm = ops.sum(ops.abs(maps), axis=1, keepdims=True) + _EPSILON
    else:
        norm = ops.sqrt(ops.sum(ops.square(maps), axis=1, keepdims=True)) + _EPSILON
    maps = maps / norm
    count = ops.cast(ops.shape(maps)[0], "float32")
    return ops.einsum("bpc,bpd->cd", maps, maps) / count


def edge_strength(features):
    """How strongly each channel draws edges: the spread of its Sobel magnitude.

    `e_c = mean_b std_xy |Sobel F_bc|` with the kernel [[-.5, 0, .5], [-1, 0, 1], [-.5, 0, .5]]
    and its transpose, zero padding, and the standard deviation over pixels.

    Args:
        features: Tensor `[batch, height, width, channels]`.

    Returns:
        float32 tensor `[channels]`.
    """
    x = ops.pad(ops.cast(features, "float32"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    across = x[:, :, 2:] - x[:, :, :-2]
    down = x[:, 2:] - x[:, :-2]
    gx = 0.5 * across[:, :-2] + across[:, 1:-1] + 0.5 * across[:, 2:]
    gy = 0.5 * down[:, :, :-2] + down[:, :, 1:-1] + 0.5 * down[:, :, 2:]
    magnitude = ops.sqrt(ops.square(gx) + ops.square(gy))
    return ops.mean(ops.std(magnitude, axis=(1, 2)), axis=0)


def eliminate(matrix, *, metric="cosine"):
    """Drops channels one by one, always the one most redundant with those still there.

    The greedy heuristic (EHGP) for the maximum-edge-weight clique with edges `-|R_ij|`:

        s_i = sum over j still there of |R_ij|;  delete argmax_i s_i;  s -= its edges

    The row sums are kept up to date, so all C deletions take O(C^2) operations. Of equals the first
    channel falls first.

    Args:
        matrix: float array `[channels, channels]`, symmetric.
        metric: "cosine" leaves the diagonal out (a channel isn't redundant with itself) and divides
            by C - 1, so that scores compare between layers; "official" does neither.

    Returns:
        `Elimination`.

    Raises:
        ValueError: If the matrix isn't square, symmetric and finite, or on an unknown metric.
    """
    _check_metric(metric)
    edges = np.abs(np.asarray(matrix, "float64"))
    count = edges.shape[0] if edges.ndim else 0
    if edges.shape != (count, count) or not count:
        raise ValueError(
            f"A redundancy matrix is square. Expected: [channels, channels]. Received: shape"
            f" {np.shape(matrix)}"
        )
    if metric != "official":
        np.fill_diagonal(edges, 0.0)
    sums = edges.sum(axis=1)
    if not np.isfinite(sums).all() or not np.allclose(sums, edges.sum(axis=0), rtol=1e-3):
        raise ValueError(
            "The redundancy matrix makes no sense. Expected: finite and symmetric. Received: NaN,"
            " infinity, or R[i, j] other than R[j, i]"
        )
    # What rounding takes from the running sums is kept beside them (two-sum): C subtractions
    # would otherwise blur scores that differ in the twelfth digit.
    rest = np.zeros(count)
    gone = np.zeros(count)
    order, scores = np.empty(count, int), np.empty(count)
    for step in range(count):
        present = sums + rest + gone
        worst = int(present.argmax())
        order[step], scores[worst] = worst, -present[worst]
        gone[worst] = -np.inf
        row = edges[worst]
        lower = sums - row
        rest += (sums - lower) - row
        sums = lower
    if metric != "official" and count > 1:
        scores /= count - 1
    return Elimination(order, scores)


def with_prior(scores, prior, *, weight=0.4, normalize=True):
    """Scores of `eliminate` plus a prior on what a channel is worth by itself.

    In the released code the prior is `0.4 e_c`, three orders of magnitude above the redundancy, so
    that the prior alone ranks. With `normalize` both are standardised within the layer first:

        score = z(score) + weight z(prior),   z(v) = (v - mean v) / std v

    which makes the layer's scores relative to its own.

    Args:
        scores: float array `[channels]`.
        prior: float array `[channels]`, such as the `edge_strength`; `None` leaves the scores.
        weight: Factor of the prior.
        normalize: Whether to standardise both; False is the released code.

    Returns:
        float array `[channels]`.
    """
    if prior is None:
        return np.asarray(scores, "float64")
    scores, prior = np.asarray(scores, "float64"), np.asarray(prior, "float64")
    if not normalize:
        return scores + weight * prior
    return _standardised(scores) + weight * _standardised(prior)


def _check_metric(metric):
    if metric not in METRICS:
        raise ValueError(
            f"Unknown redundancy metric. Expected: one of {', '.join(METRICS)}. Received:"
            f" {metric!r}"
        )


def _standardised(values):
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)
