"""What an app must know of a LiteRT file to use it: a JSON file beside it, `x.tflite.json`.

    {"format_version": 1,
     "sha256": "...",                  of the .tflite file that this describes
     "precision": "int8",
     "model": "deeplab_v3_plus",
     "package": "tfseg_prune 0.1.0",
     "input": {"height": 176, "width": 240, "channels": "RGB", "type": "float32",
               "scale": 1.0, "offset": 0.0},     takes pixel * scale + offset, pixel in [0, 255];
                                                 "GRAY" for one channel, of luma (ITU-R 601)
     "output": {"meaning": "logits", "height": 176, "width": 240, "classes": 11,
                "type": "float32"},              or "class_map": the class' id for each pixel
     "labels": [{"id": 0, "name": "sky", "color": [128, 128, 128]}, ...],
     "layers": ["backbone_conv", ...]}           names of the Keras model's layers

Images are resized to the input bilinearly; the answer covers the whole image, whatever its height
and width are. Integer types are quantised with the tensor's own scale and zero point.

LiteRT has metadata inside the file, too (a flatbuffer and a zip archive behind it), but no library
that writes it is kept up, apps need another one to read it, and a file can't hold its own hash.
"""

import dataclasses
import hashlib
import json
import math
import operator
import pathlib
import re

from tfseg_prune import atomic
from tfseg_prune.bench import schema

FORMAT_VERSION = 1
MEANINGS = ("logits", "class_map")
# Channel orders, and how many channels each has.
CHANNELS = {"RGB": 3, "GRAY": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """One class: its id in class maps and place among the logits, its name, its RGB colour."""

    id: int
    name: str
    color: tuple[int, ...]

    def __post_init__(self):
        if len(self.color) != 3 or not all(0 <= value <= 255 for value in self.color):
            raise ValueError(f"the color of {self.name!r} is {list(self.color)}, not 3 bytes")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Input:
    """What the file takes: `pixel * scale + offset` for pixels in [0, 255].

    Args:
        height, width: in pixels.
        channels: `"RGB"` or `"GRAY"`. Defaults to `"RGB"`.
        type: of the tensor, such as `"float32"`, `"int8"`. Defaults to `"float32"`.
        scale, offset: see above. Default to `1.0` and `0.0`.
    """

    height: int
    width: int
    channels: str = "RGB"
    type: str = "float32"
    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self):
        if self.channels not in CHANNELS:
            raise ValueError(f"the channels are {self.channels!r}, not {' or '.join(CHANNELS)}")
        if not (math.isfinite(self.offset) and math.isfinite(self.scale) and self.scale):
            raise ValueError(f"scale={self.scale}, offset={self.offset}: not finite, or scale 0")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What the file answers.

    Args:
        meaning: `"logits"`, `[1, height, width, classes]`, or `"class_map"`, `[1, height, width]`.
        height, width: of the answer; smaller than the input's where logits are not upsampled.
        classes: how many there are.
        type: of the tensor. Defaults to `"float32"`.
    """

    meaning: str
    height: int
    width: int
    classes: int
    type: str = "float32"

    def __post_init__(self):
        if self.meaning not in MEANINGS:
            raise ValueError(f"the meaning is {self.meaning!r}, not one of {', '.join(MEANINGS)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Metadata:
    """What the JSON beside a LiteRT file says, see the module's text.

    Example:

    >>> load("segmenter.tflite.json").labels[0].name  # doctest: +SKIP
    'sky'
    """

    sha256: str
    precision: str
    input: Input
    output: Output
    labels: tuple[Label, ...]
    model: str = ""
    package: str = ""
    layers: tuple[str, ...] = ()

    def __post_init__(self):
        if not re.fullmatch("[0-9a-f]{64}", self.sha256):
            raise ValueError(f"the sha256 is {self.sha256!r}, not 64 hexadecimal digits")
        if [label.id for label in self.labels] != list(range(self.output.classes)):
            raise ValueError(
                f"the labels' ids are {[label.id for label in self.labels]}, not those of"
                f" {self.output.classes} classes in order"
            )

    def save(self, path):
        """Writes the JSON.

        Args:
            path: path of the JSON file, `beside(tflite)`.
        """
        document = {"format_version": FORMAT_VERSION, **dataclasses.asdict(self)}
        atomic.write_text(path, json.dumps(document, indent=1, allow_nan=False) + "\n")

    def check(self, path, source=None):
        """Raises a ValueError unless this describes the LiteRT file `path`.

        Args:
            path: path of the LiteRT file.
            source: path that this was read from. Defaults to `None`: beside the file.
        """
        found = digest(path)
        if found != self.sha256:
            raise ValueError(
                f"The description of the model is of another file. Expected: sha256"
                f" {self.sha256[:12]}... as {source or beside(path)} says. Received:"
                f" {found[:12]}... of {path}. Remedy: copy both files together, or export again"
            )


def beside(path):
    """Path of the JSON that describes the LiteRT file `path`."""
    path = pathlib.Path(path)
    return path.with_name(f"{path.name}.json")


def digest(path):
    """SHA-256 of a file, 64 hexadecimal digits."""
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def load(path):
    """Reads the JSON that describes a LiteRT file.

    Args:
        path: path of the JSON file.

    Returns:
        `Metadata`.

    Raises:
        ValueError: if there is none, or it isn't as the module's text says; all is listed.
    """

    def fail(received):
        raise ValueError(
            "Invalid description of a model. Expected: a JSON file as tfseg_prune.export writes"
            f" it. Received: {path}: {received}. Remedy: export again"
        )

    try:
        document = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        fail(error.strerror)
    except (ValueError, RecursionError) as error:
        fail(f"no JSON ({error})")
    version = document.get("format_version") if isinstance(document, dict) else None
    if version != FORMAT_VERSION:
        fail(f"format_version {version!r}, not {FORMAT_VERSION}")
    problems = []
    fields = {key: value for key, value in document.items() if key != "format_version"}
    found = schema.decode(Metadata, fields, "metadata", problems)
    if problems:
        fail("; ".join(problems))
    return found


def labels_of(source, count):
    """`Label` objects from what users have.

    Args:
        source: names, `(name, color)` pairs or objects with `name` and `color` (a data set's
            `classes`), in the order of their ids; `None`, numbers for names. What has no colour
            gets one.
        count: how many classes there are.

    Raises:
        ValueError: if these are not as many, or no labels.
    """
    source = [f"class {i}" for i in range(count)] if source is None else list(source)
    if len(source) != count:
        raise ValueError(
            f"The labels are not the network's. Expected: {count}, one for each class that it "
            f"answers, in the order of their ids. Received: {len(source)}."
        )
    labels = []
    for index, item in enumerate(source):
        name, color = item, _color(index)
        if hasattr(item, "name") and hasattr(item, "color"):
            name, color = item.name, item.color
        elif isinstance(item, (tuple, list)) and len(item) == 2:
            name, color = item
        try:
            label = Label(id=index, name=name, color=tuple(map(operator.index, color)))
        except (TypeError, ValueError):
            label = None
        if label is None or not isinstance(name, str):
            raise ValueError(
                f"Invalid label of class {index}. Expected: a name, or a name and a colour (red, "
                f"green, blue), whole numbers in [0, 255]. Received: {item!r}."
            )
        labels.append(label)
    return tuple(labels)


def _color(index):
    """The colour of PASCAL VOC for an id: neighbours differ much; class 0 is not black here."""
    color, rest = [0, 0, 0], index + 1
    for bit in range(7, -1, -1):
        for channel in range(3):
            color[channel] |= (rest >> channel & 1) << bit
        rest >>= 3
    return tuple(color)
