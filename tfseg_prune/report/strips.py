"""Image, label, and what the dense and the pruned network answer, side by side."""

import dataclasses
import io

import numpy as np
from PIL import Image

IGNORED = (232, 232, 232)


@dataclasses.dataclass(frozen=True, eq=False)
class Strip:
    """One sample to be shown.

    Args:
        image: RGB in [0, 255], `[height, width, 3]`.
        label: class ids, `[height, width]`; an id outside the classes is drawn as ignored.
        dense: classes that the dense network answers, `[height, width]` at the image's size or its
            own. Defaults to `None`, not measured.
        pruned: the same of the pruned network. Defaults to `None`.
        name: shown above. Defaults to `""`.
    """

    image: np.ndarray
    label: np.ndarray
    dense: np.ndarray | None = None
    pruned: np.ndarray | None = None
    name: str = ""

    def __post_init__(self):
        image = np.shape(self.image)
        if len(image) != 3 or image[2] != 3:
            raise ValueError(
                "Invalid image of a strip. Expected: shape [height, width, 3]. "
                f"Received: {image} for {self.name!r}."
            )
        for field in ("label", "dense", "pruned"):
            value = getattr(self, field)
            if value is not None and np.ndim(value) != 2:
                raise ValueError(
                    f"Invalid {field} of a strip. Expected: class ids of shape [height, width]. "
                    f"Received: {np.shape(value)} for {self.name!r}."
                )


def colour(ids, colors):
    """Colours a map of class ids.

    Args:
        ids: integers, `[height, width]`.
        colors: one RGB triple a class, 0 to 255; other ids become light grey.

    Returns:
        uint8 array `[height, width, 3]`.

    Example:

    >>> colour([[0, 255]], [(128, 64, 128)]).tolist()
    [[[128, 64, 128], [232, 232, 232]]]
    """
    palette = np.array([*colors, IGNORED], np.uint8)
    ids = np.asarray(ids)
    return palette[np.where((ids >= 0) & (ids < len(colors)), ids, len(colors)).astype(int)]


def _png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def panels(strip, colors, *, max_width=480):
    """The four panels of a strip as PNG files of one size.

    Args:
        strip: a `Strip`.
        colors: one RGB triple a class, 0 to 255.
        max_width: wider images are made smaller, in pixels. Defaults to `480`.

    Returns:
        List of `(caption, png)`; `png` is bytes, or `None` for an answer that was not measured.

    Example:

    >>> strip = Strip(np.zeros((4, 6, 3)), np.zeros((4, 6), int))
    >>> [(caption, png is not None) for caption, png in panels(strip, [(0, 0, 0)])]
    [('image', True), ('label', True), ('dense', False), ('pruned', False)]
    """
    height, width = np.shape(strip.image)[:2]
    scale = min(1.0, max_width / width)
    size = (round(width * scale), round(height * scale))
    photo = np.clip(np.round(np.asarray(strip.image, np.float32)), 0, 255).astype(np.uint8)
    photo = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS)
    made = [("image", _png(np.asarray(photo)))]
    for caption in ("label", "dense", "pruned"):
        ids = getattr(strip, caption)
        if ids is None:
            made.append((caption, None))
            continue
        drawn = Image.fromarray(colour(ids, colors)).resize(size, Image.Resampling.NEAREST)
        made.append((caption, _png(np.asarray(drawn))))
    return made
