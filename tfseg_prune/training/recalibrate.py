"""Batch-normalisation statistics measured afresh, as a pruned network needs them."""

import keras
import numpy as np

from tfseg_prune.training.compiling import jit_compile
from tfseg_prune.training.evaluate import iterate


class _TrainingMode(keras.Model):
    """Runs a model in training mode whatever it is asked."""

    def __init__(self, inner):
        super().__init__(name="training_mode")
        self.inner = inner
        self.jit_compile = jit_compile()

    def call(self, inputs):
        return self.inner(inputs, training=True)


def recalibrate(model, batches, *, steps=None):
    """Replaces the moving statistics of batch normalisation by their means over `batches`.

    Removing channels changes the distribution of every activation behind them, and the moving
    averages of training no longer describe it: accuracy collapses although the weights are good.
    The model runs forward in training mode; each statistic becomes the mean of its batch values,
    weighted by batch size. Dropout and noise are off, as they are in inference. Weights, and
    all other state, stay as they are; so do frozen (`trainable=False`) layers. On an error the
    old statistics come back.

    Args:
        model: Keras model, compiled or not.
        batches: `keras.utils.PyDataset` (or an iterable) of tuples that begin with the images.
        steps: Integer or None. Number of batches to use. Defaults to None (all).

    Returns:
        The number of batch-normalisation layers that were recalibrated.

    Raises:
        ValueError: If there is no batch, or `steps` is not positive.

    Example:

    >>> images = keras.Input((4, 4, 3))
    >>> norm = keras.layers.BatchNormalization()
    >>> recalibrate(keras.Model(images, norm(images)), [(5.0 * np.ones((2, 4, 4, 3)), None)])
    1
    >>> norm.moving_mean.numpy().tolist()
    [5.0, 5.0, 5.0]
    """
    if steps is not None and steps < 1:
        raise ValueError(f"Invalid `steps`. Expected: >= 1, or None. Received: steps={steps}")
    # Only this walk, unlike `model.layers`, also reaches layers held by composite layers.
    layers = list(model._flatten_layers(include_self=False))
    norms = [x for x in layers if isinstance(x, keras.layers.BatchNormalization) and x.trainable]
    if not norms:
        return 0
    noises = (keras.layers.Dropout, keras.layers.GaussianDropout, keras.layers.AlphaDropout)
    dropouts = [layer for layer in layers if isinstance(layer, noises)]
    blurs = [layer for layer in layers if isinstance(layer, keras.layers.GaussianNoise)]
    statistics = [v for layer in norms for v in (layer.moving_mean, layer.moving_variance)]
    before = [(v, keras.ops.convert_to_numpy(v).copy()) for v in model.non_trainable_variables]
    options = [(layer, "momentum", layer.momentum) for layer in norms]
    options += [(layer, "rate", layer.rate) for layer in dropouts]
    options += [(layer, "stddev", layer.stddev) for layer in blurs]

    total, images_seen = [np.zeros(v.shape, "float64") for v in statistics], 0
    measured = None
    try:
        for layer, name, _ in options:
            # Without momentum each pass leaves the statistics of its own batch.
            setattr(layer, name, 0.0)
        for variable in statistics:
            # A nan would outlive a momentum of 0, since 0 * nan is nan.
            variable.assign(np.zeros(variable.shape))
        runner = _TrainingMode(model)
        for batch in iterate(batches, steps):
            images = batch[0] if isinstance(batch, (tuple, list)) else batch
            runner.predict_on_batch(images)
            images_seen += len(images)
            for i, variable in enumerate(statistics):
                total[i] += len(images) * keras.ops.convert_to_numpy(variable)
        if not images_seen:
            raise ValueError("No batch to recalibrate on. Expected: at least one. Received: none.")
        measured = [value / images_seen for value in total]
    finally:
        for layer, name, value in options:
            setattr(layer, name, value)
        for variable, value in before:
            variable.assign(value)
    for variable, value in zip(statistics, measured):
        variable.assign(value)
    return len(norms)
