"""Data sets and the one input pipeline.

A data set is a module of this room that defines `load_split(split, *, data_dir=None, ...)` and
returns a `Dataset`: `load` finds it by the module's name, so that one new file is enough. So does
`load_classification` for those of whole images and their classes, see
`tfseg_prune.data.classification`.
"""

import importlib
import inspect
import pkgutil

from tfseg_prune.data.augment import Augment
from tfseg_prune.data.batches import Batches
from tfseg_prune.data.classification import (
    ClassificationBatches,
    ClassificationDataset,
    PaddedCrop,
)
from tfseg_prune.data.dataset import ClassInfo, Dataset, DatasetError, closest
from tfseg_prune.data.images import colorize, ids_from_colors, read_folder, read_image

__all__ = [
    "Augment",
    "Batches",
    "ClassInfo",
    "ClassificationBatches",
    "ClassificationDataset",
    "Dataset",
    "DatasetError",
    "PaddedCrop",
    "classification_names",
    "colorize",
    "ids_from_colors",
    "load",
    "load_classification",
    "names",
    "read_folder",
    "read_image",
]


def names() -> tuple[str, ...]:
    """The names of the data sets that `load` knows."""
    return tuple(sorted(_loaders("load_split")))


def load(name: str, split: str, *, data_dir=None, **options) -> Dataset:
    """Opens one split of a data set.

    Args:
        name: "camvid", "cityscapes", "folder" (your own images) or "streets" (drawn by the
            package).
        split: "train", "val" or "test".
        data_dir: The folder that holds the data set. Defaults to None; "streets" needs none.
        **options: The data set's own, see its module: `source` for "cityscapes", `fractions` for
            "folder"; `size`, `count` and `seed` for "streets".

    Returns:
        The `Dataset`.

    Raises:
        DatasetError: If a name is unknown, an option is, or the folder cannot be used.

    Example:

    ```python
    from tfseg_prune import data

    streets = data.load("streets", "train", size=(96, 128), count=8)
    image, label = streets[0]
    ```
    """
    return _open("load_split", name, split, data_dir, options)


def load_classification(name: str, split: str, *, data_dir=None, **options):
    """Opens one split of a data set of whole images and their classes.

    Args:
        name: "tinyimagenet100".
        split: "train" or "val".
        data_dir: The folder that holds the data set. Defaults to None.
        **options: The data set's own: `count` for "tinyimagenet100".

    Returns:
        The `ClassificationDataset`.

    Raises:
        DatasetError: If a name is unknown, an option is, or the folder cannot be used.
    """
    return _open("load_classes", name, split, data_dir, options)


def classification_names() -> tuple[str, ...]:
    """The names of the data sets that `load_classification` knows."""
    return tuple(sorted(_loaders("load_classes")))


def _open(function, name, split, data_dir, options):
    loaders = _loaders(function)
    if name not in loaders:
        raise DatasetError(
            f"Unknown data set. Expected: one of {', '.join(sorted(loaders))}. Received: {name!r}."
            f"{closest(name, loaders)}"
        )
    known = [key for key in inspect.signature(loaders[name]).parameters if key != "split"]
    for option in options:
        if option not in known:
            raise DatasetError(
                f"Unknown option of data set '{name}'. Expected: one of {', '.join(known)}. "
                f"Received: {option!r}.{closest(option, known)}"
            )
    return loaders[name](split, data_dir=data_dir, **options)


def _loaders(function):
    modules = (f"{__name__}.{module.name}" for module in pkgutil.iter_modules(__path__))
    found = {module.rpartition(".")[2]: importlib.import_module(module) for module in modules}
    return {
        name: getattr(module, function)
        for name, module in found.items()
        if hasattr(module, function)
    }
