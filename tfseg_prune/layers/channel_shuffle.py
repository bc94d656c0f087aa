"""Channel shuffle, of plain Keras layers that phones run."""

import numbers

from keras import layers


def channel_shuffle(x, groups, name):
    """Deals the channels of each group out to all groups, so that grouped convolutions mix.

    Channel `k c / g + j` of c, the j-th of group k of g, becomes channel `j g + k`: of 8 channels
    in 2 groups the order is 0, 4, 1, 5, 2, 6, 3, 7. `channel_shuffle(x, c // g, name)` undoes it.

    No tensor on the way has more than 4 axes, since GPU delegates take no more: the pixels are one
    axis meanwhile. The layers are Keras' own, so that a saved model needs nothing of this package
    and the channel graph knows them.

    Args:
        x: Symbolic tensor `[batch, height, width, channels]`; the height or the width may be open.
        groups: int, at least 1, divides the channels.
        name: str, prefix of the names of the layers `_split`, `_permute` and `_join`.

    Returns:
        Symbolic tensor of the shape of `x`.

    Raises:
        ValueError: If the groups don't divide the channels, or if `x` is no image of a known size.
    """
    if len(x.shape) != 4 or x.shape[3] is None or x.shape[1:3] == (None, None):
        raise ValueError(
            f"Can't shuffle the channels at '{name}'. Expected: a tensor [batch, height, width,"
            " channels], of whose height and width one may be open. Received: shape"
            f" {tuple(x.shape)}. Remedy: build the model on `keras.Input((height, width, 3))`."
        )
    _, height, width, channels = x.shape
    count = isinstance(groups, numbers.Integral) and not isinstance(groups, bool) and groups >= 1
    if not count or channels % groups:
        raise ValueError(
            f"Can't shuffle the channels at '{name}'. Expected: a positive number of groups that"
            f" divides the {channels} channels. Received: {groups!r}."
        )
    pixels = -1 if None in (height, width) else height * width
    x = layers.Reshape((pixels, groups, channels // groups), name=f"{name}_split")(x)
    x = layers.Permute((1, 3, 2), name=f"{name}_permute")(x)
    image = tuple(-1 if size is None else size for size in (height, width))
    return layers.Reshape((*image, channels), name=f"{name}_join")(x)
