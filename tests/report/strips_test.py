"""Tests of report.strips: colours and sizes of the panels."""

import io

import numpy as np
import pytest
from PIL import Image

from tfseg_prune.report import strips

COLORS = [(128, 64, 128), (0, 200, 0)]


def _open(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def test_colours_of_classes_and_of_ignored_ids():
    drawn = strips.colour(np.array([[0, 1], [255, -1]]), COLORS)
    assert drawn.tolist() == [[[128, 64, 128], [0, 200, 0]], [list(strips.IGNORED)] * 2]


def test_panels_are_one_size_and_keep_classes_pure():
    label = np.zeros((20, 30), np.uint8)
    label[:, 10:] = 1
    made = dict(
        strips.panels(
            strips.Strip(np.full((20, 30, 3), 99.6), label, label[::2, ::2]), COLORS, max_width=15
        )
    )
    assert made["pruned"] is None
    assert (_open(made["image"]) == 100).all() and _open(made["image"]).shape == (10, 15, 3)
    for caption in ("label", "dense"):
        drawn = _open(made[caption])
        assert drawn.shape == (10, 15, 3)
        assert {tuple(c) for c in drawn.reshape(-1, 3).tolist()} == set(COLORS)


def test_small_images_are_not_blown_up():
    made = strips.panels(strips.Strip(np.zeros((4, 6, 3)), np.zeros((4, 6), int)), COLORS)
    assert _open(made[0][1]).shape == (4, 6, 3)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match="height, width, 3"):
        strips.Strip(np.zeros((4, 6)), np.zeros((4, 6), int), name="a")
    with pytest.raises(ValueError, match="Invalid dense.*class ids"):
        strips.Strip(np.zeros((4, 6, 3)), np.zeros((4, 6), int), np.zeros((4, 6, 2)))
