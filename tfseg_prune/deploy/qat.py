"""A network that feels its integers while it trains, and the int8 file that it becomes.

Batch normalisation is folded first (`folded`), so that training sees the kernels that the file has.
Then a tf_keras copy rounds, by tensorflow-model-optimization, its weights (int8, a scale per
channel) and the answers of its layers (int8, one range each) on their way forward; gradients pass
through as if it didn't. The ranges start at what representative images reach and follow training.
"""

import contextlib
import dataclasses
import tempfile
import types

import keras
from keras import layers

from tfseg_prune import atomic
from tfseg_prune.bench import metadata as descriptions
from tfseg_prune.deploy import contents, flat, lowering, metadata, twin
from tfseg_prune.deploy import tail as tails
from tfseg_prune.deploy.convert import ExportError, explain, save_frozen
from tfseg_prune.deploy.export import Export, representatives, writable
from tfseg_prune.deploy.fold import folded
from tfseg_prune.deploy.gpu_rules import check_rules
from tfseg_prune.deploy.parity import (
    THRESHOLDS,
    ParityError,
    check_parity,
    check_threshold,
)
from tfseg_prune.deploy.quiet import quiet

# Their answers are among what they take, or means of it: they share its range, as LiteRT wants it.
_PASSES = ("AdaptiveAveragePooling2D", "AdaptiveMaxPooling2D", "AveragePooling2D", "Cropping2D")
_PASSES += ("Dropout", "Enlarge", "ExpandDims", "Flatten", "GetItem", "Moves")
_PASSES += ("GlobalMaxPooling2D", "Identity", "MaxPooling2D", "Pad", "Permute", "Reshape", "Resize")
_PASSES += ("Resizing", "SpatialDropout2D", "Split", "Squeeze", "Transpose", "UpSampling2D")
_PASSES += ("ZeroPadding2D",)
# What LiteRT computes within the op before.
_FUSING = ("Add", "Conv2D", "Conv2DTranspose", "Dense", "DepthwiseConv2D")
_BATCH = 4


class QuantisedNetwork:
    """A network under quantisation-aware training; see `quantised`.

    Attributes:
        model: the Keras 3 model without batch normalisation that it trains; `to_keras()` gives it
            the weights of the moment.
        network: the `tf_keras.Model` that feels the integers.
    """

    def __init__(self, model, network, owners, state, log, seen):
        self.model = model
        self.network = network
        self._owners = owners
        self._state = state
        self._log = log
        self._seen = seen

    def fit(self, batches, *, loss, epochs, learning_rate=1e-4, power=0.9, verbose=0):
        """Trains by Adam, its rate decaying as `learning_rate * (1 - step / steps) ** power`.

        Args:
            batches: `keras.utils.PyDataset` of `(images, labels)`.
            loss: function `(labels, logits) -> scalar`, a Keras 3 loss for one.
            epochs: integer > 0.
            learning_rate: rate of the first step. Defaults to `1e-4`.
            power: see above. Defaults to `0.9`.
            verbose: as in `fit` of Keras. Defaults to `0`.

        Returns:
            `{name: [value per epoch]}`.
        """
        import tf_keras

        from tfseg_prune.deploy.tf_keras_layers import Sequence

        schedule = tf_keras.optimizers.schedules.PolynomialDecay(
            learning_rate, epochs * len(batches), end_learning_rate=0.0, power=power
        )
        self._state.mode = "train"
        self.network.compile(
            optimizer=tf_keras.optimizers.Adam(schedule, global_clipnorm=1.0),
            loss=lambda labels, logits: loss(labels, logits),
            jit_compile=False,
        )
        with contextlib.nullcontext() if verbose else quiet():
            history = self.network.fit(
                Sequence(batches), epochs=epochs, verbose=verbose, shuffle=False
            )
        self.to_keras()
        return history.history

    def to_keras(self):
        """`model`, with the weights of the moment, of float32."""
        for layer, variables in self._owners:
            layer.set_weights([variable.numpy() for variable in variables])
        return self.model

    def predict(self, images):
        """Logits `[batch, height, width, classes]`, as NumPy, with all roundings."""
        self._state.mode = "train"
        return self.network(keras.ops.convert_to_numpy(images), training=False).numpy()

    def export(
        self,
        path,
        *,
        tail="upsampled",
        labels=None,
        scale=1.0,
        offset=0.0,
        images=None,
        threshold=None,
        metric=None,
    ):
        """Writes the int8 file with the ranges learnt in training, and its JSON.

        Args:
            path, labels, scale, offset, images, threshold, metric: as in `deploy.export`; `images`
                are compared with `model`, which computes in float.
            tail: `"upsampled"` or `"argmax"`. Defaults to `"upsampled"`.

        Returns:
            `Export`.

        Raises:
            ExportError: if the converter refuses, or leaves a convolution in float (it is named).
            ParityError: see `deploy.export`.
        """
        if tail not in ("upsampled", "argmax"):
            raise ValueError(f"Invalid tail. Expected: upsampled, argmax. Received: {tail!r}.")
        path = writable(path)
        check_threshold(threshold)
        model = self.to_keras()
        labels = metadata.checked_labels(model, labels, scale, offset)
        data = self._convert(tail)
        inside = contents.read_contents(data)
        if inside.precision != "int8":
            kept = [
                inside.names[op.outputs[0]].split(";")[0]
                for op in inside.ops
                if "CONV" in op.name and inside.types[op.outputs[0]] == "FLOAT32"
            ]
            raise ExportError(
                "The trained network did not become one of int8. Expected: all convolutions in "
                f"int8. Received: {inside.precision}, {len(kept)} of them in float, such as "
                f"{', '.join(kept[:3])}. Remedy: export(model, precision='int8') of `model`."
            )
        threshold = THRESHOLDS["int8"] if threshold is None else threshold
        told = metadata.described(
            data, inside, model, tail=tail, labels=labels, scale=scale, offset=offset
        )
        parity = None
        with atomic.replacing(path) as temporary:
            temporary.write_bytes(data)
            if images is not None:
                # The tensors are named after another network's layers: where the two part can't be
                # told from them.
                parity = check_parity(
                    model, temporary, images, tail=tail, threshold=0.0, metric=metric
                )
                if parity.argmax_agreement < threshold:
                    raise ParityError(
                        f"'{path}' was not written. It does not answer as the trained model does. "
                        f"Expected: the same class at {threshold:.2%} of the pixels or more. "
                        f"Received: {parity.argmax_agreement:.3%} on {parity.images} images. "
                        "Remedy: a smaller learning rate or more steps, so that the ranges follow "
                        "the weights.",
                        parity,
                        None,
                    )
        beside = descriptions.beside(path)
        if told is None:
            beside.unlink(missing_ok=True)
        else:
            told.save(beside)
        return Export(
            path=path,
            bytes=len(data),
            precision="int8",
            tail=tail,
            ops=inside.counts(),
            representative_images=self._seen,
            parity=parity and dataclasses.replace(parity, path=path, threshold=threshold),
            lowered=self._log,
            metadata=told,
            findings=check_rules(inside, model),
            quantizer="tfmot",
        )

    def _convert(self, tail):
        import tensorflow as tf

        def call(images):
            logits = self.network(images, training=False)
            if tail == "upsampled":
                return logits
            # GPU delegates fill classes up to a multiple of 4, with zeros, which win where all
            # scores are negative. A copy never wins: of equal ones the first does.
            classes = logits.shape[-1]
            copies = [i % classes for i in range(-classes % 4)]
            parts = [logits[..., i : i + 1] for i in copies]
            return tf.argmax(tf.concat([logits, *parts], -1), axis=-1, output_type=tf.int32)

        shape = (1, *self.network.input_shape[1:])
        self._state.mode = "export"
        try:
            with quiet(), tempfile.TemporaryDirectory() as folder:
                save_frozen(call, tf.TensorSpec(shape, tf.float32), tail, folder)
                converter = tf.lite.TFLiteConverter.from_saved_model(folder)
                converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
                return converter.convert()
        except (OSError, MemoryError):
            raise
        except Exception as error:
            raise explain(error, self.model) from error
        finally:
            self._state.mode = "train"


def quantised(model, representative, *, representative_images=100, image_size=None, grouped="auto"):
    """A network for quantisation-aware training, its ranges set by images.

    Args:
        model: functional `keras.Model`, trained; it isn't changed. One input `[batch, height,
            width, channels]` and one output `[batch, height, width, classes]`.
        representative: images as the network takes them, see `deploy.export`.
        representative_images: how many of them are used. Defaults to `100`.
        image_size: `(height, width)`, for a model that takes any size. Defaults to `None`.
        grouped: see `lower`. Defaults to `"auto"`.

    Returns:
        `QuantisedNetwork`.

    Raises:
        ExportError: if tensorflow-model-optimization is missing, Keras runs on another backend than
            TensorFlow, or a layer has no copy in tf_keras (it is named).
        ValueError: if the model or the images are not as above.

    Example:

    >>> network = quantised(model, images)  # doctest: +SKIP
    >>> _ = network.fit(train, loss=loss, epochs=3)  # doctest: +SKIP
    >>> network.export("int8.tflite", images=images).precision  # doctest: +SKIP
    'int8'
    """
    twin.check_installed("tensorflow_model_optimization")
    core = tails.functional(model)
    shape = tails.with_tail(core, "upsampled", image_size=image_size).input_shape[1:]
    seen = representatives(representative, representative_images, shape)
    with lowering.left_as_it_was(core), quiet():
        lowered, log = lowering.lower(core, grouped=grouped, precision="int8")
        plain = folded(tails.with_tail(lowered, "upsampled", image_size=image_size))
        twin.tf_keras_twin(plain)
        network, owners, state = _build(plain)
        _calibrate(network, state, seen)
    return QuantisedNetwork(plain, network, owners, state, log, len(seen))


def _build(model):
    """`(tf_keras network, [(Keras layer, its variables)], state)`."""
    import tf_keras

    from tfseg_prune.deploy import tfmot_config

    calls, _, outputs = flat.flatten(model)
    read = flat.readers(calls, outputs)
    state = types.SimpleNamespace(mode="train")
    owners = {}

    def wrap(layer, call, behind):
        weights = getattr(call.operation, "weights", ())
        if weights and layer.weights and len(layer.weights) == len(weights):
            owners[id(call.operation)] = call.operation, list(layer.weights)
        kind = type(layer).__name__
        kernel = tfmot_config.KERNELS.get(kind)
        name = type(call.operation).__name__
        own = name if kind == "KerasCall" else kind
        output = own not in _PASSES and len(call.outputs) == 1
        if own in _FUSING and _linear(layer):
            takers = [reader for number in call.outputs for reader in read[number]]
            if behind is not None:
                output = behind is not keras.activations.relu6
            elif len(takers) == 1 and _fuses(takers[0]):
                output = False
        if kernel is None and not output:
            return layer
        return tfmot_config.wrapped(layer, kernel=kernel, output=output, state=state)

    def begin(images):
        whole = tf_keras.layers.Activation("linear", name=f"{images.name.split(':')[0]}_input")
        return tfmot_config.wrapped(whole, kernel=None, output=True, state=state)(images)

    # The answer of a convolution has a range of its own before any other activation.
    network, _ = twin.build(model, wrap=wrap, begin=begin, fused=("linear", "relu"))
    return network, list(owners.values()), state


def _linear(layer):
    return getattr(getattr(layer, "activation", None), "__name__", "linear") == "linear"


def _fuses(call):
    """Whether a call is a ReLU that LiteRT computes within the op before."""
    if call is None:
        return False
    operation = call.operation
    if type(operation) is layers.ReLU:
        plain = not operation.negative_slope and not operation.threshold
        return plain and operation.max_value in (None, 6.0)
    if type(operation) is layers.Activation:
        return operation.activation in (keras.activations.relu, keras.activations.relu6)
    return type(operation).__name__ in ("Relu", "Relu6")


def _calibrate(network, state, images):
    """Sets the ranges to what the images reach."""
    for variable in network.weights:
        if variable.name.split("/")[-1].split(":")[0].endswith(("_min", "_max")):
            variable.assign(0.0 * variable)
    state.mode = "calibrate"
    for start in range(0, len(images), _BATCH):
        network(images[start : start + _BATCH], training=False)
    state.mode = "train"
