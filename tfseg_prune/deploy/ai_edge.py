"""Integers in a finished float32 file, by ai-edge-quantizer: any op may stay float."""

import contextlib
import importlib.util
import re
import warnings

from tfseg_prune.deploy import contents
from tfseg_prune.deploy.convert import ExportError
from tfseg_prune.deploy.quiet import quiet

# Bits of the activations by precision; weights have 8, per channel, in all of them.
ACTIVATION_BITS = {"int8": 8, "int8x16": 16}
_SIGNATURE, _INPUT = "serving_default", "images"
_MIN_MAX, _NONE = "min_max_uniform_quantize", "no_quantize"


class Quantizer:
    """Quantises one float32 file, each time with other ops left in float.

    The ranges of the activations are measured once, on the images: least and greatest value of
    each tensor.

    Args:
        data: bytes of a float32 file that `export` wrote.
        images: representative images float32 `[batch, height, width, channels]`.
        precision: `"int8"` or `"int8x16"` (activations in int16). Defaults to `"int8"`.
        io: type of the file's input and output, `"float32"` or that of the activations (int8 or
            int16). Defaults to `"float32"`.

    Raises:
        ExportError: if ai-edge-quantizer isn't installed, or can't quantise the file.

    Example:

    >>> quantizer = Quantizer(data, images)  # doctest: +SKIP
    >>> smaller = quantizer.quantise(leave=["net/logits/convolution"])  # doctest: +SKIP
    """

    def __init__(self, data, images, *, precision="int8", io="float32"):
        check_installed()
        self._data = bytes(data)
        self._bits = ACTIVATION_BITS[precision]
        self._io = io
        self._inside = contents.read_contents(self._data)
        with _silent():
            found = self._with_recipe(self._recipe(".*"))
            try:
                self._ranges = found.calibrate(
                    {_SIGNATURE: [{_INPUT: image[None]} for image in images]}, num_threads=1
                )
            except (RuntimeError, ValueError) as error:
                raise _refused(error) from error
        self.ops = self._quantisable()

    def quantise(self, *, leave=(), only=None):
        """The bytes of the quantised file.

        Args:
            leave: names of ops, from `ops`, that stay float. Defaults to none.
            only: names of ops; if given, all others stay float. Defaults to `None`.
        """
        recipe = self._recipe(".*" if only is None else _exactly(only))
        if leave:
            recipe.append(_entry(_exactly(leave), "*", None))
        if self._io == "float32":
            recipe += [_entry(".*", kind, None) for kind in ("INPUT", "OUTPUT")]
        with _silent():
            found = self._with_recipe(recipe)
            try:
                return bytes(
                    found.quantize(self._ranges, enable_progress_report=False).quantized_model
                )
            except (KeyError, RuntimeError, ValueError) as error:
                raise _refused(error) from error

    def _recipe(self, regex):
        activations = {
            "num_bits": self._bits,
            "symmetric": self._bits == 16,  # LiteRT's int16 kernels have no zero point
            "granularity": "TENSORWISE",
            "dtype": "INT",
        }
        return [_entry(regex, "*", activations)]

    def _with_recipe(self, recipe):
        from ai_edge_quantizer import quantizer

        return quantizer.Quantizer(self._data, recipe)

    def _quantisable(self):
        """Names of the ops that the quantizer makes integer, in the order in which they run."""
        after = contents.read_contents(self.quantise())
        kind = f"INT{self._bits}"
        integer = {
            after.names[op.outputs[0]].removesuffix("_quantized")
            for op in after.ops
            if op.name != "QUANTIZE" and after.types[op.outputs[0]] == kind
        }
        names = [self._inside.names[op.outputs[0]] for op in self._inside.ops]
        return tuple(name for name in dict.fromkeys(names) if name in integer)


@contextlib.contextmanager
def _silent():
    with quiet(), warnings.catch_warnings():
        # To keep all tensors takes memory: the interpreter says so each time.
        warnings.simplefilter("ignore", UserWarning)
        yield


def check_installed():
    """Raises an ExportError unless ai-edge-quantizer is installed."""
    if importlib.util.find_spec("ai_edge_quantizer") is None:
        raise ExportError(
            "ai-edge-quantizer is missing. Expected: ai-edge-quantizer 0.10 or later, for "
            "quantizer='ai_edge' and precision='mixed'. Received: no module ai_edge_quantizer. "
            "Remedy: pip install 'tfseg-prune[quantizer]', or quantizer='converter'."
        )


def _entry(regex, operation, activations):
    """One line of a recipe; without activations it leaves the ops float."""
    line = {"regex": regex, "operation": operation}
    if activations is None:
        return {**line, "algorithm_key": _NONE, "op_config": {}}
    weights = {"num_bits": 8, "symmetric": True, "granularity": "CHANNELWISE", "dtype": "INT"}
    return {
        **line,
        "algorithm_key": _MIN_MAX,
        "op_config": {
            "activation_tensor_config": activations,
            "weight_tensor_config": weights,
            "compute_precision": "INTEGER",
            "explicit_dequantize": False,
        },
    }


def _exactly(names):
    """A pattern that finds the ops of these names and no others."""
    # The quantizer looks it up in the op's output names, each with a semicolon behind.
    return "^(" + "|".join(re.escape(name) for name in names) + ");"


def _refused(error):
    said = re.sub(r"\s+", " ", str(error))[:300]
    return ExportError(
        "ai-edge-quantizer refuses the file. Expected: a float32 file of ops that it knows. "
        f"Received: {type(error).__name__}: {said}. Remedy: quantizer='converter'."
    )
