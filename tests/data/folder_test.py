"""Folders of images: what is read is what was written, and what is wrong is said at once."""

import json
import re

import numpy as np
import pytest
from PIL import Image

from tfseg_prune import data


def check_error(*patterns, do):
    with pytest.raises(data.DatasetError) as caught:
        do()
    for pattern in patterns:
        assert re.search(pattern, str(caught.value)), (pattern, str(caught.value))
    return str(caught.value)


@pytest.mark.parametrize("name", ["camvid", "folder"])
def test_reads_what_was_written(root, name):
    dataset = data.load(name, "train", data_dir=root)
    assert (dataset.name, dataset.split, dataset.keys) == (name, "train", ("a", "b", "c", "d"))
    assert dataset.classes[1] == data.ClassInfo("road", (128, 64, 128))
    assert (dataset.num_classes, dataset.ignore_index, len(dataset)) == (3, 11, 4)
    image, label = dataset[1]
    assert image.dtype == label.dtype == np.uint8
    assert np.array_equal(image, np.array(Image.open(root / "train/images/b.jpg")))
    assert np.array_equal(label, np.array(Image.open(root / "train/labels/b.png")))


def test_validate_counts_the_pixels_and_reports_progress(root):
    dataset = data.load("camvid", "train", data_dir=root)
    seen = []
    pixels = dataset.validate(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    labels = np.stack([label for _, label in dataset])
    assert pixels.tolist() == [(labels == i).sum() for i in range(3)]


def test_flat_folder_is_split_the_same_way_each_time_and_without_overlap(flat):
    splits = {s: data.load("folder", s, data_dir=flat).keys for s in ("train", "val", "test")}
    assert {s: len(keys) for s, keys in splits.items()} == {"train": 14, "val": 3, "test": 3}
    assert sorted(sum(splits.values(), ())) == [f"frame{i:02d}" for i in range(20)]
    assert splits["val"] == data.load("folder", "val", data_dir=flat).keys
    halves = data.load("folder", "val", data_dir=flat, fractions=(0.5, 0.5, 0.0))
    assert len(halves) == 10
    check_error(
        "'test' .* is empty",
        do=lambda: data.load("folder", "test", data_dir=flat, fractions=(0.5, 0.5, 0.0)),
    )
    check_error(
        "fractions.*sum to 1",
        do=lambda: data.load("folder", "test", data_dir=flat, fractions=(0.5, 0.5, 0.5)),
    )


def test_ignored_id_is_255_where_none_is_given(root):
    classes = [{"id": i, "name": str(i), "color": [i, i, i]} for i in range(12)]
    (root / "classes.json").write_text(json.dumps({"classes": classes}))
    dataset = data.load("folder", "val", data_dir=root)
    assert (dataset.num_classes, dataset.ignore_index) == (12, 255)


def test_unknown_names_come_with_the_choices(root):
    load = data.load
    choices = "camvid, cityscapes, folder, streets"
    check_error(choices, "mean 'camvid'", do=lambda: load("camvd", "train"))
    check_error("train, val, test", "mean 'train'", do=lambda: load("streets", "trian"))
    check_error("size, count, seed", "mean 'count'", do=lambda: load("streets", "val", cuont=3))
    (root / "test").rename(root / "unused")
    check_error("no split 'test'", "train, val", do=lambda: load("camvid", "test", data_dir=root))


def test_missing_data_dir(tmp_path):
    load = data.load
    check_error("camvid.* needs data_dir", do=lambda: load("camvid", "train"))
    gone = tmp_path / "gone"
    check_error("gone", "no such folder", do=lambda: load("camvid", "train", data_dir=gone))
    gone.write_text("")
    check_error("a file", do=lambda: load("folder", "train", data_dir=gone))


def test_missing_parts_of_the_layout(root):
    def load():
        return data.load("camvid", "val", data_dir=root)

    for path in (root / "val/labels").iterdir():
        path.unlink()
    check_error("no label for the image e.jpg, f.jpg", do=load)
    for path in (root / "val/images").iterdir():
        path.unlink()
    check_error("is empty", "0 samples", do=load)
    (root / "val/labels").rmdir()
    check_error("val/labels", "no such folder", do=load)
    for split in ("train", "val", "test"):
        (root / split).rename(root / f"old_{split}")
    check_error("No images", "val/images", "old_test", do=load)


def test_every_stem_needs_its_partner(root):
    def load():
        return data.load("camvid", "train", data_dir=root)

    (root / "train/labels/a.png").unlink()
    (root / "train/images/d.jpg").unlink()
    check_error("no label for the image a.jpg", "no image for the label d.png", do=load)
    Image.new("RGB", (32, 24)).save(root / "train/images/b.png")
    check_error("Ambiguous sample 'b'", "b.jpg and b.png", do=load)


def test_truncated_image(root):
    path = root / "train/images/c.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    dataset = data.load("camvid", "train", data_dir=root)
    check_error("c.jpg", "truncated", "Copy the file again", do=lambda: dataset[2])
    check_error("c.jpg", "truncated", do=dataset.validate)
    path.write_bytes(b"no image")
    check_error("c.jpg", "UnidentifiedImageError", do=dataset.validate)
    path.unlink()
    check_error("c.jpg", "no such file", do=dataset.validate)


def test_label_of_another_size(root):
    Image.new("L", (31, 24)).save(root / "train/labels/b.png")
    dataset = data.load("camvid", "train", data_dir=root)
    check_error("labels/b.png", "images/b.jpg", "32x24", "31x24", do=lambda: dataset[1])
    check_error("31x24", do=dataset.validate)


def test_label_ids_out_of_range(root):
    ids = np.full((24, 32), 2, np.uint8)
    ids[0, :3] = 3, 11, 200
    Image.fromarray(ids).save(root / "train/labels/b.png")
    dataset = data.load("camvid", "train", data_dir=root)
    message = check_error("labels/b.png", "no class.*: 3, 200", do=lambda: dataset[1])
    assert "Expected: 0 to 2, or 11" in message and "Received: 2, 3, 11, 200." in message


def test_rgb_label_says_how_to_convert_and_the_recipe_works(root):
    dataset = data.load("camvid", "train", data_dir=root)
    before = dataset[1][1]
    path = root / "train/labels/b.png"
    Image.fromarray(data.colorize(before, dataset.classes)).save(path)
    check_error("b.png", "palette", "mode 'RGB'", "ids_from_colors", do=lambda: dataset[1])
    colors = np.array(Image.open(path).convert("RGB"))
    Image.fromarray(data.ids_from_colors(colors, dataset.classes, 11)).save(path)
    assert np.array_equal(dataset[1][1], before)


def test_validate_lists_the_first_problems_together(flat):
    for i in range(8):
        Image.new("L", (8, 8)).save(flat / f"labels/frame{i:02d}.png")
    dataset = data.load("folder", "train", data_dir=flat, fractions=(1.0, 0.0, 0.0))
    message = check_error("At least 5 samples", do=dataset.validate)
    assert [f"frame{i:02d}.png" in message for i in range(8)] == [True] * 5 + [False] * 3
    (flat / "labels/frame07.png").write_bytes(b"")
    two = data.load("folder", "train", data_dir=flat, fractions=(1.0, 0.0, 0.0)).subset(20)
    for i in range(6):
        Image.new("L", (32, 24)).save(flat / f"labels/frame{i:02d}.png")
    check_error("^2 samples", "frame06.png", "frame07.png", do=two.validate)


GOOD = {"id": 0, "name": "a", "color": [0, 0, 0]}


@pytest.mark.parametrize(
    "content, pattern",
    [
        ("{", "no JSON"),
        ("[]", "a list"),
        ("{}", 'no list "classes"'),
        ({"classes": []}, 'no list "classes"'),
        ({"classes": [{**GOOD, "color": [0, 0, 256]}]}, "256"),
        ({"classes": [{**GOOD, "color": "red"}]}, "red"),
        ({"classes": [{**GOOD, "id": "0"}]}, '"id": "0"'),
        ({"classes": [{"id": 0, "color": [0, 0, 0]}]}, "the class"),
        ({"classes": [GOOD, {**GOOD, "name": "b", "id": 2}]}, r"the ids \[0, 2\]"),
        ({"classes": [GOOD, {**GOOD, "id": 1}]}, "the names .*'a'.* more than once"),
        ({"classes": [{**GOOD, "ignore": True}]}, r"the ids \[\]"),
        ({"classes": [GOOD], "num_classes": 2}, '"num_classes": 2, but 1'),
        ({"classes": [GOOD], "ignore_index": 0}, "the ignored id 0"),
        ({"classes": [GOOD], "ignore_index": 256}, "the ignored id 256"),
        (
            {"classes": [GOOD, {**GOOD, "id": 5, "ignore": True}], "ignore_index": 7},
            "the ignored class is 5",
        ),
        (
            {"classes": [GOOD, *({**GOOD, "id": i, "ignore": True} for i in (5, 6))]},
            "2 ignored classes",
        ),
    ],
)
def test_malformed_classes(root, content, pattern):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "classes.json").write_text(text)
    check_error(
        "classes.json", "Expected:", pattern, do=lambda: data.load("folder", "val", data_dir=root)
    )


def test_missing_classes(root):
    (root / "classes.json").unlink()
    check_error(
        "classes.json", "no such file", do=lambda: data.load("camvid", "val", data_dir=root)
    )
