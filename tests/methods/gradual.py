"""A network that becomes grouped, its training, and what is asked of it."""

import keras
from keras import layers, ops

import tfseg_prune as tsp
from tests.training import toys
from tfseg_prune.layers.gradual_conv import GradualConv2D

GRADUAL = ("backbone_a", "backbone_b")
STEPS = 2  # of an epoch


def network(seed=0, width=8):
    """A residual block as in D of the paper, another 1x1 convolution, and a classifier."""
    keras.utils.set_random_seed(seed)
    i = keras.Input((toys.SIZE, toys.SIZE, 3))
    x = layers.Rescaling(1 / 128, offset=-1)(i)
    x = layers.Conv2D(width, 3, padding="same", name="backbone_stem")(x)
    shortcut = x = layers.BatchNormalization(momentum=0.5, name="backbone_stem_bn")(x)
    x = layers.DepthwiseConv2D(3, padding="same", name="backbone_depthwise")(x)
    x = layers.Conv2D(2 * width, 1, activation="relu", name="backbone_a")(x)
    x = layers.Dropout(0.1)(x)
    x = layers.Conv2D(width, 1, use_bias=False, name="backbone_b")(x)
    x = layers.BatchNormalization(momentum=0.5, name="backbone_b_bn")(x)
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.Conv2D(width, 1, activation="relu", name="decoder_mix")(x)
    return keras.Model(i, layers.Conv2D(toys.NUM_CLASSES, 1, name="decoder_logits")(x))


def compiled(model):
    tsp.training.compile_segmenter(
        model,
        optimizer=keras.optimizers.SGD(0.05, momentum=0.9, weight_decay=0.1),
        num_classes=toys.NUM_CLASSES,
        ignore_index=toys.IGNORE,
    )
    # Tracing would take longer than the steps.
    model.run_eagerly = keras.backend.backend() == "tensorflow"
    return model


def trained(gradual, epochs=3, callbacks=()):
    compiled(gradual.model)
    gradual.model.fit(
        toys.Toy(STEPS), epochs=epochs, callbacks=[gradual, *callbacks], shuffle=False, verbose=0
    )
    return gradual


def fade(model, alpha=0.0):
    for layer in model.layers:
        if isinstance(layer, GradualConv2D):
            layer.alpha.assign(alpha)


def answers(model, batch=toys.Toy()[0][0]):
    return ops.convert_to_numpy(model(batch, training=False))


def values(model):
    return [ops.convert_to_numpy(weight) for weight in model.weights]
