"""Mean intersection over union from one confusion matrix over the whole set."""

import keras
import numpy as np


def per_class_iou(confusion):
    """Intersection over union of every class: `IoU_c = TP_c / (TP_c + FP_c + FN_c)`.

    Args:
        confusion: Array `[num_classes, num_classes]` of pixel counts: rows are labels, columns
            predictions.

    Returns:
        Array `[num_classes]` of float64, nan for a class that neither labels nor predictions hold.

    Example:

    >>> per_class_iou(np.array([[3, 1], [0, 0]]))
    array([0.75, 0.  ])
    """
    confusion = np.asarray(confusion, dtype="float64")
    hits = np.diag(confusion)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    return np.divide(hits, union, out=np.full(len(hits), np.nan), where=union > 0)


@keras.saving.register_keras_serializable(package="tfseg_prune")
class MeanIoU(keras.metrics.MeanIoU):
    """Keras' mean IoU for label maps and logits, which leaves an ignored class out of the mean.

    Keras already drops pixels whose label is the ignore index, or lies outside
    `[0, num_classes)`. When the ignore index is itself a class id, predictions of it on other
    pixels would still count as a class of IoU 0: here it is no target class.

    Args:
        num_classes: Integer. Number of classes.
        ignore_index: Integer or None. Label of pixels that do not count. Defaults to None.
        sparse_predictions: Whether predictions are class maps `[batch, height, width]`, not
            logits `[batch, height, width, num_classes]`. Defaults to False.
        name: String. Defaults to `"miou"`.

    Example:

    >>> metric = MeanIoU(num_classes=2, ignore_index=255, sparse_predictions=True)
    >>> _ = metric.update_state(np.array([0, 1, 1, 255]), np.array([0, 1, 0, 0]))
    >>> metric.per_class()
    array([0.5, 0.5])
    """

    def __init__(
        self, num_classes, ignore_index=None, *, sparse_predictions=False, name="miou", dtype=None
    ):
        super().__init__(
            num_classes=num_classes,
            ignore_class=ignore_index,
            sparse_y_pred=sparse_predictions,
            name=name,
            dtype=dtype,
        )
        self.target_class_ids = [c for c in range(num_classes) if c != ignore_index]

    def per_class(self):
        """IoU of every class: array `[num_classes]`, nan where absent or ignored."""
        iou = per_class_iou(keras.ops.convert_to_numpy(self.total_cm))
        iou[np.setdiff1d(np.arange(self.num_classes), self.target_class_ids)] = np.nan
        return iou

    def get_config(self):
        return {
            "num_classes": self.num_classes,
            "ignore_index": self.ignore_class,
            "sparse_predictions": self.sparse_y_pred,
            "name": self.name,
            "dtype": self._dtype,
        }
