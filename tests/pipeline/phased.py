"""A run in phases that takes seconds: a network of few layers in ERFNet's place."""

import contextlib
import functools
from unittest import mock

import keras
from keras import layers

from tests.data import pictures
from tests.pipeline import tiny
from tfseg_prune import models
from tfseg_prune.training import progress

STAGES = (
    *("train_classification", "train_encoder", "train_decoder", "train"),
    *("prune_encoder", "prune_decoder", "prune"),
)


def encoder_part(input_shape, block):
    assert block == "D"
    images = keras.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, -1.0)(images)
    x = layers.Conv2D(16, 8, strides=8, name="backbone_stem")(x)
    x = layers.BatchNormalization(momentum=0.5, name="backbone_stem_bn")(x)
    shortcut = x
    x = layers.DepthwiseConv2D(3, padding="same", name="backbone_3x3")(x)
    x = layers.Conv2D(16, 1, use_bias=False, name="backbone_1x1")(x)
    x = layers.BatchNormalization(momentum=0.5, name="backbone_1x1_bn")(x)
    x = layers.SpatialDropout2D(0.1, name="backbone_dropout")(x)
    return images, layers.ReLU(name="backbone_out")(layers.Add()([x, shortcut]))


def network(num_classes, input_shape, *, block="D", decoder="erfnet"):
    images, x = encoder_part(input_shape, block)
    x = layers.Conv2D(8, 1, activation="relu", name="decoder_conv")(x)
    x = layers.BatchNormalization(momentum=0.5, name="decoder_bn")(x)
    x = layers.UpSampling2D(8, interpolation="bilinear", name="decoder_up")(x)
    return keras.Model(images, layers.Conv2D(num_classes, 1, name="decoder_logits")(x))


def encoder(num_classes, input_shape, *, head="segmentation", block="D"):
    images, x = encoder_part(input_shape, block)
    if head == "classification":
        x = layers.GlobalAveragePooling2D(name="decoder_pool")(x)
        return keras.Model(images, layers.Dense(num_classes, name="decoder_logits")(x))
    return keras.Model(images, layers.Conv2D(num_classes, 1, name="decoder_logits")(x))


@contextlib.contextmanager
def small_networks():
    """In place of ERFNet; they train eagerly, since tracing would take longer than the steps."""
    with (
        mock.patch.multiple(models, erfnet=network, erfnet_encoder=encoder),
        mock.patch.object(
            keras.Model,
            "compile",
            functools.partialmethod(
                keras.Model.compile, run_eagerly=keras.backend.backend() == "tensorflow"
            ),
        ),
    ):
        yield


@contextlib.contextmanager
def interruptions(at):
    """Ctrl-C at the start of the second epoch of each of these stages, once."""
    left, begin = set(at), progress.ProgressReporter.on_epoch_begin

    def interrupted(self, epoch, logs=None):
        if epoch == 1 and self._stage in left:
            left.remove(self._stage)
            raise KeyboardInterrupt
        begin(self, epoch, logs)

    with mock.patch.object(progress.ProgressReporter, "on_epoch_begin", interrupted):
        yield left


def config(folder, epochs=1):
    """Settings of a run in all phases, with pictures that are written to `folder`."""
    pictures.write(folder, train=8, val=4)
    made = tiny.config("")
    made.model.path = ""
    made.model.name = "erfnet"
    made.model.options.block = "D"
    made.model.options.decoder = "light"
    made.pretrain.data = "tinyimagenet100"
    made.pretrain.data_dir = str(folder)
    made.pretrain.image_size = (16, 16)
    made.pretrain.batch_size = 4
    made.pretrain.classification_epochs = epochs
    made.pretrain.encoder_epochs = epochs
    made.pretrain.decoder_epochs = epochs
    made.pretrain.fade = "encoder"
    made.train.epochs = epochs
    made.train.optimizer = "sgd"
    made.pruning.method = "gradual_grouping"
    made.pruning.gradual_grouping.assign = "balanced"
    made.pruning.budget.macs = None
    made.pruning.align = 8  # the default, as no channels go
    made.finetune.recalibrate = 0
    made.export.precisions = ("float32",)
    return made
