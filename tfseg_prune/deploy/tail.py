"""The end of a segmentation network: what its file shall answer."""

import keras

TAILS = ("logits", "upsampled", "argmax")
_IDENTITIES = (keras.layers.Identity, keras.layers.Dropout, keras.layers.SpatialDropout2D)
_IDENTITIES += (keras.layers.AlphaDropout, keras.layers.GaussianDropout, keras.layers.GaussianNoise)
_IDENTITIES += (keras.layers.ActivityRegularization,)


@keras.saving.register_keras_serializable(package="tfseg_prune")
class Argmax(keras.layers.Layer):
    """Class map int32 `[batch, height, width]` of logits `[batch, height, width, classes]`.

    `keras.ops.argmax` treats -0.0 apart with bit operations that LiteRT does not have, and
    TensorFlow's default int64 is refused by GPU delegates; hence TensorFlow's own, in int32.

    Example:

    >>> tuple(Argmax()(keras.ops.ones((1, 4, 6, 3))).shape)
    (1, 4, 6)
    """

    def call(self, inputs):
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            return tf.argmax(inputs, axis=-1, output_type=tf.int32)
        return keras.ops.cast(keras.ops.argmax(inputs, axis=-1), "int32")

    def compute_output_spec(self, inputs):
        return keras.KerasTensor(inputs.shape[:-1], dtype="int32")


def with_tail(model, tail, *, batch_size=None, image_size=None):
    """Returns `model` with another end; it shares the model's layers and leaves it as it is.

    - `"logits"`: the output before any trailing resize layers, as small as it leaves the decoder.
    - `"upsampled"`: the model's output at its input's resolution, by one more bilinear resize
      where the model itself answers at another one.
    - `"argmax"`: the int32 class map of `"upsampled"`.

    Trailing resizes are found inside nested models too. Linear activations and dropout between or
    behind them hide nothing; any other operation (a softmax, a crop) ends the search, and is kept.

    Args:
        model: functional or sequential `keras.Model` with one input
            `[batch, height, width, channels]` and one output `[batch, height, width, classes]`.
        tail: `"logits"`, `"upsampled"` or `"argmax"`.
        batch_size: batch size to fix. Defaults to `None`, any.
        image_size: `(height, width)` in pixels, for a model that takes any size. Defaults to
            `None`, the model's own.

    Returns:
        `keras.Model`.

    Raises:
        ValueError: if the tail is unknown, or the model is subclassed, has several inputs or
            outputs, has no fixed size, or answers something else than the scores of
            two classes or more.

    Example:

    >>> images = keras.Input((32, 48, 3))
    >>> scores = keras.layers.Conv2D(5, 3, strides=2, padding="same")(images)
    >>> model = keras.Model(images, keras.layers.UpSampling2D(2)(scores))
    >>> with_tail(model, "logits").output_shape
    (None, 16, 24, 5)
    """
    if tail not in TAILS:
        raise ValueError(f"Unknown tail. Expected: one of {', '.join(TAILS)}. Received: {tail!r}.")
    model = functional(model)
    size = _image_size(model, image_size)
    output = before_resize(model) if tail == "logits" else model.outputs[0]
    core = keras.Model(model.inputs[0], output, name=model.name)
    images = keras.Input(
        batch_shape=(batch_size, *size, model.inputs[0].shape[-1]),
        dtype=model.inputs[0].dtype,
        name="images",
    )
    x = core(images)
    if tail != "logits" and tuple(x.shape[1:3]) != size:
        x = keras.layers.Resizing(
            *size, interpolation="bilinear", dtype="float32", name="tail_upsample"
        )(x)
    if tail == "argmax":
        x = Argmax(dtype="float32", name="tail_argmax")(x)
    return keras.Model(images, x, name=model.name)


def functional(model):
    """Checks that `model` is a graph from one image to one map of class scores.

    Args:
        model: any object.

    Returns:
        The functional `keras.Model`; of a sequential one, the same graph as a functional model.

    Raises:
        ValueError: otherwise.
    """
    kind = f"{type(model).__name__} {getattr(model, 'name', '')!r}"
    if not is_graph(model):
        raise ValueError(
            f"Cannot export this model. Expected: a functional or built sequential keras.Model. "
            f"Received: {kind}, whose layers are not known as a graph. Remedy: rebuild it as "
            "keras.Model(inputs, outputs)."
        )
    for side, tensors, remedy in (
        ("input", model.inputs, "make the other inputs constants inside of the model"),
        ("output", model.outputs, "export keras.Model(model.input, the output that you want)"),
    ):
        if len(tensors) != 1:
            raise ValueError(
                f"Cannot export this model. Expected: one {side}. Received: {kind} with "
                f"{len(tensors)}: {', '.join(_layer_name(t) for t in tensors)}. Remedy: {remedy}."
            )
        if len(tensors[0].shape) != 4:
            raise ValueError(
                f"Cannot export this model. Expected: an {side} of rank 4, [batch, height, width, "
                f"{'channels' if side == 'input' else 'classes'}]. Received: {kind} with {side} "
                f"{_layer_name(tensors[0])!r} of shape {tuple(tensors[0].shape)}. Remedy: let the "
                "model take images and end at its logits (tail='argmax' adds the argmax)."
            )
    if model.outputs[0].shape[-1] == 1:
        raise ValueError(
            "Cannot export this model. Expected: scores of two classes or more. Received: "
            f"{kind} that answers 1 channel, of which every comparison of classes would say the "
            "same. Remedy: let it answer two, keras.ops.concatenate([0 * y, y], -1) of logits y, "
            "or [1 - y, y] of probabilities; or if it ends at an argmax, at the scores before it "
            "(tail='argmax' adds the argmax)."
        )
    return keras.Model(model.inputs, model.outputs, name=model.name)


def is_graph(operation):
    """Whether `operation` is a model known as a graph: functional, or sequential and built."""
    return isinstance(operation, keras.Model) and bool(getattr(operation, "inputs", None))


def before_resize(model):
    """The symbolic output of `model` before the resizes that it ends with."""
    kept = output = model.outputs[0]
    while True:
        operation, node, _ = output._keras_history
        if is_graph(operation):
            cut = before_resize(operation)
            if cut is operation.outputs[0]:
                return kept
            inner = keras.Model(operation.inputs, cut, name=operation.name)
            return inner(operation._inbound_nodes[node].input_tensors)
        resizes = is_resize(operation)
        if not (resizes or is_identity(operation)):
            return kept
        output = operation._inbound_nodes[node].input_tensors[0]
        if resizes:
            kept = output


def is_resize(operation):
    """Whether an operation changes the size of images and nothing else."""
    # keras.ops.image.resize leaves an operation of a class that Keras does not export.
    return isinstance(operation, (keras.layers.UpSampling2D, keras.layers.Resizing)) or (
        type(operation).__name__ == "Resize" and type(operation).__module__.startswith("keras.")
    )


def is_identity(operation):
    """Whether an operation changes nothing in inference."""
    if isinstance(operation, keras.layers.Activation):
        return operation.activation is keras.activations.linear
    return isinstance(operation, _IDENTITIES)


def _image_size(model, image_size):
    """The `(height, width)` to export at: the model's, or the given one if it takes any size."""
    own = tuple(model.inputs[0].shape[1:3])
    if image_size is None:
        image_size = own
    image_size = tuple(image_size)
    fits = len(image_size) == 2 and all(
        isinstance(side, int) and side > 0 and fixed in (None, side)
        for side, fixed in zip(image_size, own)
    )
    if not fits or model.inputs[0].shape[-1] is None:
        raise ValueError(
            "Cannot fix the model's input size. Expected: a known height, width and channel "
            f"number. Received: input {_layer_name(model.inputs[0])!r} of shape "
            f"{tuple(model.inputs[0].shape)}, image_size={image_size}. Remedy: give image_size="
            "(height, width) in pixels that the model takes, or build it with an input_shape."
        )
    return image_size


def _layer_name(tensor):
    return tensor._keras_history.operation.name
