"""What a model costs, counted from its weights' and tensors' shapes: no ids, no rules."""

import math

import numpy as np
from keras import layers

from tfseg_prune.graph.nodes import is_nested, walk

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)


def recount(model):
    """(MACs per image, parameters) of a functional model of known size, by the rules of `cost`."""
    statistics = ("moving_mean", "moving_variance")
    params = sum(
        math.prod(weight.shape)
        for weight in model.weights
        if "int" not in str(weight.dtype) and not weight.path.endswith(statistics)
    )
    return _macs(model), params


def _macs(model):
    total = 0
    for node in walk(model):
        operation = node.operation
        if is_nested(operation):
            total += _macs(operation)
            continue
        given = [tuple(t.shape) for t in node.arguments.keras_tensors]
        if type(operation).__name__ == "Conv":
            given.append(np.shape(node.arguments.args[1]))
        total += _macs_of(operation, given, tuple(node.outputs[0].shape))
    return total


def _macs_of(operation, given, answer):
    places = math.prod(answer[1:-1])
    if isinstance(operation, _TRANSPOSED):
        return math.prod(given[0][1:-1]) * math.prod(operation.kernel.shape)
    if isinstance(operation, _SEPARABLE):
        kernels = operation.depthwise_kernel, operation.pointwise_kernel
        return places * sum(math.prod(kernel.shape) for kernel in kernels)
    if isinstance(operation, (*_CONVOLUTIONS, *_DEPTHWISE, layers.Dense)):
        return places * math.prod(operation.kernel.shape)
    if isinstance(operation, layers.EinsumDense):
        return _einsum(operation.equation, [given[0], tuple(operation.kernel.shape)])
    if isinstance(operation, layers.MultiHeadAttention):
        return _attention(
            operation, given, operation.num_heads, operation._key_dim, operation._value_dim
        )
    if isinstance(operation, layers.GroupQueryAttention):
        width = operation.head_dim
        return _attention(operation, given, operation.num_query_heads, width, width)
    if isinstance(operation, layers.TimeDistributed):
        inner = [(n, *rest) for n, _, *rest in (given[0], answer)]
        return given[0][1] * _macs_of(operation.layer, inner[:1], inner[1])
    if isinstance(operation, layers.Attention):
        query, value = given
        return query[1] * value[1] * (query[-1] + value[-1])
    if isinstance(operation, layers.Dot):
        return math.prod(answer[1:]) * given[0][operation.axes]
    name = type(operation).__name__
    if name == "Matmul":
        return math.prod(answer[1:]) * given[0][-1]
    if name == "Einsum":
        return _einsum(operation.subscripts, given)
    if name == "DotProductAttention":
        return 2 * math.prod(answer[1:]) * given[1][1]
    if name == "Conv":
        return math.prod(answer[1:]) * math.prod(given[1][:-1])
    return 0


def _einsum(equation, shapes):
    """The product of the sizes of all letters, the batch's aside."""
    terms = equation.split("->")[0].split(",")
    sizes = {letter: n for term, shape in zip(terms, shapes) for letter, n in zip(term, shape)}
    return math.prod(n for n in sizes.values() if n is not None)


def _attention(layer, given, heads, key_width, value_width):
    query = given[0]
    value = given[1]
    key = given[2] if len(given) > 2 else value
    count = {"query": math.prod(query[1:-1]), "key": math.prod(key[1:-1])}
    count["value"] = math.prod(value[1:-1])
    total = 0
    for part, places in (*count.items(), ("output", count["query"])):
        dense = getattr(layer, f"_{part}_dense")
        total += places * math.prod(dense.kernel.shape)
    return total + count["query"] * count["key"] * heads * (key_width + value_width)
