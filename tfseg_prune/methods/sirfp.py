"""SIRFP: drops the channels whose feature maps say the same twice, where they say it.

Wu et al., "Structural Pruning via Spatial-aware Information Redundancy for Semantic Segmentation",
AAAI 2025. While the network trains, observers behind its batch normalisations average how alike
its channels are, pixel by pixel (`tfseg_prune.layers.redundancy`). A greedy clique then lets the
most redundant fall first (`tfseg_prune.criteria.redundancy`), and one threshold for the backbone
and one for the rest meet the budget.
"""

import numbers

import keras
import numpy as np

from tfseg_prune.criteria import redundancy
from tfseg_prune.graph.ids import CONSTANT
from tfseg_prune.graph.nodes import rewire
from tfseg_prune.layers.redundancy import RedundancyObserver
from tfseg_prune.methods.gradients import Gradients
from tfseg_prune.methods.planning import check_budget, compiled, graph_without, plan_within
from tfseg_prune.search.budget import scope_of

# Coupled layers must drop the same one of two twins, whatever rounding says: else none goes.
_ROUNDING = 1e-5
# A channel lives if the norm of its map is more than this part of what the liveliest one's is.
_DEAD = 1e-3
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
        metric: "cosine" (scale-free), "correlation" (scale-free, without what all pixels share) or
            "official" (as the released code; small maps lose more channels than large ones).
        prior: What a channel is worth by itself, see `criteria.redundancy.with_prior`: "none",
            "edge" (how strongly it draws edges) or "gradient" (DCFP's score). As in the released
            code the official metric has edges count in the scope "backbone" alone.
        prior_weight: Its factor. Defaults to `0.4`, the paper's.
        pooled: Whether to forget where things are (the paper's ablation).
        power: Of the likeness of two channels, see `criteria.redundancy.eliminate`. At 1, the
            paper's, many slight likenesses outweigh a twin; at 64 near-duplicates fall first. The
            official metric takes 1 alone.
        scopes: {scope name: regular expression for layer names} with thresholds of their own; by
            default names that start with `backbone_`, and `decoder_`.
        align: Widths that change become multiples of this.
        floor: Fraction of its channels that every layer keeps at least. Defaults to `0.02`, the
            paper's.
        exclude: Regular expressions for names of layers whose outputs are never pruned, besides
            the model's outputs.
        smallest: Maps with fewer pixels than this are not observed, and so not pruned, unless
            coupled to larger ones: of a 1x1 map every channel is redundant. Defaults to `4`.
        every: Observes every so many training steps. Defaults to `4`.
        pixels: Of an image's maps at most so many pixels count, on a regular grid; `None` takes the
            full resolution, as maps of unknown size always do. Defaults to `4096`.
        decay: Of the moving averages, per observation. Defaults to `0.999`, the paper's.

    Raises:
        ValueError: On a senseless option or a model without anything to observe.
        BudgetError: If the budget can't be reached, whatever will be seen.
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
        _check_options(metric, power, prior, prior_weight, smallest)
        self._graph = graph_without(model, exclude)
        self._budget = budget
        self._search = {"ranking": "scope", "scopes": scopes, "align": align, "floor": floor}
        self._metric, self._pooled, self._power = metric, pooled, power
        self._prior, self._prior_weight = prior, prior_weight
        self._votes = _votes(self._graph, smallest)
        self._observers = {key: [] for key in self._votes}  # one per call of a layer

        def call(operation, args, kwargs):
            answer = operation(*args, **kwargs)
            if id(operation) not in self._votes:
                return answer
            own = self._observers[id(operation)]
            observer = RedundancyObserver(
                metric=metric,
                pooled=pooled,
                edges=prior == "edge",
                every=every,
                pixels=pixels,
                decay=decay,
                name=f"{operation.name}_observer" + (f"_{len(own)}" if own else ""),
            )
            own.append(observer)
            return observer(answer)

        self._trained = rewire(model, call)
        self._gradients = None
        if prior == "gradient":
            if not any(_gamma(record.operation) is not None for record in self._observed_records):
                raise ValueError(
                    f"The prior 'gradient' needs scales. Expected: BatchNormalization(scale=True)"
                    f" that is observed. Received: '{model.name}', which has none. Remedy:"
                    " prior='edge' or 'none'"
                )
            self._gradients = Gradients(model, decay=decay)
        self._plan(np.where(np.isnan(self._unit_scores(self._nothing_seen)), np.nan, 0.0), budget)
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

    @property
    def _observed_records(self):
        return [r for r in self._graph.records.values() if id(r.operation) in self._votes]

    def scores(self):
        """float array `[units]`, higher = keep; NaN for what no observer saw.

        The first batch normalisation behind a layer ranks its channels (those behind a depthwise
        convolution or a concatenation rank nothing again). Where residual branches meet, a unit
        counts as much as it does to the branch that needs it most.

        Raises:
            ValueError: If nothing was seen yet.
        """
        slopes = {} if self._gradients is None else self._gradients.scores("dcfp")

        def seen(record):
            found = [observer.averages() for observer in self._observers[id(record.operation)]]
            matrix = np.mean([matrix for matrix, _ in found], axis=0)
            prior = None
            if self._prior == "gradient":
                prior = slopes.get((id(_gamma(record.operation)), 0))
            elif self._prior == "edge" and (self._metric != "official" or self._leads(record)):
                prior = np.mean([edges for _, edges in found], axis=0)
            fall = redundancy.eliminate(
                matrix, metric=self._metric, power=self._power, tolerance=_ROUNDING
            )
            values = redundancy.with_prior(
                fall.scores,
                prior,
                weight=self._prior_weight,
                normalize=self._metric != "official",
            )
            # A map of zeros is like no other, and yet says nothing.
            dead = np.diag(matrix) <= _DEAD * max(np.diag(matrix).max(), np.finfo("float32").tiny)
            return np.where(dead, values.min() - 1, values)

        return self._unit_scores(seen)

    def _leads(self, record):
        """Whether a layer lies in the scope "backbone"."""
        return scope_of(record.name, self._search["scopes"]) == "backbone"

    def _nothing_seen(self, record):
        return np.zeros(record.outputs[0].ids.size)

    def _unit_scores(self, values_of):
        """float array `[units]` from a function from records to an array `[channels]`."""
        graph = self._graph
        scores = np.full(graph.num_units, np.nan)
        for record in self._observed_records:
            votes = self._votes[id(record.operation)]
            units = graph.unit_of[record.outputs[0].ids.reshape(-1)]
            np.fmax.at(scores, units[votes], values_of(record)[votes])
        scores[graph.unit_of[CONSTANT]] = np.nan
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
        return self._plan(self.scores(), budget)

    def _plan(self, scores, budget):
        return plan_within(
            self._graph,
            scores,
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


def _check_options(metric, power, prior, prior_weight, smallest):
    redundancy.check_power(power)
    if prior not in redundancy.PRIORS:
        raise ValueError(
            f"Unknown prior. Expected: one of {', '.join(redundancy.PRIORS)}. Received: {prior!r}"
        )
    if metric == "official" and power != 1:
        raise ValueError(
            "The official metric's likenesses are too small for a power. Expected: power=1, or"
            f" metric='cosine'. Received: power={power!r} with metric='official'"
        )
    if not np.isfinite(prior_weight):
        raise ValueError(f"`prior_weight` must be a finite number. Received: {prior_weight!r}")
    if not isinstance(smallest, numbers.Integral) or smallest < 1:
        raise ValueError(
            f"`smallest` must be a number of pixels, 1 or more. Received: {smallest!r}"
        )


def _gamma(operation):
    return getattr(operation, "gamma", None)


def _votes(graph, smallest):
    """{id(operation): which channels it ranks, boolean `[channels]`} of what is observed.

    That are batch normalisations, each for channels that no earlier one observed, and then
    convolutions of which none observed any.
    """
    votes, seen = {}, np.zeros(len(graph.unit_of), bool)
    for kinds in (keras.layers.BatchNormalization, _CONVOLUTIONS):
        for record in graph.records.values():
            features = record.outputs and record.outputs[0]
            if not isinstance(record.operation, kinds) or not features:
                continue
            if len(features.shape) != 4 or features.varying != [3]:
                continue
            height, width = features.shape[1:3]
            if None not in (height, width) and height * width < smallest:
                continue
            ids = features.ids.reshape(-1)
            new = ~seen[ids]
            for answers in record.calls:
                seen[answers[0].ids.reshape(-1)] = True
            if (new & graph.prunable[graph.unit_of[ids]]).any():
                votes[id(record.operation)] = new
    if not votes:
        raise ValueError(
            f"There is nothing to observe in '{graph.model.name}'. Expected: feature maps of at"
            f" least {smallest} pixels behind batch normalisations or convolutions. Received: none"
            " that can be pruned"
        )
    return votes
