"""Does the file answer as the Keras model does? Measured on real images, or an error."""

import dataclasses
import itertools
import pathlib

import keras
import numpy as np

from tfseg_prune.bench.inputs import dequantised, quantised
from tfseg_prune.bench.sandbox import Sandbox
from tfseg_prune.deploy import contents, trace
from tfseg_prune.deploy import images as image_sources
from tfseg_prune.deploy import tail as tails
from tfseg_prune.deploy.quiet import quiet

# Least share of pixels whose class must agree with Keras.
# float32 must be the same network. What quantisation alone does to a right file was measured on
# trained DeepLabV3+ networks on CamVid: 0.989 to 0.995 of the pixels agree in dynamic range, 0.94
# to 0.97 in int8.
THRESHOLDS = {
    "float32": 0.999,
    "float16": 0.995,
    "dynamic": 0.98,
    "int8": 0.9,
    "int8x16": 0.98,
    "mixed": 0.9,
}


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far a LiteRT file answers as its Keras model.

    Args:
        path: the file.
        precision: the file's, as read from its tensors.
        tail: the file's.
        images: number of images compared.
        pixels: number of pixels compared, all of them: those under the ignore index count too,
            as an app shows them too. At the file's own resolution, for `"logits"` the smaller one.
        argmax_agreement: share of these pixels at which both answer the same class.
        threshold: the least share asked for.
        max_abs_diff: largest absolute difference of any logit; `None` for a class map.
        relative_diff: `max_abs_diff` over the largest absolute logit of Keras; `None` likewise.
        miou: the metric's result on the file's answers (there the ignore index counts as the metric
            says); `None` without a metric.
    """

    path: pathlib.Path
    precision: str
    tail: str
    images: int
    pixels: int
    argmax_agreement: float
    threshold: float
    max_abs_diff: float | None
    relative_diff: float | None
    miou: float | None


class ParityError(ValueError):
    """The file does not answer as the model does.

    Args:
        message: what was expected and received, and where they diverge.
        parity: the `Parity` measured.
        divergence: the `Divergence` found; `None`, not looked for.
    """

    def __init__(self, message, parity, divergence):
        super().__init__(message)
        self.parity = parity
        self.divergence = divergence


def check_parity(
    model,
    tflite_path,
    images,
    *,
    tail="upsampled",
    labels=None,
    metric=None,
    threshold=None,
    threads=1,
):
    """Runs a LiteRT file and its Keras model on the same images and compares what they answer.

    The file runs in a process of its own, so that a broken one is an error, not the end of yours.

    Args:
        model: the functional `keras.Model` that was exported.
        tflite_path: path of the `.tflite` file.
        images: real images as the network takes them: an array or an iterable of batches of any
            size, alone or in `(images, labels)` tuples. The file gets them one by one.
        tail: the file's tail, `"logits"`, `"upsampled"` or `"argmax"`. Defaults to `"upsampled"`.
        labels: int labels `[batch, height, width]`, batched as `images` are. Defaults to `None`,
            those that come with the images.
        metric: Keras metric, such as mIoU, that is reset and then given `(labels, class maps)` of
            the file. Logits of lower resolution are resized to the labels' first, bilinearly.
            Defaults to `None`.
        threshold: least agreement, in [0, 1]. Defaults to `None`: 0.999 for float32, 0.995 for
            float16, 0.98 for dynamic range and int8x16, 0.9 for int8 and mixed.
        threads: CPU threads of the interpreter. Defaults to `1`.

    Returns:
        `Parity`.

    Raises:
        ParityError: if the agreement is below the threshold, or the file answers a number that is
            not finite. The message names the first layer at which the two diverge.
        ValueError: if the images do not fit, are none, or the file is of another model or tail.

    Example:

    >>> check_parity(model, "segmenter.tflite", images).argmax_agreement  # doctest: +SKIP
    0.99998
    """
    path = pathlib.Path(tflite_path)
    precision = contents.load_contents(path).precision
    check_threshold(threshold)
    threshold = THRESHOLDS[precision] if threshold is None else threshold
    tally, worst = _Tally(), (2.0, None)
    if metric is not None:
        metric.reset_state()
    with Sandbox(path, threads=threads) as opened:
        shape = tuple(int(side) for side in opened.inputs[0]["shape"][1:])
        reference = _reference(model, tail, shape, opened.outputs[0])
        for batch, truth in _with_labels(images, labels):
            image_sources.check_shape(batch, shape)
            if metric is not None:
                check_labels(truth, batch)
            with quiet():  # TensorFlow complains about each model's first batch
                expected = reference.predict_on_batch(batch)
            answer = np.concatenate([run(opened, image) for image in batch])
            agreements = tally.add(answer, expected)
            lowest = int(np.argmin(agreements))
            worst = min(worst, (agreements[lowest], batch[lowest, None]), key=lambda pair: pair[0])
            if metric is not None:
                metric.update_state(truth, class_map(answer, truth.shape[1:3]))
    if not tally.images:
        raise ValueError("No images to compare. Expected: at least one. Received: an empty source.")
    parity = Parity(
        path=path,
        precision=precision,
        tail=tail,
        images=tally.images,
        pixels=tally.pixels,
        argmax_agreement=tally.agreeing / tally.pixels,
        threshold=threshold,
        max_abs_diff=None if tail == "argmax" else tally.largest,
        relative_diff=None if tail == "argmax" else tally.largest / (tally.magnitude or 1.0),
        miou=None if metric is None else float(metric.result()),
    )
    if parity.argmax_agreement < threshold or not np.isfinite(tally.largest):
        wrapped = tails.with_tail(model, tail, image_size=shape[:2])
        divergence = trace.first_divergence(wrapped, path, worst[1])
        differ = "" if tail == "argmax" else f", logits differ by up to {parity.max_abs_diff:.3g}"
        raise ParityError(
            f"The file does not answer as the model does. Expected: the same class at "
            f"{threshold:.2%} of the pixels or more, finite numbers ({precision}). Received: "
            f"{parity.argmax_agreement:.3%} on {parity.images} images{differ}, by {path}. "
            f"{divergence}",
            parity,
            divergence,
        )
    return parity


def check_threshold(threshold):
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"Invalid threshold. Expected: in [0, 1]. Received: {threshold!r}.")


class _Tally:
    """Running figures of the comparison."""

    def __init__(self):
        self.images = self.pixels = self.agreeing = 0
        self.largest = self.magnitude = 0.0

    def add(self, answer, expected):
        """Counts a batch; returns each image's agreement."""
        if expected.ndim == 4:
            self.magnitude = max(self.magnitude, float(np.abs(expected).max()))
            finite = np.isfinite(answer).all(axis=-1)
            gap = float(np.abs(answer - expected).max()) if finite.all() else np.inf
            self.largest = max(self.largest, gap)
            expected = expected.argmax(axis=-1)
            same = finite & (class_map(answer) == expected)
        else:
            same = answer == expected
        self.images += len(same)
        self.pixels += same.size
        self.agreeing += int(same.sum())
        return same.mean(axis=(1, 2))


def _reference(model, tail, shape, answers):
    """The Keras model that answers what the file should."""
    reference = tails.with_tail(model, tail, image_size=shape[:2])
    expected = (1, *reference.output_shape[1:])
    if tuple(answers["shape"]) != expected or shape != tuple(reference.input_shape[1:]):
        raise ValueError(
            f"The file is not this model's. Expected: images {tuple(reference.input_shape[1:])}, "
            f"answers {expected} with tail={tail!r}. Received: a file for images {shape} that "
            f"answers {tuple(int(side) for side in answers['shape'])}. Remedy: export it again, or "
            "name the tail that it has."
        )
    # Compiled once: run eagerly, each grouped convolution is compiled again on every call. XLA
    # makes TensorFlow several times slower on a CPU.
    reference.compile(jit_compile=keras.backend.backend() != "tensorflow")
    return reference


def _with_labels(images, labels):
    source = image_sources.batches(images)
    if labels is None:
        yield from source
        return
    if hasattr(labels, "shape"):
        labels = [labels]
    missing = object()
    for pair, truth in itertools.zip_longest(source, labels, fillvalue=missing):
        if pair is missing or truth is missing:
            raise ValueError(
                "Labels do not fit the images. Expected: one batch of labels per batch of images. "
                f"Received: more {'labels' if pair is missing else 'images'}."
            )
        truth = keras.ops.convert_to_numpy(truth)
        yield pair[0], truth[None] if truth.ndim == 2 else truth


def check_labels(labels, images):
    if labels is None or labels.shape != images.shape[:3]:
        raise ValueError(
            f"A metric needs labels. Expected: {images.shape[:3]}, one class index per pixel "
            f"of the images. Received: {None if labels is None else labels.shape}."
        )


def run(opened, image):
    """What the file answers to one image: float32 logits or an int32 class map, batch 1."""
    answer = opened.run([quantised(image[None], opened.inputs[0])])[0]
    return dequantised(answer, opened.outputs[0])


def class_map(answer, size=None):
    """int32 class maps of logits, resized to `size` first if given; class maps pass through."""
    if answer.ndim == 3:
        return answer
    if size is not None and answer.shape[1:3] != tuple(size):
        answer = keras.ops.image.resize(answer, size, interpolation="bilinear")
    return keras.ops.convert_to_numpy(answer).argmax(axis=-1).astype("int32")
