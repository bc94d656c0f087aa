"""Networks with attention, and with products of tensors in general."""

import keras
import numpy as np
from keras import layers, ops

from tests.graph.nets.base import conv, image, net


def tokens(width=16):
    i = keras.Input((9, 6))
    return i, layers.Dense(width)(i)


def answer(i, x):
    return keras.Model(i, layers.Dense(3)(x))


@net
def attention_with_a_gate():
    i, x = tokens()
    y = layers.MultiHeadAttention(2, 6, use_gate=True, use_bias=False)(x, x)
    return answer(i, x + y)


@net
def attention_between_two():
    i, x = tokens()
    z = layers.Dense(7)(i[:, :5])
    mask = ops.greater(i[:, :, :1], ops.zeros_like(i[:, :, :5]))
    attend = layers.MultiHeadAttention(2, 4, output_shape=(2, 10), dropout=0.1)
    y, scores = attend(x, z, layers.Dense(8)(z), attention_mask=mask, return_attention_scores=True)
    return keras.Model(i, [layers.Dense(3)(ops.reshape(y, (-1, 9, 20))), scores])


@net
def attention_over_rows():
    i = image(size=4)
    x = conv(i, 8)
    y = layers.MultiHeadAttention(2, 4, attention_axes=1)(x, x)
    return answer(i, x + layers.MultiHeadAttention(3, 4)(y, y))


@net
def grouped_query_attention():
    i, x = tokens(12)
    y = layers.GroupQueryAttention(6, 4, 2, use_gate=True)(x, x)
    z = layers.GroupQueryAttention(4, 2, 1, use_bias=False)(y, y, use_causal_mask=True)
    return answer(i, x + z)


@net
def grouped_query_attention_to_a_fixed_width():
    i, x = tokens(6)
    fixed = ops.reshape(ops.cumsum(ops.reshape(i, (-1,))), (-1, 9, 6))
    return answer(i, layers.Dense(8)(layers.GroupQueryAttention(4, 2, 1)(fixed, x)))


@net
def bare_attention():
    i, x = tokens(8)
    q, v, k = layers.Dense(8)(x), layers.Dense(7)(x), layers.Dense(8)(x)
    y = layers.Attention(use_scale=True)([q, v, k])
    y, scores = layers.Attention(score_mode="concat")([y, v], return_attention_scores=True)
    return keras.Model(i, [layers.Dense(3)(y), scores])


@net
def additive_attention():
    i, x = tokens(8)
    y = layers.AdditiveAttention()([layers.Dense(8)(x), layers.Dense(7)(x), x])
    z = layers.AdditiveAttention(use_scale=False)([x, layers.Dense(8)(x)], use_causal_mask=True)
    return answer(i, ops.concatenate([y, z], axis=-1))


@net
def shared_attention():
    i, x = tokens(8)
    attend = layers.Attention()
    a, b = layers.Dense(8)(x), layers.Dense(8)(x)
    return answer(i, ops.concatenate([attend([a, x]), attend([x, b])], axis=-1))


@net
def masked_words():
    words = keras.Input((7,), dtype="int32")
    x, y = (layers.Embedding(11, 8, mask_zero=True)(words) for _ in "xy")
    x = layers.MultiHeadAttention(2, 4)(x, x) + layers.Attention()([y, y])
    return keras.Model(words, layers.Dense(3)(x))


@net
def attention_in_one_operation():
    i, x = tokens(12)
    q, k, v = [layers.Reshape((9, 2, 6))(layers.Dense(12)(x)) for _ in range(3)]
    y = ops.dot_product_attention(q, k, v, is_causal=True)
    wide = [layers.Reshape((9, 6, 2))(layers.Dense(12)(x)) for _ in range(3)]
    bias = np.linspace(0, 1, 81).astype("float32").reshape(1, 1, 9, 9)
    z = ops.dot_product_attention(*wide, bias=bias, scale=0.3)
    return answer(i, ops.concatenate([layers.Flatten()(t) for t in (y, z)], axis=-1))


@net
def attention_with_a_bias_per_head():
    i, x = tokens(12)
    q, k, v = [layers.Reshape((9, 6, 2))(layers.Dense(12)(x)) for _ in range(3)]
    bias = np.linspace(0, 1, 486).astype("float32").reshape(1, 6, 9, 9)
    return answer(
        i, layers.Dense(5)(layers.Flatten()(ops.dot_product_attention(q, k, v, bias=bias)))
    )


@net
def attention_by_einsum():
    i, x = tokens(8)
    q, k, v = [layers.EinsumDense("abc,cde->abde", (9, 2, 6), bias_axes="de")(x) for _ in "qkv"]
    scores = ops.softmax(ops.einsum("btnh,bsnh->bnts", q, k) * 0.4)
    y = ops.einsum("bnts,bsnh->btnh", scores, v)
    return answer(i, x + layers.EinsumDense("abcd,cde->abe", (9, 8), bias_axes="e")(y))


@net
def learned_einsum():
    i, x = tokens(8)
    x = layers.EinsumDense("...x,xy->...y", 10, bias_axes="y", activation="relu")(x)
    y = layers.EinsumDense("ab...,bc->ac...", 5, bias_axes="c")(x)
    z = layers.EinsumDense("abc,bd->adc", (5, 10))(x)
    heads = layers.Reshape((5, 5, 2))(y + z)
    heads = layers.EinsumDense("abcd,cde->abce", (5, 5, 4), bias_axes="ce")(heads)
    return answer(i, layers.Flatten()(heads))


@net
def products_over_channels():
    i, x = tokens(8)
    a, b = layers.Dense(8)(x), layers.Dense(8)(x)
    y = ops.matmul(a, ops.transpose(b, (0, 2, 1))) + ops.einsum("bic,bjc->bij", x, a)
    z = ops.einsum("...ic,...c->...i", layers.Dense(5)(x), layers.Dense(5)(x[:, 0])[:, None])
    y = layers.Dot(-1)(
        [y, layers.Dot((2, 2), normalize=True)([layers.Dense(7)(x), layers.Dense(7)(x)])]
    )
    return answer(i, ops.concatenate([y, z[:, 0, :, None]], axis=-1))


@net
def products_with_constants():
    i, x = tokens(8)

    def table(*shape):
        return np.linspace(-1, 1, int(np.prod(shape))).astype("float32").reshape(shape)

    y = ops.matmul(x, table(8, 5)) + ops.dot(layers.Dense(6)(x), table(6, 5))
    y = y + ops.tensordot(layers.Dense(7)(x), table(5, 7), axes=([2], [1]))
    y = y + ops.inner(layers.Dense(4)(x), table(5, 4)) + ops.einsum("abc,cd", x, table(8, 5))
    z = ops.matmul(table(4, 9), layers.Dense(6)(y)) + ops.einsum(
        "mn,bnc->bmc", table(4, 9), layers.Dense(6)(x)
    )
    return answer(i, ops.einsum("bmc,mc->bc", z, table(4, 6)))


@net
def linear_attention():
    """Keys by values is a matrix: the channels of the keys stay, those of the values are free."""
    i, x = tokens(8)
    q, k, v = layers.Dense(6)(x), layers.Dense(6)(x), layers.Dense(6, name="values")(x)
    context = ops.matmul(ops.transpose(ops.softmax(k, axis=1), (0, 2, 1)), v) * 0.5
    return answer(i, layers.Dense(8)(ops.matmul(q, context)) + x)


@net
def bilinear_pooling():
    i, x = tokens(8)
    pooled = ops.einsum("bnc,bnd->bcd", layers.Dense(7, name="longest")(x), layers.Dense(5)(x))
    return answer(i, layers.Dense(6)(layers.Flatten()(pooled)))


@net
def products_that_cross():
    """Channels by channels: nobody can drop a row and a column apart."""
    i, x = tokens(6)
    a, b = layers.Dense(5)(x), layers.Dense(6)(layers.Dense(7)(x))
    gram = ops.einsum("bnc,bnd->bcd", a, b)
    return answer(
        i, layers.Dense(4)(gram) + ops.matmul(ops.softmax(gram), layers.Dense(4)(b[:, :6]))
    )


@net
def a_vector_per_sample():
    i, x = tokens(8)
    a, b = layers.Dense(6)(x[:, 0]), layers.Dense(6)(x[:, 1])
    return answer(i, layers.Dense(5)(ops.concatenate([layers.Dot(1)([a, b]), a], axis=-1)))
