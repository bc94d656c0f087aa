"""Segmentation networks of the package and of keras.applications, that tell classes untrained.

What argmax agreement says of two files depends on the network. One with random weights answers
nearly the same logits for all classes everywhere, so that its classes hang on roundings; and batch
normalisation by the statistics of such a network enlarges roundings from layer to layer. Here

- all weights are drawn as in `networks.randomise`, batch statistics are those of real images,
  disturbed, so that folding or dropping one shows;
- the batch normalisations' betas are raised, as `BETA` says, so that most ReLUs let pass what comes
  in: then roundings grow little;
- the classifier isn't drawn: its classes are clusters of the features before it, over real images,
  few and of those tried the ones with the fewest pixels between two. As in a trained network, which
  is sure of most pixels, roundings then seldom decide, and errors do.

So no one trains, the whole takes seconds, and every layer counts.
"""

import dataclasses

import keras
import networks
import numpy as np
from keras import layers

from tfseg_prune import models

CLASSES = 11
# Added to betas whose values have deviations around 1.
BETA = 1.0
# Standard deviation of the logits of the clusters.
SPREAD = 3.0
# Clusters are sought among so many principal components, of so many pixels,
COMPONENTS = 6
PIXELS = 20_000
# so many of them, from so many starts, none with a smaller share of the pixels than this.
CLUSTERS = (3, 4, 5)
STARTS = 5
LEAST = 0.05
# A pixel is between two clusters where their logits differ by less, in standard deviations.
BETWEEN = 0.01
# Between the places that one step of a transposed convolution writes, weights differ by so much.
UNEVEN = 0.2


@dataclasses.dataclass(frozen=True)
class Network:
    """A network at its usual size.

    Args:
        build: Function from (height, width) to the model.
        size: (height, width) that it is usually run at.
    """

    build: object
    size: tuple


def _ours(build, **options):
    return lambda size: build(CLASSES, (*size, 3), **options)


def with_head(name):
    """A backbone of keras.applications with the plainest head: a classifier, enlarged.

    Args:
        name: Of the architecture.

    Returns:
        Function from (height, width), multiples of 32, to a `keras.Model` from images in [0, 255].
    """

    def build(size):
        below = networks.architecture(name, size)
        logits = layers.Conv2D(CLASSES, 1, name="logits")(below.output)
        answer = layers.Resizing(*size, name="upsample")(logits, training=False)
        return keras.Model(below.input, answer, name=name)

    return build


# ERFNet and its family as on Cityscapes at half size, the others as in their papers or on CamVid.
NETWORKS = {
    "DeepLabV3+": Network(_ours(models.deeplab_v3_plus), (512, 512)),
    "DeepLabV3": Network(_ours(models.deeplab_v3), (512, 512)),
    "PSPNet": Network(_ours(models.pspnet), (473, 473)),
    "UNet": Network(_ours(models.unet), (352, 480)),
    "ERFNet": Network(_ours(models.erfnet), (512, 1024)),
    **{
        block: Network(_ours(models.erfnet, block=block), (512, 1024))
        for block in ("D", "DG2", "DG4", "DG8", "DG4S")
    },
    **{
        name: Network(with_head(name), (224, 224))
        for name in ("MobileNetV3Small", "MobileNetV3Large", "EfficientNetB0", "EfficientNetV2B0")
    },
}


def conditioned(model, images, *, seed=0):
    """Draws the weights of a model and fits its classifier, in place.

    Args:
        model: `keras.Model` whose last weights are those of a classifier: a 1x1 convolution, or a
            transposed one whose kernel is as large as its stride.
        images: Real ones, float `[batch, height, width, 3]`.
        seed: Of the weights.

    Returns:
        The model.
    """
    networks.randomise(model, images, seed=seed, beta=BETA)
    fit_classifier(model, images, seed=seed)
    return model


def fit_classifier(model, images, *, seed=0):
    """Makes classes of what differs most before the last convolution, see above, in place.

    Args:
        model, images, seed: As of `conditioned`.

    Raises:
        ValueError: If the last layer with weights is no such classifier.
    """
    found = [layer for layer in model._flatten_layers(include_self=False) if layer.weights]
    classifier = found[-1]
    transposed = isinstance(classifier, layers.Conv2DTranspose)
    stride = tuple(classifier.strides) if transposed else (1, 1)
    if not isinstance(classifier, layers.Conv2D | layers.Conv2DTranspose) or (
        tuple(classifier.kernel_size) != stride
    ):
        raise ValueError(
            "The classifier can't be fitted. Expected: a 1x1 convolution, or a transposed one whose"
            f" kernel is as large as its stride. Received: {classifier.name}"
        )
    below = keras.Model(model.inputs[0], classifier.input)
    features = np.concatenate([np.asarray(below(image[None])) for image in images])
    features = features.reshape(-1, features.shape[-1]).astype("float64")
    rng = np.random.default_rng(seed)
    axes, bias = clusters(features, classifier.bias.shape[0], rng)
    kernel = np.empty((*stride, *axes.shape))
    for place in np.ndindex(*stride):
        kernel[place] = axes * (1 if stride == (1, 1) else rng.uniform(1 - UNEVEN, 1 + UNEVEN))
    classifier.kernel.assign(kernel.swapaxes(2, 3) if transposed else kernel)
    classifier.bias.assign(bias)


def clusters(features, classes, rng):
    """`(kernel [channels, classes], bias)` whose largest logit is that of the nearest cluster.

    Classes beyond the clusters are like them but nowhere largest.
    """
    mean = features.mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(features, rowvar=False))
    # The largest comes last.
    axes = axes[:, : -COMPONENTS - 1 : -1] / np.sqrt(variances[-1])
    sample = rng.choice(len(features), min(PIXELS, len(features)), replace=False)
    points = (features[sample] - mean) @ axes
    tried = [
        _scored(points, _centres(points, count, rng))
        for count in CLUSTERS
        if count <= classes
        for _ in range(STARTS)
    ]
    _, centres, scale = min(tried, key=lambda one: one[0])
    kernel = scale * 2 * axes @ centres.T
    bias = -scale * np.square(centres).sum(axis=1) - mean @ kernel
    bias -= np.mean((features[sample] @ kernel + bias).max(axis=1))
    again = np.resize(np.arange(len(centres)), classes)
    first = np.arange(classes) < len(centres)
    return kernel[:, again] * np.where(first, 1, 0.9), np.where(
        first, bias[again], 0.9 * bias[again] - SPREAD
    )


def _centres(points, count, rng):
    """Centres of clusters by Lloyd's algorithm `[count, components]`."""
    centres = points[rng.choice(len(points), count, replace=False)]
    for _ in range(30):
        nearest = (points @ centres.T * 2 - np.square(centres).sum(axis=1)).argmax(axis=1)
        centres = np.stack(
            [
                points[nearest == k].mean(axis=0) if (nearest == k).any() else centres[k]
                for k in range(count)
            ]
        )
    return centres


def _scored(points, centres):
    """`((too small, share of pixels between two), centres, factor of the logits)`."""
    logits = points @ centres.T * 2 - np.square(centres).sum(axis=1)
    deviation = logits.std()
    first, second = np.sort(logits, axis=1)[:, :-3:-1].T
    shares = np.bincount(logits.argmax(axis=1), minlength=len(centres)) / len(points)
    between = float((first - second < BETWEEN * deviation).mean())
    return (bool(shares.min() < LEAST), between), centres, SPREAD / deviation
