"""A segmentation data set as a frozen value: names, classes and a function that reads a sample."""

import concurrent.futures
import dataclasses
import difflib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

SPLITS = ("train", "val", "test")
_PROBLEMS_SHOWN = 5


class DatasetError(ValueError):
    """A data set that cannot be used as it is: the message names the file and the remedy."""


@dataclasses.dataclass(frozen=True)
class ClassInfo:
    """One class of a data set.

    Args:
        name: The class' name, unique in its data set.
        color: Red, green and blue in [0, 255], for drawings.
    """

    name: str
    color: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Dataset:
    """One split of a segmentation data set, read and checked sample by sample.

    `dataset[i]` is `(image, label)`: `image` is RGB, uint8 `[height, width, 3]`; `label` holds one
    class id a pixel, uint8 `[height, width]`, each in `[0, num_classes)` or equal to
    `ignore_index`. Samples may differ in size.

    Args:
        name: The data set's name.
        split: "train", "val" or "test".
        classes: The classes, in the order of their ids.
        ignore_index: The id of pixels that count neither in the loss nor in the score.
        keys: One name a sample.
        read: Function of a key that returns `(image, label)`.
        files: Maps a key to its `(image, label)` paths, where the samples are files. Defaults to
            an empty mapping.

    Raises:
        DatasetError: If there is no sample or no class, or a class has the id `ignore_index`.

    Example:

    ```python
    from tfseg_prune import data

    streets = data.load("streets", "val", size=(96, 128), count=4)
    image, label = streets[0]
    ```
    """

    name: str
    split: str
    classes: tuple[ClassInfo, ...]
    ignore_index: int
    keys: tuple[str, ...]
    read: Callable[[str], tuple[np.ndarray, np.ndarray]] = dataclasses.field(
        repr=False, compare=False
    )
    files: Mapping[str, tuple[str, str]] = dataclasses.field(
        default_factory=dict, repr=False, compare=False
    )

    def __post_init__(self):
        if not self.keys:
            raise DatasetError(
                f"The data set '{self.name}' is empty. Expected: at least one image with its label "
                f"in split '{self.split}'. Received: 0 samples."
            )
        if not self.classes:
            raise DatasetError(
                f"The data set '{self.name}' has no classes. Expected: at least one class besides "
                "the ignored one. Received: 0 classes."
            )
        if not self.num_classes <= self.ignore_index <= 255:
            raise DatasetError(
                f"Invalid ignore_index of data set '{self.name}'. Expected: an id in "
                f"[{self.num_classes}, 255], where no class is. Received: {self.ignore_index}."
            )

    @property
    def num_classes(self) -> int:
        """How many classes there are, the ignored one aside."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        image, label, _ = self._checked(self.keys[index])
        return image, label

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (self[index] for index in range(len(self)))

    def subset(self, n: int) -> "Dataset":
        """The same data set with only `n` samples, spread evenly over the keys.

        Args:
            n: How many samples, in `[1, len(self)]`.

        Raises:
            DatasetError: If `n` is out of range.
        """
        if not 1 <= n <= len(self):
            raise DatasetError(
                f"Invalid size of a subset of '{self.name}' (split '{self.split}'). "
                f"Expected: a number of samples in [1, {len(self)}]. Received: {n}."
            )
        keys = tuple(self.keys[i * len(self) // n] for i in range(n))
        return dataclasses.replace(self, keys=keys)

    def validate(self, progress: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Reads and checks every sample, so that no run stops at a bad file hours later.

        Args:
            progress: Called with `(done, total)` after each sample. Defaults to None.

        Returns:
            How many pixels each class has in this split, int64 `[num_classes]`.

        Raises:
            DatasetError: If samples cannot be used. The message lists the first few of them.
        """
        pixels = np.zeros(256, np.int64)
        problems = []
        pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
        try:
            outcomes = pool.map(self._outcome, self.keys)
            for done, (problem, counts) in enumerate(outcomes, 1):
                if problem is not None:
                    problems.append(problem)
                    if len(problems) == _PROBLEMS_SHOWN:
                        break
                else:
                    pixels += counts
                if progress is not None:
                    progress(done, len(self))
        finally:
            pool.shutdown(cancel_futures=True)
        if len(problems) == 1:
            raise DatasetError(problems[0])
        if problems:
            at_least = "At least " if len(problems) == _PROBLEMS_SHOWN else ""
            listed = "\n".join(f"{i}. {problem}" for i, problem in enumerate(problems, 1))
            raise DatasetError(
                f"{at_least}{len(problems)} samples of data set '{self.name}' (split "
                f"'{self.split}') cannot be used:\n{listed}"
            )
        return pixels[: self.num_classes]

    def _outcome(self, key):
        try:
            return None, self._checked(key)[2]
        except DatasetError as error:
            return str(error), None

    def _checked(self, key):
        image, label = self.read(key)
        image_name, label_name = self.files.get(key, (key, key))
        if image.shape != (*label.shape, 3):
            raise DatasetError(
                f"Image and label differ in size. Expected: label '{label_name}' as large as image "
                f"'{image_name}', {image.shape[1]}x{image.shape[0]} (width x height). "
                f"Received: {label.shape[1]}x{label.shape[0]}. Export the label again at the "
                "image's size (nearest neighbour, never interpolated)."
            )
        counts = np.bincount(label.ravel(), minlength=256)
        found = np.flatnonzero(counts)
        illegal = found[(found >= self.num_classes) & (found != self.ignore_index)]
        if illegal.size:
            raise DatasetError(
                f"Label '{label_name}' holds ids that are no class of data set '{self.name}': "
                f"{_short(illegal)}. Expected: 0 to {self.num_classes - 1}, or {self.ignore_index} "
                f"for pixels to ignore. Received: {_short(found)}. Map the others to a class or to "
                f"{self.ignore_index}, or add them to classes.json."
            )
        return image, label, counts


def closest(name: str, choices: Iterable[str]) -> str:
    """A sentence that suggests the choice nearest to a misspelt name, or an empty string."""
    near = difflib.get_close_matches(str(name).lower(), list(choices), n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def check_split(split: str, splits: Iterable[str] = SPLITS) -> None:
    """Raises a `DatasetError` with the choices unless `split` is one of `splits`."""
    splits = tuple(splits)
    if split not in splits:
        raise DatasetError(
            f"Unknown split. Expected: one of {', '.join(splits)}. Received: {split!r}."
            f"{closest(split, splits)}"
        )


def _short(ids):
    shown = ", ".join(map(str, ids[:12]))
    return shown if len(ids) <= 12 else f"{shown}, ... ({len(ids)} ids in all)"
