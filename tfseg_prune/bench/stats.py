"""Statistics of latencies: percentiles, warm-up, and ratios that hold on a noisy machine."""

import dataclasses

import numpy as np


def _samples(samples, name="samples"):
    samples = np.asarray(samples, dtype=float)
    if samples.ndim != 1 or not samples.size or not np.all(np.isfinite(samples) & (samples > 0)):
        raise ValueError(
            f"Invalid {name}. Expected: one or more finite times above 0. "
            f"Received: shape {samples.shape}, {samples.ravel()[:5]}."
        )
    return samples


def summarise(samples):
    """Sums up repeated timings.

    Args:
        samples: times in any one unit.

    Returns:
        Dictionary of `p50`, `p90`, `p99`, `mean`, `stdev` and `min`, in the same unit. `stdev` is
        the sample standard deviation (0 for one sample).

    Raises:
        ValueError: if a time is missing, not finite or not above 0.

    Example:

    >>> summarise([1.0, 2.0, 3.0])["p50"]
    2.0
    """
    samples = _samples(samples)
    p50, p90, p99 = (float(p) for p in np.percentile(samples, (50, 90, 99)))
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": float(samples.mean()),
        "stdev": float(samples.std(ddof=1)) if samples.size > 1 else 0.0,
        "min": float(samples.min()),
    }


def is_steady(samples, *, window=5, tolerance=0.05):
    """Whether timings have settled: the last two windows have the same median.

    `|median(last window) / median(window before) - 1| <= tolerance`.

    Args:
        samples: times so far, in order.
        window: samples per window. Defaults to `5`.
        tolerance: largest relative difference. Defaults to `0.05`.

    Returns:
        Whether they have; `False` for fewer than two windows.

    Example:

    >>> is_steady([9, 5, 3, 2, 1], window=2), is_steady([9, 5, 1, 1, 1, 1], window=2)
    (False, True)
    """
    if len(samples) < 2 * window:
        return False
    samples = _samples(samples)
    before, last = np.median(samples[-2 * window : -window]), np.median(samples[-window:])
    return bool(abs(last / before - 1) <= tolerance)


@dataclasses.dataclass(frozen=True)
class Ratio:
    """A ratio of latencies with its interval.

    Args:
        value: the median of the ratios per round.
        low, high: ends of the interval.
        confidence: the interval's confidence, in [0, 1).
        rounds: how many rounds it rests on.
    """

    value: float
    low: float
    high: float
    confidence: float
    rounds: int


def interleaved_ratio(numerator, denominator, *, confidence=0.95):
    """Ratio of two models' latencies that were timed in turns.

    The ratio is taken within each round, where both models met the same machine, and only then
    the median over the rounds: a slow minute slows both and drops out, which it does not in the
    ratio of two medians. The interval is that of the median by order statistics, free of any
    distribution: for `n` rounds the `k`-th least and the `k`-th greatest ratio, with the largest
    `k` such that `P(Binomial(n, 1/2) < k) <= (1 - confidence) / 2`. Rounds are taken as
    independent given the machine's drift.

    Args:
        numerator: times of one model; entry `i` was taken in round `i`.
        denominator: times of the other, as many.
        confidence: wanted confidence in (0, 1). Defaults to `0.95`. Under 6 rounds 0.95 is out of
            reach: the answer then spans all rounds and states the confidence that it has.

    Returns:
        `Ratio` of numerator to denominator.

    Raises:
        ValueError: if the two differ in length, or a time is not finite and above 0.

    Example:

    >>> interleaved_ratio([1, 2, 3], [2, 4, 6]).value
    0.5
    """
    numerator, denominator = _samples(numerator, "numerator"), _samples(denominator, "denominator")
    if numerator.size != denominator.size:
        raise ValueError(
            "Invalid samples. Expected: one time of each model per round. "
            f"Received: {numerator.size} and {denominator.size} times."
        )
    if not 0 < confidence < 1:
        raise ValueError(f"Invalid confidence. Expected: in (0, 1). Received: {confidence!r}.")
    ratios = np.sort(numerator / denominator)
    n = ratios.size
    # Whole numbers: P(Binomial(n, 1/2) < k) is `below` / 2**n.
    limit = int((1 - confidence) / 2 * 2**52) * 2**n // 2**52
    k, below, term = 0, 0, 1
    while below + term <= limit:
        k, below, term = k + 1, below + term, term * (n - k) // (k + 1)
    k, below = (k, below) if k else (1, 1)
    return Ratio(
        value=float(np.median(ratios)),
        low=float(ratios[k - 1]),
        high=float(ratios[n - k]),
        confidence=1 - 2 * below / 2**n,
        rounds=n,
    )


def compare(small, dense, *, confidence=0.95):
    """Latency of `small` as a ratio to that of `dense`, from two results of one session.

    Args:
        small: `Result` of the smaller model.
        dense: `Result` of the model that it is measured against.
        confidence: see `interleaved_ratio`. Defaults to `0.95`.

    Returns:
        `Ratio` of small to dense: below 1 is faster.

    Raises:
        ValueError: if they were not timed in turns, in the same session.

    Example:

    >>> compare(results["pruned"], results["dense"]).value  # doctest: +SKIP
    0.61
    """
    if small.session != dense.session:
        raise ValueError(
            "These two were not timed in turns. Expected: results of one session of `time_models`. "
            f"Received: sessions {small.session!r} and {dense.session!r}."
        )
    return interleaved_ratio(small.samples_ms, dense.samples_ms, confidence=confidence)


def realised_speedup(dense_ms, small_ms, dense_macs, small_macs):
    """Share of the saved MACs that became saved time.

    `(dense_ms / small_ms) / (dense_macs / small_macs)`: 1.0 means that every MAC saved was time
    saved, 0.5 that a network with a quarter of the MACs is only twice as fast.

    Args:
        dense_ms: latency of the dense model, in milliseconds. With the ratio of `compare` at hand,
            pass `1.0` here and `ratio.value` as `small_ms`.
        small_ms: latency of the smaller model.
        dense_macs: MACs of the dense model.
        small_macs: MACs of the smaller model.

    Returns:
        The fraction, a float.

    Raises:
        ValueError: if one of them is not a finite number above 0.

    Example:

    >>> realised_speedup(10.0, 5.0, 400e6, 100e6)
    0.5
    """
    values = dict(
        dense_ms=dense_ms, small_ms=small_ms, dense_macs=dense_macs, small_macs=small_macs
    )
    wrong = [f"{k}={v!r}" for k, v in values.items() if not (np.isfinite(v) and v > 0)]
    if wrong:
        raise ValueError(
            f"Invalid latency or MACs. Expected: finite and above 0. Received: {', '.join(wrong)}."
        )
    return float((dense_ms / small_ms) / (dense_macs / small_macs))
