"""How layers of tf_keras are quantised. Imported only for QAT: it imports TensorFlow."""

import tensorflow as tf
import tensorflow_model_optimization as tfmot

# Of the moving ranges, per step.
_DECAY = 0.98
_tools = tfmot.quantization.keras
# {layer: (name of its kernel, axes of the kernel that count the channels that it writes)}
KERNELS = {
    "Conv2D": ("kernel", (3,)),
    "Conv2DTranspose": ("kernel", (2,)),
    "DepthwiseConv2D": ("depthwise_kernel", (2, 3)),
    "Dense": ("kernel", (1,)),
}


class Weights(_tools.quantizers.Quantizer):
    """int8 with a scale for each channel, as LiteRT quantises weights; the gradient passes through.

    tfmot's own takes the last axis, which in a depthwise kernel counts no channels.

    Args:
        axes: axes of the kernel that count channels.
        state: see `Activations`; when it is `"export"`, the weights pass as they are, and the
            converter does the same to them.
    """

    def __init__(self, axes, state):
        self._axes = axes
        self._state = state

    def build(self, tensor_shape, name, layer):
        return {}

    def __call__(self, inputs, training, weights, **kwargs):
        if self._state.mode == "export":
            return inputs
        others = [axis for axis in range(len(inputs.shape)) if axis not in self._axes]
        largest = tf.reduce_max(tf.abs(inputs), axis=others, keepdims=True)
        scale = tf.stop_gradient(tf.maximum(largest, 1e-12) / 127.0)
        rounded = tf.round(inputs / scale) * scale
        return inputs + tf.stop_gradient(rounded - inputs)

    def get_config(self):
        return {"axes": self._axes}


class Activations(_tools.quantizers.MovingAverageQuantizer):
    """int8 with one range, a moving average of those of the batches.

    tfmot's own average takes thousands of steps to follow; a training for integers has hundreds.

    Args:
        state: object whose `mode` is `"train"`; `"calibrate"`, where values pass as they are and
            the range grows to hold them; or `"export"`.
    """

    def __init__(self, state):
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
        self._state = state

    def __call__(self, inputs, training, weights, **kwargs):
        low, high = weights["min_var"], weights["max_var"]
        least, most = tf.reduce_min(inputs), tf.reduce_max(inputs)
        if self._state.mode == "calibrate":
            low.assign(tf.minimum(low, least))
            high.assign(tf.maximum(high, most))
            return inputs
        if training:
            low.assign(_DECAY * low + (1 - _DECAY) * tf.minimum(least, 0.0))
            high.assign(_DECAY * high + (1 - _DECAY) * tf.maximum(most, 0.0))
        return tf.quantization.fake_quant_with_min_max_vars(inputs, low, high)


class Config(_tools.QuantizeConfig):
    """What of one layer is quantised.

    Args:
        kernel: entry of `KERNELS`, or `None` for a layer without.
        output: whether its answer is.
        state: see `Activations`.
    """

    def __init__(self, kernel, output, state):
        self._kernel = kernel
        self._output = output
        self._state = state

    def get_weights_and_quantizers(self, layer):
        if self._kernel is None:
            return []
        name, axes = self._kernel
        return [(getattr(layer, name), Weights(axes, self._state))]

    def set_quantize_weights(self, layer, quantize_weights):
        for value in quantize_weights:
            setattr(layer, self._kernel[0], value)

    def get_activations_and_quantizers(self, layer):
        return []

    def set_quantize_activations(self, layer, quantize_activations):
        pass

    def get_output_quantizers(self, layer):
        return [Activations(self._state)] if self._output else []

    def get_config(self):
        return {"kernel": self._kernel, "output": self._output}


class Wrapper(_tools.QuantizeWrapperV2):
    """tfmot's own trains every kernel that it rounds, those of frozen layers, too."""

    def build(self, input_shape):
        super().build(input_shape)
        if not self.layer.trainable:
            self._trainable_weights = []


def wrapped(layer, *, kernel, output, state):
    """The layer with what `Config` says of it."""
    return Wrapper(layer, Config(kernel, output, state))
