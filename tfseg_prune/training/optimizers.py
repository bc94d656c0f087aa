"""Optimisers with the poly schedule of semantic segmentation."""

import keras
from keras import ops

OPTIMIZERS = ("sgd", "adamw", "adam")


def optimizer(
    name,
    *,
    learning_rate,
    steps,
    power=0.9,
    end_learning_rate=0.0,
    weight_decay=0.0,
    momentum=0.9,
    global_clipnorm=None,
):
    """An optimiser whose learning rate decays as `rate * (1 - step / steps) ** power`.

    Weight decay is decoupled, as in Keras (`w -= rate * weight_decay * w`), and spares biases and
    the gamma and beta of normalisation layers. Under SGD with momentum `m` a paper's L2 penalty
    of `d` pulls about `1 / (1 - m)` times as hard as a decoupled decay of `d`. That of `"adam"` is
    another one: an L2 penalty on all weights, for papers whose code is torch's `Adam` (see
    `AdamL2`).

    Args:
        name: `"sgd"` (with momentum), `"adamw"` or `"adam"`.
        learning_rate: Float > 0. Rate of the first step.
        steps: Integer > 0. Steps (batches) of the whole run, all epochs together.
        power: Float. Exponent of the decay. Defaults to 0.9.
        end_learning_rate: Float. Rate after the last step. Defaults to 0.
        weight_decay: Float >= 0. Defaults to 0.
        momentum: Float in [0, 1), for `"sgd"`. Defaults to 0.9.
        global_clipnorm: Float or None. Longest gradient, all variables together. Defaults to None.

    Returns:
        A `keras.optimizers.Optimizer`.

    Raises:
        ValueError: If the name is unknown, or a number is out of its range.

    Example:

    >>> sgd = optimizer("sgd", learning_rate=0.05, steps=20 * 46, weight_decay=1e-4)
    >>> round(float(sgd.learning_rate), 3)
    0.05
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"Invalid optimizer name. Expected: one of {', '.join(OPTIMIZERS)}. "
            f"Received: name={name!r}"
        )
    if not (0.0 < learning_rate < float("inf")) or weight_decay < 0.0 or steps < 1:
        raise ValueError(
            "Invalid optimizer arguments. Expected: learning_rate > 0, steps >= 1 and "
            f"weight_decay >= 0. Received: learning_rate={learning_rate}, steps={steps}, "
            f"weight_decay={weight_decay}"
        )
    options = {
        "learning_rate": keras.optimizers.schedules.PolynomialDecay(
            learning_rate, steps, end_learning_rate=end_learning_rate, power=power
        ),
        "global_clipnorm": global_clipnorm,
    }
    if name == "adam":
        return AdamL2(l2=weight_decay, **options)
    if name == "sgd":
        built = keras.optimizers.SGD(
            momentum=momentum, weight_decay=weight_decay or None, **options
        )
    else:
        # AdamW insists on a number.
        built = keras.optimizers.AdamW(weight_decay=weight_decay, **options)
    built.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return built


@keras.saving.register_keras_serializable("tfseg_prune")
class AdamL2(keras.optimizers.Adam):
    """Adam with an L2 penalty, `l2 / 2 * sum(w ** 2)`, on every weight that trains.

    Its gradient, `l2 * w`, is added after clipping and before Adam's moments, as by `weight_decay`
    of torch's Adam: so the decay, too, is divided by the root of the second moment. Of a weight
    that no loss reaches nothing else is left, and it shrinks by about the learning rate a step.
    (Keras' own `weight_decay` is decoupled.)

    Args:
        l2: Float >= 0. Defaults to 0.
        epsilon: Float. Defaults to 1e-8, torch's.
        **options: See `keras.optimizers.Adam`.
    """

    def __init__(self, *, l2=0.0, epsilon=1e-8, **options):
        super().__init__(epsilon=epsilon, **options)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        penalty = self.l2 * ops.cast(variable, gradient.dtype)
        super().update_step(ops.add(gradient, penalty), variable, learning_rate)

    def get_config(self):
        return {**super().get_config(), "l2": self.l2}
