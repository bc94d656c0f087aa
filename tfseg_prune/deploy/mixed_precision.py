"""Which ops of a file must stay float, and which may be int8, for a bounded loss of accuracy.

The ops are ranked by the damage that each does alone: it is made int8, all others stay float, and
what the file answers is compared with the float file's. (A comparison of each tensor with that of
the float file, the quantizer's own way, blames the ops behind the guilty one, too, which only
inherit its error: there the errors gather, so that the last layers look worst.) Then the worst k
ops stay float, k growing, until the loss on the given images is within the bound.
"""

import dataclasses
import pathlib
import tempfile

import numpy as np

from tfseg_prune.bench.sandbox import Sandbox
from tfseg_prune.deploy import ai_edge, contents, parity, trace
from tfseg_prune.deploy import images as image_sources

# Images on which an op's damage is measured: it shows on few, and every op is tried on them.
_RANKING_IMAGES = 4


@dataclasses.dataclass(frozen=True)
class Point:
    """One file of the search.

    Args:
        float_ops: how many ops stay float.
        loss: see `MixedPrecision`.
        bytes: the file's size.
    """

    float_ops: int
    loss: float
    bytes: int


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """What a search for a mixed precision found.

    Args:
        measure: `"miou"`, or `"argmax"` where no metric was given.
        loss: of `"miou"`, the float32 file's mIoU less this file's; of `"argmax"`, the share of
            pixels to which the two give different classes. On the images given.
        max_loss: the bound.
        images: how many images it was measured on.
        float_layers: names of the Keras layers that stay float, worst first.
        float_ops: the ops of the file that these are, by the names of their outputs.
        ops: number of ops that could be int8.
        damage: `{op: damage}` of every op that could be int8, worst first: the root mean square
            change of the answer when this op alone is int8, over the answer's deviation; of a class
            map, the share of pixels that change.
        curve: every `Point` measured, from no op in float on.
    """

    measure: str
    loss: float
    max_loss: float
    images: int
    float_layers: tuple[str, ...]
    float_ops: tuple[str, ...]
    ops: int
    damage: dict[str, float]
    curve: tuple[Point, ...]


def search(data, representative, images, *, model, max_loss, metric=None):
    """Quantises a float32 file to int8 as far as a bound on the loss allows.

    A larger `max_loss` never leaves more ops in float, as all searches go the same way and end at
    the first file within the bound: over growing steps first, then one op at a time within the
    last step. The file in which all stay float has no loss, so that there is always an answer.

    Args:
        data: bytes of a float32 file that `export` wrote.
        representative: images float32 `[batch, height, width, channels]` that set the ranges.
        images: images to measure the loss on, as `check_parity` takes them; with labels, if there
            is a metric.
        model: the `keras.Model` that the file is of, for its layers' names.
        max_loss: the bound, 0 or more.
        metric: Keras metric, see `check_parity`. Defaults to `None`: the loss is the share of
            pixels whose class changes.

    Returns:
        `(data, MixedPrecision)`: the bytes of the file within the bound, and how it was found.

    Raises:
        ExportError: if ai-edge-quantizer is missing or can't quantise the file.
        ValueError: if `max_loss` is negative or there are no images.
    """
    if not max_loss >= 0:
        raise ValueError(f"Invalid max_loss. Expected: 0 or more. Received: {max_loss!r}.")
    quantizer = ai_edge.Quantizer(data, representative)
    judge = _Judge(data, images, metric)
    damage = {op: judge.damage(quantizer.quantise(only=[op])) for op in quantizer.ops}
    ranked = sorted(damage, key=damage.get, reverse=True)
    files, points = {}, {}

    def within(count):
        if count not in points:
            left = ranked[:count]
            files[count] = quantizer.quantise(leave=left) if count < len(ranked) else bytes(data)
            points[count] = Point(count, judge.loss(files[count]), len(files[count]))
        return points[count].loss <= max_loss

    steps = _steps(len(ranked))
    hit = next(step for step in steps if step == len(ranked) or within(step))
    within(hit)
    below = max((step for step in steps if step < hit), default=-1)
    best = next(count for count in range(below + 1, hit + 1) if count == hit or within(count))
    inside = contents.read_contents(data)
    names = [trace.name_in(op.split(";")[0], model) for op in ranked[:best]]
    return files[best], MixedPrecision(
        measure="argmax" if metric is None else "miou",
        loss=points[best].loss,
        max_loss=max_loss,
        images=judge.images,
        float_layers=tuple(dict.fromkeys(_answering(names, ranked, inside, model))),
        float_ops=tuple(ranked[:best]),
        ops=len(ranked),
        damage={op: damage[op] for op in ranked},
        curve=tuple(points[count] for count in sorted(points)),
    )


def _answering(names, ranked, inside, model):
    """Layers' names; the last op bears none, as its tensor is called after the file's answer."""
    last = inside.names[inside.output]
    for op, name in zip(ranked, names):
        yield f"{model.name} (its answer)" if op == last else name


def _steps(count):
    """0, 1, 2, 3, 4, 6, 8, 12, 16, ... below `count`, then `count`."""
    steps = [0, 1, 2, 3]
    while steps[-1] < count:
        steps.append(2 * steps[-2])
    return [step for step in steps if step < count] + [count]


class _Judge:
    """The float32 file's answers, and how far others are from them."""

    def __init__(self, data, images, metric):
        self._batches = list(image_sources.batches(images))
        self._metric = metric
        self.images = sum(len(batch) for batch, _ in self._batches)
        if not self.images:
            raise ValueError(
                "No images to measure the loss on. Expected: at least one. Received: an empty "
                "source."
            )
        few = np.concatenate([batch for batch, _ in self._batches])[:_RANKING_IMAGES]
        self._few = [(few, None)]
        (self._float_few,) = self._answers(data, self._few)
        self._float = self._maps(data) if metric is None else self._miou(data)

    def damage(self, data):
        """How far the answers to a few images change."""
        (answer,) = self._answers(data, self._few)
        if answer.ndim == 3:
            return float((answer != self._float_few).mean())
        expected = self._float_few.astype("float64")
        return float(np.sqrt(np.square(answer - expected).mean()) / (expected.std() or 1.0))

    def loss(self, data):
        if self._metric is not None:
            return self._float - self._miou(data)
        pairs = list(zip(self._maps(data), self._float))
        return sum(int((a != b).sum()) for a, b in pairs) / sum(a.size for a, _ in pairs)

    def _maps(self, data):
        return [parity.class_map(answer) for answer in self._answers(data, self._batches)]

    def _miou(self, data):
        self._metric.reset_state()
        for (batch, labels), answer in zip(self._batches, self._answers(data, self._batches)):
            parity.check_labels(labels, batch)
            self._metric.update_state(labels, parity.class_map(answer, labels.shape[1:3]))
        return float(self._metric.result())

    def _answers(self, data, batches):
        """Yields what the file answers, logits or class maps, to one batch after the other."""
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "model.tflite"
            path.write_bytes(data)
            with Sandbox(path) as opened:
                shape = tuple(int(side) for side in opened.inputs[0]["shape"][1:])
                for batch, _ in batches:
                    image_sources.check_shape(batch, shape)
                    yield np.concatenate([parity.run(opened, image) for image in batch])
