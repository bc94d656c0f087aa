"""Quantisation-aware training with the package's loss."""

from tfseg_prune.deploy import qat
from tfseg_prune.training.compiling import check_classes
from tfseg_prune.training.losses import SegmentationCrossEntropy


def fit_quantised(
    model,
    train,
    *,
    num_classes,
    ignore_index,
    epochs,
    learning_rate=1e-4,
    class_weights=None,
    representative=None,
    representative_images=100,
    image_size=None,
    grouped="auto",
    verbose=0,
):
    """Trains a segmentation network on with its weights and activations rounded to int8.

    For a network that loses too much by `export(precision="int8")`: it learns to be right in spite
    of the rounding. Batch normalisation is folded first and learns no more, so that a small batch
    and a small learning rate serve. The answer's `export` writes the int8 file; its `model` is the
    same network in float, which needs no other treatment than any Keras model.

    Args:
        model: Trained functional Keras model, pruned or not, that answers logits `[batch, height,
            width, num_classes]`; it isn't changed. Keras must run on TensorFlow.
        train: `keras.utils.PyDataset` of `(images, labels)`, labels `[batch, height, width]` at the
            images' resolution.
        num_classes: Integer. Number of classes.
        ignore_index: Integer. Label of pixels that do not count.
        epochs: Integer > 0.
        learning_rate: Rate of the first step, of Adam; it decays to 0 with the power 0.9. Defaults
            to 1e-4.
        class_weights: One float a class, or None. Defaults to None.
        representative: Images that set the first ranges of the activations, see `deploy.export`.
            Defaults to None: those of `train`.
        representative_images: How many of them. Defaults to 100.
        image_size: `(height, width)` in pixels, for a model that takes any size. Defaults to None,
            the model's own.
        grouped: What becomes of grouped convolutions, see `deploy.lower`. Defaults to "auto".
        verbose: As in Keras' `fit`. Defaults to 0.

    Returns:
        A `deploy.QuantisedNetwork`.

    Raises:
        ValueError: If the model does not answer `num_classes` channels, or isn't functional.
        deploy.ExportError: If tensorflow-model-optimization is missing (the extra `[tfmot]`), or a
            layer has no copy in tf_keras (it is named).

    Example:

    >>> network = fit_quantised(  # doctest: +SKIP
    ...     small, train, num_classes=11, ignore_index=255, epochs=5
    ... )
    >>> network.export("small_int8.tflite", images=validation)  # doctest: +SKIP
    """
    check_classes(model, num_classes)
    if epochs < 1 or not learning_rate > 0:
        raise ValueError(
            "Invalid arguments. Expected: epochs >= 1 and learning_rate > 0. Received: "
            f"epochs={epochs}, learning_rate={learning_rate}."
        )
    network = qat.quantised(
        model,
        train if representative is None else representative,
        representative_images=representative_images,
        image_size=image_size,
        grouped=grouped,
    )
    network.fit(
        train,
        loss=SegmentationCrossEntropy(ignore_index, class_weights),
        epochs=epochs,
        learning_rate=learning_rate,
        verbose=verbose,
    )
    return network
