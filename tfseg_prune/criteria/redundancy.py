"""Spatial-aware redundancy between channels, and the order in which a greedy clique drops them.

SIRFP (Wu et al., "Structural Pruning via Spatial-aware Information Redundancy for Semantic
Segmentation", AAAI 2025). Channels whose feature maps light up at the same places say the same
twice. With F the features of a layer (after its normalisation, before its activation, at full
resolution), `f_bc` the map of channel c of image b as a vector over pixels and `|.|` a norm,

    R = 1/B sum_b fhat_b fhat_b^T,   fhat_bc = f_bc / |f_bc|          [channels, channels]

and keeping K channels is the maximum-edge-weight clique problem on the complete graph with edge
weights `-|R_ij|`. It is solved greedily: delete the vertex that is most redundant with those still
there, and go on (`eliminate`).

These are pure functions; `tfseg_prune.layers.redundancy` holds those of tensors and the layer that
collects R while a network trains, `tfseg_prune.methods.sirfp` what is done with it.
"""

import dataclasses

import numpy as np

from tfseg_prune.layers.redundancy import METRICS, check_metric, edge_strength, redundancy

__all__ = [
    "METRICS",
    "PRIORS",
    "Elimination",
    "edge_strength",
    "eliminate",
    "redundancy",
    "with_prior",
]

PRIORS = ("none", "edge", "gradient")


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


def check_power(power):
    """Raises a ValueError unless likenesses can be taken to this power."""
    if not 0 < power < np.inf:
        raise ValueError(
            f"Invalid `power` of likenesses. Expected: a number above 0, such as 1. Received:"
            f" {power!r}"
        )


def eliminate(matrix, *, metric="cosine", power=1, tolerance=0.0):
    """Drops channels one by one, always the one most redundant with those still there.

    The greedy heuristic (EHGP) for the maximum-edge-weight clique with edges `-|R_ij|^power`:

        s_i = sum over j still there of |R_ij|^power;  delete argmax_i s_i;  s -= its edges

    The row sums are kept up to date, so all C deletions take O(C^2) operations. Of equals the first
    channel falls first.

    Args:
        matrix: float array `[channels, channels]`, symmetric.
        metric: "cosine" and "correlation" leave the diagonal out (a channel isn't redundant with
            itself) and divide by C - 1, so that scores compare between layers; "official" does
            neither.
        power: 1, the paper's, lets many slight likenesses outweigh a twin: the wider the layer,
            the less a duplicate counts. At 64 hardly anything but near-duplicates does.
        tolerance: Sums that are smaller than the largest by less than this fraction equal it.

    Returns:
        `Elimination`.

    Raises:
        ValueError: If the matrix isn't square, symmetric and finite, on an unknown metric, or on a
            power that isn't above 0.
    """
    check_metric(metric)
    check_power(power)
    edges = np.abs(np.asarray(matrix, "float64"))
    count = edges.shape[0] if edges.ndim else 0
    if edges.shape != (count, count) or not count:
        raise ValueError(
            f"A redundancy matrix is square. Expected: [channels, channels]. Received: shape"
            f" {np.shape(matrix)}"
        )
    if metric != "official":
        np.fill_diagonal(edges, 0.0)
    if not np.isfinite(edges.sum()) or not _symmetric(edges):
        raise ValueError(
            "The redundancy matrix makes no sense. Expected: finite and symmetric. Received: NaN,"
            " infinity, or R[i, j] other than R[j, i]"
        )
    if power != 1:
        edges **= power
    sums = edges.sum(axis=1)
    # What rounding takes from the running sums is kept beside them (two-sum): C subtractions
    # would otherwise blur scores that differ in the twelfth digit.
    rest = np.zeros(count)
    gone = np.zeros(count)
    order, scores = np.empty(count, int), np.empty(count)
    for step in range(count):
        present = sums + rest + gone
        largest = present.max()
        worst = int(np.argmax(present >= largest - tolerance * abs(largest)))
        order[step], scores[worst] = worst, -present[worst]
        gone[worst] = -np.inf
        row = edges[worst]
        lower = sums - row
        rest += (sums - lower) - row
        sums = lower
    if metric != "official" and count > 1:
        scores /= count - 1
    return Elimination(order, scores)


def _symmetric(matrix, block=256):
    """Whether a matrix >= 0 is its transpose but for rounding; in blocks, as a cache likes them."""
    slack = 1e-6 * matrix.max()
    starts = range(0, len(matrix), block)
    for i in starts:
        for j in range(i, len(matrix), block):
            one, other = (
                matrix[i : i + block, j : j + block],
                matrix[j : j + block, i : i + block].T,
            )
            if not (np.abs(one - other) <= slack + 1e-3 * other).all():
                return False
    return True


def with_prior(scores, prior, *, weight=0.4, normalize=True):
    """Scores of `eliminate` plus a prior on what a channel is worth by itself.

    In the released code the prior is `0.4 e_c`, three orders of magnitude above the redundancy, so
    that the prior alone ranks. With `normalize` it is brought to the spread of the layer's scores:

        score + weight std(score) z(prior),   z(v) = (v - mean v) / std v

    which leaves the layer's mean, by which layers compare, where it was.

    Args:
        scores: float array `[channels]`.
        prior: float array `[channels]`, such as the `edge_strength`; `None` leaves the scores.
        weight: Factor of the prior.
        normalize: Whether to do that; False is the released code.

    Returns:
        float array `[channels]`.
    """
    if prior is None:
        return np.asarray(scores, "float64")
    scores, prior = np.asarray(scores, "float64"), np.asarray(prior, "float64")
    if not normalize:
        return scores + weight * prior
    spread = prior.std()
    if not spread:
        return scores
    return scores + weight * scores.std() * (prior - prior.mean()) / spread
