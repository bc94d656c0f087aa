"""Tiny networks that hold what converters stumble over, and a way to break their files."""

import pathlib

import keras
import numpy as np
from ai_edge_litert import schema_py_generated as schema

layers = keras.layers

SIZE = (32, 48)
CLASSES = 5


def images(count=4, size=SIZE, seed=0):
    """Smooth random images float32 in [0, 255], so that neighbours mostly share a class."""
    coarse = np.random.default_rng(seed).uniform(0, 255, (count, 4, 6, 3)).astype("float32")
    return keras.ops.convert_to_numpy(keras.ops.image.resize(coarse, size))


def segmenter(*, resize="layer"):
    """All kinds of convolutions with BN, a sum, a concatenation; half size, then a resize."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((*SIZE, 3))
    x = layers.Rescaling(1 / 127.5, -1.0, name="backbone_rescale")(inputs)
    x = _bn(layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="conv")(x), 6)
    x = _bn(layers.DepthwiseConv2D(3, padding="same", use_bias=False, name="depthwise")(x))
    y = layers.Conv2D(16, 3, dilation_rate=2, padding="same", use_bias=False, name="dilated")(x)
    x = layers.Add(name="add")([x, _bn(y)])
    deep = _bn(layers.Conv2D(32, 3, strides=2, groups=4, padding="same", name="grouped")(x))
    up = _bn(layers.Conv2DTranspose(16, 3, strides=2, padding="same", name="transposed")(deep))
    wide = keras.ops.image.resize(deep, (SIZE[0] // 2, SIZE[1] // 2), interpolation="bilinear")
    x = layers.Concatenate(name="concatenate")([wide, up])
    x = layers.Conv2D(CLASSES, 1, name="decoder_logits")(x)
    if resize == "layer":
        x = layers.UpSampling2D(2, interpolation="bilinear", name="decoder_upsample")(x)
    elif resize == "operation":
        x = keras.ops.image.resize(x, SIZE, interpolation="bilinear")
    model = keras.Model(inputs, x, name="segmenter")
    return randomised(model)


def _bn(x, cap=None):
    name = x._keras_history.operation.name
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(cap, name=f"{name}_relu")(x)


def randomised(model, seed=0):
    """Gives batch normalizations statistics other than the identity, so that folding them shows."""
    rng = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            n = layer.gamma.shape[0]
            low, high = rng.uniform(0.5, 1.5, n), rng.uniform(0.3, 1.5, n)
            layer.set_weights([low, rng.normal(0, 0.2, n), rng.normal(0, 0.2, n), high])
        elif layer.name == "decoder_logits":
            layer.set_weights([4 * w for w in layer.get_weights()])
    return model


def break_weights(source, target, tensor, change):
    """Writes `source` to `target` with the weights changed of the op that computes a named tensor.

    `tensor` is part of the name of the op's output, `change` takes the flat weights.
    """
    data = bytearray(pathlib.Path(source).read_bytes())
    model = schema.Model.GetRootAs(data)
    graph = model.Subgraphs(0)

    def buffer(index):
        return model.Buffers(graph.Tensors(index).Buffer())

    ops = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    named = [op for op in ops if tensor in graph.Tensors(op.Outputs(0)).Name().decode()]
    op = named[-1]
    inputs = [op.Inputs(i) for i in range(op.InputsLength()) if op.Inputs(i) >= 0]
    weights = max(inputs, key=lambda index: buffer(index).DataLength())
    dtype = {schema.TensorType.FLOAT32: "float32", schema.TensorType.INT8: "int8"}
    flat = buffer(weights).DataAsNumpy().view(dtype[graph.Tensors(weights).Type()])
    flat[:] = change(flat.copy())
    pathlib.Path(target).write_bytes(data)
