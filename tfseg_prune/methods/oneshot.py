"""One-shot pruning: score once, meet the budget, done. The simplest method."""

from tfseg_prune import criteria
from tfseg_prune.criteria.units import combine
from tfseg_prune.methods.planning import check_budget, compiled, graph_without, plan_within


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
    gradients=None,
):
    """Decides which channels of a trained model stay.

    ```python
    plan = tsp.plan(model, criterion="l1", budget=tsp.Budget(macs=0.5), align=8)
    small = tsp.shrink(model, plan)
    ```

    Args:
        model: Functional `keras.Model` of known input size.
        budget: `Budget`.
        criterion: "l1", "l2", "bn_gamma", "fpgm", "random", "taylor", "dcfp" or another module of
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
        gradients: The `tsp.Gradients` of a training of `model`, for the criteria "taylor" and
            "dcfp".

    Returns:
        `PruningPlan`.

    Raises:
        BudgetError: If the budget can't be reached; the message says what can.
        ValueError: On a senseless option or a model that isn't functional.
    """
    check_budget(budget)
    module = criteria.find(criterion)
    compiled((scopes or {}).values())
    graph = graph_without(model, exclude)
    scores = combine(
        graph,
        module.score(graph, seed=seed, gradients=gradients),
        how=combine_by,
        normalize=normalize or module.NORMALIZE,
    )
    return plan_within(
        graph,
        scores,
        budget,
        method="oneshot",
        about={"criterion": criterion},
        ranking=ranking,
        scopes=scopes,
        align=align,
        floor=floor,
    )
