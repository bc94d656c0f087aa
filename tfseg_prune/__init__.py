"""Structured pruning of segmentation networks in Keras 3, from images to a proven .tflite file.

```python
import tfseg_prune as tsp

plan = tsp.plan(model, criterion="l1", budget=tsp.Budget(macs=0.5))
small = tsp.shrink(model, plan)
tsp.export(small, "segmenter.tflite", precision="float16")
```

Every name is imported when it is first used, so that importing the package costs nothing and
`tfseg_prune.bench` runs on a board that has neither Keras nor TensorFlow.
"""

import importlib

__version__ = "0.1.0"

# Public name -> module that defines it; `None` for a module that is public itself.
_HOMES = {
    "Budget": "tfseg_prune.search.budget",
    "BudgetError": "tfseg_prune.search.budget",
    "ChannelGraph": "tfseg_prune.graph",
    "GradualGrouping": "tfseg_prune.methods.gradual_grouping",
    "Gradients": "tfseg_prune.methods.gradients",
    "PruningPlan": "tfseg_prune.graph",
    "SIRFP": "tfseg_prune.methods.sirfp",
    "Segmenter": "tfseg_prune.bench.segmenter",
    "SurgeryError": "tfseg_prune.graph",
    "bench": None,
    "check_equal": "tfseg_prune.graph",
    "check_gpu": "tfseg_prune.deploy",
    "check_parity": "tfseg_prune.deploy",
    "cost": "tfseg_prune.graph",
    "data": None,
    "evaluate": "tfseg_prune.training",
    "export": "tfseg_prune.deploy",
    "fit": "tfseg_prune.training",
    "fit_quantised": "tfseg_prune.training",
    "inspect": "tfseg_prune.graph",
    "masked_twin": "tfseg_prune.graph",
    "models": None,
    "plan": "tfseg_prune.methods.oneshot",
    "recalibrate": "tfseg_prune.training",
    "register_rule": "tfseg_prune.graph",
    "report": None,
    "shrink": "tfseg_prune.graph",
    "to_functional": "tfseg_prune.graph",
    "training": None,
}

__all__ = sorted(_HOMES)


def __getattr__(name):
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    home = _HOMES[name]
    if home is None:
        return importlib.import_module(f"{__name__}.{name}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
