"""A small network and data set that show every kind of training state."""

import json
import os
import time

import keras
import numpy as np

from tfseg_prune import training

NUM_CLASSES = 3
IGNORE = 255
SIZE = 8


class Toy(keras.utils.PyDataset):
    """Learnable random images, whose order and noise depend on the epoch alone."""

    def __init__(self, num_batches=3, batch_size=4, seed=0, delay=0.0, **kwargs):
        super().__init__(**kwargs)
        self.epoch = 0
        self.seen = []
        self._num_batches = num_batches
        self._batch_size = batch_size
        self._seed = seed
        self._delay = delay

    def __len__(self):
        return self._num_batches

    def __getitem__(self, index):
        time.sleep(self._delay)
        self.seen.append((self.epoch, index))
        rng = np.random.default_rng([self._seed, self.epoch, index])
        labels = rng.integers(0, NUM_CLASSES, (self._batch_size, SIZE, SIZE))
        images = 80.0 * labels[..., None] + rng.normal(0, 20, (*labels.shape, 3))
        labels[:, 0, 0] = IGNORE
        return images.astype("float32"), labels.astype("int32")

    def on_epoch_end(self):
        self.epoch += 1


class Plain(keras.utils.PyDataset):
    """A data set in Keras' own manner: shuffles in `on_epoch_end`, has no epoch."""

    def __init__(self):
        super().__init__()
        self._data = Toy()
        self._rng = np.random.default_rng(7)
        self.order = np.arange(len(self._data))

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        return self._data[int(self.order[index])]

    def on_epoch_end(self):
        self._rng.shuffle(self.order)


def network(dropout=0.2, width=8):
    inputs = keras.Input((SIZE, SIZE, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1)(inputs)
    x = keras.layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization(momentum=0.9)(x)
    x = keras.layers.ReLU()(x)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, keras.layers.Conv2D(NUM_CLASSES, 1)(x))


def compiled(optimizer=None, *, eager=True, **kwargs):
    """A compiled network; eager, since tracing it takes longer than all of its steps."""
    model = network(**kwargs)
    training.compile_segmenter(
        model,
        optimizer=optimizer or training.optimizer("sgd", learning_rate=0.1, steps=30),
        num_classes=NUM_CLASSES,
        ignore_index=IGNORE,
    )
    model.run_eagerly = eager
    return model


def values(model):
    return [keras.ops.convert_to_numpy(v) for v in [*model.variables, *model.optimizer.variables]]


def run(directory, *, epochs=4, seed=0, eager=True, workers=1, delay=0.0, **kwargs):
    """Trains, or resumes, in `directory`; answers the final state and the history."""
    # Another seed at each start shows that all that a run needs comes from its checkpoint.
    keras.utils.set_random_seed(seed)
    model = compiled(eager=eager)
    history = training.fit(
        model,
        Toy(workers=workers, delay=delay),
        epochs=epochs,
        checkpoint_dir=os.path.join(directory, "checkpoints"),
        log_path=os.path.join(directory, "metrics.jsonl"),
        validation=Toy(num_batches=1, seed=9),
        **kwargs,
    )
    return values(model), history


def assert_same(ours, theirs, atol=1e-5):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


def logged(directory):
    with open(os.path.join(directory, "metrics.jsonl"), encoding="utf-8") as file:
        return [json.loads(line) for line in file]
