"""Atomic checkpoints: everything that the next epoch of a training run depends on.

`model.save_weights` leaves out the seed generators of dropout and is not atomic, so a checkpoint
is a directory `epoch-0007` (seven epochs are done) that holds

- `state.npz`: every variable of the model (weights, batch-normalisation statistics, seed
  generators) and of the optimizer by position, and the state of callbacks that offer one;
- `state.json`: the epoch, the history, and the names and shapes of the variables.

It is written under a temporary name, synced to the disk and renamed: it is there whole or not.
"""

import dataclasses
import json
import os
import re
import shutil
import warnings
import zipfile
from pathlib import Path

import keras
import numpy as np

_FORMAT = 1
_NAME = re.compile(r"epoch-(\d{4,})")
_TEMPORARY = ".writing-"


class TrainingError(ValueError):
    """Training cannot go on; the message says where the last good checkpoint lies."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A checkpoint read from the disk.

    Attributes:
        path: Its directory.
        state: What `state.json` says.
        arrays: What `state.npz` holds, by name.
    """

    path: Path
    state: dict
    arrays: dict


def path_of(directory, epoch):
    """The checkpoint with which `epoch` (0-based) begins."""
    return Path(directory) / f"epoch-{epoch:04d}"


def save(directory, epoch, model, callbacks, state):
    """Writes the checkpoint with which `epoch` begins.

    Args:
        directory: Path of the checkpoint directory.
        epoch: Integer. Number of epochs done.
        model: Compiled Keras model with a built optimizer.
        callbacks: Callbacks; those with `get_state()` (a dict of arrays) are saved with the model.
        state: JSON-able dict to keep beside the variables.

    Returns:
        The path of the checkpoint.

    Raises:
        TrainingError: If the disk is full or cannot be written; nothing is left half-written.
    """
    directory = Path(directory)
    target = path_of(directory, epoch)
    temporary = directory / f"{_TEMPORARY}{target.name}"
    variables = _variables(model)
    arrays = {key: _to_numpy(v) for key, v in variables.items()}
    for index, callback in enumerate(callbacks):
        if hasattr(callback, "get_state"):
            for key, value in callback.get_state().items():
                arrays[f"callback/{index}/{key}"] = np.asarray(value)
    state = {
        "format": _FORMAT,
        "epoch": epoch,
        "optimizer": type(model.optimizer).__name__,
        **state,
        "variables": {key: [v.path, list(v.shape)] for key, v in variables.items()},
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with open(temporary / "state.npz", "wb") as file:
            np.savez(file, **arrays)
            _sync(file)
        with open(temporary / "state.json", "w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
            _sync(file)
        _sync_directory(temporary)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync_directory(directory)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise TrainingError(
                f"Cannot write the checkpoint {target}: {error}. Expected: a disk with room for "
                f"{sum(a.nbytes for a in arrays.values()) / 2**20:.1f} MiB. "
                f"{last_good(directory)} Make room and run the same command again: "
                "it resumes there."
            ) from error
        raise
    return target


def load(directory):
    """Reads the newest readable checkpoint and removes what a killed run left half-written.

    Args:
        directory: Path of the checkpoint directory, which need not exist.

    Returns:
        A `Checkpoint`, or None if there is none.

    Raises:
        TrainingError: If there are checkpoints but none can be read.
    """
    for leftover in Path(directory).glob(f"{_TEMPORARY}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    errors = []
    for epoch in reversed(_epochs(directory)):
        path = path_of(directory, epoch)
        try:
            checkpoint = read(path)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            errors.append(f"{path}: {error}")
            continue
        if errors:
            warnings.warn(f"Skipped unreadable checkpoints, using {path}. {' '.join(errors)}")
        return checkpoint
    if errors:
        raise TrainingError(
            f"Invalid checkpoints in {directory}. Expected: a readable one. Received: "
            f"{' '.join(errors)} Remove the directory to train from the start."
        )
    return None


def read(path):
    """Reads one checkpoint; a damaged one raises what zip, JSON or the disk say."""
    state = json.loads((path / "state.json").read_text(encoding="utf-8"))
    if state["format"] != _FORMAT:
        raise ValueError(f"Expected: format {_FORMAT}. Received: format {state['format']}.")
    with np.load(path / "state.npz", allow_pickle=False) as file:
        return Checkpoint(path, state, dict(file))


def check(checkpoint, model):
    """Raises ValueError, with the first differences, if the checkpoint is of another model."""
    saved = checkpoint.state["variables"]
    variables = _variables(model)
    received = type(model.optimizer).__name__
    if checkpoint.state["optimizer"] != received:
        raise ValueError(
            f"Invalid checkpoint {checkpoint.path}. Expected: one of optimizer {received}. "
            f"Received: one of {checkpoint.state['optimizer']}. Give another checkpoint directory, "
            "or compile with the optimizer that the run began with."
        )
    differences = []
    for key in sorted({*saved, *variables}):
        ours = list(variables[key].shape) if key in variables else None
        theirs = saved[key][1] if key in saved else None
        if ours != theirs:
            name = variables[key].path if key in variables else saved[key][0]
            differences.append(f"{name}: model {ours or 'none'}, checkpoint {theirs or 'none'}")
    if differences:
        more = f"; {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"Invalid checkpoint {checkpoint.path} for model '{model.name}': it was saved from "
            f"another model. Expected: {len(variables)} variables of the model's shapes. "
            f"Received: {len(saved)} variables, of which {len(differences)} differ: "
            f"{'; '.join(differences[:3])}{more}. "
            "Give another checkpoint directory, or remove this one to train from the start."
        )


def restore(checkpoint, model, callbacks=(), *, optimizer=True):
    """Puts a checkpoint back into the model, its optimizer (unless False) and the callbacks."""
    for key, variable in _variables(model).items():
        if optimizer or key.startswith("model/"):
            variable.assign(checkpoint.arrays[key])
    for index, callback in enumerate(callbacks):
        if hasattr(callback, "set_state"):
            prefix = f"callback/{index}/"
            callback.set_state(
                {
                    key.removeprefix(prefix): value
                    for key, value in checkpoint.arrays.items()
                    if key.startswith(prefix)
                }
            )


def prune(directory, epochs):
    """Removes every checkpoint but those with which `epochs` begin."""
    for epoch in set(_epochs(directory)) - set(epochs):
        # Renamed first, so that a kill in between leaves no half checkpoint under a good name.
        doomed = Path(directory) / f"{_TEMPORARY}removed-{epoch:04d}"
        os.replace(path_of(directory, epoch), doomed)
        shutil.rmtree(doomed, ignore_errors=True)


def last_good(directory):
    """One sentence for error messages: where the newest checkpoint lies."""
    epochs = _epochs(directory)
    if not epochs:
        return "There is no earlier checkpoint."
    return f"Last good checkpoint: {path_of(directory, epochs[-1])}."


def _epochs(directory):
    names = [_NAME.fullmatch(p.name) for p in Path(directory).glob("epoch-*")]
    return sorted(int(name[1]) for name in names if name)


def _variables(model):
    # By position, because Keras numbers its automatic names anew in each process.
    groups = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {
        f"{group}/{index:04d}": variable
        for group, variables in groups.items()
        for index, variable in enumerate(variables)
    }


def _to_numpy(variable):
    array = keras.ops.convert_to_numpy(variable)
    # npz has no bfloat16; float32 holds it exactly.
    return array.astype("float32") if array.dtype.kind == "V" else array


def _sync(file):
    file.flush()
    os.fsync(file.fileno())


def _sync_directory(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
