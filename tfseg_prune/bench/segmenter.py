"""A LiteRT segmentation network on one image: what an app does, in Python.

NumPy, Pillow and a LiteRT runtime are enough; neither Keras nor TensorFlow is imported.
"""

import dataclasses
import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from tfseg_prune.bench import inputs
from tfseg_prune.bench import metadata as descriptions
from tfseg_prune.bench.runtime import check_file
from tfseg_prune.bench.sandbox import Sandbox

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


@dataclasses.dataclass(frozen=True, eq=False)
class Segmentation:
    """What a network sees in an image.

    Args:
        image: the image, uint8 `[height, width, 3]`, RGB.
        class_map: id of the class of each of its pixels, int32 `[height, width]`.
        labels: the classes: tuple of objects with `id`, `name` and `color`.
    """

    image: np.ndarray
    class_map: np.ndarray
    labels: tuple

    def colors(self):
        """The class map in the classes' colours, uint8 `[height, width, 3]`; black is no class."""
        table = np.array([*(label.color for label in self.labels), (0, 0, 0)], np.uint8)
        known = (self.class_map >= 0) & (self.class_map < len(self.labels))
        return table[np.where(known, self.class_map, len(self.labels))]

    def overlay(self, opacity=0.5):
        """The colours over the image.

        Args:
            opacity: of the colours, in [0, 1]. Defaults to `0.5`.

        Returns:
            uint8 `[height, width, 3]`.
        """
        if not 0 <= opacity <= 1:
            raise ValueError(f"Invalid opacity. Expected: in [0, 1]. Received: {opacity!r}.")
        mixed = self.image * np.float32(1 - opacity)
        mixed += self.colors() * np.float32(opacity)
        return np.round(mixed, out=mixed).astype(np.uint8)

    def shares(self):
        """{name: share of the pixels} of the classes that are there, the largest first."""
        # A file that nobody describes may answer numbers that are no class' id.
        known = (self.class_map >= 0) & (self.class_map < len(self.labels))
        counts = np.bincount(self.class_map[known], minlength=len(self.labels))
        found = dict.fromkeys((label.name for label in self.labels), 0.0)
        for label in self.labels:  # of which several may have one name
            found[label.name] += counts[label.id] / self.class_map.size
        return {
            name: found[name] for name in sorted(found, key=found.get, reverse=True) if found[name]
        }


class Segmenter:
    """A `.tflite` file that segments images of any size.

    An image is resized to the file's input, bilinearly and antialiased as in training, scaled, and
    quantised where the file takes integers; the class of each pixel of the answer (of logits, after
    they were resized to the input's size) goes back to the image's size by nearest neighbour.

    The JSON beside the file (`x.tflite.json`, which `tsp.export` writes) says how. Without it the
    file is taken to want RGB in [0, 255] and to answer logits if it answers
    `[1, height, width, classes]`, a class map if it answers integers `[1, height, width]`; names
    and colours are made up, a warning says so, and `assumed` holds its text.

    The file runs in a process of its own: a broken one is an error, not the end of yours.

    Args:
        path: path of the `.tflite` file.
        metadata: path of the JSON. Defaults to `None`: the one beside the file, if there is one.
        threads: CPU threads. Defaults to `1`.
        runtime: see `tfseg_prune.bench.runtime.interpreter`. Defaults to `None`.

    Attributes:
        metadata: `tfseg_prune.bench.metadata.Metadata`.
        assumed: what had to be assumed for want of a JSON, or `None`.

    Raises:
        ValueError: if the file is missing, damaged or no network from one image to a class map or
            class scores, or the JSON is malformed or of another file.

    Example:

    >>> found = Segmenter("segmenter.tflite")("street.jpg")  # doctest: +SKIP
    >>> found.class_map.shape, found.shares()  # doctest: +SKIP
    ((360, 480), {'road': 0.31, 'building': 0.27, ...})
    """

    def __init__(self, path, *, metadata=None, threads=1, runtime=None):
        self.path = check_file(path)
        beside = descriptions.beside(self.path)
        found = None
        if metadata is not None or beside.is_file():
            source = beside if metadata is None else metadata
            found = descriptions.load(source)
            found.check(self.path, source)
        self._model = Sandbox(self.path, threads=threads, runtime=runtime)
        self.metadata = found or _assume(self.path, self._model)
        self.assumed = None
        if found:
            _check_shapes(self.path, self._model, found, source)
        else:
            self.assumed = (
                f"There is no {beside}: {self.path} is taken to want RGB in [0, 255] and to answer"
                f" a {'class map' if self._answers_classes else 'map of logits'}; names and"
                " colours of the classes are made up."
            )
            warnings.warn(self.assumed, stacklevel=2)

    @property
    def _answers_classes(self):
        return self.metadata.output.meaning == "class_map"

    def __call__(self, image):
        """Segments an image.

        Args:
            image: path of an image file, a Pillow image, or uint8 `[height, width, 3]`, RGB.

        Returns:
            `Segmentation`.

        Raises:
            ValueError: if the image cannot be read or is none, or the file cannot run.
        """
        image = read_image(image)
        takes = self.metadata.input
        pixels = _resized(image, (takes.height, takes.width))
        if takes.channels == "GRAY":
            pixels = np.array(Image.fromarray(pixels).convert("L"))[..., None]
        pixels = pixels.astype(np.float32)
        pixels = (pixels * np.float32(takes.scale) + np.float32(takes.offset))[None]
        answer = self._model.run([inputs.quantised(pixels, self._model.inputs[0])])[0]
        answer = inputs.dequantised(answer, self._model.outputs[0])[0]
        if not self._answers_classes:
            answer = _upsampled(answer, (takes.height, takes.width)).argmax(axis=-1)
        return Segmentation(image, _nearest(answer, image.shape[:2]), self.metadata.labels)

    def close(self):
        """Ends the process in which the file runs."""
        self._model.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_image(image):
    """An image as uint8 `[height, width, 3]`, RGB, upright.

    Args:
        image: path of an image file, a Pillow image, or such an array.

    Raises:
        ValueError: if it can't be read, has more than 8 bits a channel, or is no such array.
    """
    name = "the image"
    if isinstance(image, (str, os.PathLike)):
        name = f"'{image}'"
        try:
            with Image.open(image) as opened:
                opened.load()
                image = _upright(opened)
        # Pillow's decoders raise nearly anything on damaged bytes: OSError, SyntaxError, EOFError.
        except Exception as error:
            missing = isinstance(error, FileNotFoundError)
            raise ValueError(
                f"Cannot read {name}. Expected: a complete image file. Received: "
                f"{'no such file' if missing else f'{type(error).__name__}: {error}'}."
            ) from None
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(
                f"Cannot use {name}. Expected: 8 bits a channel. Received: mode {image.mode!r}. "
                "Remedy: convert it to 8 bits; what range to map to 0..255 is yours to choose."
            )
        image = np.array(_upright(image).convert("RGB"))
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or image.dtype != np.uint8:
        raise ValueError(
            f"Cannot use {name}. Expected: uint8 [height, width, 3], RGB. Received: {image.dtype} "
            f"{list(image.shape)}."
        )
    return image


def _upright(image):
    """A Pillow image as its EXIF data say it is held; as it lies, where these are damaged."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # Pillow's readers raise nearly anything on damaged bytes
        return image


def _check_shapes(path, model, metadata, source):
    """Raises unless the file's tensors are what the metadata, read from `source`, say."""
    takes, answers = metadata.input, metadata.output
    channels = descriptions.CHANNELS[takes.channels]
    wanted = (1, takes.height, takes.width, channels), (1, answers.height, answers.width)
    if answers.meaning == "logits":
        wanted = wanted[0], (*wanted[1], answers.classes)
    found = tuple(tuple(map(int, side[0]["shape"])) for side in (model.inputs, model.outputs))
    if found != wanted or len(model.inputs) > 1:
        raise ValueError(
            f"The description does not fit the model. Expected: {wanted[0]} to {wanted[1]}, as "
            f"{source} says. Received: {path}, which maps {found[0]} to "
            f"{found[1]}. Remedy: export again."
        )


def _assume(path, model):
    """Metadata of a file that has none, from its tensors."""
    takes, answers = model.inputs[0], model.outputs[0]
    shapes = [tuple(map(int, entry["shape"])) for entry in (takes, answers)]
    integer = np.issubdtype(answers["dtype"], np.integer) and not answers["quantization"][0]
    image = len(model.inputs) == 1 and len(shapes[0]) == 4 and shapes[0][::3] == (1, 3)
    # An open size stands in the shape as 1.
    image = image and min(takes["shape_signature"][1:]) > 0
    is_map = len(shapes[1]) == 3 and integer
    scores = len(shapes[1]) == 4 and shapes[1][3] > 1
    if not image or not (is_map or scores) or shapes[1][0] != 1:
        raise ValueError(
            "The model is no segmenter of single images. Expected: an input [1, height, width, 3] "
            "of a fixed size and an output of class scores [1, height, width, classes] or of whole "
            f"numbers [1, height, width]. Received: {path} with {len(model.inputs)} inputs, the "
            f"first {takes['shape_signature']}, that answers {np.dtype(answers['dtype'])} "
            f"{list(shapes[1])}."
        )
    classes = 256 if is_map else shapes[1][3]
    return descriptions.Metadata(
        sha256=descriptions.digest(path),
        precision="unknown",
        input=descriptions.Input(
            height=shapes[0][1], width=shapes[0][2], type=np.dtype(takes["dtype"]).name
        ),
        output=descriptions.Output(
            meaning="class_map" if is_map else "logits",
            height=shapes[1][1],
            width=shapes[1][2],
            classes=classes,
            type=np.dtype(answers["dtype"]).name,
        ),
        labels=descriptions.labels_of(None, classes),
    )


def _resized(image, size):
    if image.shape[:2] == tuple(size):
        return image
    height, width = size
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))


def _upsampled(logits, size):
    """Logits `[height, width, classes]` at another size, bilinearly."""
    if logits.shape[:2] == tuple(size):
        return logits
    height, width = size
    planes = [Image.fromarray(plane) for plane in np.moveaxis(logits.astype(np.float32), -1, 0)]
    grown = [plane.resize((width, height), Image.Resampling.BILINEAR) for plane in planes]
    return np.stack([np.asarray(plane) for plane in grown], axis=-1)


def _nearest(class_map, size):
    """int32 class map of another size: each pixel's class is that at its centre."""
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(int) for new, old in zip(size, class_map.shape)
    )
    return np.ascontiguousarray(class_map[rows[:, None], columns].astype(np.int32))
