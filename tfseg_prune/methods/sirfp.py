"""SIRFP: drops the channels whose feature maps say the same twice, where they say it.

Wu et al., "Structural Pruning via Spatial-aware Information Redundancy for Semantic Segmentation",
AAAI 2025. While the network trains, observers behind its batch normalisations average how alike
its channels are, pixel by pixel (`tfseg_prune.layers.redundancy`). A greedy clique then lets the
most redundant fall first (`tfseg_prune.criteria.redundancy`), and one threshold for the backbone
and one for the rest meet the budget.
"""

import keras
import numpy as np

from tfseg_prune.criteria import redundancy
from tfseg_prune.graph.nodes import rewire
from tfseg_prune.layers.redundancy import RedundancyObserver
from tfseg_prune.methods.gradients import Gradients
from tfseg_prune.methods.planning import check_budget, compiled, graph_without, plan_within

# Coupled layers must drop the same one of two twins, whatever rounding says: else none goes.
_ROUNDING = 1e-5
_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.SeparableConv2D,
)


class SIRFP(keras.callbacks.Callback):
    """Observes a network while it trains, and then decides which of its channels stay.

    ```python
    pruner = tsp.SIRFP(model, budget=tsp.Budget(macs=0.4))
    pruner.model.compile(optimizer, loss)
    pruner.model.fit(train, epochs=5, callbacks=[pruner])
    small = tsp.shrink(model, pruner.plan(), fold_constants="beta")
    ```

    `pruner.model` shares its layers, and so its weights, with `model`; what the observers hold is
    part of its weights, so that a checkpoint of it resumes them.

    Args:
        model: Functional `keras.Model` of known input size.
        budget: `Budget`.
        metric: "cosine" (scale-free) or "official" (as the released code).
        prior: What a channel is worth by itself, see `criteria.redundancy.with_prior`: "none",
            "edge" (how strongly it draws edges) or "gradient" (DCFP's score).
        prior_weight: Its factor. Defaults to `0.4`, the paper's.
        pooled: Whether to forget where things are (the paper's ablation).
        power: Of the likeness of two channels, see `criteria.redundancy.eliminate`. At 1, the
            paper's, many slight likenesses outweigh a twin; at 64 near-duplicates fall first.
        scopes: {scope name: regular expression for layer names} with thresholds of their own; by
            default names that start with `backbone_`, and `decoder_`.
        align: Widths that change become multiples of this.
        floor: Fraction of its channels that every layer keeps at least. Defaults to `0.02`, the
            paper's.
        exclude: Regular expressions for names of layers whose outputs are never pruned, besides
            the model's outputs.
        smallest: Maps with fewer pixels than this are not observed, and so not pruned, unless
            coupled to larger ones: of a 1x1 map every channel is redundant. Defaults to `4`.
        every, pixels, decay: See `RedundancyObserver`.

    Raises:
        ValueError: On a senseless option or a model without anything to observe.
    """

    def __init__(
        self,
        model,
        *,
        budget,
        metric="cosine",
        prior="none",
        prior_weight=0.4,
        pooled=False,
        power=1,
        scopes=None,
        align=1,
        floor=0.02,
        exclude=(),
        smallest=4,
        every=4,
        pixels=4096,
        decay=0.999,
    ):
        super().__init__()
        check_budget(budget)
        compiled((scopes or {}).values())
        redundancy.check_power(power)
        if prior not in redundancy.PRIORS:
            raise ValueError(
                f"Unknown prior. Expected: one of {', '.join(redundancy.PRIORS)}. Received:"
                f" {prior!r}"
            )
        self._graph = graph_without(model, exclude)
        self._budget = budget
        self._search = {"ranking": "scope", "scopes": scopes, "align": align, "floor": floor}
        self._metric, self._pooled, self._power = metric, pooled, power
        self._prior, self._prior_weight = prior, prior_weight
        self._observers = {}
        observed = _observed(self._graph, smallest)

        def call(operation, args, kwargs):
            answer = operation(*args, **kwargs)
            if id(operation) not in observed:
                return answer
            if id(operation) not in self._observers:
                self._observers[id(operation)] = RedundancyObserver(
                    metric=metric,
                    pooled=pooled,
                    edges=prior == "edge",
                    every=every,
                    pixels=pixels,
                    decay=decay,
                    name=f"{operation.name}_observer",
                )
            return self._observers[id(operation)](answer)

        self._trained = rewire(model, call)
        self._gradients = Gradients(model, decay=decay) if prior == "gradient" else None
        self.set_model(self._trained)

    def set_model(self, model):
        """Called by Keras when a training begins."""
        if model is not self._trained:
            raise ValueError(
                f"SIRFP observes its own copy of the model. Expected: `pruner.model.fit(...,"
                f" callbacks=[pruner])`. Received: a training of '{model.name}', which has no"
                " observers"
            )
        super().set_model(model)
        if self._gradients is not None:
            self._gradients.set_model(model)

    def scores(self):
        """float array `[units]`, higher = keep; NaN for what no observer saw.

        Where residual branches meet, a unit counts as much as it does to the branch that needs it
        most.

        Raises:
            ValueError: If nothing was seen yet.
        """
        graph = self._graph
        scores = np.full(graph.num_units, np.nan)
        slopes = {} if self._gradients is None else self._gradients.scores("dcfp")
        for record in graph.records.values():
            observer = self._observers.get(id(record.operation))
            if observer is None:
                continue
            matrix, prior = observer.averages()
            if self._prior == "gradient":
                prior = slopes.get((id(getattr(record.operation, "gamma", None)), 0))
            fall = redundancy.eliminate(
                matrix, metric=self._metric, power=self._power, tolerance=_ROUNDING
            )
            values = redundancy.with_prior(
                fall.scores,
                prior,
                weight=self._prior_weight,
                normalize=self._metric != "official",
            )
            units = graph.unit_of[record.outputs[0].ids.reshape(-1)]
            np.fmax.at(scores, units, values)
        scores[graph.unit_of[0]] = np.nan
        return scores

    def plan(self, budget=None):
        """The `PruningPlan` of what was seen so far.

        Args:
            budget: Another `Budget` than that of the constructor, to compare several.

        Raises:
            ValueError: If nothing was seen yet.
            BudgetError: If the budget can't be reached; the message says what can.
        """
        budget = self._budget if budget is None else budget
        check_budget(budget)
        return plan_within(
            self._graph,
            self.scores(),
            budget,
            method="sirfp",
            about={
                "criterion": "redundancy",
                "metric": self._metric,
                "power": self._power,
                "prior": self._prior,
                "pooled": self._pooled,
            },
            **self._search,
        )


def _observed(graph, smallest):
    """{id(operation)} of what is observed: batch norms, and producers without one behind them."""
    chosen, normed = set(), set()
    for record in graph.records.values():
        if isinstance(record.operation, keras.layers.BatchNormalization):
            normed.update(graph.unit_of[record.outputs[0].ids.reshape(-1)].tolist())
    for record in graph.records.values():
        operation, features = record.operation, record.outputs and record.outputs[0]
        if not features or len(features.shape) != 4 or features.varying != [3]:
            continue
        height, width = features.shape[1:3]
        if None not in (height, width) and height * width < smallest:
            continue
        units = graph.unit_of[features.ids.reshape(-1)]
        bare = isinstance(operation, _CONVOLUTIONS) and not normed.intersection(units.tolist())
        if bare or isinstance(operation, keras.layers.BatchNormalization):
            if graph.prunable[units].any():
                chosen.add(id(operation))
    if not chosen:
        raise ValueError(
            f"There is nothing to observe in '{graph.model.name}'. Expected: feature maps of at"
            f" least {smallest} pixels behind batch normalisations or convolutions. Received: none"
            " that can be pruned"
        )
    return chosen
