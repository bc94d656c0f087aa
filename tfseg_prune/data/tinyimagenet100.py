"""tinyimagenet100: 100 classes of ImageNet at 64x64 pixels, 10,000 train and 3,000 val images.

A part of Tiny ImageNet (Stanford CS231n), of ImageNet's terms: research and education only. It lies
in two files: `classes.json` (`{"classes": [{"id": 0, "name": "goldfish"}, ...]}`) and
`tinyimagenet100.npz` with, for each split, the bytes of all JPEG files one after the other
(`train_jpeg`, uint8), where each begins (`train_offsets`, one more than there are images) and its
class id (`train_labels`).
"""

import io
import json
import os
import zipfile

import numpy as np

from tfseg_prune.data import images
from tfseg_prune.data.classification import ClassificationDataset
from tfseg_prune.data.dataset import DatasetError, check_split
from tfseg_prune.data.folder import data_root

NAME = "tinyimagenet100"


def load_classes(
    split: str, *, data_dir: str | os.PathLike | None = None, count: int = 0
) -> ClassificationDataset:
    """Opens one split.

    Args:
        split: "train" or "val".
        data_dir: The folder that holds both files.
        count: How many images, spread evenly over the file, which is sorted by class; 0 takes all.
            Defaults to 0.

    Raises:
        DatasetError: If a file is missing or isn't what it should be.
    """
    check_split(split, ("train", "val"))
    root = data_root(data_dir, NAME, holds=f"classes.json and {NAME}.npz")
    names = _names(root / "classes.json")
    path = root / f"{NAME}.npz"
    content, offsets, labels = _arrays(path, split)

    def read(index):
        jpeg = content[offsets[index] : offsets[index + 1]].tobytes()
        return images.read_image(io.BytesIO(jpeg), name=f"{path}, {split} image {index}")

    dataset = ClassificationDataset(NAME, split, names, tuple(labels.tolist()), read)
    return dataset.subset(count) if count else dataset


def _names(path):
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["classes"]
        names = {int(entry["id"]): str(entry["name"]) for entry in entries}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"Invalid class list '{path}'. Expected: a JSON object like"
            ' {"classes": [{"id": 0, "name": "goldfish"}, ...]}. Received:'
            f" {'no such file' if isinstance(error, FileNotFoundError) else repr(error)}."
        ) from error
    if sorted(names) != list(range(len(entries))):
        raise DatasetError(
            f"Invalid class list '{path}'. Expected: the ids 0, 1, 2, ... without gaps. Received:"
            f" {len(entries)} classes of which ids are missing or doubled."
        )
    return tuple(names[index] for index in range(len(names)))


def _arrays(path, split):
    wanted = [f"{split}_{part}" for part in ("jpeg", "offsets", "labels")]
    try:
        with np.load(path, allow_pickle=False) as file:
            content, offsets, labels = (file[name] for name in wanted)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        found = "no such file" if isinstance(error, FileNotFoundError) else repr(error)
        raise DatasetError(
            f"Cannot read '{path}'. Expected: an .npz file with the arrays {', '.join(wanted)}."
            f" Received: {found}. Copy the file again from its source."
        ) from error
    whole = offsets.ndim == labels.ndim == content.ndim == 1 and len(offsets) == len(labels) + 1
    if not whole or (np.diff(offsets) <= 0).any() or [*offsets[[0, -1]]] != [0, len(content)]:
        raise DatasetError(
            f"The arrays of '{path}' don't fit each other. Expected: `{wanted[1]}` that rise from 0"
            f" to the length of `{wanted[0]}`, one more than `{wanted[2]}`. Received: shapes"
            f" {content.shape}, {offsets.shape} and {labels.shape}. Copy the file again from its"
            " source."
        )
    return content, offsets, labels
