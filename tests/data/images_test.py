"""Every usual image file becomes upright RGB; label maps and colours convert both ways."""

import numpy as np
import pytest
from PIL import Image

from tfseg_prune import data
from tfseg_prune.data import images

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def test_grey_palette_and_transparent_images_become_rgb(tmp_path):
    grey = PICTURE[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.jpg", quality=100)
    read = images.read_image(tmp_path / "grey.jpg")
    assert read.shape == (5, 7, 3) and np.ptp(read, axis=2).max() == 0
    assert np.abs(read[..., 0].astype(int) - grey).max() <= 4
    alpha = np.dstack([PICTURE, grey])
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    assert np.array_equal(images.read_image(tmp_path / "alpha.png"), PICTURE)
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    assert np.array_equal(images.read_image(tmp_path / "palette.png")[..., 2], grey)


@pytest.mark.parametrize(
    "orientation, undo",
    [(1, lambda a: a), (2, lambda a: a[:, ::-1]), (3, lambda a: a[::-1, ::-1]), (6, np.rot90)],
)
def test_exif_orientation_is_honoured(tmp_path, orientation, undo):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(undo(PICTURE))).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(images.read_image(tmp_path / "a.png"), PICTURE)


def test_sixteen_bit_images_are_refused(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint16)).save(tmp_path / "a.png")
    for read in (images.read_image, images.read_label):
        with pytest.raises(data.DatasetError, match="a.png.*8 bits"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("mode", ["L", "P", "1"])
def test_label_ids_are_the_raw_pixel_values(tmp_path, mode):
    ids = np.array([[0, 1], [1, 0]], np.uint8)
    picture = Image.fromarray(ids.astype(bool)) if mode == "1" else Image.fromarray(ids, mode="L")
    if mode == "P":
        picture = Image.fromarray(ids).convert("P")
        picture.putpalette([200, 100, 50, 1, 2, 3])
    picture.save(tmp_path / "a.png")
    assert np.array_equal(images.read_label(tmp_path / "a.png"), ids)


def test_resizing_an_image_shrinks_antialiased_and_a_label_keeps_its_ids():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    inner = images.resize_image(stripes, (16, 16))[:, 2:-2]
    assert abs(inner.astype(int) - 127).max() <= 16  # without antialiasing: 0 or 255
    label = np.random.default_rng(0).choice(np.array([0, 3, 255], np.uint8), (31, 45))
    assert set(np.unique(images.resize_label(label, (17, 60)))) <= {0, 3, 255}
    assert images.resize_label(label, (31, 45)) is label


def test_colorize_and_ids_from_colors_are_inverse():
    classes = [data.ClassInfo(str(i), (10 * i, 255 - i, 7)) for i in range(5)]
    label = np.random.default_rng(0).choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (2, 9, 8))
    colors = data.colorize(label, classes)
    assert colors.shape == (2, 9, 8, 3) and colors.dtype == np.uint8
    assert (colors[label == 3] == (30, 252, 7)).all() and (colors[label == 255] == 0).all()
    assert np.array_equal(data.ids_from_colors(colors, classes), label)
    assert (data.colorize(np.array([-1, 5]), classes, ignored=(9, 9, 9)) == 9).all()
