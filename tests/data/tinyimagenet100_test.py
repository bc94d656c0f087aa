"""JPEG bytes in an npz become pictures and classes; what is wrong with the files is said."""

import json

import numpy as np
import pytest

from tests.data import pictures
from tfseg_prune import data


@pytest.fixture
def folder(tmp_path):
    pictures.write(tmp_path)
    return tmp_path


def load(folder, split="train", **options):
    return data.load_classification("tinyimagenet100", split, data_dir=folder, **options)


def test_pictures_and_their_classes(folder):
    train, val = load(folder), load(folder, "val")
    assert (len(train), len(val)) == (6, 3) and train.labels == (0, 0, 1, 1, 2, 2)
    assert train.classes == ("class 0", "class 1", "class 2") and train.num_classes == 3
    for index, (image, label) in enumerate(train):
        assert image.dtype == np.uint8 and image.shape == (16, 16, 3)
        if index:
            assert image.mean((0, 1)).argmax() == label == train.labels[index]
    assert np.ptp(train[0][0], axis=2).max() == 0  # a grey file
    train.validate()


def test_some_of_them_spread_over_the_classes(folder):
    some = load(folder, count=3)
    assert some.labels == (0, 1, 2)
    for index, (image, _) in enumerate(some):
        assert np.array_equal(image, load(folder)[2 * index][0])
    with pytest.raises(data.DatasetError, match=r"\[1, 6\]. Received: 7"):
        load(folder, count=7)


def test_where_it_is_and_what_it_is_called(folder, tmp_path):
    for name in ("tinyimagenet", "camvid"):
        with pytest.raises(data.DatasetError, match="one of tinyimagenet100. Received"):
            data.load_classification(name, "train", data_dir=folder)
    with pytest.raises(data.DatasetError, match="one of camvid, cityscapes"):
        data.load("tinyimagenet100", "train", data_dir=folder)
    with pytest.raises(data.DatasetError, match="train, val. Received: 'test'"):
        load(folder, "test")
    with pytest.raises(data.DatasetError, match="holds classes.json and tinyimagenet100.npz"):
        load(tmp_path / "gone")
    with pytest.raises(data.DatasetError, match="needs data_dir"):
        load(None)


@pytest.mark.parametrize(
    "content, words",
    [
        (None, "no such file"),
        ("{", "JSON"),
        ('{"names": []}', "KeyError"),
        (json.dumps({"classes": [{"id": 1, "name": "a"}]}), "without gaps"),
        (json.dumps({"classes": [{"id": 0, "name": "a"}]}), r"\[0, 1\).*ids \[1, 2\]"),
    ],
)
def test_class_lists_that_are_none(folder, content, words):
    path = folder / "classes.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(data.DatasetError, match=words):
        load(folder)


def test_arrays_that_cannot_be_right(folder):
    arrays = pictures.write(folder)
    whole = (folder / "tinyimagenet100.npz").read_bytes()
    (folder / "tinyimagenet100.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(data.DatasetError, match="Cannot read .*Copy the file"):
        load(folder)
    (folder / "tinyimagenet100.npz").unlink()
    with pytest.raises(data.DatasetError, match="Received: no such file"):
        load(folder)
    pictures.save(folder, {k: v for k, v in arrays.items() if k != "train_labels"})
    with pytest.raises(data.DatasetError, match="train_labels"):
        load(folder)
    load(folder, "val")
    for offsets in (arrays["train_offsets"][:-1], arrays["train_offsets"][::-1]):
        pictures.save(folder, {**arrays, "train_offsets": offsets})
        with pytest.raises(data.DatasetError, match="don't fit each other.*rise from 0"):
            load(folder)


def test_a_damaged_picture_is_named(folder):
    arrays = pictures.write(folder)
    start, end = arrays["train_offsets"][2:4]
    arrays["train_jpeg"][start:end] = 7
    pictures.save(folder, arrays)
    for read in (lambda: load(folder)[2], load(folder).validate):
        with pytest.raises(data.DatasetError, match="npz, train image 2'.*Unidentified"):
            read()
