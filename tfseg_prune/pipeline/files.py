"""Files of a working directory: written whole or not at all, read with one clear error."""

import hashlib
import json
import pathlib
import zipfile

import keras

from tfseg_prune import atomic


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
        first = str(error).partition("Full object config")[0].strip().split("\n")[0][:300]
        raise ValueError(
            f"'{path}' can't be loaded as a model. Expected: an undamaged .keras file of a"
            " functional or Sequential model of Keras' own layers (one with classes of your own"
            f" loads in Python, where they are imported). Received: {type(error).__name__}: {first}"
        ) from error


def digest(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
