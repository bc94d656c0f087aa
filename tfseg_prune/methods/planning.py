"""What every method that ends in a plan begins and ends with."""

import re

import numpy as np

from tfseg_prune.graph import ChannelGraph, CostModel, PruningPlan
from tfseg_prune.layers.gradual_conv import GradualConv2D
from tfseg_prune.search.budget import Budget, meet_budget


def check_budget(budget):
    """Raises a ValueError unless it is a `Budget`."""
    if not isinstance(budget, Budget):
        raise ValueError(
            f"`budget` must be a `Budget`. Expected: `tsp.Budget(macs=0.5)`. Received: {budget!r}"
        )


def graph_without(model, exclude):
    """`ChannelGraph` of the model that leaves some layers whole.

    Args:
        model: Functional `keras.Model`.
        exclude: Regular expression, or a sequence of them, for names of layers whose outputs are
            never pruned.

    Raises:
        ValueError: On what is no regular expression, or matches no layer.
    """
    patterns = compiled([exclude] if isinstance(exclude, str) else exclude)
    graph = ChannelGraph(
        model, exclude=lambda name: any(pattern.search(name) for pattern in patterns)
    )
    for pattern in patterns:
        if not any(pattern.search(name) for name in graph.producers):
            raise ValueError(
                f"The exclusion {pattern.pattern!r} matches no layer of '{model.name}' that"
                f" creates channels. Expected: a regular expression that matches one of"
                f" {', '.join(list(graph.producers)[:5])}, ..."
            )
    return graph


def compiled(patterns):
    """The regular expressions, compiled.

    Raises:
        ValueError: On what is none.
    """
    found = []
    for pattern in patterns:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise ValueError(
                f"{pattern!r} is no regular expression ({error}). Expected: one for layer names,"
                " such as '^decoder_'"
            ) from error
    return found


def faded_groups(graph):
    """{layer name: groups} of gradual convolutions that can be plain grouped ones by now."""
    return {
        name: int(record.operation.target_groups)
        for name, record in graph.records.items()
        if isinstance(record.operation, GradualConv2D)
        and record.operation.why_not_grouped() is None
    }


def plan_within(graph, scores, budget, *, method, about, **search):
    """The `PruningPlan` of the best-scored units that a budget allows.

    Gradual convolutions that have faded become grouped by it, and count as such.

    Args:
        graph: `ChannelGraph`.
        scores: float array `[num_units]`, higher = keep, NaN = never pruned.
        budget: `Budget`.
        method: Name of the method, for the plan.
        about: Plain values that tell how the scores came about, for the plan.
        **search: Options of `meet_budget`.
    """
    groups = faded_groups(graph)
    keep = meet_budget(graph, scores, budget, groups=groups, **search)
    cost = CostModel(graph, groups=groups)
    full, reached = cost.table(), cost.table(keep)
    dropped = scores[~keep & ~np.isnan(scores)]
    summary = {
        **about,
        "ranking": search["ranking"],
        "align": int(search["align"]),
        "macs": [full.macs, reached.macs],
        "params": [full.params, reached.params],
        "padded_macs": [full.padded_macs, reached.padded_macs],
        "units": [int(graph.prunable.sum()), int((keep & graph.prunable).sum())],
        "highest_dropped": float(dropped.max()) if len(dropped) else None,
    }
    return PruningPlan.from_units(
        graph, keep, groups=groups, method=method, budget=budget.asked, scores=summary
    )
