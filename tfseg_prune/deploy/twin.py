"""A Keras 3 model as a tf_keras (Keras 2) one: tools of TensorFlow's own take no other."""

import importlib.util

import keras
import numpy as np
from keras import layers

from tfseg_prune.deploy import flat
from tfseg_prune.deploy.convert import ExportError
from tfseg_prune.deploy.quiet import quiet
from tfseg_prune.graph.nodes import again, functional

# What a twin's layer may differ by, over the largest value of its answer: float noise.
_TOLERANCE = 1e-5
# A model of any size is compared at this one.
_SIDE = 64
# {layer that means the same in both: entries of its config}
_SAME = {
    "Activation": (),
    "Add": (),
    "Average": (),
    "AveragePooling2D": ("pool_size", "strides", "padding", "data_format"),
    "BatchNormalization": ("axis", "momentum", "epsilon", "center", "scale"),
    "Concatenate": ("axis",),
    "Conv2D": ("filters", "kernel_size", "strides", "padding", "data_format", "dilation_rate")
    + ("groups", "use_bias"),
    "Conv2DTranspose": ("filters", "kernel_size", "strides", "padding", "output_padding")
    + ("data_format", "dilation_rate", "use_bias"),
    "Cropping2D": ("cropping", "data_format"),
    "Dense": ("units", "use_bias"),
    "DepthwiseConv2D": ("kernel_size", "strides", "padding", "depth_multiplier", "data_format")
    + ("dilation_rate", "use_bias"),
    "Dropout": ("rate",),
    "Flatten": ("data_format",),
    "GlobalAveragePooling2D": ("data_format", "keepdims"),
    "GlobalMaxPooling2D": ("data_format", "keepdims"),
    "LayerNormalization": ("axis", "epsilon", "center", "scale"),
    "MaxPooling2D": ("pool_size", "strides", "padding", "data_format"),
    "Maximum": (),
    "Minimum": (),
    "Multiply": (),
    "PReLU": ("shared_axes",),
    "Permute": ("dims",),
    "ReLU": ("max_value", "negative_slope", "threshold"),
    "Rescaling": ("scale", "offset"),
    "Reshape": ("target_shape",),
    "SeparableConv2D": ("filters", "kernel_size", "strides", "padding", "data_format")
    + ("dilation_rate", "depth_multiplier", "use_bias"),
    "Softmax": ("axis",),
    "SpatialDropout2D": ("rate", "data_format"),
    "Subtract": (),
    "UpSampling2D": ("size", "data_format", "interpolation"),
    "ZeroPadding2D": ("padding", "data_format"),
}
# Activations of the same name and meaning in both. (hard_sigmoid and leaky_relu differ, say.)
_ACTIVATIONS = ("linear", "relu", "sigmoid", "tanh", "softmax", "elu", "selu", "softplus")
_ACTIVATIONS += ("softsign", "exponential", "silu")


def check_installed(*modules):
    """Raises an ExportError unless tf_keras and the modules are there, and Keras on TensorFlow."""
    missing = [name for name in ("tf_keras", *modules) if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(
            "A tf_keras copy needs packages that are missing. Expected: tf-keras and "
            "tensorflow-model-optimization. Received: no module "
            f"{', '.join(missing)}. Remedy: pip install 'tfseg-prune[tfmot]'."
        )
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            "A tf_keras copy needs Keras on TensorFlow. Expected: KERAS_BACKEND=tensorflow. "
            f"Received: {keras.backend.backend()}. Remedy: save the model and load it in a process "
            "under that backend."
        )


def tf_keras_twin(model, *, prove=True):
    """A `tf_keras.Model` of the same layers, weights and answers.

    Models nested in it are unfolded: a layer inside is called `inner_layer`, after the model and
    itself. Layers that mean the same in both, and have weights that tools look for, become tf_keras
    layers; the rest (raw operations, and layers whose meaning has changed) call Keras 3's own code
    from within a tf_keras layer. Weights are copied.

    Args:
        model: functional `keras.Model` of float32.
        prove: whether to compare the answers of every layer, and of the whole, on random images.
            Defaults to `True`.

    Returns:
        `tf_keras.Model`.

    Raises:
        ExportError: if tf_keras is missing, Keras runs on another backend, or a layer can't be
            copied or answers something else in its copy (it is named).
        ValueError: if the model isn't functional.

    Example:

    >>> images = keras.Input((8, 8, 3))
    >>> model = keras.Model(images, keras.layers.Conv2D(4, 3, name="conv")(images))
    >>> [layer.name for layer in tf_keras_twin(model).layers]  # doctest: +SKIP
    ['images', 'conv']
    """
    check_installed()
    model = functional(model)
    twin, pairs = build(model)
    if prove:
        with quiet():
            _prove(model, twin, pairs)
    return twin


def build(model, *, wrap=None, begin=None, fused=_ACTIVATIONS):
    """The twin, not yet compared.

    Args:
        model: functional `keras.Model`.
        wrap: function `(tf_keras layer, Call, behind) -> tf_keras layer` of what takes a layer's
            place, called once for every layer with weights and once for every call of another;
            `behind` is the activation that follows it within the call, or `None`. Defaults to
            `None`, the layer itself.
        begin: function of an input tensor to what is read in its place. Defaults to `None`, itself.
        fused: names of the activations that stay inside of other layers; the rest become layers
            behind them. Defaults to those that tf_keras has.

    Returns:
        `(twin, pairs)`: a `tf_keras.Model`, and a list of `(Call, layers)`, the tf_keras layers
        that are called one after the other in its place, in the order of the calls.
    """
    import tf_keras

    calls, inputs, outputs = flat.flatten(model)
    names, made, pairs, values = set(), {}, [], {}
    for number, tensor in zip(inputs, model.inputs):
        name = _fresh(tensor._keras_history.operation.name, names)
        values[number] = tf_keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype, name=name)
    given = [values[number] for number in inputs]
    if begin is not None:
        values.update((number, begin(values[number])) for number in inputs)
    for call in calls:
        key = id(call.operation), _key(call)
        if wrap is not None and not getattr(call.operation, "weights", ()):
            key = call.outputs  # what is wrapped round one call, a range, would not fit the others
        if key not in made:
            name = _fresh(call.path.replace("/", "_"), names)
            made[key] = _layers(call, name, fused)
            if wrap is not None:
                own = made[key]
                activation = getattr(call.operation, "activation", None) if len(own) > 1 else None
                ends = [activation] * (len(own) - 1) + [None]
                made[key] = [wrap(layer, call, end) for layer, end in zip(own, ends)]
        pairs.append((call, made[key]))
        taken = [values[number] for number in call.inputs]
        answer = run(made[key], call, taken)
        answers = keras.tree.flatten(answer)
        values.update(zip(call.outputs, answers))
    twin = tf_keras.Model(given, [values[number] for number in outputs], name=model.name)
    if len(given) == 1 and len(outputs) == 1:
        twin = tf_keras.Model(given[0], values[outputs[0]], name=model.name)
    return twin, pairs


def run(own, call, taken):
    """What the tf_keras layers `own` of a call answer to the tensors `taken`, one after another."""
    answer = taken if len(taken) > 1 else taken[0]
    for layer in own:
        answer = layer(answer)
    return answer


def _key(call):
    """Calls of one operation share a layer if they differ in nothing but the tensors."""
    count = len(call.inputs)
    return count, repr(flat.filled(_local(call), ["tensor"] * count))


def _local(call):
    """The arguments of a call, its tensors counted from 0."""
    places = iter(range(len(call.inputs)))
    return keras.tree.map_structure(
        lambda leaf: flat.Slot(next(places)) if isinstance(leaf, flat.Slot) else leaf,
        (call.args, call.kwargs),
    )


def _fresh(name, names):
    while name in names:
        name += "_"
    names.add(name)
    return name


def _layers(call, name, fused):
    """The tf_keras layers, built and with weights, that are called in the place of a Keras one."""
    import tf_keras

    operation = call.operation
    native = _native(call, name, fused)
    if native is None:
        return [_called(operation, _local(call), name)]
    activation = getattr(operation, "activation", None)
    if type(operation) is layers.Activation or activation is None or _among(activation, fused):
        return [native]
    if _among(activation, _ACTIVATIONS):
        own = tf_keras.layers.Activation(activation.__name__, name=f"{name}_activation")
        return [native, own]
    # Of another meaning in tf_keras: as Keras 3 has it.
    behind = layers.Activation(activation, name=f"{name}_activation")
    return [native, _called(behind, ((flat.Slot(0),), {}), f"{name}_activation")]


def _among(activation, names):
    return any(activation is getattr(keras.activations, name) for name in names)


def _native(call, name, fused):
    """The layer of tf_keras, or `None` if there is none that means the same."""
    import tf_keras

    operation = call.operation
    kind = type(operation).__name__
    activation = getattr(operation, "activation", None)
    if kind not in _SAME or type(operation) is not getattr(layers, kind):
        return None
    fused = _ACTIVATIONS if kind == "Activation" else fused
    if kind == "Activation" and not _among(activation, fused):
        return None
    if getattr(operation, "rms_scaling", False):  # which tf_keras' layer normalisation hasn't
        return None
    config = operation.get_config()
    options = {key: config[key] for key in _SAME[kind] if key in config}
    if activation is not None:
        options["activation"] = activation.__name__ if _among(activation, fused) else "linear"
    for key, value in options.items():
        options[key] = tuple(value) if isinstance(value, list) and key != "axis" else value
    trainable = operation.trainable
    if kind == "BatchNormalization" and call.kwargs.get("training") is False:
        trainable = False  # called so that it stays in inference mode
    layer = getattr(tf_keras.layers, kind)(name=name, trainable=trainable, **options)
    if operation.weights:
        layer.build(_shape(call))
        layer.set_weights(operation.get_weights())
    return layer


def _shape(call):
    """The shape that the operation was built for, batch left open."""
    shape = call.operation._build_shapes_dict
    return tuple(next(iter(shape.values())))


def _called(operation, arguments, name):
    """A tf_keras layer that calls a copy of a Keras 3 operation."""
    from tfseg_prune.deploy.tf_keras_layers import KerasCall

    if isinstance(operation, layers.Layer) and operation.weights:
        # A copy, lest training the twin trains the model.
        config = keras.saving.serialize_keras_object(operation)
        try:
            new = keras.saving.deserialize_keras_object(config)
        except (TypeError, ValueError) as error:
            raise _cannot(name, operation, f"{type(error).__name__}: {error}") from error
        if len(new.weights) != len(operation.weights):
            raise _cannot(name, operation, "a copy that has other weights")
        new.set_weights(operation.get_weights())
    else:
        new = again(operation, {"name": operation.name})
        if isinstance(new, layers.Layer) and operation.get_build_config():
            # Now, as constants made within a graph would be lost behind it.
            new.build_from_config(operation.get_build_config())
    try:
        return KerasCall(new, arguments, name=name)
    except (TypeError, ValueError) as error:
        raise _cannot(name, operation, f"{type(error).__name__}: {error}") from error


def _cannot(name, operation, what):
    return ExportError(
        f"The layer '{name}' ({type(operation).__name__}) has no copy in tf_keras. Expected: a "
        "layer of Keras, or one that can be built anew from its config. Received: "
        f"{str(what).splitlines()[0][:200]}. Remedy: a `get_config` that holds every argument, and "
        "keras.saving.register_keras_serializable."
    )


def _prove(model, twin, pairs):
    """Compares each layer on what Keras gives it, then the whole."""
    import tensorflow as tf

    shapes = [[1, *(side or _SIDE for side in tensor.shape[1:])] for tensor in model.inputs]
    rng = np.random.default_rng(0)
    images = [tf.constant(rng.uniform(-1, 1, shape), "float32") for shape in shapes]
    _, inputs, outputs = flat.flatten(model)
    values = dict(zip(inputs, images))
    left = {}
    for call, _ in pairs:
        for number in call.inputs:
            left[number] = left.get(number, 0) + 1
    for call, own in pairs:
        args, kwargs = flat.filled((call.args, call.kwargs), values)
        if isinstance(call.operation, layers.Layer) and call.operation._call_has_training_arg:
            kwargs = {**kwargs, "training": False}
        expected = keras.tree.flatten(call.operation(*args, **kwargs))
        found = keras.tree.flatten(run(own, call, [values[number] for number in call.inputs]))
        gap = max(_gap(a, b) for a, b in zip(found, expected))
        if not gap <= _TOLERANCE:
            raise ExportError(
                f"The copy of layer '{call.path}' ({type(call.operation).__name__}) in tf_keras "
                f"answers something else. Expected: the same up to {_TOLERANCE:g} of the largest "
                f"value. Received: a difference of {gap:.2g}. Remedy: another layer in its place, "
                "and please report this one."
            )
        values.update(zip(call.outputs, expected))
        for number in call.inputs:
            left[number] -= 1
            if not left[number] and number not in outputs:
                values.pop(number, None)
    found = keras.tree.flatten(twin(images if len(images) > 1 else images[0], training=False))
    gap = max(_gap(a, values[number]) for a, number in zip(found, outputs))
    # Differences of the layers gather.
    if not gap <= 100 * _TOLERANCE:
        raise ExportError(
            f"The tf_keras copy of '{model.name}' answers something else, though each of its "
            f"layers is right. Expected: the same. Received: a difference of {gap:.2g} of the "
            "largest value. Remedy: please report the model."
        )


def _gap(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    if found.shape != expected.shape:
        return np.inf
    if not found.size:
        return 0.0
    difference = np.abs(found.astype("float64") - expected)
    return float(difference.max() / max(np.abs(expected.astype("float64")).max(), 1e-3))
