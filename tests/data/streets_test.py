"""Synthetic streets: the same for the same seed, varied, and with poles that stay thin."""

import numpy as np
import pytest

from tfseg_prune import data
from tfseg_prune.data import streets


def test_a_scene_depends_on_seed_split_and_index_alone():
    first = data.load("streets", "train", size=(48, 64), count=3)
    again = data.load("streets", "train", size=(48, 64), count=9)
    for index in (2, 0):
        for one, two in zip(first[index], again[index]):
            assert np.array_equal(one, two)
    others = [
        first[1],
        data.load("streets", "val", size=(48, 64), count=3)[0],
        data.load("streets", "train", size=(48, 64), count=3, seed=1)[0],
    ]
    for image, _ in others:
        assert not np.array_equal(image, first[0][0])


@pytest.mark.parametrize("size", [(32, 32), (50, 301), (120, 41)])
def test_any_size_can_be_drawn(size):
    image, label = data.load("streets", "test", size=size, count=1)[0]
    assert image.shape == (*size, 3) and label.shape == size
    assert image.dtype == label.dtype == np.uint8


def test_every_class_is_there_and_poles_are_thin():
    dataset = data.load("streets", "train", size=(120, 160), count=24)
    pixels = dataset.validate()
    share = pixels / pixels.sum()
    assert dataset.num_classes == 8 and (share > 0.003).all()
    assert share[streets.POLE] < 0.06 and share[streets.SIGN] < 0.04
    runs = []
    for _, label in dataset:
        pole = np.pad(label == streets.POLE, ((0, 0), (1, 1)))
        edges = np.diff(pole.astype(np.int8), axis=1)
        starts, ends = np.argwhere(edges == 1), np.argwhere(edges == -1)
        runs += (ends[:, 1] - starts[:, 1]).tolist()
    assert np.median(runs) <= 3
    assert any((label == dataset.ignore_index).any() for _, label in dataset)


def test_scenes_are_kept_and_cannot_be_spoilt():
    dataset = data.load("streets", "train", size=(48, 64), count=2)
    assert dataset[0][0] is dataset[0][0]
    with pytest.raises(ValueError, match="read-only"):
        dataset[0][0][:] = 0


@pytest.mark.parametrize(
    "options, pattern",
    [
        ({"size": (48, 31)}, "size.*at least 32. Received: 31"),
        ({"size": (48,)}, "height, width"),
        ({"count": 0}, "count.*Received: 0"),
        ({"seed": -1}, "seed.*Received: -1"),
        ({"data_dir": "/somewhere"}, "data_dir=None.*folder"),
    ],
)
def test_bad_options_are_refused(options, pattern):
    with pytest.raises(data.DatasetError, match=pattern):
        data.load("streets", "train", **options)
