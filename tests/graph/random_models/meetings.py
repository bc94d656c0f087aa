"""Where tensors of a random model meet, and layers serve twice. See `tests.graph.random_models`."""

from tests.graph.random_models.drawing import move


@move(12, 1, 2, 3, 4)
def merge(d, i):
    name = d.choice("add", "add", "multiply", "subtract", "maximum", "minimum", "average")
    # Keras adds `[2, 1, 1, 1]`, two images, along rows where there are two (on TensorFlow).
    exact = name in ("add", "average")
    j = d.partner(i, exact)
    both = d.rng.choice([[i, j], [j, i]])
    if d.chance(60) or name == "average":
        if d.chance(15):
            both.append(d.partner(i, exact))
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
        alike = [j for j in d.usable() if d.shape(j) == shape and j != source]
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
