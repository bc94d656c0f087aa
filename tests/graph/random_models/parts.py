"""Parts of tensors, and other shapes of the same values. See `tests.graph.random_models`."""

import math

from tests.graph.random_models.drawing import move
from tests.graph.random_models.meetings import merge
from tests.graph.random_models.moves import activate


@move(5, 1, 2, 3, 4)
def split(d, i):
    rank = len(d.shape(i))
    axis = rank if d.chance(75) else d.rng.randint(1, rank)
    length = d.shape(i)[axis - 1]
    if length < 2:
        return None
    named = -1 if axis == rank and d.chance(50) else axis
    if d.chance(50) and d.divisor(length) > 1:
        parts = d.op("split", i, indices_or_sections=d.divisor(length), axis=named)
    else:
        points = sorted(set(d.rng.randint(1, length - 1) for _ in range(2)))
        parts = d.op("split", i, indices_or_sections=points, axis=named)
    if d.chance(40):
        # Each part goes its own way, as in Res2Net and CSP blocks, and they meet again.
        parts = [activate(d, part) if d.chance(50) else part for part in parts]
        d.rng.shuffle(parts)
        return d.layer("Concatenate", parts, axis=axis)
    return d.rng.choice(parts)


@move(6, 1, 2, 3, 4)
def python_slice(d, i):
    rank = len(d.shape(i))
    axis = rank if d.chance(70) else d.rng.randint(1, rank)
    length = d.shape(i)[axis - 1]
    if length < 3:
        return None
    start = d.rng.randrange(length - 1)
    key = [start, d.rng.randint(start + 1, length), d.choice(None, 1, 2)]
    kind = d.rng.randrange(10)
    if kind == 0:
        key = [None, None, -1]
    elif kind == 1:
        key = [-d.rng.randint(1, length), None, None]
    elif kind == 2 and rank > 1:
        key = d.rng.choice([0, -1, length // 2])
    if axis == rank and d.chance(60):
        return d.slice(i, "...", key)
    rest = [[None, None, None]] * axis + [key]
    if d.chance(10):
        rest.insert(d.rng.randint(1, axis), None)
    return d.slice(i, *rest)


@move(4, 1, 2, 3)
def take(d, i):
    rank = len(d.shape(i))
    axis = rank if d.chance(75) else d.rng.randint(1, rank)
    length = d.shape(i)[axis - 1]
    indices = [d.rng.randrange(length) for _ in range(d.rng.randint(1, min(length, 9)))]
    if rank > 1 and d.chance(15):
        indices = indices[0]
    elif d.chance(30):
        indices = [index - length for index in indices]
    return d.op("take", i, indices=indices, axis=-1 if axis == rank else axis)


@move(3, 1, 2, 3)
def pad_channels(d, i):
    edges = [[0, 0]] * len(d.shape(i)) + [[d.rng.randrange(3), d.rng.randint(1, 4)]]
    i = d.op("pad", i, pad_width=edges)
    return merge(d, i) if d.chance(50) else i


@move(2, 1, 2, 3, 4)
def flip(d, i):
    return d.op("flip", i, axis=d.rng.randint(1, len(d.shape(i))))


@move(2, 2, 3, 4)
def unstack(d, i):
    axis = d.rng.randint(1, len(d.shape(i)))
    if not 2 <= d.shape(i)[axis - 1] <= 6:
        return None
    return d.rng.choice(d.op("unstack", i, axis=axis))


@move(4, 2, 3, 4)
def reduction(d, i):
    rank = len(d.shape(i))
    axes = d.rng.sample(range(1, rank), d.rng.randint(1, rank - 1))
    if d.chance(10):
        axes = [rank]
    name = d.choice("mean", "mean", "max", "sum", "min", "var", "std")
    keepdims = rank - len(axes) < 1 or d.chance(50)
    return d.op(name, i, axis=sorted(axes), keepdims=keepdims)


# Other shapes of the same values.


@move(3, 2, 3, 4)
def moved_axes(d, i):
    """Axes change places, something happens, and mostly they go back."""
    rank = len(d.shape(i))
    axes = list(range(1, rank + 1))
    d.rng.shuffle(axes)
    axes = [0, *axes]
    kind = d.rng.randrange(4)
    if kind == 0:
        one, other = d.rng.randint(1, rank), d.rng.randint(1, rank)
        name = d.choice("swapaxes", "moveaxis")
        if name == "swapaxes":
            return d.op(name, d.op(name, i, axis1=one, axis2=other), axis1=one, axis2=other)
        i = d.op(name, i, source=one, destination=other)
        return d.op(name, activate(d, i), source=other, destination=one)
    i = d.transpose(i, axes)
    if d.chance(30):
        i = d.layer("BatchNormalization", i, axis=axes.index(rank))
    if d.chance(30):
        i = d.op("relu", i)
    if d.chance(80):
        i = d.transpose(i, [axes.index(axis) for axis in range(rank + 1)])
    return i


@move(3, 2, 3)
def tokens_and_maps(d, i):
    here = d.shape(i)
    if len(here) == 3:
        return d.reshape(i, (here[0] * here[1], here[2]))
    height = d.divisor(here[0], most=8)
    return d.reshape(i, (height, here[0] // height, here[1]))


@move(4, 2, 3)
def channel_shuffle(d, i):
    """In one more dimension, or in four as the phones want it."""
    *sizes, width = d.shape(i)
    groups = d.divisor(width, most=6)
    if groups == 1:
        return None
    if d.chance(50):
        sizes = [sizes[0] * sizes[1]] if len(sizes) == 2 else sizes
    x = d.reshape(i, (*sizes, groups, width // groups))
    rank = len(sizes)
    x = d.transpose(x, [*range(rank + 1), rank + 2, rank + 1])
    return d.reshape(x, d.shape(i))


@move(2, 1, 2, 3)
def split_channels(d, i):
    """The channels as an axis of groups and one within them; something happens to the groups."""
    *sizes, width = d.shape(i)
    groups = d.divisor(width, most=6)
    if groups == 1:
        return None
    x = d.reshape(i, (*sizes, groups, width // groups))
    kind = d.rng.randrange(5)
    axis = len(sizes) + 1
    if kind == 0:
        return d.op(d.choice("mean", "max", "sum"), x, axis=axis + d.rng.randrange(2))
    if kind == 1:
        x = d.op("flip", x, axis=axis)
    elif kind == 2:
        x = d.with_constant("multiply", x, [groups, 1])
    elif kind == 3:
        x = d.slice(x, *[[None, None, None]] * axis, d.rng.randrange(groups))
    return d.reshape(x, (*sizes, math.prod(d.shape(x)) // math.prod(sizes)))


@move(3, 3)
def pixel_shuffle(d, i):
    height, width, channels = d.shape(i)
    if height * width > 64 or channels % 4:
        return None
    x = d.reshape(i, (height, width, 2, 2, channels // 4))
    x = d.op("transpose", x, axes=[0, 1, 3, 2, 4, 5])
    return d.reshape(x, (2 * height, 2 * width, channels // 4))


# Constants.


@move(5, 1, 2, 3, 4)
def with_a_constant(d, i):
    name = d.choice("multiply", "add", "subtract", "maximum")
    here = list(d.shape(i))
    shapes = [[], here[-1:], here[-1:], here]
    if sum(size > 1 for size in here[:-1]) != 1:
        shapes.append([*here[:-1], 1])
    return d.with_constant(name, i, d.rng.choice(shapes), first=d.chance(30))
