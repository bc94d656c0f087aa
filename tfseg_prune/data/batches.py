"""The one input pipeline: a data set as batches that `model.fit` takes on every backend."""

import concurrent.futures
import math
import numbers
from collections.abc import Callable

import keras
import numpy as np

from tfseg_prune.data import images
from tfseg_prune.data.augment import Augment
from tfseg_prune.data.dataset import Dataset


class EpochBatches(keras.utils.PyDataset):
    """Batches of one data set: decoded, augmented or resized, and stacked.

    What a sample becomes is up to subclasses: they define `_plain(image, label)` and
    `_augmented(image, label, rng)`, which answer the image at `image_size` and its label.

    The content of epoch `e` is a pure function of `(seed, e)`: neither the order of access nor
    `workers` matters, and `initial_epoch=e` continues a run exactly.

    Call `model.fit(..., shuffle=False)`: by default Keras hands out the batches of an epoch in an
    order that no seed here governs, and the run cannot be repeated.

    `model.fit` moves `epoch` on by itself. With JAX it first peeks at a batch (two on a GPU), and
    if there are no more than those, the peek passes for an epoch: set `epoch` at the start of each
    epoch (a callback's `on_epoch_begin` is early enough) where that matters.

    Args:
        dataset: The data set.
        batch_size: Samples a batch.
        image_size: `(height, width)` of the batches.
        augment: Random changes. Defaults to None.
        shuffle: Whether each epoch has an order of its own. Defaults to False.
        seed: Seed of order and augmentation, not negative. Defaults to 0.
        initial_epoch: The first epoch. Defaults to 0.
        drop_remainder: Whether to leave out the last, smaller batch. Defaults to False.
        scale: Factor for the images. Defaults to 1.0, images in [0, 255].
        offset: Added to the scaled images. Defaults to 0.0.
        workers: Threads that read samples; with more than one, the next batch is read ahead.
            Defaults to 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        dataset,
        *,
        batch_size: int,
        image_size: tuple[int, int],
        augment: Callable | None = None,
        shuffle: bool = False,
        seed: int = 0,
        initial_epoch: int = 0,
        drop_remainder: bool = False,
        scale: float = 1.0,
        offset: float = 0.0,
        workers: int = 1,
    ):
        # Keras' own workers would hand out batches of a past epoch: its queue survives the batch
        # that a backend draws before the first epoch. So the threads are here.
        super().__init__(workers=1, use_multiprocessing=False)
        _check_integer("batch_size", batch_size, 1)
        _check_integer("seed", seed, 0)
        _check_integer("initial_epoch", initial_epoch, 0)
        _check_integer("workers", workers, 1)
        image_size = tuple(image_size)
        if len(image_size) != 2:
            raise ValueError(
                f"Invalid image_size. Expected: (height, width). Received: {image_size}."
            )
        for value in image_size:
            _check_integer("image_size", value, 1)
        for name, value in (("scale", scale), ("offset", offset)):
            if not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise ValueError(f"Invalid {name}. Expected: a number. Received: {value!r}.")
        if augment is not None and not callable(augment):
            raise ValueError(
                f"Invalid augment. Expected: a `data.Augment` or None. Received: {augment!r}."
            )
        if drop_remainder and len(dataset) < batch_size:
            raise ValueError(
                f"No full batch in data set '{dataset.name}' (split '{dataset.split}'). Expected: "
                f"at least batch_size={batch_size} samples, as drop_remainder=True. "
                f"Received: {len(dataset)} samples."
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.image_size = image_size
        self.augment = augment
        self.shuffle = shuffle
        self.seed = seed
        self.drop_remainder = drop_remainder
        self.scale = scale
        self.offset = offset
        self.threads = workers
        self.epoch = initial_epoch
        self._begun = False
        self._read = set()
        self._previous = -1
        self._pool = None
        self._ahead = {}

    def __len__(self) -> int:
        whole, rest = divmod(len(self.dataset), self.batch_size)
        return whole + (rest > 0 and not self.drop_remainder)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Batch `index` of the current epoch.

        Returns:
            Images, float32 `[batch, height, width, 3]`, and labels, int32.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"Batch {index} of {len(self)}.")
        index, epoch = index % len(self), self.epoch
        self._read.add(index)
        in_order, self._previous = index in (0, self._previous + 1), index
        if self.threads == 1:
            return self._stack([self._sample(epoch, i) for i in self._members(epoch, index)])
        # At most one batch waits, of this epoch; the dict is replaced whole, as the iterators of
        # two epochs may be alive in two threads for a moment.
        ahead, following = self._ahead, (epoch, index + 1)
        futures = ahead.get((epoch, index)) or self._submit(epoch, index)
        if in_order and index + 1 < len(self):
            self._ahead = {following: ahead.get(following) or self._submit(*following)}
        else:
            self._ahead = {}
        return self._stack([future.result() for future in futures])

    def on_epoch_begin(self):
        """Keras calls this before an epoch, and before the batch that it may peek at."""
        self._begun = True

    def on_epoch_end(self):
        """Moves on to the next epoch, if all batches of this one have been read.

        Keras also calls this before the first epoch (`EpochIterator.reset`), where nothing has
        begun, and after it has peeked at a batch, which may be any.
        """
        if self._begun and len(self._read) == len(self):
            self.epoch += 1
        self._begun = False
        self._read = set()

    def images(self, n: int) -> np.ndarray:
        """`n` images spread evenly over the data set, resized and never augmented.

        Args:
            n: How many, in `[1, len(dataset)]`.

        Returns:
            float32 `[n, height, width, 3]`, scaled as the batches are: the representative images
            of a quantised export, for instance.
        """
        subset = self.dataset.subset(n)
        return self._stack([self._plain(*sample) for sample in subset])[0]

    def _members(self, epoch, index):
        order = np.arange(len(self.dataset))
        if self.shuffle:
            # The length is no sample's index, so no sample shares this generator.
            order = np.random.default_rng([self.seed, epoch, len(order)]).permutation(len(order))
        return order[index * self.batch_size : (index + 1) * self.batch_size].tolist()

    def _sample(self, epoch, index):
        image, label = self.dataset[index]
        if self.augment is None:
            return self._plain(image, label)
        return self._augmented(image, label, np.random.default_rng([self.seed, epoch, index]))

    def _submit(self, epoch, index):
        if self._pool is None:
            self._pool = concurrent.futures.ThreadPoolExecutor(self.threads, "tfseg_prune_batches")
        return [self._pool.submit(self._sample, epoch, i) for i in self._members(epoch, index)]

    def _stack(self, samples):
        pictures = np.stack([image for image, _ in samples]).astype(np.float32)
        if self.scale != 1.0 or self.offset != 0.0:
            pictures = pictures * np.float32(self.scale) + np.float32(self.offset)
        return pictures, np.stack([label for _, label in samples]).astype(np.int32)


class Batches(EpochBatches):
    """Batches of images, float32 `[batch, height, width, 3]`, and labels, one id a pixel.

    Without `augment` a sample is resized to `image_size`, the image bilinearly (antialiased), the
    label to the nearest pixel. The labels are int32 `[batch, height, width]`, both sides divided
    by `label_stride`.

    Args:
        dataset: `Dataset`.
        label_stride: The labels are resized, to the nearest pixel, to `image_size` divided by this,
            for a network that answers at a lower resolution. Defaults to 1.
        augment: `Augment` or `None`.
        **options: See `EpochBatches`.

    Raises:
        ValueError: If an argument is out of range.

    Example:

    ```python
    from tfseg_prune import data

    streets = data.load("streets", "train", size=(96, 128), count=8)
    train = data.Batches(
        streets, batch_size=4, image_size=(96, 128), augment=data.Augment(), shuffle=True
    )
    images, labels = train[0]  # float32 [4, 96, 128, 3] and int32 [4, 96, 128]
    ```
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        label_stride: int = 1,
        augment: Augment | None = None,
        **options,
    ):
        super().__init__(dataset, augment=augment, **options)
        _check_integer("label_stride", label_stride, 1)
        if any(value % label_stride for value in self.image_size):
            raise ValueError(
                f"Invalid label_stride. Expected: one that divides image_size={self.image_size}. "
                f"Received: {label_stride}."
            )
        self.label_stride = label_stride

    def _augmented(self, image, label, rng):
        ignored = self.dataset.ignore_index
        image, label = self.augment(image, label, rng, self.image_size, ignored)
        return image, self._strided(label)

    def _plain(self, image, label):
        label = images.resize_label(label, self.image_size)
        return images.resize_image(image, self.image_size), self._strided(label)

    def _strided(self, label):
        stride = self.label_stride
        return label[stride // 2 :: stride, stride // 2 :: stride]


def _check_integer(name, value, least):
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(
            f"Invalid {name}. Expected: an integer of at least {least}. Received: {value!r}."
        )
