"""A user's own images: `images/`, `labels/` and `classes.json`.

With a folder a split (for video this is the only honest way: neighbouring frames are alike):

    data_dir/classes.json
    data_dir/train/images/a.jpg    data_dir/train/labels/a.png
    data_dir/val/images/...        data_dir/test/images/...

or flat, with the split made here, in the fixed order of a hash of the file names:

    data_dir/classes.json
    data_dir/images/a.jpg          data_dir/labels/a.png

An image (JPEG, PNG, BMP, WebP) and its label share their stem. A label is a palette or grey 8-bit
PNG of the image's size whose pixel values are class ids. `classes.json`:

    {"classes": [{"id": 0, "name": "road", "color": [128, 64, 128]},
                 {"id": 1, "name": "car", "color": [0, 0, 142]},
                 {"id": 255, "name": "unlabelled", "color": [0, 0, 0], "ignore": true}]}

Classes are numbered from 0 without gaps; at most one is ignored, and without one the ignored id is
255. `"num_classes"` and `"ignore_index"` may be given beside `"classes"` and must agree with it.
"""

import hashlib
import json
import math
import os
import pathlib

from tfseg_prune.data import images
from tfseg_prune.data.dataset import SPLITS, ClassInfo, Dataset, DatasetError, check_split


def load_split(
    split: str,
    *,
    data_dir: str | os.PathLike | None = None,
    fractions: tuple[float, float, float] = (0.7, 0.15, 0.15),
    name: str = "folder",
) -> Dataset:
    """Opens one split of a folder of images and labels (the layouts are in the module's text).

    Args:
        split: "train", "val" or "test".
        data_dir: The folder.
        fractions: Shares of train, val and test in a flat folder; they sum to 1. No effect with a
            folder a split. Defaults to `(0.7, 0.15, 0.15)`.
        name: The name that the data set bears. Defaults to "folder".

    Returns:
        The `Dataset`. File names are checked here; contents on access and by `validate()`.

    Raises:
        DatasetError: If the folder is missing, incomplete or empty, or `classes.json` is malformed.
    """
    check_split(split)
    root = data_root(data_dir, name)
    classes, ignore_index = read_classes(root / "classes.json")
    split_folders = [s for s in SPLITS if (root / s / "images").is_dir()]
    if split_folders:
        if split not in split_folders:
            raise DatasetError(
                f"Data set '{name}' has no split '{split}'. Expected: a folder "
                f"'{root / split / 'images'}'. Received: the splits {', '.join(split_folders)}."
            )
        files = _pairs(root / split)
        keys = sorted(files)
    elif (root / "images").is_dir():
        files = _pairs(root)
        keys = _share(sorted(files), split, fractions, root)
    else:
        raise DatasetError(
            f"No images in data_dir '{root}'. Expected: '{root / split / 'images'}' (a folder a "
            f"split) or '{root / 'images'}' (one folder for all). Received: "
            f"{', '.join(sorted(os.listdir(root))[:8]) or 'an empty folder'}."
        )

    def read(key):
        image, label = files[key]
        return images.read_image(image), images.read_label(label)

    return Dataset(name, split, classes, ignore_index, tuple(keys), read, files)


def data_root(data_dir, name: str, *, holds: str = "classes.json and the images") -> pathlib.Path:
    """The existing folder `data_dir`, or a `DatasetError` that says what to pass."""
    if data_dir is None or not str(data_dir):
        raise DatasetError(
            f"Data set '{name}' needs data_dir. Expected: the folder that holds {holds}. "
            "Received: None."
        )
    root = pathlib.Path(data_dir).expanduser()
    if not root.is_dir():
        found = "a file" if root.exists() else "no such folder"
        raise DatasetError(
            f"Invalid data_dir for data set '{name}'. Expected: the folder that holds {holds}. "
            f"Received: '{root}' ({found})."
        )
    return root


def read_classes(path: str | os.PathLike) -> tuple[tuple[ClassInfo, ...], int]:
    """Reads `classes.json`.

    Args:
        path: The file.

    Returns:
        The classes in the order of their ids, and the ignored id.

    Raises:
        DatasetError: If the file is missing or malformed.
    """

    def fail(received):
        raise DatasetError(
            f"Invalid class list '{path}'. Expected: a JSON object like "
            '{"classes": [{"id": 0, "name": "road", "color": [128, 64, 128]}, ...]}, ids 0, 1, 2, '
            '... without gaps, names unique, at most one more class with "ignore": true. '
            f"Received: {received}."
        )

    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except FileNotFoundError:
        fail("no such file")
    except OSError as error:
        fail(f"a file that cannot be read ({error})")
    except ValueError as error:
        fail(f"text that is no JSON ({error})")

    entries = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries:
        fail('no list "classes"' if isinstance(content, dict) else f"a {type(content).__name__}")
    for entry in entries:
        if not _is_class(entry):
            fail(f"the class {json.dumps(entry)}")
    kept = sorted((e for e in entries if not e.get("ignore")), key=lambda e: e["id"])
    ignored = [e["id"] for e in entries if e.get("ignore")]
    ids = [e["id"] for e in kept]
    names = [e["name"] for e in kept]
    if not kept or ids != list(range(len(kept))):
        fail(f"the ids {ids}")
    if len(set(names)) != len(names):
        fail(f"the names {sorted(n for n in set(names) if names.count(n) > 1)} more than once")
    if len(ignored) > 1:
        fail(f"{len(ignored)} ignored classes, ids {ignored}: give them one id in the labels")
    ignore_index = content.get("ignore_index", ignored[0] if ignored else 255)
    if ignored and ignore_index != ignored[0]:
        fail(f'"ignore_index": {json.dumps(ignore_index)}, but the ignored class is {ignored[0]}')
    if type(ignore_index) is not int or not len(kept) <= ignore_index <= 255:
        fail(f"the ignored id {json.dumps(ignore_index)}, not in [{len(kept)}, 255]")
    if content.get("num_classes", len(kept)) != len(kept):
        fail(f'"num_classes": {json.dumps(content["num_classes"])}, but {len(kept)} classes')
    return tuple(ClassInfo(e["name"], tuple(e["color"])) for e in kept), ignore_index


def _is_class(entry):
    def is_byte(value):
        return type(value) is int and 0 <= value <= 255

    return (
        isinstance(entry, dict)
        and is_byte(entry.get("id"))
        and isinstance(entry.get("name"), str)
        and bool(entry["name"])
        and isinstance(entry.get("color"), list)
        and len(entry["color"]) == 3
        and all(map(is_byte, entry["color"]))
        and isinstance(entry.get("ignore", False), bool)
    )


def _pairs(folder):
    found_images = _by_stem(folder / "images", images.IMAGE_SUFFIXES)
    found_labels = _by_stem(folder / "labels", (".png",))
    problems = []
    for there, missing in (("image", "label"), ("label", "image")):
        have, lack = (
            (found_images, found_labels) if there == "image" else (found_labels, found_images)
        )
        alone = sorted(set(have) - set(lack))
        if alone:
            names = ", ".join(os.path.basename(have[stem]) for stem in alone[:5])
            more = f" and {len(alone) - 5} more" if len(alone) > 5 else ""
            problems.append(f"no {missing} for the {there} {names}{more}")
    if problems:
        raise DatasetError(
            f"Images and labels in '{folder}' do not match. Expected: for every images/NAME.jpg "
            "(or .jpeg, .png, .bmp, .webp) a labels/NAME.png, and the reverse. Received: "
            f"{'; '.join(problems)}."
        )
    return {stem: (path, found_labels[stem]) for stem, path in found_images.items()}


def _by_stem(folder, suffixes):
    if not folder.is_dir():
        raise DatasetError(
            f"Incomplete data set. Expected: a folder '{folder}'. Received: no such folder."
        )
    found = {}
    for name in sorted(os.listdir(folder)):
        stem, suffix = os.path.splitext(name)
        if name.startswith(".") or suffix.lower() not in suffixes:
            continue
        if stem in found:
            raise DatasetError(
                f"Ambiguous sample '{stem}' in '{folder}'. Expected: one file of that stem. "
                f"Received: {os.path.basename(found[stem])} and {name}."
            )
        found[stem] = os.path.join(folder, name)
    return found


def _share(stems, split, fractions, root):
    if (
        len(fractions) != 3
        or not all(0 <= f <= 1 for f in fractions)
        or not math.isclose(sum(fractions), 1, abs_tol=1e-6)
    ):
        raise DatasetError(
            "Invalid fractions. Expected: three shares (train, val, test) in [0, 1] that sum to 1. "
            f"Received: {fractions}."
        )
    # A hash of the name: the same on every machine, and neighbours in the alphabet are spread.
    mixed = sorted(stems, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    first, second = (round(len(mixed) * f) for f in (fractions[0], fractions[0] + fractions[1]))
    parts = dict(zip(SPLITS, (mixed[:first], mixed[first:second], mixed[second:])))
    if stems and not parts[split]:
        raise DatasetError(
            f"Split '{split}' of '{root}' is empty. Expected: enough images for the fractions "
            f"{tuple(fractions)}. Received: {len(stems)} images. Add images, change the "
            f"fractions, or lay out the splits yourself ('{split}/images', '{split}/labels')."
        )
    return sorted(parts[split])
