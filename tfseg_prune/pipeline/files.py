"""Files of a working directory: written whole or not at all, read with one clear error."""

import hashlib
import json
import pathlib
import re
import zipfile

import keras

from tfseg_prune import atomic

# How every HDF5 file begins.
_HDF5 = b"\x89HDF\r\n\x1a\n"


def write_json(path, value):
    atomic.write_text(path, json.dumps(value, indent=1) + "\n")


def save_model(model, path):
    """Writes a `.keras` file without optimizer, loss and metrics, so that it loads anywhere."""
    compiled = model.compiled, getattr(model, "optimizer", None)
    model.compiled, model.optimizer = False, None
    try:
        with atomic.replacing(path) as temporary:
            model.save(temporary)
    finally:
        model.compiled, model.optimizer = compiled


def load_model(path):
    """A Keras model from a `.keras` file.

    Raises:
        ValueError: If there is none, or it is cut off, damaged or no model of Keras' own layers.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(
            f"There is no model. Expected: a .keras file. Received: '{path}', which"
            f" {'is a folder' if path.is_dir() else 'does not exist'}"
        )
    with open(path, "rb") as file:
        start = file.read(len(_HDF5))
    if start == _HDF5:
        raise ValueError(
            f"'{path}' can't be read as a model. Expected: a .keras file. Received: an HDF5 file"
            " (.h5), Keras' former format. Remedy: in Python, load it with"
            " `keras.saving.load_model(path)` and save it anew with `model.save('model.keras')`"
        )
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"'{path}' can't be read as a model. Expected: a whole .keras file (a zip archive)."
            f" Received: {path.stat().st_size:,} bytes that are none, so the file was cut off or"
            " is of another kind. Remedy: save the model again with `model.save(path)`"
        )
    try:
        return keras.saving.load_model(path, compile=False)
    # Keras passes on whatever its zip, JSON, HDF5 and class look-ups raise on damaged bytes.
    except Exception as error:
        # Of a class inside a model Keras writes the model's whole config before what was wrong.
        said = str(error).rpartition("Exception encountered:")[2].partition("Full object config")[0]
        first = said.strip().split("\n")[0][:300]
        unknown = re.search(r"Could not locate (?:class|function) '([^']+)'", first)
        if unknown:
            raise ValueError(
                f"'{path}' holds '{unknown[1]}', which is not Keras' own. Expected: a functional or"
                f" Sequential model of Keras' own layers. Received: {unknown[0]}. Remedy: use"
                " `tfseg_prune` in Python, where that class or function is imported; it needs"
                " `@keras.saving.register_keras_serializable()`"
            ) from error
        raise ValueError(
            f"'{path}' can't be loaded as a model. Expected: an undamaged .keras file of a"
            " functional or Sequential model of Keras' own layers (one with classes of your own"
            f" loads in Python, where they are imported). Received: {type(error).__name__}: {first}"
        ) from error


def digest(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
