"""The networks that the benchmarks measure, with random weights under which no error can hide.

As they come, random networks are too easy: batch statistics of mean 0 and variance 1, biases and
betas of 0 and a layer scale of 1e-6 make mistakes invisible. Yet with anything at all in their
place deep networks saturate or overflow, and then everything is equal, or nothing. So every weight
is drawn, and the batch statistics are those of random images, disturbed.
"""

import importlib

import keras
import numpy as np
from keras import layers

from tfseg_prune import models

# Where the architecture leaves the size of its input open.
DEFAULT_SIZE = (224, 224)
SEGMENTATION_SIZE = (256, 320)
NUM_CLASSES = 19


def architectures():
    """Names of all architectures in keras.applications."""
    found = vars(keras.applications).items()
    return sorted(name for name, build in found if name[0].isupper() and callable(build))


def architecture(name, size=None):
    """An architecture of keras.applications with random weights.

    Args:
        name: Its name there.
        size: `(height, width)` for the network without its top; by default it is built with its
            top at its own size.

    Returns:
        `keras.Model`.
    """
    build = getattr(keras.applications, name)
    if size is not None:
        return build(weights=None, include_top=False, input_shape=(*size, 3))
    model = build(weights=None)
    if None in model.inputs[0].shape[1:]:
        model = build(weights=None, input_shape=(*DEFAULT_SIZE, 3))
    return model


def _fcn(backbone):
    """A fully convolutional network: a classifier on a backbone, enlarged to the image's size."""

    def build():
        below = backbone(weights=None, include_top=False, input_shape=(*SEGMENTATION_SIZE, 3))
        logits = layers.Conv2D(NUM_CLASSES, 1, name="classifier")(below.output)
        answer = layers.UpSampling2D(32, interpolation="bilinear")(logits)
        return keras.Model(below.input, answer)

    return build


SEGMENTATION = {
    "DeepLabV3Plus": lambda: models.deeplab_v3_plus(NUM_CLASSES, (*SEGMENTATION_SIZE, 3)),
    "UNet": lambda: models.unet(NUM_CLASSES, (*SEGMENTATION_SIZE, 3)),
    "ERFNet": lambda: models.erfnet(NUM_CLASSES, (*SEGMENTATION_SIZE, 3)),
    "FCNResNet50": _fcn(keras.applications.ResNet50),
    "FCNResNet101": _fcn(keras.applications.ResNet101),
}


def random_images(model, name=None, *, count=2, seed=0):
    """Coloured blocks with noise, in the range that the network is made for.

    Args:
        model: Says the size.
        name: Of the architecture whose `preprocess_input` gives the range; the others take
            [0, 255].
        count: How many.
        seed: Of the images.

    Returns:
        float32 array `[count, height, width, 3]`.
    """
    rng = np.random.default_rng(seed)
    height, width, channels = model.inputs[0].shape[1:]
    side = -(-max(height, width) // 7)
    blocks = rng.uniform(0, 255, (count, 7, 7, channels)).repeat(side, 1).repeat(side, 2)
    noise = rng.normal(scale=20, size=(count, height, width, channels))
    images = np.clip(blocks[:, :height, :width] + noise, 0, 255).astype("float32")
    if name in architectures():
        module = importlib.import_module(getattr(keras.applications, name).__module__)
        images = module.preprocess_input(images)
    return images


def randomise(model, images, *, seed=0, beta=0.0):
    """Draws every weight of a model; batch statistics become those of the images, disturbed.

    Probabilities at the end come from logits of standard deviation 1, so that none is all.

    Args:
        model: `keras.Model`, changed in place.
        images: `[batch, height, width, channels]`.
        seed: Of the weights.
        beta: Added to the betas of batch normalisations.
    """
    rng = np.random.default_rng(seed)
    found = [layer for layer in model._flatten_layers(include_self=False)]
    for layer in found:
        for variable in layer._trainable_variables + layer._non_trainable_variables:
            if "int" not in str(variable.dtype):  # a counter, the state of a seed generator
                value = _draw(rng, layer, variable)
                if value.ndim == 4 and value.shape[-2] == images.shape[-1]:
                    value /= images.std()  # it reads the images
                if variable.name == "beta" and isinstance(layer, layers.BatchNormalization):
                    value += beta
                variable.assign(value)
        if hasattr(layer, "finalize_state"):
            layer.finalize_state()  # Normalization computes with copies of its statistics
    normalisations = [x for x in found if isinstance(x, layers.BatchNormalization)]
    momenta = [layer.momentum for layer in normalisations]
    for layer in normalisations:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(normalisations, momenta):
        layer.momentum = momentum
        mean, variance = np.array(layer.moving_mean), np.array(layer.moving_variance)
        # A channel that is nearly constant over the images would be blown up to pure noise.
        variance = np.maximum(variance, 0.01 * mean**2 + 1e-3)
        mean += 0.2 * np.sqrt(variance) * rng.normal(size=mean.shape)
        layer.moving_mean.assign(mean)
        layer.moving_variance.assign(variance * rng.uniform(0.6, 1.5, variance.shape))
    answers = np.array(model(images, training=False))
    if np.allclose(answers.sum(axis=-1), 1, atol=1e-3):
        logits = np.log(np.maximum(answers, 1e-30))
        classifier = [layer for layer in found if hasattr(layer, "kernel")][-1]
        classifier.kernel.assign(np.array(classifier.kernel) / logits.std(axis=-1).mean())


def _draw(rng, layer, variable):
    """Values for one weight, so that activations neither vanish nor grow."""
    name, shape = variable.name, tuple(variable.shape)
    if name in ("gamma", "scale"):
        return rng.uniform(0.5, 1.5, shape)
    if "variance" in name:
        return rng.uniform(0.5, 1.5, shape)
    if name == "alpha":  # slopes of PReLU
        return rng.uniform(0.0, 0.5, shape)
    if name in ("beta", "bias") or "mean" in name or len(shape) < 2:
        return rng.normal(scale=0.1, size=shape)
    depthwise = isinstance(layer, layers.DepthwiseConv2D) or "depthwise" in name
    fan_in = np.prod(shape[:-2] if depthwise else shape[:-1])
    return rng.normal(scale=np.sqrt(2 / fan_in), size=shape)
