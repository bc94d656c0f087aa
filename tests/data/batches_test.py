"""The pipeline: an epoch is a pure function of (seed, epoch), whatever drives it."""

import os
import subprocess
import sys
from unittest import mock

import keras
import numpy as np
import pytest

from tfseg_prune import data
from tfseg_prune.data.images import resize_label

SIZE = (32, 48)
STREETS = data.load("streets", "train", size=SIZE, count=7)


def make(**options):
    options = {"augment": data.Augment(), "shuffle": True, "seed": 3, **options}
    return data.Batches(STREETS, batch_size=2, image_size=SIZE, **options)


def read(batches, order=None):
    got = {i: batches[i] for i in (order or range(len(batches)))}
    return [got[i] for i in range(len(batches))]


def same(one, two):
    return all(
        np.array_equal(a, b) for pair in zip(one, two, strict=True) for a, b in zip(*pair)
    )


def epoch(number, **options):
    return read(make(initial_epoch=number, **options))


def test_shapes_and_the_last_partial_batch():
    batches = read(make(initial_epoch=0))
    assert [image.shape for image, _ in batches] == [(2, 32, 48, 3)] * 3 + [(1, 32, 48, 3)]
    for image, label in batches:
        assert type(image) is np.ndarray and image.dtype == np.float32
        assert type(label) is np.ndarray and label.dtype == np.int32
        assert label.shape == image.shape[:3]
        assert 0 <= image.min() and image.max() <= 255
    assert len(make(drop_remainder=True)) == 3
    with pytest.raises(IndexError):
        make()[4]


def test_without_augmentation_batches_are_the_samples_resized():
    plain = data.Batches(STREETS, batch_size=3, image_size=SIZE)
    images, labels = map(np.concatenate, zip(*plain))
    assert np.array_equal(images, np.stack([image for image, _ in STREETS]))
    assert np.array_equal(labels, np.stack([label for _, label in STREETS]))
    small = data.Batches(STREETS, batch_size=7, image_size=(16, 20), scale=1 / 127.5, offset=-1)
    images, labels = small[0]
    assert images.shape == (7, 16, 20, 3) and labels.shape == (7, 16, 20)
    assert -1 <= images.min() < -0.5 and 0.2 < images.max() <= 1
    assert np.array_equal(small.images(7), images)
    assert np.array_equal(small.images(2), images[[0, 3]])


@pytest.mark.parametrize("augment", [None, data.Augment(), data.Augment(scale=(0.5, 0.5))])
def test_labels_of_a_lower_resolution_are_those_of_the_nearest_pixels(augment):
    options = {"augment": augment, "shuffle": augment is not None}
    for (images, labels), (same, fewer) in zip(
        read(make(**options)), read(make(label_stride=8, **options))
    ):
        assert np.array_equal(images, same) and fewer.shape == (len(labels), 4, 6)
        for label, few in zip(labels, fewer):
            assert np.array_equal(resize_label(label.astype(np.uint8), (4, 6)), few)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_an_epoch_is_a_pure_function_of_seed_and_epoch(workers):
    expected = epoch(2)
    assert same(epoch(2, workers=workers), expected)
    backwards = read(make(initial_epoch=2, workers=workers), order=[3, 1, 0, 2])
    assert same(backwards, expected)
    assert not same(epoch(1, workers=workers), expected)
    assert not same(epoch(2, workers=workers, seed=4), expected)
    assert not same(epoch(1, shuffle=False), epoch(2, shuffle=False))
    assert same(epoch(1, shuffle=False, augment=None), epoch(2, shuffle=False, augment=None))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_run_continued_at_epoch_3_sees_its_4th_epoch(workers):
    batches, run = make(workers=workers), []
    for _ in range(4):
        batches.on_epoch_begin()
        run.append(read(batches))
        batches.on_epoch_end()
    assert batches.epoch == 4
    assert same(run[3], epoch(3, workers=workers))
    assert same(run[0], epoch(0)) and not same(run[0], run[1])


def test_every_sample_comes_once_an_epoch_in_another_order():
    orders = []
    for number in range(3):
        plain = make(augment=None, initial_epoch=number)
        seen = np.concatenate([images for images, _ in plain])
        orders.append(
            [int(np.argmin([np.abs(image - s).sum() for s, _ in STREETS])) for image in seen]
        )
        assert sorted(orders[-1]) == list(range(7))
    assert orders[0] != orders[1] != orders[2]


def test_epoch_can_be_set_in_the_middle_of_reading_ahead():
    batches = make(workers=2)
    batches[0], batches[1]
    batches.epoch = 5
    assert same([batches[2]], [epoch(5)[2]])


class _Recorder(data.Batches):
    """Batches that carry their epoch in the first pixel, and list what was asked of them."""

    def on_epoch_begin(self):
        super().on_epoch_begin()
        self.asked = []

    def __getitem__(self, index):
        if hasattr(self, "asked"):
            self.asked.append(index)
        images, labels = super().__getitem__(index)
        images[:] = self.epoch
        return images, labels


@keras.saving.register_keras_serializable("batches_test")
class _Seen(keras.layers.Layer):
    """Counts how many pixels of each epoch's number pass in training."""

    def build(self, input_shape):
        self.total = self.add_weight(shape=(8,), trainable=False, initializer="zeros")

    def call(self, x, training=False):
        if training:
            seen = keras.ops.one_hot(keras.ops.cast(x[:, 0, 0, 0], "int32"), 8)
            self.total.assign_add(keras.ops.sum(seen, axis=0))
        return x


def drive(workers, count, epochs=3, fits=1, shuffle=False):
    """Trains with `model.fit`.

    Returns:
        The samples seen of each data epoch in each epoch of `fit`, the data epoch afterwards, and
        the order of the batches in each epoch of `fit`.
    """
    streets = data.load("streets", "train", size=SIZE, count=count)
    batches = _Recorder(
        streets, batch_size=2, image_size=SIZE, workers=workers, shuffle=True,
        augment=data.Augment(),
    )  # fmt: skip
    seen = _Seen()
    inputs = keras.Input((*SIZE, 3))
    model = keras.Model(inputs, keras.layers.Conv2D(8, 1)(seen(inputs)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=255)
    model.compile(optimizer="sgd", loss=loss)
    model.optimizer.learning_rate = 0.0
    rows, before, orders = [], np.zeros(8), []

    def note(number, logs):
        nonlocal before
        now = keras.ops.convert_to_numpy(seen.total)
        rows.append((now - before).tolist())
        before = now
        orders.append(list(batches.asked))

    for _ in range(fits):
        note_epoch = keras.callbacks.LambdaCallback(on_epoch_end=note)
        model.fit(batches, epochs=epochs, shuffle=shuffle, verbose=0, callbacks=[note_epoch])
    return np.array(rows), batches.epoch, orders


def check_epochs(workers):
    """What must hold of `fit` on every backend; raises where it does not."""
    # Keras shuffles by Python's own generator; reversed, the batch that JAX peeks at is the last.
    with mock.patch("random.shuffle", list.reverse):
        rows, after, orders = drive(workers, count=5, shuffle=True)
    assert after == 3 and np.array_equal(rows, 5 * np.eye(8)[:3]), (after, rows)
    assert orders == [[2, 1, 0]] * 3, orders
    rows, after, orders = drive(workers, count=7, fits=2)
    assert after == 6 and np.array_equal(rows, 7 * np.eye(8)[:6]), (after, rows)
    assert orders == [[0, 1, 2, 3]] * 6, orders


@pytest.mark.parametrize("workers", [1, 2])
def test_fit_moves_the_epoch_on_and_leaks_none(workers):
    check_epochs(workers)


def test_fit_on_jax_moves_the_epoch_on_and_leaks_none():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import batches_test\n"
        "for workers in (1, 2): batches_test.check_epochs(workers)\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, os.path.dirname(__file__)],
        env={**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize(
    "options, pattern",
    [
        ({"batch_size": 0}, "batch_size.*Received: 0"),
        ({"batch_size": 2.0}, "batch_size"),
        ({"image_size": (32,)}, "height, width"),
        ({"image_size": (32, -1)}, "image_size.*Received: -1"),
        ({"seed": -1}, "seed"),
        ({"initial_epoch": -1}, "initial_epoch"),
        ({"workers": 0}, "workers"),
        ({"augment": "strong"}, "augment.*Received: 'strong'"),
        ({"scale": float("nan")}, "scale"),
        ({"label_stride": 5}, r"divides image_size=\(32, 48\). Received: 5"),
        ({"batch_size": 8, "drop_remainder": True}, "No full batch.*Received: 7 samples"),
    ],
)
def test_bad_arguments_are_refused(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        data.Batches(STREETS, **{"batch_size": 2, "image_size": SIZE, **options})
