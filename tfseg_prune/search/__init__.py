"""From scores and costs to the channels that meet a budget."""

from tfseg_prune.search.budget import Budget, BudgetError, meet_budget

__all__ = ["Budget", "BudgetError", "meet_budget"]
