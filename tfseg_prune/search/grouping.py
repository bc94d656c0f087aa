"""Which channels to group together, so that grouped convolutions keep the most of dense ones."""

import dataclasses

import numpy as np

_PASSES = 20
_NOTHING = 1e-9  # relative to all there is: gains below it are rounding


@dataclasses.dataclass(frozen=True)
class DenseKernel:
    """One convolution that becomes grouped, in equal runs of its inputs and its outputs.

    Attributes:
        mass: float array `[in, out]`: what is lost where two channels are parted, such as the
            squared weights between them.
        ins: int array, the units of the inputs.
        outs: int array, the units of the outputs.
        groups: int, divides both.
    """

    mass: np.ndarray
    ins: np.ndarray
    outs: np.ndarray
    groups: int


def balanced_order(kernels, kinds):
    """The places of units with which groups keep the most mass that was found.

    Channels that several convolutions share have one place for all of them. The search goes from
    one kind of interchangeable units to the next and swaps those that keep more in each other's
    place, until none does. It starts from the order as it is, and once more from the channels of
    the heaviest kind put together by what they are connected to; the better end counts. It is
    deterministic, and a kernel of separate blocks in any order is put in order.

    Args:
        kernels: List of `DenseKernel`.
        kinds: int array `[units]`: units of one number may change places, those of -1 may not.

    Returns:
        int array `[units]`: unit u's place is taken by unit `source[u]`. It keeps at least the mass
        that the order as it is keeps.
    """
    kinds = kinds.copy()
    for kernel in kernels:
        for units in (kernel.ins, kernel.outs):
            present, counts = np.unique(units, return_counts=True)
            kinds[present[counts > 1]] = -1  # in two places at once
    search = _Search(kernels, kinds)
    ends = [search.settle(search.as_it_is()), search.settle(search.gathered())]
    return max(ends, key=search.kept)


class _Search:
    def __init__(self, kernels, kinds):
        self._kernels = kernels
        self._count = len(kinds)
        self._sides = {}  # {kind: [(kernel, axis, positions of its members along the axis)]}
        weights = {}
        for kernel in kernels:
            for axis, units in enumerate((kernel.ins, kernel.outs)):
                for kind in np.unique(kinds[units]).tolist():
                    if kind < 0:
                        continue
                    # Members in ascending order, in every axis that holds them.
                    here = np.flatnonzero(kinds[units] == kind)
                    here = here[np.argsort(units[here])]
                    self._sides.setdefault(kind, []).append((kernel, axis, here))
                    weights[kind] = weights.get(kind, 0.0) + kernel.mass.sum()
        self._members = {kind: np.flatnonzero(kinds == kind) for kind in self._sides}
        self._order = sorted(self._sides, key=lambda kind: -weights[kind])
        self._kinds = kinds
        # The groups that a place lies in, one per axis, are all that matters of it.
        self._types, self._groups = {}, {}
        for kind, sides in self._sides.items():
            groups = [p // (k.mass.shape[axis] // k.groups) for k, axis, p in sides]
            rows, types = np.unique(np.stack(groups, 1), axis=0, return_inverse=True)
            self._groups[kind], self._types[kind] = rows, types.reshape(-1)
        self._tolerance = _NOTHING * sum(kernel.mass.sum() for kernel in kernels)

    def as_it_is(self):
        return np.arange(self._count)

    def gathered(self):
        """Kinds one after the other, each by what it shares with those that have their places."""
        source, settled = self.as_it_is(), set()
        while len(settled) < len(self._order):
            left = [kind for kind in self._order if kind not in settled]
            near = (kind for kind in left if self._scores(kind, source, settled).any())
            kind = next(near, None)
            if kind is None:
                kind = left[0]
                self._gather(kind, source)
            else:
                self._improve(kind, source, settled)
            settled.add(kind)
        return source

    def settle(self, source):
        """Swaps within one kind after the other until nothing is gained."""
        for _ in range(_PASSES):
            before = self.kept(source)
            for kind in self._order:
                self._improve(kind, source)
            if self.kept(source) <= before + self._tolerance:
                break
        return source

    def kept(self, source):
        """Mass within groups."""
        total = 0.0
        for kernel in self._kernels:
            ins, outs = (_positions(units, source) for units in (kernel.ins, kernel.outs))
            blocks = kernel.mass[ins][:, outs].reshape(
                kernel.groups, len(ins) // kernel.groups, kernel.groups, -1
            )
            total += np.einsum("gigo->", blocks)
        return total

    def _scores(self, kind, source, settled=None):
        """float array `[members, types of places]`: what each would keep there.

        Args:
            settled: Kinds that have their places; what is shared with others doesn't count.
        """
        rows = self._groups[kind]
        scores = np.zeros((len(self._members[kind]), len(rows)))
        for column, (kernel, axis, positions) in enumerate(self._sides[kind]):
            mass, others = (kernel.mass, kernel.outs) if axis == 0 else (kernel.mass.T, kernel.ins)
            if settled is not None and not settled.union({-1}).issuperset(self._kinds[others]):
                continue
            mass = mass[positions][:, _positions(others, source)]
            per_group = mass.reshape(len(mass), kernel.groups, -1).sum(axis=2)
            scores += per_group[:, rows[:, column]]
        return scores

    def _improve(self, kind, source, settled=None):
        """Swaps members of one kind, in place, as long as that keeps more."""
        members = self._members[kind]
        held = np.searchsorted(members, source[members])  # place -> member
        types = np.empty(len(members), int)
        types[held] = self._types[kind]
        kernels = [id(kernel) for kernel, _, _ in self._sides[kind]]
        alone = len(set(kernels)) == len(kernels)  # it isn't input and output of the same one
        while True:
            scores = self._scores(kind, source, settled)
            swapped = _swapped(scores, types, self._tolerance, None if alone else 1)
            if (swapped == types).all():
                return
            before = source[members]
            kept = self.kept(source)
            source[members] = self._placed(kind, swapped)
            if alone:
                return
            # Scores take all other channels as fixed, which those of the same kernel aren't here.
            if self.kept(source) <= kept + self._tolerance:
                source[members] = before
                return
            types = swapped

    def _placed(self, kind, types):
        """Members by place, when each has its type of place."""
        places = np.argsort(self._types[kind], kind="stable")
        held = np.empty(len(places), int)
        held[places] = np.argsort(types, kind="stable")
        return self._members[kind][held]

    def _gather(self, kind, source):
        """Puts those of a kind together, in place, that are connected to the same channels."""
        members = self._members[kind]
        likeness = np.zeros((len(members),) * 2)
        for kernel, axis, positions in self._sides[kind]:
            rows = (kernel.mass if axis == 0 else kernel.mass.T)[positions]
            likeness += rows @ rows.T
        np.fill_diagonal(likeness, 0)
        types = np.full(len(members), -1)
        for one, size in enumerate(np.bincount(self._types[kind])):
            free = types < 0
            pull = likeness @ free
            for number in range(size):
                chosen = np.argmax(np.where(types < 0, pull, -1.0))
                types[chosen] = one
                pull = likeness[chosen] + (pull if number else 0.0)
        source[members] = self._placed(kind, types)


def _swapped(scores, types, tolerance, limit):
    """Types of the members after the best swaps of two, one after the other."""
    types = types.copy()
    count = scores.shape[1]
    swaps = 0
    while limit is None or swaps < limit:
        gains = scores - np.take_along_axis(scores, types[:, None], 1)
        best = np.full((count, count), -np.inf)
        np.maximum.at(best, types, gains)
        both = best + best.T
        first, second = np.unravel_index(np.argmax(both), both.shape)
        if not both[first, second] > tolerance:
            break
        one = np.argmax(np.where(types == first, gains[:, second], -np.inf))
        other = np.argmax(np.where(types == second, gains[:, first], -np.inf))
        types[one], types[other] = second, first
        swaps += 1
    return types


def _positions(units, source):
    """Along an axis, where the channel came from that has each place now."""
    order = np.argsort(units, kind="stable")
    found = order[np.searchsorted(units[order], source[units])]
    return np.where(source[units] == units, np.arange(len(units)), found)
