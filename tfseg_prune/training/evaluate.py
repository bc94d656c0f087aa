"""Accuracy of a segmenter over a whole data set."""

import dataclasses

import keras
import numpy as np

from tfseg_prune.training.compiling import check_classes, jit_compile
from tfseg_prune.training.metrics import per_class_iou


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Accuracy over a whole set.

    Attributes:
        miou: Mean IoU over the classes that occur.
        per_class_iou: One IoU a class; nan where neither labels nor predictions hold it, and for
            an ignored class.
        pixel_accuracy: Share of the labelled pixels that are right.
    """

    miou: float
    per_class_iou: tuple[float, ...]
    pixel_accuracy: float


class _ClassMap(keras.Model):
    """Answers class ids: on a GPU, a fraction of the logits' way back to the host."""

    def __init__(self, segmenter):
        super().__init__(name="class_map")
        self.segmenter = segmenter
        self.jit_compile = jit_compile()

    def call(self, images):
        return keras.ops.argmax(self.segmenter(images, training=False), axis=-1)


def evaluate(model, batches, *, num_classes, ignore_index):
    """Evaluates a model, compiled or not, by one confusion matrix over all batches.

    Args:
        model: Keras model that answers logits `[batch, height, width, num_classes]`.
        batches: `keras.utils.PyDataset` (or an iterable) of `(images, labels)`, with labels
            `[batch, height, width]`.
        num_classes: Integer. Number of classes.
        ignore_index: Integer. Label of pixels that do not count.

    Returns:
        An `Evaluation`.

    Raises:
        ValueError: If the model does not answer `num_classes` channels, a label is out of range,
            or no pixel has a label.

    Example:

    >>> images = keras.Input((2, 2, 3))
    >>> model = keras.Model(images, keras.layers.Identity()(images))
    >>> batch = np.eye(3)[np.array([[[0, 1], [2, 2]]])], np.array([[[0, 1], [1, 255]]])
    >>> evaluate(model, [batch], num_classes=3, ignore_index=255).per_class_iou
    (1.0, 0.5, 0.0)
    """
    check_classes(model, num_classes)
    predictor = _ClassMap(model)
    confusion = np.zeros((num_classes, num_classes), dtype="int64")
    for images, labels, *_ in iterate(batches):
        predictions = predictor.predict_on_batch(images)
        labels = np.asarray(labels).reshape(predictions.shape)
        valid = labels != ignore_index
        labels, predictions = labels[valid].astype("int64"), predictions[valid]
        if labels.size and not 0 <= labels.min() <= labels.max() < num_classes:
            raise ValueError(
                f"Invalid label. Expected: ids in [0, {num_classes}) or the ignore index "
                f"{ignore_index}. Received: ids from {labels.min()} to {labels.max()}"
            )
        pairs = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
        confusion += pairs.reshape(confusion.shape)
    if not confusion.any():
        raise ValueError(
            "Nothing to evaluate. Expected: batches with labelled pixels. Received: no pixel whose "
            f"label differs from the ignore index {ignore_index}."
        )
    iou = per_class_iou(confusion)
    if 0 <= ignore_index < num_classes:
        iou[ignore_index] = np.nan
    return Evaluation(
        miou=float(np.nanmean(iou)),
        per_class_iou=tuple(iou.tolist()),
        pixel_accuracy=float(np.trace(confusion) / confusion.sum()),
    )


def iterate(batches, steps=None):
    """Yields the first `steps` batches (all: None) of a PyDataset, or of any iterable."""
    if isinstance(batches, keras.utils.PyDataset):
        count = batches.num_batches
        for index in range(count if steps is None else min(steps, count)):
            yield batches[index]
    else:
        for index, batch in enumerate(batches):
            if index == steps:
                return
            yield batch
