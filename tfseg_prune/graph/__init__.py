"""What a Keras model's channels are, what they cost, and how to remove some of them."""

from tfseg_prune.graph import (  # noqa: F401 - they register their rules
    attention_rules,
    layer_rules,
    norm_rules,
    op_rules,
    pick_rules,
    product_rules,
    shape_rules,
)
from tfseg_prune.graph.channels import ChannelGraph
from tfseg_prune.graph.convert import to_functional
from tfseg_prune.graph.cost import Cost, CostModel, LayerCost, cost
from tfseg_prune.graph.inspection import Inspection, inspect
from tfseg_prune.graph.plan import PruningPlan
from tfseg_prune.graph.proof import SurgeryError, check_equal
from tfseg_prune.graph.rules import register_rule
from tfseg_prune.graph.shrink import masked_twin, shrink

__all__ = [
    "ChannelGraph",
    "Cost",
    "CostModel",
    "Inspection",
    "LayerCost",
    "PruningPlan",
    "SurgeryError",
    "check_equal",
    "cost",
    "inspect",
    "masked_twin",
    "register_rule",
    "shrink",
    "to_functional",
]
