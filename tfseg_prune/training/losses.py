"""Cross-entropy for label maps with an ignore index and class weights."""

import keras
from keras import ops


@keras.saving.register_keras_serializable(package="tfseg_prune")
class SegmentationCrossEntropy(keras.losses.Loss):
    """Weighted mean of the pixel cross-entropies, over the pixels that have a label.

    `loss = sum_i w[y_i] * -log softmax(z_i)[y_i] / sum_i w[y_i]`, where `i` runs over the pixels
    whose label `y_i` is not the ignore index, `z_i` are the logits and `w` the class weights
    (all 1 without them). A batch in which every pixel is ignored has a loss of 0.

    Args:
        ignore_index: Integer. The label of pixels that do not count; may lie inside or outside
            `[0, num_classes)`.
        class_weights: One non-negative float a class, or None. Defaults to None (all 1).
        from_logits: Whether predictions are logits, else probabilities. Defaults to True.
        name: String. Defaults to `"segmentation_cross_entropy"`.

    Raises:
        ValueError: If `class_weights` are negative, not finite or all zero.

    Example:

    >>> import numpy as np
    >>> loss = SegmentationCrossEntropy(ignore_index=255)
    >>> labels = np.array([[[0, 255]]])  # [batch, height, width]
    >>> logits = np.zeros((1, 1, 2, 3))  # [batch, height, width, num_classes]
    >>> round(float(loss(labels, logits)), 4)  # log(3)
    1.0986
    """

    def __init__(
        self,
        ignore_index,
        class_weights=None,
        from_logits=True,
        name="segmentation_cross_entropy",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if class_weights is not None:
            class_weights = [float(weight) for weight in class_weights]
            if not all(0.0 <= w < float("inf") for w in class_weights) or not any(class_weights):
                raise ValueError(
                    "Invalid `class_weights`. Expected: finite weights >= 0, one a class, not all "
                    f"of them 0. Received: class_weights={class_weights}"
                )
        self.ignore_index = ignore_index
        self.class_weights = class_weights
        self.from_logits = from_logits

    def call(self, y_true, y_pred):
        labels = ops.cast(y_true, "int32")
        if len(labels.shape) == len(y_pred.shape):
            labels = ops.squeeze(labels, axis=-1)
        num_classes = y_pred.shape[-1]
        if self.class_weights is not None and len(self.class_weights) != num_classes:
            raise ValueError(
                f"Invalid `class_weights`. Expected: {num_classes} weights, one a class of the "
                f"predictions. Received: {len(self.class_weights)} weights."
            )
        valid = ops.not_equal(labels, self.ignore_index)
        labels = ops.where(valid, labels, 0)
        losses = ops.sparse_categorical_crossentropy(labels, y_pred, from_logits=self.from_logits)
        weights = ops.cast(valid, losses.dtype)
        if self.class_weights is not None:
            table = ops.convert_to_tensor(self.class_weights, dtype=losses.dtype)
            weights = weights * ops.take(table, labels, axis=0)
        # The mean that Keras takes over all pixels becomes the weighted mean over the valid ones.
        share = ops.divide_no_nan(weights, ops.mean(weights))
        return ops.where(valid, losses, 0.0) * share

    def get_config(self):
        return {
            **super().get_config(),
            "ignore_index": self.ignore_index,
            "class_weights": self.class_weights,
            "from_logits": self.from_logits,
        }
