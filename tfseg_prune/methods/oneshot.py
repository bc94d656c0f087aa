"""One-shot pruning: score once, meet the budget, done. The simplest method."""

import re

import numpy as np

from tfseg_prune import criteria
from tfseg_prune.criteria.units import combine
from tfseg_prune.graph import ChannelGraph, CostModel, PruningPlan
from tfseg_prune.search.budget import Budget, meet_budget


def plan(
    model,
    *,
    budget,
    criterion="l1",
    ranking="global",
    scopes=None,
    align=1,
    floor=0.1,
    combine_by="mean",
    normalize=None,
    exclude=(),
    seed=0,
):
    """Decides which channels of a trained model stay.

    ```python
    plan = tsp.plan(model, criterion="l1", budget=tsp.Budget(macs=0.5), align=8)
    small = tsp.shrink(model, plan)
    ```

    Args:
        model: Functional `keras.Model` of known input size.
        budget: `Budget`.
        criterion: "l1", "l2", "bn_gamma", "fpgm", "random" or another module of
            `tfseg_prune.criteria`.
        ranking: "global" (all channels compete), "layer" (uniform: the same fraction of every
            layer) or "scope" (backbone and decoder with their own thresholds).
        scopes: {scope name: regular expression for layer names}; by default names that start
            with `backbone_` and with `decoder_`.
        align: Widths that change become multiples of this; 4 and 8 suit the GPU delegate.
        floor: Fraction of its channels that every layer keeps at least.
        combine_by: How scores of coupled channels become one: "mean", "max", "min", "sum".
        normalize: What a layer's scores are divided by: "none", "mean", "max", "l2"; by default
            what suits the criterion.
        exclude: Regular expressions for names of layers whose outputs are never pruned, besides
            the model's outputs.
        seed: Seed of the random criterion.

    Returns:
        `PruningPlan`.

    Raises:
        BudgetError: If the budget can't be reached; the message says what can.
        ValueError: On a senseless option or a model that isn't functional.
    """
    if not isinstance(budget, Budget):
        raise ValueError(
            f"`budget` must be a `Budget`. Expected: `tsp.Budget(macs=0.5)`. Received: {budget!r}"
        )
    module = criteria.find(criterion)
    patterns = [_compile(p) for p in ([exclude] if isinstance(exclude, str) else exclude)]
    for pattern in (scopes or {}).values():
        _compile(pattern)
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
    scores = combine(
        graph,
        module.score(graph, seed=seed),
        how=combine_by,
        normalize=normalize or module.NORMALIZE,
    )
    keep = meet_budget(
        graph, scores, budget, ranking=ranking, scopes=scopes, align=align, floor=floor
    )
    cost = CostModel(graph)
    full, reached = cost.table(), cost.table(keep)
    dropped = scores[~keep & ~np.isnan(scores)]
    summary = {
        "criterion": criterion,
        "ranking": ranking,
        "align": int(align),
        "macs": [full.macs, reached.macs],
        "params": [full.params, reached.params],
        "units": [int(graph.prunable.sum()), int((keep & graph.prunable).sum())],
        "highest_dropped": float(dropped.max()) if len(dropped) else None,
    }
    return PruningPlan.from_units(
        graph, keep, method="oneshot", budget=budget.asked, scores=summary
    )


def _compile(pattern):
    try:
        return re.compile(pattern)
    except re.error as error:
        raise ValueError(
            f"{pattern!r} is no regular expression ({error}). Expected: one for layer names, such"
            " as '^decoder_'"
        ) from error
