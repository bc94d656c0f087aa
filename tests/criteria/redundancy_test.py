"""Redundancy is what the paper's code computes, and its greedy clique is nearly the best one."""

import itertools
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops

from tfseg_prune.criteria import redundancy as spatial

# What the released code answers on `_golden_features`.
GOLDEN_R = [
    [0.112251, 0.000510, 0.048880, 0.111125],
    [0.000510, 0.110797, 0.037539, -0.003372],
    [0.048880, 0.037539, 0.117617, 0.049721],
    [0.111125, -0.003372, 0.049721, 0.112859],
]
GOLDEN_EDGES = [1.81023, 2.34768, 2.43806, 0.83138]
GOLDEN_SCORES = [-0.112760, -0.110797, -0.204036, -0.277077]


def _golden_features():
    """[batch 2, height 3, width 4, channels 4]; channel 3 nearly repeats channel 0."""
    b, y, x, c = np.meshgrid(*map(np.arange, (2, 3, 4, 4)), indexing="ij")
    features = ((7 * b + 5 * c + 3 * y * (c + 1) + 2 * x) * 13 % 11 - 5).astype("float32")
    features[..., 3] = 0.5 * features[..., 0] + 0.25
    return features


def _matrix(features, **options):
    return ops.convert_to_numpy(spatial.redundancy(features, **options))


def _random_matrix(rng, channels):
    """Absolute correlations of random maps, as `redundancy` answers them."""
    return _cosines(rng.normal(size=(channels, int(rng.integers(2, 2 * channels + 3)))))


def _cosines(maps):
    maps = maps / np.linalg.norm(maps, axis=1, keepdims=True)
    return (maps @ maps.T + (maps @ maps.T).T) / 2


def _present_sums(edges, present):
    """Row sums over the channels still there, exact to the last digit."""
    return [math.fsum(edges[i, present]) if present[i] else -math.inf for i in range(len(edges))]


def test_golden_matrix_and_edges():
    features = _golden_features()
    np.testing.assert_allclose(_matrix(features, metric="official"), GOLDEN_R, atol=1e-5)
    edges = ops.convert_to_numpy(spatial.edge_strength(features))
    np.testing.assert_allclose(edges, GOLDEN_EDGES, atol=1e-5)


def test_golden_scores_and_order():
    features = _golden_features()
    found = spatial.eliminate(_matrix(features, metric="official"), metric="official")
    assert found.order.tolist() == [3, 2, 0, 1]
    np.testing.assert_allclose(found.scores, GOLDEN_SCORES, atol=1e-5)
    edges = ops.convert_to_numpy(spatial.edge_strength(features))
    for prior, expected in (
        (None, GOLDEN_SCORES),
        (edges, [0.611331, 0.828275, 0.771189, 0.055475]),
        ([0.1, 0.2, 0.3, 0.4], [-0.072760, -0.030797, -0.084036, -0.117077]),
    ):
        scores = spatial.with_prior(found.scores, prior, normalize=False)
        np.testing.assert_allclose(scores, expected, atol=1e-5)


@pytest.mark.parametrize("metric", ["cosine", "official"])
@pytest.mark.parametrize("kind, count", [("random", 200), ("near-duplicate", 50)])
def test_running_sums_equal_summing_anew(kind, count, metric):
    """The O(C^3) algorithm in exact sums falls the same way wherever it isn't a tie."""
    rng = np.random.default_rng(0)
    clear = 0
    for _ in range(count):
        channels = int(rng.integers(2, 40))
        matrix = _random_matrix(rng, channels)
        if kind == "near-duplicate":
            maps = rng.normal(size=(channels, 12))
            copies = rng.permutation(channels)[: channels // 2]
            maps[copies] = maps[rng.permutation(copies)] * rng.uniform(0.5, 2)
            matrix = _cosines(maps + 10.0 ** rng.uniform(-13, -5) * rng.normal(size=maps.shape))
        found = spatial.eliminate(matrix, metric=metric)
        edges = np.abs(matrix)
        if metric == "cosine":
            np.fill_diagonal(edges, 0)
        scale = channels - 1 if metric == "cosine" else 1
        present = np.ones(channels, bool)
        for fallen in found.order:
            sums = np.divide(_present_sums(edges, present), scale)
            assert sums[fallen] >= sums.max() - 1e-12
            assert abs(found.scores[fallen] + sums[fallen]) < 1e-12
            if (sums > sums.max() - 1e-12).sum() == 1:
                assert fallen == sums.argmax()
                clear += 1
            present[fallen] = False
        assert not present.any()
    assert clear > 10 * count


def test_greedy_is_nearly_the_best_clique():
    """Of what the best clique saves over a random one, the greedy one saves 96 % on average."""
    rng = np.random.default_rng(0)
    channels, shares = 10, []
    for kept in (3, 5, 7):
        cliques = np.array(list(itertools.combinations(range(channels), kept)))
        inside = np.zeros((len(cliques), channels))
        np.put_along_axis(inside, cliques, 1, axis=1)
        for _ in range(200):
            matrix = rng.uniform(size=(channels, channels))
            matrix = (matrix + matrix.T) / 2
            np.fill_diagonal(matrix, 1)
            weights = ((inside @ matrix) * inside).sum(axis=1)
            chosen = np.zeros(channels)
            chosen[spatial.eliminate(matrix).order[-kept:]] = 1
            spread = weights.mean() - weights.min()
            shares.append((weights.mean() - chosen @ matrix @ chosen) / spread)
    assert len(shares) == 600
    assert max(shares) <= 1 + 1e-12
    assert np.mean(shares) >= 0.96


def test_ties_fall_in_the_order_of_channels():
    assert spatial.eliminate(np.ones((5, 5))).order.tolist() == [0, 1, 2, 3, 4]
    assert spatial.eliminate(np.zeros((3, 3))).order.tolist() == [0, 1, 2]
    # Two pairs of twins: the first of each goes before anything else is redundant.
    twins = np.kron(np.eye(2), np.ones((2, 2)))
    found = spatial.eliminate(twins)
    assert found.order.tolist() == [0, 2, 1, 3]
    np.testing.assert_allclose(found.scores, [-1 / 3, 0, -1 / 3, 0])


def test_a_power_lets_a_twin_outweigh_many_slight_likenesses():
    matrix = np.zeros((12, 12))
    matrix[:10, :10] = 0.4
    matrix[10:, 10:] = 1
    assert spatial.eliminate(matrix).order[0] == 0
    found = spatial.eliminate(matrix, power=8)
    assert found.order[0] == 10
    np.testing.assert_allclose(found.scores[[10, 11, 0]], [-1 / 11, 0, -9 * 0.4**8 / 11])


def test_within_a_tolerance_rounding_breaks_no_ties():
    """Twins fall alike, whichever of them the rounding of their layer prefers."""
    rng = np.random.default_rng(0)
    pairs = _random_matrix(rng, 6).repeat(2, axis=0).repeat(2, axis=1)
    orders = set()
    for _ in range(20):
        noise = 1e-7 * rng.normal(size=pairs.shape)
        found = spatial.eliminate(pairs + noise + noise.T, tolerance=1e-5)
        orders.add(tuple(found.order))
    assert len(orders) == 1
    # And nothing is lost where all sums are zero, or less by rounding.
    for matrix in (np.zeros((3, 3)), np.eye(3) * 0.3):
        assert spatial.eliminate(matrix, tolerance=1e-5).order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("power", [0, -1, math.nan, math.inf])
def test_senseless_power_is_one_clear_error(power):
    with pytest.raises(ValueError, match="Invalid `power`.*Expected: .*Received: "):
        spatial.eliminate(np.ones((3, 3)), power=power)


def test_one_channel_is_not_redundant():
    found = spatial.eliminate([[0.7]])
    assert found.order.tolist() == [0] and found.scores.tolist() == [0]


def test_the_matrix_given_is_left_alone():
    matrix = np.full((3, 3), -0.5)
    spatial.eliminate(matrix)
    assert (matrix == -0.5).all()


def test_cosine_does_not_depend_on_size_or_amplitude():
    """Each pixel four times over says the same, and so does a channel at another gain."""
    features = np.random.default_rng(0).normal(size=(3, 5, 6, 7)).astype("float32")
    larger = features.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(_matrix(larger), _matrix(features), atol=1e-5)
    gains = np.linspace(0.5, 20, 7).astype("float32")
    np.testing.assert_allclose(_matrix(features * gains), _matrix(features), atol=1e-5)
    np.testing.assert_allclose(np.diag(_matrix(features)), 1, atol=1e-5)
    official = _matrix(features, metric="official")
    np.testing.assert_allclose(_matrix(larger, metric="official"), official / 4, rtol=1e-4)


def test_correlation_leaves_out_what_all_pixels_share():
    """An offset says nothing about places; a map that is nothing else is like no other."""
    rng = np.random.default_rng(3)
    features = rng.normal(size=(3, 5, 6, 7)).astype("float32")
    offsets = rng.normal(0, 5, 7).astype("float32")
    found = _matrix(features + offsets, metric="correlation")
    np.testing.assert_allclose(found, _matrix(features, metric="correlation"), atol=1e-4)
    assert np.abs(found - _matrix(features + offsets)).max() > 0.1
    features[..., 2] = 4.0
    np.testing.assert_allclose(_matrix(features, metric="correlation")[2], 0, atol=1e-6)


def test_redundancy_is_the_mean_over_images():
    features = np.random.default_rng(1).normal(size=(4, 3, 5, 6)).astype("float32")
    for metric in spatial.METRICS:
        alone = [_matrix(image[None], metric=metric) for image in features]
        np.testing.assert_allclose(_matrix(features, metric=metric), np.mean(alone, 0), atol=1e-6)


def test_pooling_forgets_where_things_are():
    """Channels that light up at disjoint places are redundant only to those who don't look."""
    rng = np.random.default_rng(2)
    amplitude = rng.uniform(1, 2, size=(4, 1, 1))
    features = np.zeros((4, 4, 4, 2), "float32")
    features[:, :2, :, 0] = features[:, 2:, :, 1] = amplitude
    for metric in spatial.METRICS:
        if metric != "correlation":  # centred, each is the other's negative
            assert _matrix(features, metric=metric)[0, 1] == 0
        pooled = _matrix(features, metric=metric, pooled=True)
        np.testing.assert_allclose(pooled[0, 1], pooled[0, 0], rtol=1e-5)
        assert pooled[0, 0] > 0.1
    # Over the batch, the means of each channel are one vector.
    features = rng.normal(size=(5, 3, 4, 6)).astype("float32")
    expected = _cosines(features.mean((1, 2), dtype="float64").T)
    np.testing.assert_allclose(_matrix(features, pooled=True), expected, atol=1e-4)


def test_edges_are_the_spread_of_the_sobel_magnitude():
    features = np.random.default_rng(4).normal(size=(2, 6, 7, 3)).astype("float32")
    features[..., 2] = 0
    padded = np.pad(features.astype("float64"), ((0, 0), (1, 1), (1, 1), (0, 0)))
    kernel = np.array([[-0.5, 0, 0.5], [-1, 0, 1], [-0.5, 0, 0.5]])
    across, down = np.zeros((2, *features.shape))
    for y, x in np.ndindex(3, 3):
        window = padded[:, y : y + 6, x : x + 7]
        across += kernel[y, x] * window
        down += kernel[x, y] * window
    expected = np.hypot(across, down).std(axis=(1, 2)).mean(axis=0)
    assert expected[2] == 0
    found = ops.convert_to_numpy(spatial.edge_strength(features))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_normalised_prior_has_the_spread_of_the_scores_and_leaves_their_mean():
    scores = np.array([-3e-5, -1e-5, -2e-5])
    prior = np.array([0.0, 1000.0, 2000.0])
    both = spatial.with_prior(scores, prior, weight=0.5)
    np.testing.assert_allclose(both.mean(), scores.mean(), rtol=1e-12)
    np.testing.assert_allclose(
        (both - scores) / scores.std(), 0.5 * math.sqrt(1.5) * np.array([-1, 0, 1])
    )
    # One that says nothing changes nothing.
    np.testing.assert_array_equal(spatial.with_prior(scores, np.full(3, 7.0)), scores)
    np.testing.assert_array_equal(spatial.with_prior(scores, None), scores)


@pytest.mark.parametrize(
    "matrix, message",
    [
        (np.ones((2, 3)), "square"),
        (np.ones(4), "square"),
        (np.ones((0, 0)), "square"),
        (0.5, "square"),
        ([[1, np.nan], [np.nan, 1]], "finite and symmetric"),
        ([[1, np.inf], [np.inf, 1]], "finite and symmetric"),
        ([[1, 0.9, 0], [0.1, 1, 0], [0, 0, 1]], "finite and symmetric"),
    ],
)
def test_senseless_matrix_is_one_clear_error(matrix, message):
    with pytest.raises(ValueError, match=f"{message}.* Received: "):
        spatial.eliminate(matrix)


def test_unknown_metric_is_one_clear_error():
    message = "Expected: one of cosine, correlation, official. Received: 'l3'"
    with pytest.raises(ValueError, match=message):
        spatial.redundancy(np.ones((1, 2, 2, 3)), metric="l3")
    with pytest.raises(ValueError, match=message):
        spatial.eliminate(np.ones((3, 3)), metric="l3")


CODE = """
import sys
import numpy as np
from tests.criteria.redundancy_test import everything

np.savez(sys.argv[2], **everything(np.load(sys.argv[1])))
"""


def everything(features):
    """All that is computed on the backend, as arrays."""
    found = {"edges": ops.convert_to_numpy(spatial.edge_strength(features))}
    for metric, pooled in itertools.product(spatial.METRICS, (False, True)):
        found[f"{metric} {pooled}"] = _matrix(features, metric=metric, pooled=pooled)
    return found


def test_backends_agree(tmp_path):
    features = np.random.default_rng(3).normal(size=(2, 17, 19, 24)).astype("float32")
    np.save(tmp_path / "features.npy", features)
    other = "tensorflow" if keras.backend.backend() == "jax" else "jax"
    run = subprocess.run(
        [sys.executable, "-c", CODE, tmp_path / "features.npy", tmp_path / "found.npz"],
        env={**os.environ, "KERAS_BACKEND": other},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    found = np.load(tmp_path / "found.npz")
    for name, expected in everything(features).items():
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found[name], expected, atol=5e-6 * scale, err_msg=name)
