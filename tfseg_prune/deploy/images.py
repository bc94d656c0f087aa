"""Images as they come: arrays, lists of batches, Keras data sets, with labels or without."""

import keras
import numpy as np


def batches(source):
    """Yields `(images, labels or None)` of any source of images.

    Args:
        source: an array `[batch, height, width, channels]`, one image, or an iterable or sequence
            (such as a `keras.utils.PyDataset`) of these or of `(images, labels)` tuples.

    Yields:
        Images float32 `[batch, height, width, channels]` and the labels beside them, or `None`.

    Raises:
        ValueError: if an item is no image or batch of images.
    """
    if hasattr(source, "shape"):
        source = [source]
    elif hasattr(source, "__getitem__") and hasattr(source, "__len__"):
        # A PyDataset raises no IndexError at its end, so that plain iteration would not stop.
        source = map(source.__getitem__, range(len(source)))
    for item in source:
        images, labels = (item[0], item[1]) if isinstance(item, (tuple, list)) else (item, None)
        images = keras.ops.convert_to_numpy(images).astype("float32")
        labels = None if labels is None else keras.ops.convert_to_numpy(labels)
        if images.ndim == 3:
            images = images[None]
            labels = None if labels is None else labels[None]
        if images.ndim != 4 or not np.isfinite(images).all():
            raise ValueError(
                "Invalid images. Expected: finite values, [height, width, channels] or [batch, "
                f"height, width, channels]. Received: shape {images.shape}, "
                f"{np.count_nonzero(~np.isfinite(images))} values not finite."
            )
        yield images, labels


def check_shape(images, shape):
    """Raises a ValueError unless `images` are of `shape`, `(height, width, channels)`."""
    if tuple(images.shape[1:]) != tuple(shape):
        raise ValueError(
            f"Images do not fit the model. Expected: [batch, {', '.join(map(str, shape))}]. "
            f"Received: {tuple(images.shape)}. Remedy: resize them as for training."
        )
