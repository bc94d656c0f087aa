"""What a Keras model's channels are, what they cost, and how to remove some of them."""

from tfseg_prune.graph import op_rules  # noqa: F401 - registers the rules of raw operations
from tfseg_prune.graph.channels import ChannelGraph
from tfseg_prune.graph.cost import Cost, CostModel, LayerCost, cost
from tfseg_prune.graph.plan import PruningPlan
from tfseg_prune.graph.proof import SurgeryError, check_equal
from tfseg_prune.graph.rules import register_rule
from tfseg_prune.graph.shrink import masked_twin, shrink

__all__ = [
    "ChannelGraph",
    "Cost",
    "CostModel",
    "LayerCost",
    "PruningPlan",
    "SurgeryError",
    "check_equal",
    "cost",
    "masked_twin",
    "register_rule",
    "shrink",
]
