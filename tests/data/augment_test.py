"""Augmentation: image and label move together, and what is outside is ignored."""

import dataclasses

import numpy as np
import pytest

from tfseg_prune import data

STILL = data.Augment(scale=(1, 1), flip=False, brightness=0, contrast=0, saturation=0)


def sample(size=(40, 60)):
    """Red is x, green is y, both 0 to 250; the label's digits are their tenths."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    x, y = xs / size[1], ys / size[0]
    label = 10 * np.floor(10 * y) + np.floor(10 * x)
    return np.dstack([250 * x, 250 * y, 0 * x]).round().astype(np.uint8), label.astype(np.uint8)


def test_without_randomness_it_is_the_evaluation_resize():
    image, label = sample()
    for size in ((40, 60), (20, 30), (33, 71)):
        dataset = data.Dataset("one", "val", (data.ClassInfo("c", (0, 0, 0)),) * 100, 255, ("0",),
                               lambda key: (image, label))  # fmt: skip
        plain = data.Batches(dataset, batch_size=1, image_size=size)[0]
        drawn = STILL(image, label, np.random.default_rng(0), size, 255)
        np.testing.assert_allclose(drawn[0], plain[0][0], atol=1e-3)
        assert np.array_equal(drawn[1], plain[1][0])


@pytest.mark.parametrize("scale", [0.4, 0.75, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("size", [(40, 60), (16, 80)])
def test_label_follows_the_image(scale, size):
    image, label = sample((160, 240))
    move = dataclasses.replace(STILL, scale=(scale, scale), flip=True)
    for seed in range(10):
        new_image, new_label = move(image, label, np.random.default_rng(seed), size, 255)
        assert new_image.shape == (*size, 3) and new_label.shape == size
        inside = new_label != 255
        expected = min(round(size[0] * scale), size[0]) * min(round(size[1] * scale), size[1])
        assert inside.sum() == expected
        assert (new_image[~inside] == 127.5).all()
        digits = np.stack([new_label[inside] % 10, new_label[inside] // 10], axis=1)
        off_center = np.abs(new_image[inside][:, :2] / 25 - digits - 0.5)
        # Half a pixel of rounding to the nearest, and Pillow's rounding of colours.
        half_pixel = 5 / np.round(np.array(size[::-1]) * scale)
        assert (off_center <= 0.5 + half_pixel + 0.05).all()


def test_shift_moves_both_and_uncovers_what_is_ignored():
    image, label = sample()
    move = dataclasses.replace(STILL, shift=2)
    seen = set()
    for seed in range(60):
        new_image, new_label = move(image, label, np.random.default_rng(seed), (40, 60), 255)
        inside = np.argwhere(new_label != 255)
        (top, left), (bottom, right) = inside.min(0), inside.max(0) + 1
        assert len(inside) == (bottom - top) * (right - left)
        y, x = top - (40 - bottom), left - (60 - right)
        seen.add((int(y), int(x)))
        within = slice(max(-y, 0), 40 - max(y, 0)), slice(max(-x, 0), 60 - max(x, 0))
        assert np.array_equal(new_label[top:bottom, left:right], label[within])
        np.testing.assert_allclose(new_image[top:bottom, left:right], image[within], atol=1e-3)
        assert (new_image[new_label == 255] == 127.5).all()
    assert len(seen) > 15 and {pair[0] for pair in seen} == set(range(-2, 3))
    far = dataclasses.replace(STILL, shift=999)(image, label, np.random.default_rng(0), (8, 8), 255)
    assert (far[1] == 255).all()


def test_flip_mirrors_both():
    image, label = sample()
    flip = dataclasses.replace(STILL, flip=True)
    seen = set()
    for seed in range(12):
        new_image, new_label = flip(image, label, np.random.default_rng(seed), (40, 60), 255)
        flipped = not np.array_equal(new_label, label)
        seen.add(flipped)
        step = -1 if flipped else 1
        assert np.array_equal(new_label, label[:, ::step])
        np.testing.assert_allclose(new_image, image[:, ::step], atol=1e-3)
    assert seen == {True, False}


def test_jitter_changes_colours_within_range_and_no_label():
    image, label = sample()
    jitter = dataclasses.replace(STILL, brightness=1.0, contrast=1.0, saturation=1.0)
    rng = np.random.default_rng(0)
    for _ in range(10):
        new_image, new_label = jitter(image, label, rng, (40, 60), 255)
        assert new_image.dtype == np.float32
        assert 0 <= new_image.min() and new_image.max() <= 255
        assert np.array_equal(new_label, label)
        assert np.abs(new_image - image).max() > 1


@pytest.mark.parametrize("option", ["brightness", "contrast", "saturation"])
def test_each_jitter_does_what_its_name_says(option):
    image = np.random.default_rng(0).integers(90, 160, (30, 30, 3), np.uint8)
    label = np.zeros((30, 30), np.uint8)
    jitter = dataclasses.replace(STILL, **{option: 0.3})
    new = jitter(image, label, np.random.default_rng(5), (30, 30), 255)[0]
    luma = np.array([0.299, 0.587, 0.114])
    measures = {
        "brightness": lambda a: (a @ luma).mean(),
        "contrast": lambda a: (a @ luma).std(),
        "saturation": lambda a: np.abs(a - (a @ luma)[..., None]).mean(),
    }
    ratios = {name: f(new) / f(image.astype(float)) for name, f in measures.items()}
    assert abs(ratios[option] - 1) > 0.01
    if option == "brightness":
        assert np.ptp(list(ratios.values())) < 1e-4
    if option == "contrast":
        assert ratios["brightness"] == pytest.approx(1, abs=1e-4)
    if option == "saturation":
        assert ratios["brightness"] == pytest.approx(1, abs=1e-4)
        assert ratios["contrast"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    "options, pattern",
    [
        ({"scale": (2.0, 0.5)}, "scale"),
        ({"scale": (0.0, 1.0)}, "scale"),
        ({"scale": (0.5,)}, "scale"),
        ({"brightness": 1.5}, "brightness.*Received: 1.5"),
        ({"contrast": -0.1}, "contrast"),
        ({"saturation": "much"}, "saturation"),
        ({"brightness": float("nan")}, "brightness"),
    ],
)
def test_bad_options_are_refused(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        data.Augment(**options)
