"""Whole images and their classes, on which an encoder can learn before it learns to segment.

A data set is a module of this room that defines `load_classes(split, *, data_dir=None, ...)` and
returns a `ClassificationDataset`: `load_classification` finds it by the module's name.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from tfseg_prune.data import images
from tfseg_prune.data.augment import PADDING
from tfseg_prune.data.batches import EpochBatches
from tfseg_prune.data.dataset import DatasetError


@dataclasses.dataclass(frozen=True)
class ClassificationDataset:
    """One split of a classification data set.

    `dataset[i]` is `(image, label)`: RGB, uint8 `[height, width, 3]`, and the image's class id, an
    integer in `[0, num_classes)`.

    Args:
        name: The data set's name.
        split: "train" or "val".
        classes: The classes' names, in the order of their ids.
        labels: One class id a sample.
        read: Function of a sample's number that returns its image.

    Raises:
        DatasetError: If there is no sample, or a label is no class.
    """

    name: str
    split: str
    classes: tuple[str, ...]
    labels: tuple[int, ...]
    read: Callable[[int], np.ndarray] = dataclasses.field(repr=False, compare=False)

    def __post_init__(self):
        wrong = sorted({label for label in self.labels if not 0 <= label < len(self.classes)})
        if wrong or not self.labels:
            raise DatasetError(
                f"The data set '{self.name}' (split '{self.split}') can't be used. Expected: images"
                f" with class ids in [0, {len(self.classes)}). Received: {len(self.labels)} images"
                f"{f' with the ids {wrong[:12]} among them' if wrong else ''}."
            )

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return self.read(range(len(self))[index]), self.labels[index]

    def subset(self, n: int) -> "ClassificationDataset":
        """The same data set with only `n` samples, spread evenly over it.

        Args:
            n: How many samples, in `[1, len(self)]`.

        Raises:
            DatasetError: If `n` is out of range.
        """
        if not 1 <= n <= len(self):
            raise DatasetError(
                f"Invalid size of a subset of '{self.name}' (split '{self.split}'). Expected: a"
                f" number of samples in [1, {len(self)}]. Received: {n}."
            )
        chosen = [i * len(self) // n for i in range(n)]
        return dataclasses.replace(
            self,
            labels=tuple(self.labels[i] for i in chosen),
            read=lambda index: self.read(chosen[index]),
        )

    def validate(self):
        """Reads every image, so that no training stops at a bad one.

        Raises:
            DatasetError: At the first that can't be read.
        """
        for index in range(len(self)):
            self.read(index)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PaddedCrop:
    """Random place and flip of a whole image, a pure function of a random generator.

    The image is resized to `image_size`, padded with grey on all sides, and cropped to
    `image_size` at a uniform place; with a probability of 1/2 it is mirrored, left to right.

    Args:
        padding: Part of the height above and below, and of the width left and right. Defaults to
            0.125, as with 4 of CIFAR's 32 pixels.
        flip: Whether to mirror. Defaults to True.
    """

    padding: float = 0.125
    flip: bool = True

    def __call__(self, image, rng, image_size):
        """float32 `[*image_size, 3]` of a uint8 image; each call draws as many values."""
        image = images.resize_image(image, image_size)
        places, flip = rng.random(2), rng.random() < 0.5
        edges = [round(self.padding * side) for side in image_size]
        wide = np.pad(
            image.astype(np.float32), [(e, e) for e in edges] + [(0, 0)], constant_values=PADDING
        )
        top, left = (int(place * (2 * edge + 1)) for place, edge in zip(places, edges))
        crop = wide[top : top + image_size[0], left : left + image_size[1]]
        return crop[:, ::-1] if flip and self.flip else crop


class ClassificationBatches(EpochBatches):
    """Batches of images, float32 `[batch, height, width, 3]`, and class ids, int32 `[batch]`.

    Args:
        dataset: `ClassificationDataset`.
        augment: `PaddedCrop` or `None`.
        **options: See `EpochBatches`.
    """

    def _plain(self, image, label):
        return images.resize_image(image, self.image_size), label

    def _augmented(self, image, label, rng):
        return self.augment(image, rng, self.image_size), label
