"""Attention over images in four dimensions, which GPU delegates refuse, over lists of pixels."""

import math

from keras import layers

from tfseg_prune.deploy.forms import Lowering
from tfseg_prune.deploy.lowered_shapes import Moves
from tfseg_prune.graph.nodes import again, tensors_in


def attention_over_images(node, graph, choice):
    """The `Lowering` of `MultiHeadAttention` of `[batch, height, width, channels]`.

    Attention along all pixels is that of one list; along rows or columns alone, of many lists.
    """
    mha = node.operation
    if type(mha) is not layers.MultiHeadAttention:
        return None
    args, kwargs = node.arguments.args, node.arguments.kwargs
    others = {k: v for k, v in kwargs.items() if k not in ("query", "value", "key", "training")}
    given = [*args, *(kwargs[k] for k in ("query", "value", "key") if k in kwargs)]
    given = [x for x in given if x is not None]
    if any(value is not None and value is not False for value in others.values()):
        return None
    if len(given) > 3 or len(tensors_in(given)) != len(given):
        return None
    shapes = [tuple(x.shape) for x in given]
    if any(len(shape) != 4 or None in shape[1:] for shape in shapes):
        return None
    axes = mha.get_config()["attention_axes"]
    axes = (1, 2) if axes is None else tuple(sorted(axis % 4 for axis in _listed(axes)))
    if axes not in ((1,), (2,), (1, 2)):
        return None
    kind = {(1, 2): "all pixels: one list", (1,): "columns: a list each", (2,): "rows: a list each"}
    return Lowering(f"attention over images, along {kind[axes]}", _attention, (axes, *shapes))


def _listed(axes):
    return [axes] if isinstance(axes, int) else axes


def _attention(mha, name, fresh, axes, *shapes):
    flat = [_flat(shape, axes) for shape in shapes]
    new = again(mha, {"name": fresh(f"{name}_lists"), "attention_axes": (1,)}, blank=True)
    new.build(*((None, *shape[-1][1][1:]) for shape in flat))
    new.set_weights(mha.get_weights())
    before = [Moves(steps, name=fresh(f"{name}_list"), dtype=mha.dtype_policy) for steps in flat]
    height, width, _ = shapes[0][1:]
    channels = mha.get_config()["output_shape"] or shapes[0][3:]
    channels = channels if isinstance(channels, int) else math.prod(channels)
    back = [("reshape", (-1, height, width, channels))]
    if axes == (1,):
        back = [("reshape", (-1, width, height, channels)), ("transpose", (0, 2, 1, 3))]
    behind = Moves(back, name=name, dtype=mha.dtype_policy)
    # Keras' attention takes one tensor for query and value alike, to look at itself.
    return lambda *xs: behind(new(*(move(x) for move, x in zip(before, xs))))


def _flat(shape, axes):
    """Steps from `[batch, height, width, channels]` to `[lists, pixels, channels]`."""
    _, height, width, channels = shape
    if axes == (1,):
        return (("transpose", (0, 2, 1, 3)), ("reshape", (-1, height, channels)))
    pixels = width if axes == (2,) else height * width
    return (("reshape", (-1, pixels, channels)),)
