"""The arguments that all networks share: checked once, in one form."""

import numbers

import keras


def check_choice(name, value, choices):
    """Raises a ValueError unless `value` is one of `choices`."""
    if isinstance(value, bool) or value not in choices:
        expected = ", ".join(map(str, choices))
        raise ValueError(f"Invalid `{name}`. Expected: one of {expected}. Received: {value!r}.")


def check_fraction(name, value):
    """Raises a ValueError unless `value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise ValueError(f"Invalid `{name}`. Expected: a number in [0, 1). Received: {value!r}.")


def check_count(name, value):
    """Raises a ValueError unless `value` is a positive integer."""
    if not _is_count(value):
        raise ValueError(f"Invalid `{name}`. Expected: a positive integer. Received: {value!r}.")


def check_flag(name, value):
    """Raises a ValueError unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"Invalid `{name}`. Expected: True or False. Received: {value!r}.")


def check_counts(name, values, *, length=None):
    """Raises a ValueError unless `values` are positive integers, `length` of them if given."""
    counts = values if isinstance(values, (tuple, list)) else ()
    if not counts or not all(map(_is_count, counts)) or len(counts) != (length or len(counts)):
        raise ValueError(
            f"Invalid `{name}`. Expected: {length or 'one or more'} positive integers. "
            f"Received: {values!r}."
        )


def check_image_shape(input_shape, *, at_least=1, multiple_of=1):
    """Raises a ValueError unless `input_shape` is `(height, width, 3)`, of a size that is taken.

    Args:
        input_shape: What the user gave.
        at_least: int, least height and width in pixels. Defaults to `1`.
        multiple_of: int, what the height and width must be divisible by. Defaults to `1`.
    """
    shape = tuple(input_shape) if isinstance(input_shape, (tuple, list)) else (input_shape,)
    if len(shape) != 3 or not all(map(_is_count, shape)) or shape[-1] != 3:
        raise ValueError(
            "Invalid `input_shape`. Expected: (height, width, 3), RGB with a fixed size in pixels "
            f"(weights may move between sizes by `get_weights`). Received: {input_shape!r}."
        )
    if any(side < at_least or side % multiple_of for side in shape[:2]):
        raise ValueError(
            f"Invalid `input_shape`. Expected: height and width of at least {at_least} and "
            f"divisible by {multiple_of} (crop or pad the images). Received: {input_shape!r}."
        )


def image_input(input_shape):
    """The images `[batch, height, width, 3]` in [0, 255], and the same rescaled to [-1, 1]."""
    images = keras.Input(tuple(input_shape), name="images")
    return images, keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="backbone_rescale")(images)


def _is_count(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value >= 1
