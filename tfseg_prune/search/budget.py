"""Budgets, and the best-ranked channels that meet one."""

import dataclasses
import heapq
import math
import numbers
import re

import numpy as np

from tfseg_prune.graph.cost import CostModel
from tfseg_prune.graph.ids import components

RANKINGS = ("global", "layer", "scope")


class BudgetError(ValueError):
    """A budget that makes no sense or can't be reached."""


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the smaller model may cost.

    ```python
    tsp.Budget(macs=0.5)                  # half of the MACs
    tsp.Budget(macs=2_000_000_000)        # an absolute number
    tsp.Budget(macs=0.5, params=0.4)      # both
    tsp.Budget(padded_macs=0.5)           # half of what a GPU computes
    ```

    Attributes:
        macs: MACs per image: a float in (0, 1] is a fraction of the model's, an int absolute.
        params: Parameters, likewise.
        padded_macs: MACs with every width rounded up to slices of 4, as GPU delegates compute
            (see `tfseg_prune.graph.cost`), likewise. Slices are filled: a channel that the GPU
            computes in any case stays.

    Raises:
        BudgetError: If none is given, or one is zero, negative, NaN, or a fraction above 1.
    """

    macs: float | int | None = None
    params: float | int | None = None
    padded_macs: float | int | None = None

    def __post_init__(self):
        if not self.asked:
            raise BudgetError(
                "A budget must limit something. Expected: `Budget(macs=0.5)`,"
                " `Budget(params=...)` or `Budget(padded_macs=...)`. Received: nothing"
            )
        for name, value in self.asked.items():
            whole = isinstance(value, numbers.Integral)
            number = isinstance(value, numbers.Real) and not isinstance(value, bool)
            if not number or not (0 < value if whole else 0 < value <= 1):
                raise BudgetError(
                    f"The budget in {name} makes no sense. Expected: a fraction as a float in"
                    f" (0, 1], or an absolute number as a positive int. Received: {name}={value!r}"
                )
            object.__setattr__(self, name, int(value) if whole else float(value))

    @property
    def asked(self):
        """What was asked, as plain values."""
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None}

    def targets(self, full):
        """{"macs" | "params" | "padded_macs": absolute limit}.

        Args:
            full: Object with the `.macs`, `.params` and `.padded_macs` of the whole model.

        Raises:
            BudgetError: If an absolute number is more than the model has, or the model's input
                size is open, so that nobody knows its MACs.
        """
        targets = {}
        for name, value in self.asked.items():
            whole = getattr(full, name)
            if whole is None:
                raise BudgetError(
                    f"A budget in {name} needs the model's input size. Expected: known height and"
                    " width. Received: a model that leaves them open. Remedy: rebuild it on"
                    " `keras.Input((height, width, 3))`, or limit `params`"
                )
            # The int 1 is an absolute number, the float 1.0 all of it.
            targets[name] = float(value) if isinstance(value, int) else value * whole
            if targets[name] > whole:
                raise BudgetError(
                    f"The budget in {name} is no limit. Expected: at most the {whole:,} {name} that"
                    f" the model has. Received: {name}={value:,}"
                )
        return targets


def meet_budget(
    graph, scores, budget, *, ranking="global", scopes=None, align=1, floor=0.1, groups=None
):
    """The units that stay: the best-ranked ones that cost at most the budget, and hardly less.

    Units get a position in [0, 1) by ascending score: among all units (`"global"`), within their
    layer (`"layer"`: the same fraction everywhere), or within their scope (`"scope"`: the same
    fraction, hence a threshold of its own, in every scope). The lowest position p such that
    dropping every unit below p meets the budget is found by bisection; what the last step
    overshot is then given back to the best-ranked dropped units that still fit. The cost is
    therefore below the target by less than the cheapest unit (or `align` of them) that was
    dropped.

    Args:
        graph: `ChannelGraph`.
        scores: float array `[num_units]`, higher = keep, NaN = never pruned.
        budget: `Budget`.
        ranking: "global", "layer" or "scope".
        scopes: {scope name: regular expression for layer names}, for `ranking="scope"`; layers
            that match none form a scope of their own. Defaults to names that start with
            `backbone_` and `decoder_`.
        align: Every width that changes becomes a multiple of this; what can't (because of
            channels that must stay, say) stays whole. What a convolution with groups (also one
            that is to become grouped) reads and writes becomes a multiple in each group, where
            there is one smaller than all that the group has.
        floor: Fraction of its channels that every layer keeps at least, and one channel.
        groups: {layer name: groups} of convolutions that become grouped, for the cost.

    Returns:
        Boolean array `[num_units]`.

    Raises:
        BudgetError: If even the floor costs more; the message says what is reachable.
        ValueError: On a senseless option.
    """
    if ranking not in RANKINGS:
        raise ValueError(
            f"Unknown ranking. Expected: one of {', '.join(RANKINGS)}. Received: {ranking!r}"
        )
    if not isinstance(align, numbers.Integral) or isinstance(align, bool) or align < 1:
        raise ValueError(f"`align` must be a positive integer. Received: {align!r}")
    align = int(align)
    if not 0 <= floor <= 1:
        raise ValueError(f"`floor` must be a fraction in [0, 1]. Received: {floor!r}")
    cost = CostModel(graph, groups=groups)
    full = cost.table()
    limits = budget.targets(full)
    scores = np.asarray(scores, float)
    if np.isinf(scores).any() or np.isnan(scores[graph.prunable]).all() and graph.prunable.any():
        raise ValueError(
            "The scores can't rank any channel. Expected: finite numbers. Received: NaN or"
            f" infinity, as the weights of '{graph.model.name}' hold them"
        )
    classes, class_scores = _tie(graph, scores)
    class_scores = _spare_readers(graph, classes, class_scores)
    widths = _widths(graph, classes, class_scores, ranking, scopes, align, floor)

    def keep_units(counts):
        keep = np.ones(int(classes.max()) + 1, bool)
        for width, count in zip(widths, counts):
            keep[width.members[count:]] = False
        return keep[classes]

    def fits(counts):
        weights = keep_units(counts).astype(float)
        return all(getattr(cost, name)(weights) <= limit for name, limit in limits.items())

    def at(position):
        return [width.count(position) for width in widths]

    least = at(math.inf)
    if not fits(least):
        weights = keep_units(least).astype(float)
        wanted = []
        for name, limit in limits.items():
            reached, whole = getattr(cost, name)(weights), getattr(full, name)
            if reached > limit:
                wanted.append(
                    f"at most {limit:,.0f} {name} ({limit / whole:.3f} of {whole:,}), where"
                    f" {reached:,.0f} ({reached / whole:.3f}) is the least reachable"
                )
        raise BudgetError(
            f"The budget can't be reached with floor={floor}, align={align} and what is never"
            f" pruned in '{graph.model.name}'{_frozen_layers(graph)}. Expected: a larger budget, a"
            f" lower floor or fewer exclusions. Received: {'; '.join(wanted)}"
        )
    positions = np.unique(np.concatenate([[0.0], *[w.positions for w in widths]]))
    low, high = -1, len(positions)  # `high` fits (it stands for infinity), `low` doesn't
    while high - low > 1:
        middle = (low + high) // 2
        if fits(at(positions[middle])):
            high = middle
        else:
            low = middle
    counts = at(positions[high]) if high < len(positions) else least
    return keep_units(_give_back(widths, counts, fits))


def _give_back(widths, counts, fits):
    """Raises single widths, best-ranked first, as long as the budget allows."""
    queue = [
        (-width.positions[count], index)
        for index, (width, count) in enumerate(zip(widths, counts))
        if count < len(width.members)
    ]
    heapq.heapify(queue)
    while queue:
        _, index = heapq.heappop(queue)
        width = widths[index]
        raised = list(counts)
        raised[index] = width.next(counts[index])
        # Costs only grow, so a width that doesn't fit now never will.
        if fits(raised):
            counts = raised
            if counts[index] < len(width.members):
                heapq.heappush(queue, (-width.positions[counts[index]], index))
    return counts


@dataclasses.dataclass(frozen=True)
class _Width:
    """One width to choose: its classes from the best to the worst, and how many may stay."""

    members: np.ndarray
    positions: np.ndarray  # descending, beside `members`
    allowed: np.ndarray  # ascending counts

    def count(self, position):
        """How many stay if all below `position` go: the nearest count that is allowed."""
        stay = int(np.searchsorted(-self.positions, -position, side="right"))
        larger_first = self.allowed[::-1]
        return int(larger_first[np.argmin(np.abs(larger_first - stay))])

    def next(self, count):
        return int(self.allowed[np.searchsorted(self.allowed, count, side="right")])


def _tie(graph, scores):
    """Classes of units that go together, and their scores.

    Groups of a grouped convolution must keep equally many channels. The best of every group are
    tied together, then the second best, and so on: whatever classes are dropped, the groups stay
    equal, also where several grouped convolutions share channels.
    """
    edges = []
    for rows in graph.balanced:
        ranked = np.take_along_axis(
            rows, np.argsort(-np.nan_to_num(scores[rows], nan=np.inf), axis=1, kind="stable"), 1
        )
        edges += [(ranked[0], row) for row in ranked[1:]]
    classes = components(graph.num_units, edges)
    held = np.where(graph.prunable, scores, np.nan)
    total = np.bincount(classes, np.nan_to_num(held))
    known = np.isnan(held)
    blocked = np.bincount(classes, known) > 0
    return classes, np.where(blocked, np.nan, total / np.bincount(classes))


def _spare_readers(graph, classes, scores):
    """Keeps the best class of every set of channels that an operation reads alone.

    A floor per layer isn't enough: a slice of a layer's channels may have a reader of its own.
    """
    scores = scores.copy()
    whole = {units.tobytes() for units in graph.producers.values()}
    for record in graph.records.values():
        for ids in record.read_sets:
            units = graph.unit_of[ids]
            read = classes[units]
            if units.tobytes() not in whole and not np.isnan(scores[read]).any():
                scores[read[np.argmax(scores[read])]] = np.nan
    return scores


def _widths(graph, classes, scores, ranking, scopes, align, floor):
    groups = graph.groups_of(classes)
    members = [group.members[~np.isnan(scores[group.members])] for group in groups]
    kept = [(group, own) for group, own in zip(groups, members) if len(own)]
    groups, members = [group for group, _ in kept], [own for _, own in kept]
    if ranking == "layer":
        labels = list(range(len(groups)))
    elif ranking == "scope":
        labels = [scope_of(next(iter(group.layers)), scopes) for group in groups]
    else:
        labels = [0] * len(groups)
    position = np.zeros(len(scores))
    for label in set(labels):
        pool = np.concatenate([m for m, own in zip(members, labels) if own == label])
        order = pool[np.argsort(scores[pool], kind="stable")]
        position[order] = (np.arange(len(order)) + 0.5) / len(order)
    widths = []
    for group, own, counts in zip(groups, members, _aligned_counts(graph, groups, members, align)):
        fixed = len(group.members) - len(own)
        least = min(len(own), max(math.ceil(floor * len(group.members) - 1e-9), 1) - fixed)
        counts = counts[counts >= min(least, counts.max())]
        own = own[np.argsort(-position[own], kind="stable")]
        widths.append(_Width(own, position[own], counts))
    return widths


def _aligned_counts(graph, groups, members, align):
    """For each group the counts of its members with which layers' widths are multiples of `align`.

    In layers that grouped convolutions read or write it is what a group has of them; a layer in
    which nothing smaller suits is aligned as a whole.

    A layer whose channels lie in several groups gets its multiple from the first of them; the
    others change in steps of `align`. A group that no count suits stays whole, which moves what
    the other groups of its layers must add up to, so the search starts again.
    """
    whole = [False] * len(groups)
    steps = _steps(graph, align)
    while True:
        first, rest = {}, {name: len(units) for name, units in graph.producers.items()}
        for index, group in enumerate(groups):
            if not whole[index]:
                for name, share in group.layers.items():
                    first.setdefault(name, index)
                    if first[name] == index:
                        rest[name] -= share * len(members[index])
        found = []
        for index, group in enumerate(groups):
            counts = np.arange(len(members[index]) + 1)
            full = counts[-1]
            suits = np.ones(len(counts), bool)
            for name, share in group.layers.items():
                wanted = -rest[name] if first.get(name) == index else share * full
                suits &= (share * counts - wanted) % steps[name] == 0
            alone = all(
                first.get(name) == index
                and not any(name in other.layers for other in groups if other is not group)
                for name in group.layers
            )
            if alone:
                suits[-1] = True  # an odd width may stay as it is
            if whole[index]:
                suits[:] = counts == full
            elif not suits[1:-1].any() and any(steps[name] > align for name in group.layers):
                steps.update(dict.fromkeys(group.layers, align))
                break
            elif not suits[:-1].any():
                whole[index] = True
                break
            found.append(counts[suits])
        else:
            return found


def _steps(graph, align):
    """{producing layer: what its width is a multiple of}: `align` channels in every group."""
    steps = dict.fromkeys(graph.producers, align)
    for rows in graph.balanced if align > 1 else ():
        for producer, units in graph.producers.items():
            held = np.isin(rows, units).sum(axis=1)
            held = held[held > 0]
            if len(set(held.tolist())) == 1:
                steps[producer] = math.lcm(steps[producer], align * len(held))
    return steps


def _frozen_layers(graph):
    """The layers of which most must stay, for an error message."""
    shown = []
    for name, units in graph.producers.items():
        stuck = units[~graph.prunable[units]]
        if len(stuck):
            shown.append((len(stuck), f"{name} ({graph.frozen.get(int(stuck[0]), 'coupled')})"))
    worst = [text for _, text in sorted(shown, reverse=True)[:3]]
    return f", such as {', '.join(worst)}" if worst else ""


def scope_of(layer, scopes=None):
    """The scope that a layer lies in, `None` in none; see `meet_budget`."""
    for name, pattern in (scopes or {"backbone": "^backbone_", "decoder": "^decoder_"}).items():
        if re.search(pattern, layer):
            return name
    return None
