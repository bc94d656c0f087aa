"""Channel scores. One idea per file: a criterion is a module here with

- `score(graph, *, seed, gradients) -> {layer name: float array of the layer's width}`, higher =
  keep, NaN where the criterion can't rank a channel (which is then never pruned); `gradients` is
  what a `tsp.Gradients` collected, or `None`; and
- `NORMALIZE`, the `normalize` of `tfseg_prune.criteria.units.combine` that suits it.
"""

import difflib
import importlib
import pkgutil

# What criteria share, and what scores a layer only by the features that a method collects.
_HELPERS = ("gates", "kernels", "redundancy", "units")


def names():
    """The criteria that there are."""
    found = (module.name for module in pkgutil.iter_modules(__path__))
    return sorted(name for name in found if name not in _HELPERS)


def find(name):
    """The module of a criterion.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in names():
        close = difflib.get_close_matches(str(name), names(), 1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        raise ValueError(
            f"There is no criterion '{name}'.{hint} Expected: one of {', '.join(names())}."
            f" Received: {name!r}"
        )
    return importlib.import_module(f"{__name__}.{name}")
