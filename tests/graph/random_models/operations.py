"""Less common layers and operations in random models. See `tests.graph.random_models`."""

from tests.graph.random_models.attention import back, tokens
from tests.graph.random_models.drawing import move
from tests.graph.random_models.moves import activate


@move(2, 3)
def blocks_and_channels(d, i):
    """Pixels as channels and channels as pixels."""
    height, width, channels = d.shape(i)
    kind = d.rng.randrange(3)
    if kind == 0 and channels % 4 == 0 and height * width <= 64:
        return d.op("depth_to_space", i, block_size=2)
    if height % 2 or width % 2 or channels > 8:
        return None
    if kind == 1:
        return d.op("space_to_depth", i, block_size=2)
    return d.op("image.extract_patches", i, size=2, strides=2)


@move(3, 1, 2, 3)
def repeated(d, i):
    rank = len(d.shape(i))
    axis = d.rng.randint(1, rank)
    if d.shape(i)[axis - 1] > 8:
        return None
    if d.chance(50):
        return d.op("repeat", i, repeats=2, axis=axis)
    return d.op("tile", i, repeats=[2 if a == axis else 1 for a in range(rank + 1)])


@move(2, 1, 2, 3)
def roll(d, i):
    return d.op("roll", i, shift=d.choice(1, 2, -1), axis=d.rng.randint(1, len(d.shape(i))))


@move(3, 1, 2, 3)
def where(d, i):
    """The larger or the smaller of two tensors: of others a rounding would make a jump."""
    j = d.partner(i)
    return d.op("where", d.op(d.choice("greater", "less_equal"), i, j), i, j)


@move(2, 1, 2, 3)
def gated_linear_unit(d, i):
    if d.shape(i)[-1] % 2:
        return None
    return d.op("glu", i)


@move(3, 2, 3)
def along_places(d, i):
    """What mixes the places and leaves the channels apart."""
    rank = len(d.shape(i))
    axis = d.rng.randint(1, rank - 1)
    name = d.choice("cumsum", "sort", "normalize", "log_softmax")
    return d.op(name, i, axis=axis)


@move(2, 1, 2, 3)
def sum_of_channels(d, i):
    """What sums over the channels: with less of them it is the same sum of what stays."""
    kind = d.rng.randrange(4)
    if kind == 0:
        return d.op("multiply", i, d.op("mean", i, axis=-1, keepdims=True))
    if kind == 1:
        norm = d.with_constant("add", d.op("norm", i, axis=-1, keepdims=True), [])
        return d.op("divide", i, norm)
    if kind == 2:
        return d.op("normalize", i, axis=-1)
    return d.op("rms_normalization", i)


@move(2, 2, 3)
def constant_product(d, i):
    """A matrix or a kernel that nobody learns, as a blur or a colour space has it."""
    width = d.shape(i)[-1]
    if len(d.shape(i)) == 3 and d.chance(50):
        step = {"op": "conv", "constant": [3, 3, width, d.choice(2, 4)], "on": [i]}
        return d.add(step | {"with": {"padding": "same"}})
    return d.with_constant("matmul", i, [width, d.choice(2, 4, 6)])


@move(2, 2, 3)
def rescaling(d, i):
    scale = [0.5 + 0.1 * channel for channel in range(d.shape(i)[-1])]
    return d.layer("Rescaling", i, scale=scale, offset=d.choice(0.0, 0.25))


@move(2, 3)
def adaptive_pooling(d, i):
    if min(d.shape(i)[:2]) < 4:
        return None  # a larger answer than its input ends the process (on TensorFlow)
    name = f"Adaptive{d.choice('Average', 'Max')}Pooling2D"
    return d.layer(name, i, output_size=[d.choice(1, 2, 3), d.choice(2, 4)])


@move(1, 2, 3)
def in_every_step(d, i):
    """A layer that is called on every token, or on every row of a map."""
    layer = "Dense" if len(d.shape(i)) == 2 else "Conv1D"
    settings = {"units": d.width()} if layer == "Dense" else {"filters": 6, "kernel_size": 1}
    return d.add({"layer": layer, "inside": "TimeDistributed", "with": settings, "on": [i]})


@move(2, 2, 3)
def bare_attention(d, i):
    x = tokens(d, i)
    count, width = d.shape(x)
    kind = d.rng.randrange(4)
    if kind == 0 and width % 2 == 0:
        parts = []
        for _ in range(3):
            part = d.layer("Dense", x, units=width)
            parts.append(d.reshape(part, (count, 2, width // 2)))
        y = d.reshape(d.op("dot_product_attention", *parts), (count, width))
    elif kind == 1:
        source = d.adapt(tokens(d, d.to_rank(d.any_tensor(), (1, 1))), (count, width))
        y = d.layer("Dot", [x, source], axes=d.choice(1, 2))
    else:
        value = d.layer("Dense", x, units=width)
        y = d.layer(d.choice("Attention", "AdditiveAttention"), [x, value], use_scale=d.chance(50))
    return back(d, activate(d, y), d.shape(i))
