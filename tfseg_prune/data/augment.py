"""Random changes to training samples."""

import dataclasses
import numbers

import numpy as np

from tfseg_prune.data import images

# Rec. 601 luma: what Pillow's grey conversion uses too.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
PADDING = 127.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """Random scale, crop, flip, shift and colour jitter, a pure function of a random generator.

    The sample is resized to `s * image_size`, `s` uniform in `scale`, then cropped to `image_size`
    at a uniform place; scale 1 is thus the geometry of evaluation. Where it is smaller than
    `image_size`, the image is padded with grey and the label with the ignored id. Brightness,
    contrast and saturation are factors, each uniform in `[1 - value, 1 + value]`.

    Args:
        scale: Least and greatest scale. Defaults to `(0.5, 2.0)`.
        flip: Whether to mirror, left to right, with a probability of 1/2. Defaults to True.
        shift: Pixels by which the result then moves at most, a whole number in `[-shift, shift]`
            along each axis; what it uncovers is padded. Defaults to 0.
        brightness: Defaults to 0.25.
        contrast: Defaults to 0.25.
        saturation: Defaults to 0.25.

    Raises:
        ValueError: If a value is out of range.

    Example:

    ```python
    import numpy as np
    from tfseg_prune import data

    image, label = data.load("streets", "train", count=1)[0]
    augment = data.Augment(scale=(0.75, 1.5))
    image, label = augment(image, label, np.random.default_rng(0), (96, 128), 255)
    ```
    """

    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    shift: int = 0
    brightness: float = 0.25
    contrast: float = 0.25
    saturation: float = 0.25

    def __post_init__(self):
        # A list (from a JSON file or a config) would make the value unhashable.
        object.__setattr__(self, "scale", tuple(self.scale))
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] < float("inf"):
            raise ValueError(
                "Invalid scale. Expected: (least, greatest), both positive. "
                f"Received: {self.scale}."
            )
        whole = isinstance(self.shift, numbers.Integral) and not isinstance(self.shift, bool)
        if not whole or self.shift < 0:
            raise ValueError(
                f"Invalid shift. Expected: an integer of 0 or more. Received: {self.shift!r}."
            )
        for name in ("brightness", "contrast", "saturation"):
            value = getattr(self, name)
            if not isinstance(value, numbers.Real) or not 0 <= value <= 1:
                raise ValueError(
                    f"Invalid {name}. Expected: a number in [0, 1]. Received: {value!r}."
                )

    def __call__(
        self,
        image: np.ndarray,
        label: np.ndarray,
        rng: np.random.Generator,
        image_size: tuple[int, int],
        ignore_index: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws one random version of a sample.

        Args:
            image: uint8 `[height, width, 3]`.
            label: uint8 `[height, width]`.
            rng: The source of randomness. The same number of values is drawn on every call.
            image_size: `(height, width)` of the result.
            ignore_index: The id that pads the label.

        Returns:
            The image, float32 `[*image_size, 3]` in [0, 255], and the label, uint8 `image_size`.
        """
        scale = rng.uniform(*self.scale)
        places = rng.random(2)
        flip = self.flip and rng.random() < 0.5
        jitter = rng.uniform(-1, 1, 3)
        shift = rng.integers(-self.shift, self.shift + 1, 2)

        # One span an axis: which target pixels are image, and which source pixels they come from.
        spans = [_span(n, t, scale, p) for n, t, p in zip(label.shape, image_size, places)]
        (top, bottom, y0, y1), (left, right, x0, x1) = spans
        size, box = (bottom - top, right - left), (x0, y0, x1, y1)
        inside = (slice(top, bottom), slice(left, right))
        new_image = np.full((*image_size, 3), PADDING, np.float32)
        new_label = np.full(image_size, ignore_index, np.uint8)
        new_image[inside] = self._jitter(images.resize_image(image, size, box), jitter)
        new_label[inside] = images.resize_label(label, size, box)
        if flip:
            new_image, new_label = new_image[:, ::-1], new_label[:, ::-1]
        if shift.any():
            new_image = _shifted(new_image, shift, PADDING)
            new_label = _shifted(new_label, shift, ignore_index)
        return new_image, new_label

    def _jitter(self, image, draws):
        factors = 1 + draws * (self.brightness, self.contrast, self.saturation)
        brightness, contrast, saturation = factors.astype(np.float32)
        image = image.astype(np.float32)
        grey = image @ _LUMA
        # Both mixes in one pass: saturation towards the pixel's grey, contrast towards the mean.
        image = saturation * image + ((1 - saturation) * grey)[..., None]
        mean = grey.mean()
        image = brightness * (mean + contrast * (image - mean))
        return np.clip(image, 0, 255, out=image)


def _shifted(array, shift, padding):
    """The array moved down and to the right by so many pixels."""
    moved = np.full_like(array, padding)
    there, here = (
        tuple(slice(max(s, 0), max(n + s, 0)) for n, s in zip(array.shape, way))
        for way in (shift, -shift)
    )
    moved[there] = array[here]
    return moved


def _span(source, target, scale, place):
    scaled = max(1, round(target * scale))
    pixel = source / scaled
    if scaled >= target:
        start = int(place * (scaled - target + 1))
        return 0, target, start * pixel, min((start + target) * pixel, source)
    start = int(place * (target - scaled + 1))
    return start, start + scaled, 0, source
