"""Tests of bench.stats on synthetic times: nothing here reads a clock."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfseg_prune.bench import stats

TIMES = st.lists(st.floats(0.01, 1e4), min_size=1, max_size=80)


@given(TIMES)
def test_summary_is_ordered_and_scales_with_the_unit(times):
    ms = stats.summarise(times)
    assert ms["min"] <= ms["p50"] <= ms["p90"] <= ms["p99"] <= max(times)
    seconds = stats.summarise([t / 1000 for t in times])
    for key, value in ms.items():
        assert seconds[key] == pytest.approx(value / 1000, rel=1e-9, abs=1e-12)


def test_interleaved_ratio_survives_drift_that_breaks_separate_runs():
    rng = np.random.default_rng(0)
    n, true = 60, 0.6
    # The machine gets three times slower in the middle, and every run has its own noise.
    machine = np.where(np.arange(2 * n) < n, 1.0, 3.0)

    def noise():
        return rng.lognormal(0, 0.05, n)

    separate_small = 10 * true * machine[:n] * noise()
    separate_dense = 10 * machine[n:] * noise()
    wrong = np.median(separate_small) / np.median(separate_dense)
    drift = machine[::2]
    ratio = stats.interleaved_ratio(10 * true * drift * noise(), 10 * drift * noise())
    assert wrong < 0.25
    assert ratio.value == pytest.approx(true, rel=0.03)
    assert ratio.low <= true <= ratio.high
    assert ratio.high - ratio.low < 0.06


def test_ratio_ignores_rounds_that_were_disturbed():
    dense, small = np.full(31, 10.0), np.full(31, 5.0)
    small[::4] = 400.0
    assert stats.interleaved_ratio(small, dense).value == 0.5


def test_interval_covers_the_true_ratio_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        ratio = stats.interleaved_ratio(rng.lognormal(0, 0.3, 30), np.ones(30))
        hits += ratio.low <= 1.0 <= ratio.high
    assert hits / 2000 == pytest.approx(ratio.confidence, abs=0.015)
    assert 0.95 <= ratio.confidence < 0.98


@pytest.mark.parametrize("n", [1, 2, 5, 6, 30, 1001])
def test_interval_states_the_confidence_that_it_has(n):
    ratio = stats.interleaved_ratio(np.arange(1, n + 1), np.ones(n))
    outside = round(ratio.low) - 1
    expected = 1 - 2 * sum(math.comb(n, i) for i in range(outside + 1)) / 2**n
    assert ratio.confidence == pytest.approx(expected)
    assert ratio.low + ratio.high == n + 1
    assert (ratio.confidence >= 0.95) == (n >= 6)


@given(st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=1, max_size=40))
def test_ratio_of_swapped_models_is_within_the_inverse_interval(pairs):
    a, b = np.array(pairs).T
    there, back = stats.interleaved_ratio(a, b), stats.interleaved_ratio(b, a)
    assert there.low <= there.value <= there.high
    assert back.low == pytest.approx(1 / there.high) and back.high == pytest.approx(1 / there.low)


def test_steady_only_after_the_transient():
    times = [8.0, 6.0, 5.0, 4.0, 3.0, 2.5, 2.2] + [2.0, 2.02, 1.99] * 10
    steady = [n for n in range(len(times)) if stats.is_steady(times[:n], window=5)]
    assert steady[0] >= 12
    assert steady == list(range(steady[0], len(times)))


def test_steady_is_not_disturbed_by_single_outliers():
    times = [2.0] * 20
    times[17] = 40.0
    assert stats.is_steady(times)
    assert not stats.is_steady(times[:9])


def test_realised_speedup():
    assert stats.realised_speedup(10.0, 5.0, 400, 200) == 1.0
    assert stats.realised_speedup(10.0, 5.0, 400, 100) == 0.5
    assert stats.realised_speedup(1.0, 0.5, 400, 200) == 1.0


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf])
def test_bad_numbers_are_named(bad):
    with pytest.raises(ValueError, match="small_ms"):
        stats.realised_speedup(1.0, bad, 2, 1)
    with pytest.raises(ValueError, match="finite times above 0"):
        stats.summarise([1.0, bad])


def test_rounds_must_pair_up():
    with pytest.raises(ValueError, match="3 and 2 times"):
        stats.interleaved_ratio([1, 2, 3], [1, 2])
    with pytest.raises(ValueError, match="one or more"):
        stats.interleaved_ratio([], [])
    with pytest.raises(ValueError, match="confidence"):
        stats.interleaved_ratio([1], [1], confidence=95)
