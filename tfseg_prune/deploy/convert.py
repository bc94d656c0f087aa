"""The one place that calls TensorFlow's LiteRT converter, in this process or in one of its own."""

import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import keras
import numpy as np

from tfseg_prune.deploy import tail as tails
from tfseg_prune.deploy import trace
from tfseg_prune.deploy.quiet import quiet

_BUILT_INS_INSTEAD = (
    "use layers that LiteRT's built-in ops can express (convolution, pooling, resize, arithmetic, "
    "common activations)"
)
_REMEDIES = {
    "BitwiseAnd": "if this is keras.ops.argmax, end the model at its logits and export with "
    "tail='argmax'; else " + _BUILT_INS_INSTEAD,
}


class ExportError(ValueError):
    """The model cannot become a LiteRT file; the message names the layer or op and the remedy."""


def convert(model, *, precision, tail, io, image_size, images):
    """Converts a model to the bytes of a LiteRT file, whatever the Keras backend.

    Under another backend than TensorFlow the model is saved to a temporary folder and converted
    by a process of its own that runs Keras on TensorFlow.

    Args:
        model: functional `keras.Model`.
        precision, tail, io, image_size: see `export`.
        images: representative images float32 `[batch, height, width, channels]`, or `None`.

    Returns:
        Bytes.

    Raises:
        ExportError: if the converter or the process fails.
    """
    if importlib.util.find_spec("tensorflow") is None:
        raise ExportError(
            "Cannot export without TensorFlow, whose converter writes LiteRT files. Expected: "
            "TensorFlow 2.21 or later installed. Received: none. Remedy: pip install tensorflow; "
            f"Keras may stay on {keras.backend.backend()}."
        )
    options = {"precision": precision, "tail": tail, "io": io, "image_size": image_size}
    if keras.backend.backend() == "tensorflow":
        return _convert_here(model, images=images, **options)
    return _convert_elsewhere(model, images, options)


def _convert_here(model, *, precision, tail, io, image_size, images):
    # Batch 1, fixed: a batch of any size leaves SHAPE and PACK ops in the file, SPACE_TO_BATCH
    # round dilated convolutions, and their batch normalization unfolded.
    wrapped = tails.with_tail(model, tail, batch_size=1, image_size=image_size)
    with quiet(), tempfile.TemporaryDirectory() as folder:
        import tensorflow as tf

        try:
            images_like = tf.TensorSpec(wrapped.inputs[0].shape, wrapped.inputs[0].dtype)
            save_frozen(lambda x: wrapped(x, training=False), images_like, tail, folder)
            converter = tf.lite.TFLiteConverter.from_saved_model(folder)
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
            if precision != "float32":
                converter.optimizations = [tf.lite.Optimize.DEFAULT]
            if precision == "float16":
                converter.target_spec.supported_types = [tf.float16]
            if precision in ("int8", "int8x16"):
                sets = tf.lite.OpsSet
                wide = sets.EXPERIMENTAL_TFLITE_BUILTINS_ACTIVATIONS_INT16_WEIGHTS_INT8
                kinds = [sets.TFLITE_BUILTINS_INT8 if precision == "int8" else wide]
                if precision == "int8x16" and tail == "argmax":
                    kinds.append(sets.TFLITE_BUILTINS)  # there is no ARG_MAX of int16
                converter.target_spec.supported_ops = kinds
                converter.representative_dataset = lambda: ([image[None]] for image in images)
                converter.inference_input_type = tf.as_dtype(io)
                # A class map is int32 whatever the images are.
                converter.inference_output_type = (
                    tf.float32 if tail == "argmax" else tf.as_dtype(io)
                )
            return converter.convert()
        except (OSError, MemoryError):
            raise  # a full disk, say, is not the model's fault
        except Exception as error:  # the converter raises many kinds, some of its own
            raise explain(error, wrapped) from error


def save_frozen(call, images_like, tail, folder):
    """Saves a function of images as one of constants, with signature `images` -> its answer.

    `from_keras_model` traces and walks the model several times over: three to five times slower for
    the same ops. Variables that are not constants by now are lost by some of the converter's ways.

    Args:
        call: function from a tensor of images to the answer.
        images_like: `tf.TensorSpec` of the images.
        tail: what the answer is, see `with_tail`.
        folder: an empty folder.
    """
    import tensorflow as tf
    from tensorflow.python.framework import convert_to_constants

    images = tf.TensorSpec(images_like.shape, images_like.dtype, name="images")
    traced = tf.function(lambda images: call(images), autograph=False)
    frozen = convert_to_constants.convert_variables_to_constants_v2(
        traced.get_concrete_function(images), lower_control_flow=False
    )
    answer = "class_map" if tail == "argmax" else "logits"
    module = tf.Module()
    module.serve = tf.function(
        lambda images: {answer: tf.nest.flatten(frozen(images))[0]}, [images], autograph=False
    )
    # Keras' silu has a gradient of its own, which a frozen function can't save.
    options = tf.saved_model.SaveOptions(experimental_custom_gradients=False)
    tf.saved_model.save(module, folder, signatures=module.serve, options=options)


def explain(error, model):
    """Turns the converter's pages of MLIR into one sentence that names layer, op and remedy."""
    text = str(error)
    ops = sorted(set(re.findall(r"'tf\.(\w+)' op is neither", text)))
    scopes = re.findall(r'"([^"]+)@__inference', text)
    layers = dict.fromkeys(
        trace.name_in(scope, model) for scope in scopes if "PartitionedCall" not in scope
    )
    if not ops:
        head = re.sub(r"loc\(.*?\): ", "", text.strip().split("\n")[0])[:300]
        return ExportError(
            "The LiteRT converter refuses the model. Expected: layers that it can convert. "
            f"Received: {type(error).__name__}: {head}"
            + (f" (at {', '.join(map(repr, layers))})." if layers else ".")
            + f" Remedy: {_BUILT_INS_INSTEAD}."
        )
    remedy = next((_REMEDIES[op] for op in ops if op in _REMEDIES), _BUILT_INS_INSTEAD)
    return ExportError(
        f"LiteRT has no built-in op for {', '.join(ops)}. Expected: built-in ops only, as phones' "
        f"delegates run no others. Received: {', '.join(ops)} in {', '.join(map(repr, layers))} of "
        f"model {model.name!r}. Remedy: {remedy}."
    )


def _convert_elsewhere(model, images, options):
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        model.save(folder / "model.keras")
        if images is not None:
            np.save(folder / "images.npy", images)
        (folder / "options.json").write_text(json.dumps(options))
        done = subprocess.run(
            [sys.executable, "-m", "tfseg_prune.deploy.convert", str(folder)],
            env={
                **os.environ,
                "KERAS_BACKEND": "tensorflow",
                "PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path),
                "TF_CPP_MIN_LOG_LEVEL": "3",
                "CUDA_VISIBLE_DEVICES": "-1",  # this process' backend may hold all of its memory
            },
            capture_output=True,
            text=True,
            check=False,
        )
        if (folder / "error.txt").exists():
            raise ExportError((folder / "error.txt").read_text())
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise ExportError(
                "The converter's process died. Expected: exit status 0. Received: "
                f"{done.returncode}: {last[:300]} Remedy: export under KERAS_BACKEND=tensorflow to "
                "see where."
            )
        return (folder / "model.tflite").read_bytes()


def _main(folder):
    """What the process of `_convert_elsewhere` does."""
    try:
        try:
            model = keras.saving.load_model(folder / "model.keras", compile=False)
        except (TypeError, ValueError, ImportError) as error:
            reason = str(error).split("Exception encountered:")[-1].strip().split(". ")[0][:300]
            raise ExportError(
                "The model cannot be rebuilt in the converter's process. Expected: layers from "
                f"modules that can be imported there. Received: {reason}. Remedy: "
                "register custom layers in a module of their own, or export under "
                "KERAS_BACKEND=tensorflow."
            ) from error
        images = folder / "images.npy"
        options = json.loads((folder / "options.json").read_text())
        data = _convert_here(model, images=np.load(images) if images.exists() else None, **options)
    except ValueError as error:
        (folder / "error.txt").write_text(str(error))
        return
    (folder / "model.tflite").write_bytes(data)


if __name__ == "__main__":
    _main(pathlib.Path(sys.argv[1]))
