"""Reading, resizing and colouring of images and label maps."""

import os
import pathlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from tfseg_prune.data.dataset import ClassInfo, DatasetError

IGNORED_COLOR = (0, 0, 0)
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def read_image(path: str | os.PathLike | BinaryIO, *, name: str | None = None) -> np.ndarray:
    """Reads an image file as RGB, upright.

    Grey and palette images become RGB, transparency is dropped, and the EXIF orientation is
    applied.

    Args:
        path: The file, or one that is open.
        name: What it is called in errors. Defaults to its path.

    Returns:
        The image, uint8 `[height, width, 3]`.

    Raises:
        DatasetError: If the file cannot be decoded or has more than 8 bits a channel.
    """
    name = path if name is None else name
    image = _decode(path, "image", name)
    if image.mode.startswith(("I", "F")):
        raise DatasetError(
            f"Unsupported pixel format of image '{name}'. Expected: 8 bits a channel. Received: "
            f"mode '{image.mode}'. Convert it to 8 bits first: what range to map to 0..255 is "
            "yours to choose."
        )
    # Transposing copies the pixels, so images that stand upright already are left alone.
    if image.getexif().get(0x0112, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return np.array(image.convert("RGB"))


def read_folder(folder: str | os.PathLike, size: tuple[int, int]) -> np.ndarray:
    """All images of a folder, resized bilinearly, by name.

    Args:
        folder: Folder of JPEG or PNG images; other files are passed over.
        size: `(height, width)` in pixels.

    Returns:
        float32 `[number, height, width, 3]`, in [0, 255].

    Raises:
        DatasetError: If there is no image, or one can't be decoded.
    """
    folder = pathlib.Path(folder)
    paths = sorted(path for path in folder.glob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise DatasetError(
            f"No images. Expected: a folder with files that end in {', '.join(IMAGE_SUFFIXES)}. "
            f"Received: '{folder}'{'' if folder.is_dir() else ', which is no folder'}."
        )
    return np.stack([resize_image(read_image(path), size) for path in paths]).astype(np.float32)


def read_label(path: str | os.PathLike) -> np.ndarray:
    """Reads a label file: one class id a pixel.

    Args:
        path: The file, a palette or grey 8-bit PNG.

    Returns:
        The ids, uint8 `[height, width]`.

    Raises:
        DatasetError: If the file cannot be decoded, or holds colours rather than ids.
    """
    label = _decode(path, "label", path)
    if label.mode not in ("P", "L", "1"):
        raise DatasetError(
            f"Label '{path}' holds no class ids. Expected: a palette ('P') or grey ('L') PNG of "
            f"8 bits whose pixel values are class ids. Received: mode '{label.mode}'. If its "
            "colours are those of classes.json, convert it once with "
            "`PIL.Image.fromarray(tfseg_prune.data.ids_from_colors(numpy.array("
            "PIL.Image.open(path).convert('RGB')), dataset.classes)).save(path)`."
        )
    return np.array(label, np.uint8)


def resize_image(image: np.ndarray, size: tuple[int, int], box=None) -> np.ndarray:
    """Resizes an image bilinearly, antialiased where it shrinks.

    Args:
        image: uint8 `[height, width, 3]`.
        size: The new `(height, width)`.
        box: The part to resize, `(left, top, right, bottom)` in pixels of `image`, fractions
            allowed. Defaults to None, the whole image.

    Returns:
        uint8 `[size[0], size[1], 3]`.
    """
    return _resize(image, size, box, Image.Resampling.BILINEAR)


def resize_label(label: np.ndarray, size: tuple[int, int], box=None) -> np.ndarray:
    """Resizes a label map to the nearest pixel; see `resize_image` for the arguments."""
    return _resize(label, size, box, Image.Resampling.NEAREST)


def colorize(
    label: np.ndarray,
    classes: Sequence[ClassInfo],
    ignored: tuple[int, int, int] = IGNORED_COLOR,
) -> np.ndarray:
    """Paints a label map in the classes' colours.

    Args:
        label: Class ids, integers of any shape.
        classes: The classes, in the order of their ids.
        ignored: The colour of every other id. Defaults to black.

    Returns:
        RGB, uint8 `[..., 3]`.

    Example:

    ```python
    from PIL import Image
    from tfseg_prune import data

    streets = data.load("streets", "val", count=1)
    image, label = streets[0]
    Image.fromarray(data.colorize(label, streets.classes)).save("label.png")
    ```
    """
    table = np.array([*(info.color for info in classes), ignored], np.uint8)
    label = np.asarray(label)
    return table[np.where((label >= 0) & (label < len(classes)), label, len(classes))]


def ids_from_colors(
    colors: np.ndarray, classes: Sequence[ClassInfo], ignore_index: int = 255
) -> np.ndarray:
    """The inverse of `colorize`: turns a label that was saved as RGB into class ids.

    Args:
        colors: uint8 `[height, width, 3]`.
        classes: The classes, in the order of their ids.
        ignore_index: The id for colours that are no class'. Defaults to 255.

    Returns:
        The ids, uint8 `[height, width]`.
    """
    codes = np.asarray(colors).astype(np.int32) @ (65536, 256, 1)
    label = np.full(codes.shape, ignore_index, np.uint8)
    for index, info in enumerate(classes):
        label[codes == np.dot(info.color, (65536, 256, 1))] = index
    return label


def _resize(array, size, box, resample):
    height, width = size
    if box is None and array.shape[:2] == (height, width):
        return array
    return np.array(Image.fromarray(array).resize((width, height), resample, box=box))


def _decode(path, what, name):
    try:
        with Image.open(path) as image:
            image.load()
            return image
    # Pillow's decoders raise nearly anything on damaged bytes: OSError, SyntaxError, EOFError...
    except Exception as error:
        missing = isinstance(error, FileNotFoundError)
        raise DatasetError(
            f"Cannot read {what} '{name}'. Expected: a complete image file. Received: "
            f"{'no such file' if missing else f'{type(error).__name__}: {error}'}. Copy the file "
            "again from its source, or remove the sample (image and label)."
        ) from error
