"""Layers of tf_keras (Keras 2). Imported only where a twin is made: it imports TensorFlow."""

import keras
import tensorflow as tf
import tf_keras

from tfseg_prune.deploy.flat import filled


@tf_keras.saving.register_keras_serializable(package="tfseg_prune")
class KerasCall(tf_keras.layers.Layer):
    """Calls a Keras 3 operation, on TensorFlow, as a layer of tf_keras.

    What has no equal in tf_keras, or one of another meaning (hard sigmoid), computes as it does in
    Keras 3, as it is the same code. Its weights, if there are any, are this layer's.

    Args:
        operation: Keras 3 layer or operation, or its config as `keras.saving` serialises it.
        arguments: `(args, kwargs)` of the call, a `Slot` for each tensor: they are counted from 0
            in the order of this layer's inputs.
    """

    def __init__(self, operation, arguments, **kwargs):
        super().__init__(**kwargs)
        if isinstance(operation, dict):
            operation = keras.saving.deserialize_keras_object(operation)
            arguments = keras.saving.deserialize_keras_object(arguments)
        # In a function, as tf_keras would wrap the containers to track what is in them.
        self._held = lambda: (operation, arguments)
        self._own = [variable.value for variable in getattr(operation, "weights", ())]

    @property
    def operation(self):
        """The Keras 3 layer or operation."""
        return self._held()[0]

    def call(self, inputs):
        # Keras 3's code is no Python for AutoGraph to turn into graphs.
        return tf.autograph.experimental.do_not_convert(self._compute)(inputs)

    def _compute(self, inputs):
        operation, arguments = self._held()
        args, kwargs = filled(arguments, tf.nest.flatten(inputs))
        if getattr(operation, "_call_has_training_arg", False):
            kwargs = {**kwargs, "training": False}
        return operation(*args, **kwargs)

    def get_config(self):
        operation, arguments = map(keras.saving.serialize_keras_object, self._held())
        return {**super().get_config(), "operation": operation, "arguments": arguments}


class Sequence(tf_keras.utils.Sequence):
    """Batches of a `keras.utils.PyDataset` (Keras 3) as tf_keras takes them.

    Args:
        batches: the data set; it moves on by itself at the end of an epoch.
    """

    def __init__(self, batches):
        self._batches = batches
        batches.on_epoch_begin()

    def __len__(self):
        return len(self._batches)

    def __getitem__(self, index):
        images, labels, *_ = self._batches[index]
        return images, labels

    def on_epoch_end(self):
        self._batches.on_epoch_end()
        self._batches.on_epoch_begin()
