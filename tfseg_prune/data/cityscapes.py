"""Cityscapes: street video of 50 cities, 2,975 train, 500 val and 1,525 test frames of 2048x1024.

Cordts et al., "The Cityscapes Dataset for Semantic Urban Scene Understanding" (CVPR 2016). Its
licence allows no copies, so get `leftImg8bit_trainvaltest.zip` and `gtFine_trainvaltest.zip` from
its makers and unpack both into one folder:

    data_dir/leftImg8bit/train/aachen/aachen_000000_000019_leftImg8bit.png
    data_dir/gtFine/train/aachen/aachen_000000_000019_gtFine_labelIds.png

Labels are the 19 classes of the benchmark, all else is ignored. `..._gtFine_labelTrainIds.png` are
read where the official scripts have left them, else `..._gtFine_labelIds.png`.

The labels of the test frames are kept by the makers. Papers test on `val`, and so does
`config.data.test.source = "val"`.
"""

import os

import numpy as np

from tfseg_prune.data import images
from tfseg_prune.data.dataset import SPLITS, ClassInfo, Dataset, DatasetError, check_split
from tfseg_prune.data.folder import data_root

IGNORED = 255
# Label id, name and colour, in the order of the training ids.
_CLASSES = (
    (7, "road", (128, 64, 128)),
    (8, "sidewalk", (244, 35, 232)),
    (11, "building", (70, 70, 70)),
    (12, "wall", (102, 102, 156)),
    (13, "fence", (190, 153, 153)),
    (17, "pole", (153, 153, 153)),
    (19, "traffic light", (250, 170, 30)),
    (20, "traffic sign", (220, 220, 0)),
    (21, "vegetation", (107, 142, 35)),
    (22, "terrain", (152, 251, 152)),
    (23, "sky", (70, 130, 180)),
    (24, "person", (220, 20, 60)),
    (25, "rider", (255, 0, 0)),
    (26, "car", (0, 0, 142)),
    (27, "truck", (0, 0, 70)),
    (28, "bus", (0, 60, 100)),
    (31, "train", (0, 80, 100)),
    (32, "motorcycle", (0, 0, 230)),
    (33, "bicycle", (119, 11, 32)),
)
CLASSES = tuple(ClassInfo(name, color) for _, name, color in _CLASSES)
_LABEL_IDS = 34  # 0 to 33
_TRAIN_IDS = np.full(256, IGNORED, np.uint8)
_TRAIN_IDS[[label for label, _, _ in _CLASSES]] = range(len(_CLASSES))

_IMAGE, _TRAIN_LABEL, _LABEL = (
    "_leftImg8bit.png",
    "_gtFine_labelTrainIds.png",
    "_gtFine_labelIds.png",
)


def load_split(
    split: str, *, data_dir: str | os.PathLike | None = None, source: str | None = None
) -> Dataset:
    """Opens one split of Cityscapes.

    Args:
        split: "train", "val" or "test".
        data_dir: The folder that holds `leftImg8bit` and `gtFine`.
        source: The folder of both that is read, "train" or "val". Defaults to that of the split.

    Returns:
        The `Dataset`; its ignored id is 255.

    Raises:
        DatasetError: If the folder is incomplete, or the source has no labels.
    """
    check_split(split)
    source = source or split
    check_split(source, SPLITS)
    if source == "test":
        raise DatasetError(
            "The labels of Cityscapes' test images are not public. Expected: for the split 'test'"
            " another source, as papers have it. Received: none. Remedy:"
            " config.data.test.source = 'val'"
        )
    root = data_root(data_dir, "cityscapes", holds="leftImg8bit and gtFine")
    files = _files(root, source)

    def read(key):
        image, label = files[key]
        ids = images.read_label(label)
        return images.read_image(image), ids if label.endswith(_TRAIN_LABEL) else _mapped(
            ids, label
        )

    return Dataset("cityscapes", split, CLASSES, IGNORED, tuple(sorted(files)), read, files)


def _mapped(ids, path):
    """Training ids of label ids."""
    unknown = np.setdiff1d(ids, [*range(_LABEL_IDS), IGNORED])
    if unknown.size:
        raise DatasetError(
            f"Label '{path}' holds ids that Cityscapes has not. Expected: label ids 0 to"
            f" {_LABEL_IDS - 1}. Received: {', '.join(map(str, unknown[:12]))}. Unpack"
            " gtFine_trainvaltest.zip again."
        )
    return _TRAIN_IDS[ids]


def _files(root, source):
    """{city/frame: (image, label)}."""
    pictures, labels = root / "leftImg8bit" / source, root / "gtFine" / source
    for folder in (pictures, labels):
        if not folder.is_dir():
            raise DatasetError(
                f"Incomplete data set. Expected: a folder '{folder}'. Received: no such folder."
                " Unpack leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip into data_dir."
            )
    found, missing = {}, []
    for path in sorted(pictures.glob(f"*/*{_IMAGE}")):
        key = f"{path.parent.name}/{path.name.removesuffix(_IMAGE)}"
        candidates = (labels / f"{key}{end}" for end in (_TRAIN_LABEL, _LABEL))
        label = next((candidate for candidate in candidates if candidate.is_file()), None)
        if label is None:
            missing.append(key)
        else:
            found[key] = (str(path), str(label))
    if missing:
        raise DatasetError(
            f"Images in '{pictures}' without a label. Expected: for CITY/FRAME{_IMAGE} a file"
            f" CITY/FRAME{_LABEL} or CITY/FRAME{_TRAIN_LABEL} in '{labels}'. Received: none for"
            f" {', '.join(missing[:5])}{f' and {len(missing) - 5} more' * (len(missing) > 5)}."
        )
    return found
