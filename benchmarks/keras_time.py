"""How much of a surgery's time Keras takes to construct its own layers and models."""

import functools
import inspect
import time

import keras
from keras.src.models.functional import Functional
from keras.src.ops.operation import Operation


class KerasTime:
    """Counts the seconds in which Keras constructs layers, while it is entered.

    That is: making a layer from its config, calling it on symbolic tensors (which makes its
    weights), inputs, and `keras.Model(inputs, outputs)`. Calls on real tensors are not counted,
    and what happens inside of what is counted is not counted twice.

    ```python
    with KerasTime() as keras_time:
        small = tsp.shrink(model, plan, check=False)
    keras_time.seconds
    ```
    """

    _PLACES = (
        (keras.layers.Layer, "__call__"),
        (Operation, "__call__"),
        (keras.layers.Layer, "__new__"),
        (Operation, "__new__"),
        (Operation, "from_config"),
        (keras.layers.Lambda, "__init__"),
        (keras.layers.InputLayer, "__init__"),
        (Functional, "__init__"),
    )

    def __init__(self):
        self.seconds = 0.0
        self._inside = False

    def __enter__(self):
        self._before = [(owner, name, vars(owner)[name]) for owner, name in self._PLACES]
        for owner, name, original in self._before:
            setattr(owner, name, self._timed(original, only_symbolic=name == "__call__"))
        return self

    def __exit__(self, *error):
        for owner, name, original in self._before:
            setattr(owner, name, original)

    def _timed(self, original, only_symbolic):
        if isinstance(original, classmethod | staticmethod):
            return type(original)(self._timed(original.__func__, only_symbolic))

        @functools.wraps(original)
        def timed(*args, **kwargs):
            given = args[1:], kwargs
            if self._inside or (only_symbolic and not _symbolic(given)):
                return original(*args, **kwargs)
            self._inside = True
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - start
                self._inside = False

        timed.__signature__ = inspect.signature(original)  # which Keras reads of every `__init__`
        return timed


def _symbolic(given):
    return any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(given))
