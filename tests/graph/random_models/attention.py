"""Attention and positions in random models. See `tests.graph.random_models`."""

import math

from tests.graph.random_models.drawing import move


def tokens(d, i):
    """A map as tokens, few of them."""
    if len(d.shape(i)) == 3:
        if math.prod(d.shape(i)[:2]) > 64:
            i = d.layer("AveragePooling2D", i, pool_size=4, padding="same")
        i = d.to_rank(i, (1, 1))
    return i


def back(d, i, shape):
    """Tokens as the map that they were."""
    if len(shape) == 3 and d.shape(i)[0] == shape[0] * shape[1]:
        return d.reshape(i, (*shape[:2], d.shape(i)[1]))
    return i


@move(5, 2, 3)
def attention_from_operations(d, i):
    x = tokens(d, i)
    count = d.shape(x)[0]
    heads, key, value = d.choice(1, 2, 3), d.choice(2, 3, 4), d.choice(2, 3, 4)
    q = d.layer("Dense", x, units=heads * key)
    if d.chance(50):
        other = tokens(d, d.to_rank(d.any_tensor(), d.choice((1, 1), d.shape(i))))
    else:
        other = x
    others = d.shape(other)[0]
    if d.chance(40):
        # One layer for keys and values, as TopFormer and SegFormer have it.
        both = d.layer("Dense", other, units=heads * (key + value))
        if d.chance(50):
            both = d.layer("BatchNormalization", both)
        k, v = d.op("split", both, indices_or_sections=[heads * key], axis=-1)
    else:
        k = d.layer("Dense", other, units=heads * key)
        v = d.layer("Dense", other, units=heads * value)
    if d.chance(50):
        q = d.with_constant("multiply", q, [])
    q = d.reshape(q, (count, heads, key))
    k = d.reshape(k, (others, heads, key))
    v = d.reshape(v, (others, heads, value))
    if d.chance(40):
        scores = d.op("softmax", d.op("einsum", "bqhd,bkhd->bhqk", q, k), axis=-1)
        y = d.op("einsum", "bhqk,bkhd->bqhd", scores, v)
    else:
        q, v = d.transpose(q, (0, 2, 1, 3)), d.transpose(v, (0, 2, 1, 3))
        k = d.transpose(k, (0, 2, 3, 1))
        scores = d.op("softmax", d.op("matmul", q, k), axis=-1)
        y = d.transpose(d.op("matmul", scores, v), (0, 2, 1, 3))
    y = d.reshape(y, (count, heads * value))
    if d.chance(30):
        y = d.op("relu", y)
    y = d.layer("Dense", y, units=d.shape(x)[1])
    return back(d, d.layer("Add", [x, y]), d.shape(i))


@move(4, 2, 3)
def attention_layer(d, i):
    x = tokens(d, i)
    source = x if d.chance(60) else tokens(d, d.to_rank(d.any_tensor(), (1, 1)))
    on = [x, source]
    if d.chance(20):
        on.append(d.adapt(source, (*d.shape(source)[:-1], d.width())))
    if d.chance(60):
        name = "MultiHeadAttention"
        settings = {"num_heads": d.choice(1, 2, 3), "key_dim": d.choice(2, 4)}
        if d.chance(50):
            settings["value_dim"] = d.choice(3, 5)
        if d.chance(30):
            settings["output_shape"] = d.width()
    else:
        name = "GroupQueryAttention"
        shared = d.choice(1, 2)
        # Keras asks for queries and values of one width.
        on = [x, d.adapt(source, (d.shape(source)[0], d.shape(x)[1]))]
        settings = {"head_dim": d.choice(2, 4), "num_key_value_heads": shared}
        settings["num_query_heads"] = shared * d.choice(1, 2)
    # Keras adds a bias `[heads, 1]` along the tokens where there are as many (on TensorFlow).
    heads = {settings.get(key) for key in ("num_heads", "num_query_heads", "num_key_value_heads")}
    biased = d.chance(70) and heads.isdisjoint(d.shape(j)[0] for j in on)
    y = d.layer(name, *on, use_bias=biased, **settings)
    if d.shape(y) == d.shape(x) and d.chance(70):
        y = d.layer("Add", [x, y])
    return back(d, y, d.shape(i))


@move(1, 3)
def attention_on_a_map(d, i):
    """Without making tokens of it."""
    if math.prod(d.shape(i)[:2]) > 64:
        return None
    # Not as many heads as rows: see `attention_layer`.
    settings = {"num_heads": 2, "key_dim": d.choice(2, 4), "attention_axes": [1, 2]}
    y = d.layer("MultiHeadAttention", i, i, use_bias=d.shape(i)[0] != 2, **settings)
    return d.layer("Add", [i, y])


@move(2, 2, 3)
def product_of_maps(d, i):
    """A matrix product of two activations without heads: over places or over channels."""
    x, y = tokens(d, i), tokens(d, d.to_rank(d.any_tensor(), (1, 1)))
    if d.chance(50):
        # Over the channels: how alike are the places (position attention of DANet).
        y = d.adapt(y, (d.shape(y)[0], d.shape(x)[1]))
        scores = d.op("matmul", x, d.transpose(y, (0, 2, 1)))
        scores = d.op("softmax", scores, axis=-1)
        return back(d, d.op("matmul", scores, y), d.shape(i))
    # Over the places: how alike are the channels (channel attention of DANet), or a bilinear pool.
    y = d.adapt(y, (d.shape(x)[0], d.shape(y)[1]))
    if d.chance(50):
        return d.op("matmul", d.transpose(x, (0, 2, 1)), y)
    return d.op("einsum", "bnc,bnd->bcd", x, y)


@move(4, 2, 3)
def position_embedding(d, i):
    """Learned positions: an embedding of the place's number, or of a row of them."""
    x = tokens(d, i)
    count, width = d.shape(x)
    ones = d.op("ones_like", d.slice(x, [None] * 3, [None] * 3, 0), dtype="int32")
    places = d.op("subtract", d.op("cumsum", ones, axis=1), x2=1)
    embedded = d.layer("Embedding", places, input_dim=count, output_dim=width)
    return back(d, d.layer("Add", [x, embedded]), d.shape(i))
