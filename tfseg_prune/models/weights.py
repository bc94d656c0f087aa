"""Trained weights of a backbone, by layer name: from an .npz file or from another model."""

import dataclasses
import zipfile

import keras
import numpy as np

from tfseg_prune.layers.gradual_conv import GradualConv2D


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did, as names `<layer>/<variable>` of the file.

    Attributes:
        loaded: tuple of str, what the model now holds.
        unused: tuple of str, what the file holds and the model has no layer for.
    """

    loaded: tuple[str, ...]
    unused: tuple[str, ...]


def load_weights(model, path, *, prefix="backbone_", file_epsilon=1e-3, convert=None):
    """Loads an .npz of `<layer>/<variable>` arrays into the layers named `<prefix><layer>`.

    A file's gammas are exact for the batch-norm epsilon that it was written with. Where the model's
    differs, gamma is rescaled so that inference stays the same: with variance v,
    `gamma * sqrt((v + epsilon) / (v + file_epsilon))`.

    All or nothing: every variable of every layer with the prefix must be in the file with its
    shape, and nothing is assigned before all were found.

    Args:
        model: `keras.Model` to load into, in place.
        path: Path of the .npz file; arrays of any float type.
        prefix: str, before the file's layer names in the model; `""` takes every layer. Defaults to
            `"backbone_"`.
        file_epsilon: float, epsilon that the file's gammas were written for. Defaults to `1e-3`,
            that of `keras.applications.MobileNetV2`.
        convert: Function from the file's {name: array} to that of the model's layers, for files of
            a network that isn't quite the model's. Defaults to `None`, which takes them as they
            are.

    Returns:
        A `LoadReport`.

    Raises:
        ValueError: if the file can't be read, or does not hold all of the layers with their shapes.

    Example:

    >>> import tempfile, keras, numpy as np
    >>> images = keras.Input((8, 8, 3))
    >>> stem = keras.layers.Conv2D(4, 1, use_bias=False, name="backbone_stem")
    >>> model = keras.Model(images, stem(images))
    >>> with tempfile.NamedTemporaryFile(suffix=".npz") as file:
    ...     np.savez(file.name, **{"stem/kernel": np.ones((1, 1, 3, 4), "float16")})
    ...     load_weights(model, file.name).loaded
    ('stem/kernel',)
    """
    arrays = _read(path)
    if convert is not None:
        arrays = convert(arrays)
    variables = {
        f"{layer.name.removeprefix(prefix)}/{variable.name}": variable
        for layer in model.layers
        if layer.name.startswith(prefix)
        for variable in layer.weights
    }
    _check(variables, arrays, path, prefix)
    values = {key: arrays[key].astype("float32") for key in variables}
    for layer in model.layers:
        name = layer.name.removeprefix(prefix)
        if isinstance(layer, keras.layers.BatchNormalization) and f"{name}/gamma" in values:
            variance = values[f"{name}/moving_variance"]
            ratio = (variance + layer.epsilon) / (variance + file_epsilon)
            values[f"{name}/gamma"] *= np.sqrt(ratio)
    for key, variable in variables.items():
        variable.assign(values[key])
    return LoadReport(tuple(variables), tuple(sorted(set(arrays) - set(variables))))


def copy_weights(source, target, *, prefix="backbone_"):
    """Copies the weights of one model's layers to those of the same names in another.

    All or nothing: every layer of the target with the prefix and with weights must be in the
    source, with the same shapes, and nothing is assigned before all were found. A gradual
    convolution also takes the weights of a dense one, and its alpha stays as it is.

    Args:
        source: `keras.Model`.
        target: `keras.Model`, changed in place.
        prefix: str, start of the names of the layers to copy; `""` takes every layer. Defaults to
            `"backbone_"`.

    Returns:
        tuple of str, the names of the layers that were copied.

    Raises:
        ValueError: if a layer is missing in the source or has other shapes there.
    """
    given = {layer.name: layer for layer in source.layers}
    taking = [layer for layer in target.layers if layer.name.startswith(prefix) and layer.weights]
    wrong, copied = [], []
    for layer in taking:
        found = given.get(layer.name)
        weights = layer.weights
        if isinstance(layer, GradualConv2D) and type(found) is keras.layers.Conv2D:
            weights = [weight for weight in weights if weight is not layer.alpha]
        shapes = [
            [tuple(weight.shape) for weight in some] if some is not None else "no such layer"
            for some in (weights, None if found is None else found.weights)
        ]
        if shapes[0] != shapes[1]:
            wrong.append(f"{layer.name} {shapes[1]}, not {shapes[0]}")
        else:
            copied += zip(weights, found.weights)
    if wrong or not taking:
        raise ValueError(
            f"The weights of '{source.name}' do not fit '{target.name}'. Expected: layers named "
            f"{prefix!r}... of the same shapes in both. Received: {len(taking)} such layers, of "
            f"which {len(wrong)} differ ({_some(wrong)}). Remedy: build both with the same options."
        )
    for weight, value in copied:
        weight.assign(np.array(keras.ops.convert_to_numpy(value)))
    return tuple(layer.name for layer in taking)


def _read(path):
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            "Cannot read the weights. Expected: an .npz file of `<layer>/<variable>` arrays. "
            f"Received: {str(path)!r} ({error})."
        ) from error


def _check(variables, arrays, path, prefix):
    if not variables:
        raise ValueError(
            "No layer to load weights into. Expected: a model with layers named "
            f"{prefix!r}..., or another `prefix`."
        )
    missing = [key for key in variables if key not in arrays]
    if missing:
        raise ValueError(
            f"The weights do not fit the model. Expected: all {len(variables)} variables of its "
            f"layers named {prefix!r}... Received: {str(path)!r}, which lacks {len(missing)} of "
            f"them ({_some(missing)}). Was the file written for another backbone?"
        )
    wrong = [
        f"{key} {arrays[key].shape}, not {tuple(variable.shape)}"
        for key, variable in variables.items()
        if arrays[key].shape != tuple(variable.shape)
    ]
    if wrong:
        raise ValueError(
            "The weights do not fit the model. Expected: arrays of its variables' shapes. "
            f"Received: {str(path)!r}, where {len(wrong)} differ ({_some(wrong)}). "
            "Load pretrained weights before pruning, at the width that they were trained with."
        )
    biases = (key.replace("/kernel", "/bias") for key in variables)
    lost = [key for key in biases if key in arrays and key not in variables]
    if lost:
        raise ValueError(
            f"The weights do not fit the model. Expected: no biases for layers that have none. "
            f"Received: {str(path)!r}, which holds {len(lost)} ({_some(lost)}). Remedy: give the "
            "file to the network's own `weights`, or fold them into the batch norms by `convert`."
        )


def _some(names, limit=4):
    return "; ".join(names[:limit]) + ("; ..." if len(names) > limit else "")
