"""A small CamVid-like folder on disk, made anew for each test."""

import json

import numpy as np
import pytest
from PIL import Image

CLASSES = {
    "num_classes": 3,
    "ignore_index": 11,
    "classes": [
        {"id": 0, "name": "sky", "color": [0, 0, 255]},
        {"id": 1, "name": "road", "color": [128, 64, 128]},
        {"id": 2, "name": "pole", "color": [192, 192, 128]},
        {"id": 11, "name": "unlabelled", "color": [0, 0, 0], "ignore": True},
    ],
}


def write_samples(folder, stems, size=(24, 32)):
    """Writes one JPEG and one palette PNG a stem, of `size` (height, width)."""
    for part in ("images", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for number, stem in enumerate(stems):
        rng = np.random.default_rng(number)
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        label = rng.choice(np.array([0, 1, 2, 11], np.uint8), size)
        Image.fromarray(image).save(folder / "images" / f"{stem}.jpg")
        picture = Image.fromarray(label).convert("P")
        picture.putpalette(list(range(256)) * 3)
        picture.save(folder / "labels" / f"{stem}.png")


@pytest.fixture
def root(tmp_path):
    """A data_dir with the three splits: 4 train, 2 val and 2 test samples."""
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    write_samples(tmp_path / "train", "abcd")
    write_samples(tmp_path / "val", "ef")
    write_samples(tmp_path / "test", "gh")
    return tmp_path


@pytest.fixture
def flat(tmp_path):
    """A flat data_dir with 20 samples."""
    (tmp_path / "classes.json").write_text(json.dumps(CLASSES))
    write_samples(tmp_path, [f"frame{i:02d}" for i in range(20)])
    return tmp_path
