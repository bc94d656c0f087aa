"""How networks are compiled: loss, metric, and whether XLA compiles their steps."""

import keras

from tfseg_prune.training.losses import SegmentationCrossEntropy
from tfseg_prune.training.metrics import MeanIoU


def jit_compile():
    """The `jit_compile` argument of every model that this package compiles.

    TensorFlow's own kernels train about ten times faster on a CPU than what XLA makes of a
    segmentation network; JAX has no other way than XLA.
    """
    return False if keras.backend.backend() == "tensorflow" else "auto"


def compile_segmenter(model, *, optimizer, num_classes, ignore_index, class_weights=None):
    """Compiles a network that answers logits, for training on label maps.

    Args:
        model: Keras model, `[batch, height, width, 3] -> [batch, height, width, num_classes]`.
        optimizer: Keras optimizer.
        num_classes: Integer. Number of classes.
        ignore_index: Integer. Label of pixels that do not count.
        class_weights: One float a class, or None. Defaults to None.

    Raises:
        ValueError: If the model's last axis is not `num_classes` wide.

    Example:

    >>> images = keras.Input((8, 8, 3))
    >>> model = keras.Model(images, keras.layers.Conv2D(11, 1)(images))
    >>> sgd = keras.optimizers.SGD(0.1)
    >>> compile_segmenter(model, optimizer=sgd, num_classes=11, ignore_index=255)
    """
    check_classes(model, num_classes)
    model.compile(
        optimizer=optimizer,
        loss=SegmentationCrossEntropy(ignore_index, class_weights),
        metrics=[MeanIoU(num_classes, ignore_index)],
        jit_compile=jit_compile(),
    )


def compile_classifier(model, *, optimizer):
    """Compiles a network that answers logits `[batch, classes]`, for training on class ids."""
    model.compile(
        optimizer=optimizer,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
        jit_compile=jit_compile(),
    )


def check_classes(model, num_classes):
    """Raises ValueError unless `model` answers one channel a class."""
    shape = model.output_shape
    if not isinstance(shape, tuple) or len(shape) != 4 or shape[-1] != num_classes:
        raise ValueError(
            f"Invalid output of model '{model.name}'. Expected: one output of shape "
            f"[batch, height, width, {num_classes}], one channel a class. Received: {shape}. "
            "Build the model with the data set's number of classes."
        )
