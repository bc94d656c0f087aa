"""The proof of one surgery: the smaller model against the model's own layers on masked inputs."""

import keras
import numpy as np
from keras import ops
from keras.src import backend

from tfseg_prune.graph import proof
from tfseg_prune.graph.cost import CostModel
from tfseg_prune.graph.nodes import again, functional, interpret, tensors_in, walk

# Above this many MACs the check runs at a smaller input, where the network allows one.
_CHECK_MACS = 4e9
_CHECK_SCALES = (2, 4, 8)
_CHECK_TAPS = 24


def verify(surgery, small, tensors):
    """Compares, layer by layer, at a cost that stays bounded for large inputs.

    The reference runs the model's *own* layers, with the channels that the plan drops zeroed
    wherever they are read. Nothing is rebuilt for it (but what `_stand_in` must), so that nothing
    that a rebuild could lose is lost on both sides.

    Args:
        surgery: The `_Surgery` that was carried out.
        small: Its smaller model.
        tensors: {id(tensor of the model): tensor of the smaller model}.

    Returns:
        The largest relative difference found.

    Raises:
        SurgeryError: If they differ by more than float noise.
    """
    cost = CostModel(surgery.graph)
    macs = 0.0 if cost.open_size else cost.macs()  # for an open size a small one is chosen
    if macs > _CHECK_MACS:
        factor = next((f for f in _CHECK_SCALES if macs / f**2 <= _CHECK_MACS), _CHECK_SCALES[-1])
        try:
            return _compare(surgery, small, tensors, factor)
        except proof.SurgeryError:
            raise
        except Exception:
            pass  # some layer holds the input size, so that only the full size works
    return _compare(surgery, small, tensors, 1)


def _compare(surgery, small, tensors, factor):
    taps = _taps(surgery)

    def reference(batch, rounded=lambda answers, given: answers):
        def call(operation, node, args, kwargs):
            record = surgery.records[id(operation)]
            given = tensors_in((args, kwargs))
            if record.contracts or any(slot.reads for slot in record.slots):
                args, kwargs = surgery.masked(node, args, kwargs)
            answers = _stand_in(surgery, record, node, factor)(*args, **kwargs)
            for old, new in zip(given, tensors_in((args, kwargs))):
                # Attention takes Keras' mask of steps off the tensors that it reads.
                backend.set_keras_mask(old, backend.get_keras_mask(new))
            return rounded(answers, given)

        answers = interpret(surgery.model, batch, call, [tensor for _, tensor, _ in taps])
        return [
            _kept_channels(answer, channels, surgery.kept)
            for answer, (_, _, channels) in zip(answers, taps)
        ]

    def call_small(operation, node, args, kwargs):
        settings = _smaller_settings(operation, node, factor)
        return (again(operation, settings) if settings else operation)(*args, **kwargs)

    batch = proof.random_batch(small, seed=0, shrink_input=factor)
    wanted = [tensors[id(tensor)] for _, tensor, _ in taps]
    answers = [_numpy(x) for x in interpret(small, batch, call_small, wanted)]
    tolerance = proof.scaled_tolerance(surgery.model, proof.TOLERANCE)
    names = [name for name, _, _ in taps]
    last = {id(tensor) for tensor in functional(surgery.model).outputs}
    final = [position for position, (_, tensor, _) in enumerate(taps) if id(tensor) in last]
    return proof.compare(names, reference, answers, batch, tolerance, final)


def _stand_in(surgery, record, node, factor):
    """The operation itself; a masked copy where masking its inputs isn't all there is to it."""
    operation = record.operation
    changes = _smaller_settings(operation, node, factor)
    reads_inside = any(
        not any(np.isin(ids, x.ids).all() for x in record.inputs)
        for slot in record.slots
        for ids in slot.reads.values()
    )
    folded = isinstance(operation, keras.layers.Layer) and surgery.offsets.change(operation)
    if not (changes or reads_inside or folded or record.name in surgery.masked_groups):
        return operation
    copy = again(operation, changes | (surgery.offsets.settings(operation) if folded else {}))
    if operation.weights:
        copy.build_from_config(operation.get_build_config())
        surgery.transplant(record, copy, cut=False)
    return copy


def _smaller_settings(operation, node, factor):
    """Settings that hold a spatial size, for an input that is smaller by `factor`."""
    if factor == 1:
        return {}
    given, answered = node.arguments.keras_tensors[0].shape, node.outputs[0].shape
    if isinstance(operation, keras.layers.Resizing):
        return {"height": answered[1] // factor, "width": answered[2] // factor}
    if isinstance(operation, keras.layers.UpSampling2D) and tuple(given[1:3]) == (1, 1):
        return {"size": tuple(size // factor for size in answered[1:3])}
    return {}


def _kept_channels(value, channels, kept):
    value = _numpy(value)
    for axis in channels.varying:
        value = np.compress(kept.mask(channels.ids.reshape(-1)), value, axis=axis)
    return value


def _numpy(value):
    return np.asarray(ops.convert_to_numpy(value))


def _taps(surgery):
    """(name, tensor, channels) of the model's outputs and some layers, in topological order.

    Outputs alone can hide a difference: a softmax of tiny logits is the same for any logits.
    """
    graph = functional(surgery.model)
    last = {id(tensor) for tensor in graph.outputs}
    outputs, inner = [], []
    for node in walk(surgery.model):
        record = surgery.records[id(node.operation)]
        for tensor in node.outputs:
            channels = surgery.graph.channels_of[id(tensor)]
            row = (len(outputs) + len(inner), (record.name, tensor, channels))
            if id(tensor) in last:
                outputs.append(row)
            elif record.contracts or any(slot.reads for slot in record.slots):
                inner.append(row)
    inner = inner[:: max(1, -(-len(inner) // _CHECK_TAPS))]
    return [row for _, row in sorted(outputs + inner, key=lambda row: row[0])]
