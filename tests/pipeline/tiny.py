"""A run that takes seconds: a network of three convolutions on a handful of streets."""

import io
import re

import keras
from rich.console import Console

from tfseg_prune.pipeline import default_config, run

SIZE = (32, 48)
PRECISIONS = ("float32", "int8")


def save_network(path, *, classes=8, size=SIZE):
    keras.utils.set_random_seed(3)
    layers = keras.layers
    images = keras.Input((*size, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(images)
    for name in ("first", "second"):
        x = layers.Conv2D(16, 3, padding="same", use_bias=False, name=name)(x)
        x = layers.BatchNormalization(momentum=0.5, name=f"{name}_bn")(x)
        x = layers.ReLU()(layers.Dropout(0.1)(x))
    keras.Model(images, layers.Conv2D(classes, 1, name="logits")(x), name="tiny").save(path)
    return path


def config(model):
    made = default_config()
    made.name = "tiny"
    made.data.image_size = SIZE
    for split, count in (("train", 8), ("val", 2), ("test", 4)):
        made.data[split].count = count
        made.data[split].size = SIZE
    made.model.path = str(model)
    made.train.epochs = 3
    made.train.batch_size = 4
    made.train.learning_rate = 2e-2
    made.train.class_weights = "log"
    made.finetune.epochs = 1
    made.finetune.learning_rate = 2e-3
    made.finetune.recalibrate = 2
    made.pruning.budget.macs = 0.5
    made.pruning.align = 1
    made.export.precisions = PRECISIONS
    made.export.representative_images = 4
    made.export.thresholds.int8 = 0.0
    made.bench.max_seconds = 0.3
    made.bench.min_runs = 5
    made.report.strips = 1
    return made


def start(settings, workdir, *stages):
    """Runs; answers the summary, the names of the stages that weren't skipped, and what it said."""
    said = io.StringIO()
    console = Console(file=said, width=200)
    summary = run(settings, workdir, *([stages] if stages else []), console=console)
    return (
        summary,
        set(re.findall(r"^(\w+): running$", said.getvalue(), re.MULTILINE)),
        said.getvalue(),
    )
