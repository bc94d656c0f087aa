"""A small data set in the format of tinyimagenet100."""

import io
import json

import numpy as np
from PIL import Image

CLASSES = 3
SIZE = 16


def picture(label, index):
    """A grey picture of the number 0, else one whose colour tells the class, with noise."""
    if index == 0:
        return np.full((SIZE, SIZE), 60, np.uint8)
    noise = np.random.default_rng([label, index]).integers(0, 30, (SIZE, SIZE, 3), np.uint8)
    noise[..., label] += 200
    return noise


def write(folder, *, train=6, val=3):
    """Writes `tinyimagenet100.npz` and `classes.json`; answers the arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = [{"id": i, "name": f"class {i}"} for i in range(CLASSES)]
    (folder / "classes.json").write_text(json.dumps({"classes": classes}))
    arrays = {}
    for split, count in (("train", train), ("val", val)):
        labels = np.arange(count) * CLASSES // count
        files = []
        for index, label in enumerate(labels):
            file = io.BytesIO()
            Image.fromarray(picture(label, index)).save(file, "JPEG", quality=95)
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        arrays[f"{split}_jpeg"] = np.concatenate(files)
        arrays[f"{split}_offsets"] = np.cumsum([0, *map(len, files)])
        arrays[f"{split}_labels"] = labels.astype(np.int16)
    save(folder, arrays)
    return arrays


def save(folder, arrays):
    np.savez(folder / "tinyimagenet100.npz", **arrays)
