"""Files of a working directory: written whole or not at all, read with one clear error."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import zipfile

import keras


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside `path` that takes its place if the block ends well."""
    path = pathlib.Path(path)
    folder = tempfile.mkdtemp(dir=path.parent, prefix=".writing-")
    temporary = pathlib.Path(folder) / path.name
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(
            error.errno,
            f"'{path}' could not be written ({error.strerror or error}); what was there before is"
            " untouched. Remedy: make room or choose another folder, and run the same command"
            " again: finished stages are not repeated",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def write_json(path, value):
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")


def save_model(model, path):
    """Writes a `.keras` file without optimizer, loss and metrics, so that it loads anywhere."""
    if model.compiled:
        model = keras.Model(model.inputs, model.outputs, name=model.name)
    with replacing(path) as temporary:
        model.save(temporary)


def load_model(path):
    """A Keras model from a `.keras` file.

    Raises:
        ValueError: If there is none, or it is cut off or no Keras model.
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
    except (ValueError, KeyError, OSError, TypeError, zipfile.BadZipFile) as error:
        first = str(error).strip().split("\n")[0][:300]
        raise ValueError(
            f"'{path}' can't be loaded as a model. Expected: a .keras file whose custom layers are"
            f" registered. Received: {type(error).__name__}: {first}"
        ) from error


def digest(path):
    """SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
