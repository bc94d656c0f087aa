"""What a model is fed: random numbers of its input's range, or images, quantised if it asks."""

import numpy as np


def random(model, *, seed=0, value_range=(0.0, 255.0)):
    """Random values for every input of an interpreter.

    Args:
        model: an interpreter with allocated tensors.
        seed: seed of the numbers. Defaults to `0`.
        value_range: least and greatest value of a floating-point input. Defaults to `(0., 255.)`,
            RGB; integer inputs take their whole type.

    Returns:
        List of arrays, one an input, of its shape and type.

    Example:

    >>> [array.shape for array in random(interpreter)]  # doctest: +SKIP
    [(1, 224, 224, 3)]
    """
    rng = np.random.default_rng(seed)
    arrays = []
    for detail in model.get_input_details():
        shape, dtype = tuple(detail["shape"]), np.dtype(detail["dtype"])
        if dtype.kind in "iu":
            limits = np.iinfo(dtype)
            arrays.append(rng.integers(limits.min, limits.max, shape, dtype, endpoint=True))
        elif dtype.kind == "b":
            arrays.append(rng.integers(0, 2, shape).astype(bool))
        else:
            arrays.append(rng.uniform(*value_range, shape).astype(dtype))
    return arrays


def image(model, array):
    """One image as the model's only input takes it: batched, and quantised where it is integer.

    Args:
        model: an interpreter with allocated tensors.
        array: image `[height, width, channels]`, in the units of the floating-point model.

    Returns:
        List of one array.

    Raises:
        ValueError: if the model has several inputs or another shape.

    Example:

    >>> fill(interpreter, image(interpreter, photo))  # doctest: +SKIP
    """
    details = model.get_input_details()
    shape = tuple(int(size) for size in details[0]["shape"])
    batch = np.asarray(array, np.float32)[None]
    if len(details) != 1 or batch.shape != shape:
        raise ValueError(
            f"Invalid images. Expected: [{len(details)} inputs of] shape {shape[1:]} for this "
            f"model. Received: shape {batch.shape[1:]}."
        )
    return [quantised(batch, details[0])]


def quantised(values, entry):
    """Float values as a tensor takes them: in its type, and rounded to it where it is integer.

    Args:
        values: float array.
        entry: the tensor's description, as interpreters give it.
    """
    dtype = np.dtype(entry["dtype"])
    if dtype.kind in "iu":
        scale, zero = entry["quantization"]
        limits = np.iinfo(dtype)
        values = np.clip(np.round(values / (scale or 1.0) + zero), limits.min, limits.max)
    return values.astype(dtype)


def dequantised(values, entry):
    """The float32 values of a tensor; integers that are no quantised numbers stay as they are."""
    scale, zero = entry["quantization"]
    if not scale:
        return values if np.issubdtype(values.dtype, np.integer) else values.astype("float32")
    return (values.astype("float32") - zero) * np.float32(scale)


def fill(model, arrays):
    """Sets every input of an interpreter.

    Args:
        model: an interpreter with allocated tensors.
        arrays: one array an input, in the order of `get_input_details`.
    """
    for detail, array in zip(model.get_input_details(), arrays, strict=True):
        model.set_tensor(detail["index"], array)
