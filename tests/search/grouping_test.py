"""Groups keep what belongs together, and never less than they did."""

import numpy as np
import pytest

from tfseg_prune.search.grouping import DenseKernel, balanced_order


def blocks(rng, ins, outs, density=1.0):
    """A random matrix of squares between equal numbers."""
    same = np.asarray(ins)[:, None] == np.asarray(outs)
    return np.square(rng.normal(size=same.shape)) * same * (rng.random(same.shape) < density)


def hidden(rng, channels, groups):
    return rng.permutation(np.repeat(np.arange(groups), channels // groups))


def kept(kernels, source):
    """Mass within equal runs, channel by channel."""
    total = 0.0
    for kernel in kernels:
        for axis, units in enumerate((kernel.ins, kernel.outs)):
            assert len(set(source[units].tolist())) == len(set(units.tolist()))
        ins, outs = ({u: p for p, u in enumerate(x)} for x in (kernel.ins, kernel.outs))
        for p, place in enumerate(kernel.ins):
            for q, other in enumerate(kernel.outs):
                same = p * kernel.groups // len(ins) == q * kernel.groups // len(outs)
                total += same * kernel.mass[ins[source[place]], outs[source[other]]]
    return total


def all_of(kernels):
    return sum(kernel.mass.sum() for kernel in kernels)


@pytest.mark.parametrize("groups", [2, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_hidden_blocks_are_found(seed, groups):
    rng = np.random.default_rng(seed)
    ins, outs = np.arange(1, 33), np.arange(33, 49)
    mass = blocks(rng, hidden(rng, 32, groups), hidden(rng, 16, groups))
    kernels = [DenseKernel(mass, ins, outs, groups)]
    source = balanced_order(kernels, np.repeat([-1, 0, 1], [1, 32, 16]))
    assert sorted(source[ins]) == list(ins) and source[0] == 0
    assert kept(kernels, source) == pytest.approx(mass.sum())


@pytest.mark.parametrize("seed", range(4))
def test_residual_branches_share_one_order(seed):
    """Three branches that read and write one stream, each with channels of its own."""
    rng = np.random.default_rng(seed)
    stream, kinds, kernels = np.arange(16), np.repeat(np.arange(4), 16), []
    hidden_stream = hidden(rng, 16, 4)
    for branch in range(1, 4):
        inner, own = hidden(rng, 16, 4), np.arange(16) + 16 * branch
        kernels.append(DenseKernel(blocks(rng, hidden_stream, inner), stream, own, 4))
        kernels.append(DenseKernel(blocks(rng, inner, hidden_stream), own, stream, 4))
    source = balanced_order(kernels, kinds)
    assert kept(kernels, source) == pytest.approx(all_of(kernels))


def test_a_chain_is_found_from_end_to_end():
    rng = np.random.default_rng(0)
    parts = [hidden(rng, 12, 3) for _ in range(5)]
    kernels = [
        DenseKernel(blocks(rng, one, other), np.arange(12) + 12 * n, np.arange(12, 24) + 12 * n, 3)
        for n, (one, other) in enumerate(zip(parts, parts[1:]))
    ]
    source = balanced_order(kernels, np.repeat(np.arange(5), 12))
    assert kept(kernels, source) == pytest.approx(all_of(kernels))


def test_a_convolution_from_a_stream_to_itself():
    rng = np.random.default_rng(0)
    own = hidden(rng, 16, 4)
    kernels = [DenseKernel(blocks(rng, own, own), np.arange(16), np.arange(16), 4)]
    source = balanced_order(kernels, np.zeros(16, int))
    assert kept(kernels, source) == pytest.approx(all_of(kernels))


@pytest.mark.parametrize("seed", range(8))
def test_never_less_and_what_is_fixed_stays(seed):
    rng = np.random.default_rng(seed)
    units = rng.permutation(40)
    first, second = units[:24], np.concatenate([units[16:24], units[24:40]])
    kernels = [
        DenseKernel(np.square(rng.normal(size=(24, 24))), first, rng.permutation(second), 4),
        DenseKernel(np.square(rng.normal(size=(24, 24))), second, first, 2),
    ]
    kinds = np.full(40, -1)
    kinds[units[:12]], kinds[units[16:24]], kinds[units[24:36]] = 0, 1, 2
    source = balanced_order(kernels, kinds)
    np.testing.assert_array_equal(np.sort(source), np.arange(40))
    np.testing.assert_array_equal(kinds[source], kinds)
    assert (source == np.arange(40))[kinds == -1].all()
    assert kept(kernels, source) >= kept(kernels, np.arange(40)) * (1 - 1e-9)
    if seed < 4:
        assert kept(kernels, source) > 1.05 * kept(kernels, np.arange(40))
    np.testing.assert_array_equal(balanced_order(kernels, kinds), source)


def test_where_a_shuffle_lies_between():
    """The second convolution sees the first one's outputs dealt out to other groups."""
    rng = np.random.default_rng(0)
    ins, middle, outs = np.arange(16), np.arange(16, 32), np.arange(32, 48)
    dealt = middle.reshape(4, 4).T.reshape(-1)
    kernels = [
        DenseKernel(np.square(rng.normal(size=(16, 16))), ins, middle, 4),
        DenseKernel(np.square(rng.normal(size=(16, 16))), dealt, outs, 4),
    ]
    source = balanced_order(kernels, np.repeat(np.arange(3), 16))
    assert kept(kernels, source) > 1.2 * kept(kernels, np.arange(48))


def test_a_channel_in_two_places_stays():
    units = np.array([0, 1, 2, 3, 0, 1, 2, 3])
    kernel = DenseKernel(np.ones((8, 4)), units, np.arange(4, 8), 2)
    source = balanced_order([kernel], np.repeat([0, 1], 4))
    np.testing.assert_array_equal(source[:4], np.arange(4))
