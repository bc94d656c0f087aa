"""A folder laid out as Cityscapes: label ids become the benchmark's classes."""

import numpy as np
import pytest
from PIL import Image

from tfseg_prune import data

FRAMES = {
    "train": ("aachen/aachen_000000_000019", "bochum/bochum_000000_000313"),
    "val": ("munster/munster_000000_000019",),
    "test": ("berlin/berlin_000000_000019",),
}
SIZE = (24, 48)


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def root(tmp_path):
    """Every label id from 0 to 33, in rows."""
    ids = np.resize(np.arange(34, dtype=np.uint8), SIZE)
    for split, frames in FRAMES.items():
        for frame in frames:
            image = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
            write(tmp_path / "leftImg8bit" / split / f"{frame}_leftImg8bit.png", image)
            for kind, pixels in (("labelIds", ids), ("color", image), ("instanceIds", ids)):
                write(tmp_path / "gtFine" / split / f"{frame}_gtFine_{kind}.png", pixels)
    return tmp_path


def load(root, split="train", **options):
    return data.load("cityscapes", split, data_dir=root, **options)


def test_label_ids_become_the_classes_of_the_benchmark(root):
    train = load(root)
    assert train.keys == FRAMES["train"] and (train.num_classes, train.ignore_index) == (19, 255)
    image, label = train[0]
    assert image.shape == (*SIZE, 3) and label.shape == SIZE
    # Cityscapes' own table of label ids and training ids.
    wanted = dict(zip([7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33], range(19)))
    ids = np.resize(np.arange(34), SIZE)
    assert np.array_equal(label, np.vectorize(lambda x: wanted.get(x, 255))(ids))
    named = {info.name: (i, info.color) for i, info in enumerate(train.classes)}
    assert named["road"] == (0, (128, 64, 128)) and named["bicycle"] == (18, (119, 11, 32))
    assert named["traffic light"] == (6, (250, 170, 30)) and named["train"][0] == 16
    assert len(set(info.color for info in train.classes)) == 19
    assert train.validate().sum() == 2 * (label != 255).sum()


def test_training_ids_are_read_where_they_are(root):
    ids = np.resize(np.array([0, 18, 255], np.uint8), SIZE)
    frame = FRAMES["train"][1]
    write(root / "gtFine/train" / f"{frame}_gtFine_labelTrainIds.png", ids)
    train = load(root)
    assert np.array_equal(train[1][1], ids) and not np.array_equal(train[0][1], ids)


def test_the_test_images_have_no_labels(root):
    with pytest.raises(data.DatasetError, match="not public.*source = 'val'"):
        load(root, "test")
    test = load(root, "test", source="val")
    assert (test.split, test.keys) == ("test", FRAMES["val"])
    assert load(root, "val").keys == FRAMES["val"]
    with pytest.raises(data.DatasetError, match="Received: 'vall'"):
        load(root, "test", source="vall")


def test_what_is_missing_is_named(root):
    (root / "gtFine/train" / f"{FRAMES['train'][0]}_gtFine_labelIds.png").unlink()
    with pytest.raises(data.DatasetError, match="none for aachen/aachen_000000_000019"):
        load(root)
    (root / "gtFine").rename(root / "gtCoarse")
    with pytest.raises(data.DatasetError, match="gtFine/val'.*no such folder.*gtFine_trainval"):
        load(root, "val")
    with pytest.raises(data.DatasetError, match="holds leftImg8bit and gtFine"):
        load(None)
    for path in (root / "leftImg8bit/val").glob("*/*"):
        path.unlink()
    (root / "gtCoarse").rename(root / "gtFine")
    with pytest.raises(data.DatasetError, match="is empty"):
        load(root, "val")


def test_ids_that_are_none_of_cityscapes(root):
    ids = np.full(SIZE, 40, np.uint8)
    write(root / "gtFine/val" / f"{FRAMES['val'][0]}_gtFine_labelIds.png", ids)
    with pytest.raises(data.DatasetError, match="munster.*0 to 33. Received: 40"):
        load(root, "val")[0]
