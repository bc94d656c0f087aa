"""Batches of whole images: an epoch is a pure function of seed and number."""

import numpy as np
import pytest

from tests.data import pictures
from tfseg_prune import data


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    pictures.write(folder, train=7)
    return data.load_classification("tinyimagenet100", "train", data_dir=folder)


def make(train, **options):
    options = {"augment": data.PaddedCrop(), "shuffle": True, "image_size": (16, 16), **options}
    return data.ClassificationBatches(train, batch_size=3, **options)


def test_batches_are_images_and_class_ids(train):
    plain = data.ClassificationBatches(train, batch_size=4, image_size=(16, 16))
    images, labels = map(np.concatenate, zip(*(plain[i] for i in range(len(plain)))))
    assert images.dtype == np.float32 and labels.dtype == np.int32
    assert np.array_equal(images, np.stack([image for image, _ in train]))
    assert tuple(labels) == train.labels
    scaled = data.ClassificationBatches(
        train, batch_size=7, image_size=(8, 12), scale=1 / 127.5, offset=-1
    )
    assert scaled[0][0].shape == (7, 8, 12, 3) and -1 <= scaled[0][0].min() < -0.5
    assert len(make(train)) == 3 and len(make(train, drop_remainder=True)) == 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_epoch_is_a_pure_function_of_seed_and_number(train, workers):
    def epoch(number, **options):
        batches = make(train, initial_epoch=number, **options)
        return [batches[i] for i in range(len(batches))]

    def same(one, two):
        return all(np.array_equal(a, b) for x, y in zip(one, two) for a, b in zip(x, y))

    assert same(epoch(2, workers=workers), epoch(2))
    assert not same(epoch(2), epoch(1)) and not same(epoch(2), epoch(2, seed=1))
    batches = make(train, workers=workers)
    for _ in range(2):
        batches.on_epoch_begin()
        [batches[i] for i in range(len(batches))]
        batches.on_epoch_end()
    assert same([batches[i] for i in range(3)], epoch(2))
    labels = np.concatenate([labels for _, labels in epoch(1)])
    assert sorted(labels) == sorted(train.labels)


def test_a_crop_is_a_shift_and_every_other_one_is_mirrored():
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    wide = np.pad(image.astype(np.float32), [(2, 2), (3, 3), (0, 0)], constant_values=127.5)
    places = {
        flip: [
            wide[y : y + 16, x : x + 24][:, :: -1 if flip else 1].tobytes()
            for y in range(5)
            for x in range(7)
        ]
        for flip in (False, True)
    }
    seen = []
    for seed in range(200):
        crop = data.PaddedCrop()(image, np.random.default_rng(seed), (16, 24)).tobytes()
        (place,) = [(f, p.index(crop)) for f, p in places.items() if crop in p]
        seen.append(place)
    assert 70 < sum(flip for flip, _ in seen) < 130
    assert len({place for _, place in seen}) == 35
    upright = data.PaddedCrop(flip=False, padding=0.0)
    for seed in range(4):
        assert np.array_equal(upright(image, np.random.default_rng(seed), (16, 24)), image)


def test_what_cannot_be_a_data_set_or_batches_of_one(train):
    def make_set(labels):
        return data.ClassificationDataset("mine", "train", ("a", "b"), labels, None)

    with pytest.raises(data.DatasetError, match="'mine'.*0 images"):
        make_set(())
    with pytest.raises(data.DatasetError, match=r"\[0, 2\).*ids \[-1, 2\]"):
        make_set((0, 2, -1))
    with pytest.raises(TypeError, match="label_stride"):
        make(train, label_stride=2)
    with pytest.raises(IndexError):
        train[7]
