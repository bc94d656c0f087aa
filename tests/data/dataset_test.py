"""A data set is a value that is never empty; new ones are found by their module."""

import numpy as np
import pytest

from tfseg_prune import data

CLASSES = (data.ClassInfo("a", (1, 2, 3)), data.ClassInfo("b", (4, 5, 6)))


def make(keys=("x", "y"), classes=CLASSES, ignore_index=255):
    def read(key):
        return np.zeros((4, 4, 3), np.uint8), np.full((4, 4), len(key), np.uint8)

    return data.Dataset("mine", "train", classes, ignore_index, tuple(keys), read)


def test_what_cannot_be_a_data_set_is_refused():
    with pytest.raises(data.DatasetError, match="'mine' is empty"):
        make(keys=())
    with pytest.raises(data.DatasetError, match="no classes"):
        make(classes=())
    for ignore_index in (1, 256):
        with pytest.raises(data.DatasetError, match=r"\[2, 255\].*Received: " + str(ignore_index)):
            make(ignore_index=ignore_index)


def test_reading_checks_each_sample():
    dataset = make(keys=["x", "xx"])
    assert [int(label[0, 0]) for _, label in dataset.subset(1)] == [1]
    with pytest.raises(data.DatasetError, match="Label 'xx' holds ids.*: 2."):
        dataset[1]
    with pytest.raises(IndexError):
        dataset[2]


def test_subset_spreads_over_the_samples():
    dataset = make(keys=[str(i) for i in range(10)])
    assert dataset.subset(3).keys == ("0", "3", "6")
    assert dataset.subset(10) == dataset
    for n in (0, 11):
        with pytest.raises(data.DatasetError, match=rf"\[1, 10\]. Received: {n}"):
            dataset.subset(n)


def test_one_new_file_is_a_new_data_set(tmp_path, monkeypatch):
    (tmp_path / "fields.py").write_text(
        "import numpy as np\n"
        "from tfseg_prune.data.dataset import ClassInfo, Dataset\n"
        "def load_split(split, *, data_dir=None, crop=None):\n"
        "    read = lambda key: (np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2), np.uint8))\n"
        "    return Dataset('fields', split, (ClassInfo(crop, (0, 0, 0)),), 255, ('0',), read)\n"
    )
    monkeypatch.setattr(data, "__path__", [*data.__path__, str(tmp_path)])
    assert data.names() == ("camvid", "cityscapes", "fields", "folder", "streets")
    assert data.load("fields", "val", crop="wheat").classes[0].name == "wheat"
