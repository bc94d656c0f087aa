"""What a random model is made of: layers, merges, shapes. See `tests.graph.random_models`."""

import math

from tests.graph.random_models.drawing import move

_ELEMENTWISE = "relu relu6 silu gelu tanh sigmoid elu softplus hard_silu leaky_relu".split()
_OPERATIONS = _ELEMENTWISE + "abs sin erf square softsign negative hard_tanh".split()


def dimensional(d, i, name):
    """`Conv` + rank: Conv1D on tokens, Conv2D on maps."""
    return f"{name}{len(d.shape(i)) - 1}D"


def after(d, i):
    """What usually follows a convolution."""
    if d.chance(50):
        i = d.layer("BatchNormalization", i)
    return activate(d, i) if d.chance(60) else i


def activate(d, i):
    kind = d.rng.randrange(4)
    if kind == 0:
        return d.layer("ReLU", i)
    if kind == 1:
        return d.layer("Activation", i, activation=d.choice(*_ELEMENTWISE))
    if kind == 2:
        return d.op(d.choice(*_OPERATIONS), i)
    return prelu(d, i)


# Layers with a kernel.


@move(14, 2, 3, 4)
def convolution(d, i):
    *sizes, width = d.shape(i)
    if len(sizes) == 3 and max(sizes) > 8:
        return None
    kernel = d.choice(1, 1, 3, 3, 2)
    settings = {"filters": d.width(), "kernel_size": kernel}
    if len(sizes) == 2 and kernel == 3 and d.chance(25):
        settings["kernel_size"] = d.choice([1, 3], [3, 1])
    if min(sizes) < kernel or d.chance(75):
        settings["padding"] = "same"
    elif min(sizes) >= 7 and d.chance(30):
        settings["dilation_rate"] = 2
    if "dilation_rate" not in settings and min(sizes) >= 4 and d.chance(25):
        settings["strides"] = 2
    elif settings.get("padding") == "same" and len(sizes) < 3 and d.chance(15):
        settings["dilation_rate"] = d.choice(2, 3)
    if len(sizes) < 3 and d.chance(25):
        groups = d.divisor(width) if d.chance(70) else width
        settings |= {"groups": groups, "filters": groups * d.choice(1, 2, 3)}
    if d.chance(20):
        settings["activation"] = d.choice(*_ELEMENTWISE)
    if d.chance(40):
        settings["use_bias"] = False
    return after(d, d.layer(dimensional(d, i, "Conv"), i, **settings))


@move(4, 2, 3)
def depthwise(d, i):
    settings = {"kernel_size": d.choice(1, 3), "padding": "same"}
    if d.shape(i)[-1] <= 12:
        settings["depth_multiplier"] = d.choice(1, 1, 2, 3)
    if d.chance(20):
        settings["dilation_rate"] = 2
    elif min(d.shape(i)[:-1]) >= 4 and d.chance(25):
        settings["strides"] = 2
    return after(d, d.layer(dimensional(d, i, "DepthwiseConv"), i, **settings))


@move(3, 2, 3)
def separable(d, i):
    settings = {"filters": d.width(), "kernel_size": 3, "padding": "same"}
    settings |= {"depth_multiplier": d.choice(1, 1, 2), "use_bias": d.chance(50)}
    if d.chance(20):
        settings["dilation_rate"] = 2
    elif min(d.shape(i)[:-1]) >= 4 and d.chance(25):
        settings["strides"] = 2
    return after(d, d.layer(dimensional(d, i, "SeparableConv"), i, **settings))


@move(3, 2, 3)
def transposed(d, i):
    strides = d.choice(1, 2) if max(d.shape(i)[:-1]) <= 8 else 1
    settings = {"filters": d.width(), "kernel_size": d.choice(2, 3), "strides": strides}
    settings |= {"padding": d.choice("same", "valid"), "use_bias": d.chance(60)}
    return after(d, d.layer(dimensional(d, i, "Conv") + "Transpose", i, **settings))


@move(4, 1, 2, 3, 4)
def dense(d, i):
    return after(d, d.layer("Dense", i, units=d.width(), use_bias=d.chance(60)))


@move(2, 2, 3)
def einsum_dense(d, i):
    """Over the channels, over channels that become heads, or over places."""
    width, rank = d.width(), len(d.shape(i))
    letters = "bcd"[:rank]
    kind = d.rng.randrange(3)
    if kind == 0:
        equation, shape = f"{letters}x,xy->{letters}y", [*d.shape(i)[:-1], width]
    elif kind == 1:
        # Keras adds a bias `[heads, 1]` along axis 1 where that is as long (on TensorFlow).
        heads = 3 if d.shape(i)[0] == 2 else 2
        equation, shape = f"{letters}x,xyz->{letters}yz", [*d.shape(i)[:-1], heads, 4]
    else:
        equation, shape = f"{letters}x,cw->bw{letters[2:]}x", [width, *d.shape(i)[1:]]
    bias = d.choice(None, equation[-1] if kind < 2 else None, "yz" if kind == 1 else None)
    return d.layer("EinsumDense", i, equation=equation, output_shape=shape, bias_axes=bias)


@move(2, 2, 3)
def flatten_and_dense(d, i):
    while max(d.shape(i)[:-1]) > 4:
        i = d.layer(dimensional(d, i, "AveragePooling"), i, pool_size=2, padding="same")
    flat = (math.prod(d.shape(i)),)
    i = d.layer("Flatten", i) if d.chance(60) else d.reshape(i, flat)
    return d.layer("Dense", i, units=d.width(), activation="relu")


# Normalisation and activations.


@move(5, 1, 2, 3, 4)
def batch_normalization(d, i):
    axis = 1 if d.chance(8) else -1
    return d.layer("BatchNormalization", i, axis=axis, center=d.chance(80), scale=d.chance(80))


@move(3, 2, 3)
def normalization(d, i):
    """Normalisations that look along the channels, or at groups of them."""
    width = d.shape(i)[-1]
    kind = d.rng.randrange(6)
    if kind == 0:
        return d.layer("LayerNormalization", i, axis=d.choice([-1], [1]))
    if kind == 1:
        return d.layer("RMSNormalization", i)
    if kind == 2:
        return d.layer("UnitNormalization", i, axis=d.choice([-1], [1]))
    groups = d.choice(-1, 1, d.divisor(width), d.divisor(width))
    return d.layer("GroupNormalization", i, groups=groups)


@move(4, 1, 2, 3, 4)
def activation(d, i):
    return activate(d, i)


@move(2, 1, 2, 3)
def prelu(d, i):
    rank = len(d.shape(i))
    shared = list(range(1, rank)) if d.chance(70) else d.rng.choice([[], [rank], [1]])
    return d.layer("PReLU", i, shared_axes=shared or None)


@move(1, 2, 3)
def softmax(d, i):
    axis = d.choice(1, 1, 1, -1)
    return d.layer("Softmax", i, axis=axis) if d.chance(50) else d.op("softmax", i, axis=axis)


@move(1, 1, 2, 3)
def noise(d, i):
    names = ["Dropout", "GaussianDropout"]
    if len(d.shape(i)) == 3:
        names.append("SpatialDropout2D")
    return d.layer(d.choice(*names), i, rate=0.3)


# Sizes.


@move(4, 2, 3)
def pooling(d, i):
    if min(d.shape(i)[:-1]) < 2:
        return None
    kind = d.choice("Max", "Average")
    settings = {"pool_size": 2, "strides": d.choice(1, 2), "padding": d.choice("same", "valid")}
    if d.chance(20):
        return d.op(f"{kind.lower()}_pool", i, **settings)
    return d.layer(dimensional(d, i, kind + "Pooling"), i, **settings)


@move(2, 2, 3)
def global_pooling(d, i):
    name = dimensional(d, i, f"Global{d.choice('Max', 'Average')}Pooling")
    return d.layer(name, i, keepdims=d.chance(60))


@move(4, 3)
def image_pooling_branch(d, i):
    """Of ASPP and pyramid pooling: pooled, projected, brought back, concatenated."""
    pooled = d.layer("GlobalAveragePooling2D", i, keepdims=True)
    if d.chance(50) and min(d.shape(i)[:2]) >= 4:
        pooled = d.layer("AveragePooling2D", i, pool_size=d.choice(2, 4))
    pooled = after(d, d.layer("Conv2D", pooled, filters=d.width(), kernel_size=1))
    if d.shape(pooled)[:2] != d.shape(i)[:2]:
        pooled = d.to_size(pooled, d.shape(i))
    return d.layer("Concatenate", [i, pooled])


@move(3, 2, 3)
def upsampling(d, i):
    if max(d.shape(i)[:-1]) > 8:
        return None
    if len(d.shape(i)) == 2:
        return d.layer("UpSampling1D", i, size=2)
    return d.to_size(i, (*(2 * n for n in d.shape(i)[:2]), d.shape(i)[2]))


@move(2, 3)
def resizing(d, i):
    return d.to_size(i, (d.choice(4, 6, 8), d.choice(4, 8, 9), d.shape(i)[2]))


@move(2, 2, 3)
def pad_or_crop(d, i):
    places = len(d.shape(i)) - 1
    edges = [[d.rng.randrange(2), d.rng.randrange(3)] for _ in range(places)]
    if d.chance(50) and min(d.shape(i)[:-1]) > 4:
        name, key = "Cropping", "cropping"
    elif d.chance(50):
        name, key = "ZeroPadding", "padding"
    else:
        mode = d.choice("constant", "reflect" if min(d.shape(i)[:-1]) > 2 else "constant")
        return d.op("pad", i, pad_width=[[0, 0], *edges, [0, 0]], mode=mode)
    return d.layer(dimensional(d, i, name), i, **{key: edges if places > 1 else edges[0]})


# Where tensors meet.


@move(12, 1, 2, 3, 4)
def merge(d, i):
    j = d.partner(i)
    both = d.rng.choice([[i, j], [j, i]])
    name = d.choice("add", "add", "multiply", "subtract", "maximum", "minimum", "average")
    if d.chance(60) or name == "average":
        if d.chance(15):
            both.append(d.partner(i))
        if name == "subtract":
            both = both[:2]
        return d.layer(name.capitalize(), both)
    return d.op(name, *both)


@move(1, 2, 3)
def quotient(d, i):
    below = d.with_constant("add", d.op("softplus", d.partner(i)), [])
    return d.op("divide", i, below)


@move(5, 3)
def gate(d, i):
    """Squeeze and excite, of its own tensor or another."""
    width = d.shape(i)[-1]
    source = i if d.chance(70) else d.to_rank(d.any_tensor(), d.shape(i))
    wants_map = d.chance(60)
    s = d.layer("GlobalAveragePooling2D", source, keepdims=wants_map)
    if wants_map:
        s = d.layer("Conv2D", s, filters=d.width(), kernel_size=1, activation="relu")
        s = d.layer("Conv2D", s, filters=width, kernel_size=1, activation="sigmoid")
    else:
        s = d.layer("Dense", s, units=d.width(), activation="silu")
        s = d.layer("Dense", s, units=width, activation=d.choice("sigmoid", "hard_sigmoid"))
        s = d.reshape(s, (1, 1, width))
    return d.layer("Multiply", [i, s]) if d.chance(60) else d.op("multiply", i, s)


@move(7, 1, 2, 3, 4)
def concatenation(d, i):
    rank = len(d.shape(i))
    axis = -1 if rank == 1 or d.chance(80) else d.rng.randint(1, rank)
    parts = [i]
    for _ in range(d.choice(1, 1, 2)):
        j = d.real(d.any_tensor(but=i))
        if axis not in (-1, rank) or d.shape(j)[:-1] != d.shape(i)[:-1]:
            j = d.adapt(j, d.shape(i))
        parts.append(j)
    d.rng.shuffle(parts)
    if d.chance(60):
        return d.layer("Concatenate", parts, axis=axis)
    return d.op("concatenate", parts, axis=axis)


@move(2, 1, 2, 3)
def stack(d, i):
    parts = [i, d.partner(i, exact=True)]
    rank = len(d.shape(i))
    axis = d.rng.randint(1, rank + 1)
    i = d.op("stack", parts, axis=axis)
    if d.chance(70):
        return d.op(d.choice("mean", "sum", "max"), i, axis=axis)
    shape = d.shape(i)
    if axis == rank + 1 or axis == rank:
        return d.reshape(i, (*shape[:-2], shape[-2] * shape[-1]))
    return i


# Layers that take any number of places.
_ANY_SIZE = "BatchNormalization DepthwiseConv2D LeakyReLU ReLU ELU Activation Dropout".split()


@move(7, 1, 2, 3)
def again(d, i):
    """A layer or model that is there already, on something else."""
    found = []
    for number, step in enumerate(d.recipe["steps"]):
        if "model" in step or ("layer" in step and not isinstance(step["on"][0], list)):
            found.append(number)
    if not found:
        return None
    number = d.rng.choice(found)
    step, (sources, _) = d.recipe["steps"][number], d.sources[number]
    if any(d.building.tensors[s].dtype == "int32" for s in sources):
        return None
    given = []
    for source in sources:
        shape = d.shape(source)
        alike = [j for j in range(len(d.building.tensors)) if d.shape(j) == shape and j != source]
        same_padding = step.get("with", {}).get("padding") == "same"
        if alike and d.chance(50):
            given.append(d.real(d.rng.choice(alike)))
        elif step.get("layer") == "Dense" and d.chance(50):
            given.append(d.project(i, shape[-1]) if d.shape(i)[-1] != shape[-1] else i)
        elif step.get("layer") in _ANY_SIZE or (step.get("layer") == "Conv2D" and same_padding):
            j = d.to_rank(i, shape)
            given.append(d.project(j, shape[-1]) if d.shape(j)[-1] != shape[-1] else j)
        else:
            given.append(d.adapt(i if d.chance(60) else d.any_tensor(), shape))
    answer = d.add({"again": number, "on": given})
    return answer if isinstance(answer, int) else d.rng.choice(answer)


@move(5, 2, 3)
def nested_model(d, i):
    if d.level == 2:
        return None
    if len(d.shape(i)) == 3 and d.chance(25):
        return sequential(d, i)
    given = [i]
    if d.chance(30):
        given.append(d.real(d.any_tensor(but=i)))
    recipe = d.nested([d.shape(j) for j in given], d.choice(1, 2, 3))
    step = {"model": recipe, "on": given}
    answer = d.add(step | {"call": {"training": False}} if d.chance(20) else step)
    return answer if isinstance(answer, int) else d.rng.choice(answer)


def sequential(d, i):
    steps = [
        {"layer": "Conv2D", "with": {"filters": d.width(), "kernel_size": 1}},
        {"layer": "BatchNormalization"},
        {"layer": d.choice("ReLU", "LeakyReLU", "ELU")},
        {"layer": "SeparableConv2D", "with": {"filters": d.width(), "kernel_size": 1}},
    ]
    steps = steps[: d.choice(2, 3, 4)]
    steps = [step | {"on": [number]} for number, step in enumerate(steps)]
    recipe = {"inputs": [list(d.shape(i))], "steps": steps, "outputs": [len(steps)]}
    return d.add({"model": recipe | {"sequential": True}, "on": [i]})


# Parts of tensors.


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
