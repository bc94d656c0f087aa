"""Surgery on models that nobody has drawn: see `tests.graph.random_models`.

`benchmarks/random_graphs.py` does the same on a thousand graphs, in another way of drawing.
"""

import contextlib
import random
import statistics

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings, strategies
from keras import layers

from tests.graph.properties import check_pruning
from tests.graph.random_models import build, draw, models
from tfseg_prune.graph import SurgeryError, rules
from tfseg_prune.graph.ids import Channels
from tfseg_prune.methods.oneshot import plan
from tfseg_prune.search import Budget, BudgetError

EXAMPLES = 20


@pytest.fixture(scope="module")
def facts():
    """One row per model that hypothesis drew; all of them have passed."""
    rows = []

    # Without shrinking: it would build hundreds of models, and a recipe is short enough to read.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=models(), seed=strategies.integers(0, 10**6))
    def prune(drawn, seed):
        rows.append(check_pruning(drawn.model, seed))
        if "open" not in drawn.recipe:
            # What a search decides is legal, too (`from_units` checks), or there is no such plan.
            with contextlib.suppress(BudgetError):
                plan(drawn.model, criterion="random", budget=Budget(macs=0.6), floor=0.01)
        keras.backend.clear_session()

    prune()
    return rows


def test_any_model_survives_a_random_pruning(facts):
    """`check_pruning` says what that means; a failure prints the recipe of its model."""
    assert len(facts) >= EXAMPLES


def test_the_models_are_worth_pruning(facts):
    """Nothing is shown by models that are frozen, or whose pruning changes nothing."""
    assert statistics.mean(row["prunable"] > 0 for row in facts) > 0.8
    assert statistics.median(row["prunable"] for row in facts) > 0.5
    assert statistics.median(row["layers"] for row in facts) >= 10
    felt = [row["effect"] > 1e-3 for row in facts if row["kept"] < 1]
    assert statistics.mean(felt) > 0.9
    assert len({name for row in facts for name in row["operations"]}) > 50


def concatenated_in_reverse(trace, layer, xs):
    return rules._RULES["Concatenate"](trace, layer, xs[::-1])


def normalised_in_reverse(trace, layer, x, **_):
    right(trace, layer, Channels(np.flip(x.ids), x.shape))
    return x


right = rules._RULES[layers.BatchNormalization]


@pytest.mark.parametrize(
    "layer, wrong",
    [
        (layers.Concatenate, concatenated_in_reverse),
        (layers.BatchNormalization, normalised_in_reverse),
    ],
)
def test_a_wrong_rule_is_found(layer, wrong, monkeypatch):
    """So that the random models would show it if a rule were wrong."""
    monkeypatch.setitem(rules._RULES, layer, wrong)
    with pytest.raises(SurgeryError):
        for seed in range(20):
            check_pruning(draw(random.Random(seed)).model, seed)


def test_a_recipe_builds_the_model_again():
    drawn = draw(random.Random(3))
    again = build(drawn.recipe)
    assert [tuple(w.shape) for w in again.weights] == [tuple(w.shape) for w in drawn.model.weights]
    for first, second in zip(drawn.model.get_weights(), again.get_weights()):
        assert (first == second).all()
