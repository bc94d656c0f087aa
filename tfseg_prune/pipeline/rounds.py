"""The rounds of a run's pruning: who decides in each, and what each may cost."""

import dataclasses

from tfseg_prune.methods import oneshot
from tfseg_prune.methods.gradients import Gradients
from tfseg_prune.methods.gradual_grouping import GradualGrouping
from tfseg_prune.methods.sirfp import SIRFP
from tfseg_prune.search import Budget

METHODS = ("oneshot", "sirfp", "gradual_grouping")
BY_GRADIENT = ("dcfp", "taylor")


def looks_on(settings):
    """Whether what `config.pruning` asks for decides by what it sees in training."""
    return settings.method != "oneshot" or settings.criterion in BY_GRADIENT


@dataclasses.dataclass(frozen=True)
class Pruner:
    """What decides in one round.

    Attributes:
        model: What trains before it decides.
        callbacks: Its callbacks.
        plan: Function that answers the `PruningPlan` then.
        pruned: What the plan is for, with the weights of `model`.
    """

    model: object
    callbacks: tuple
    plan: object
    pruned: object


def pruner(model, settings, budget, *, seed):
    """The `Pruner` that `config.pruning` asks for.

    Args:
        model: `keras.Model` to prune.
        settings: `config.pruning`.
        budget: `Budget`; gradual grouping can do without: then no channels go.
        seed: Seed of a random criterion.
    """
    common = _common(settings)
    if settings.method == "gradual_grouping":
        options = settings.gradual_grouping.to_dict()
        gradual = GradualGrouping(model, **{**options, "where": options["where"] or None})

        def plan():
            if budget is None:
                return gradual.plan()
            return _oneshot(gradual.model, settings, budget, seed, None)

        return Pruner(gradual.model, (gradual,), plan, gradual.model)
    if settings.method == "sirfp":
        sirfp = SIRFP(model, budget=budget, **common, **settings.sirfp)
        return Pruner(sirfp.model, (sirfp,), sirfp.plan, model)
    gradients = Gradients(model) if settings.criterion in BY_GRADIENT else None
    return Pruner(
        model,
        () if gradients is None else (gradients,),
        lambda: _oneshot(model, settings, budget, seed, gradients),
        model,
    )


def check(model, settings, budget, *, seed):
    """Raises what `pruner` would, and a BudgetError if the budget can't be reached.

    What can be reached depends on which channels can be ranked, not on how, so nothing need be
    trained for it.

    Returns:
        What would train: `model`, or what a method makes of it.
    """
    trains = model
    if settings.method != "oneshot":
        trains = pruner(model, settings, budget, seed=seed).model
    if settings.method == "sirfp" or budget is None:
        return trains
    blank = Gradients(model).blank() if settings.criterion in BY_GRADIENT else None
    _oneshot(model, settings, budget, seed, blank)
    return trains


def _common(settings):
    found = {name: settings[name] for name in ("align", "floor", "exclude")}
    return {**found, "scopes": settings.scopes.to_dict() or None}


def _oneshot(model, settings, budget, seed, gradients):
    return oneshot.plan(
        model,
        budget=budget,
        criterion=settings.criterion,
        ranking=settings.ranking,
        seed=seed,
        gradients=gradients,
        **_common(settings),
    )


def budgets(budget, full, rounds):
    """The budget of each round: as much more to remove in each.

    Args:
        budget: `Budget` of the whole run, or `None`.
        full: `Cost` of the model before the first round.
        rounds: How many.

    Returns:
        A list of `rounds` budgets in absolute numbers; one round has the `budget` itself.
    """
    if rounds == 1 or budget is None:
        return [budget] * rounds
    targets = budget.targets(full)

    def after(number):
        limits = {}
        for name, target in targets.items():
            whole = getattr(full, name)
            limits[name] = int(whole - number / rounds * (whole - target))
        return Budget(**limits)

    return [after(number) for number in range(1, rounds + 1)]


def within(budget, cost):
    """The budget without what the model of this cost needs no limit for.

    One limit of two may have been met by the rounds before already.
    """
    if budget is None:
        return None
    limits = {k: v for k, v in budget.asked.items() if isinstance(v, float) or v < getattr(cost, k)}
    return Budget(**(limits or {k: getattr(cost, k) for k in budget.asked}))
