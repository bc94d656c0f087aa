"""Constants of dropped channels, kept in the layers that read them.

A dropped channel k that was constant, c_k whatever the image, had a share in every layer that read
it with a kernel W, and the share is the same for every pixel whose window lies in the image:

    offset_o = sum_k c_k * sum_xy W[x, y, k, o]

It goes where it costs nothing: into the layer's bias; without a bias into the batch normalisation
that alone reads the layer, `moving_mean_o -= offset_o`; and only where there is neither the layer
gets a bias. So the smaller network answers what the whole network answered, exactly but for pixels
so near the border that zero padding takes the place of the constant.

Sources: network slimming (Liu et al. 2017), where channels with gamma = 0 are dropped and leave
beta; the bias compensation of SIRFP (arXiv 2412.12672), whose official code does it for every
dropped channel, gamma 0 or not, with c_k = relu(beta_k) and, where residual branches meet, relu of
the sum of their betas.
"""

import dataclasses
import warnings

import numpy as np
from keras import layers

from tfseg_prune.graph import rules
from tfseg_prune.graph.constants import Constancy, kernels_of, products
from tfseg_prune.graph.nodes import functional, is_nested, walk

MODES = ("none", "exact", "beta")
_NAMED = 8  # a warning names at most so many layers


@dataclasses.dataclass(frozen=True)
class Offsets:
    """What is added to a model's weights before they are cut or masked, at full width.

    Attributes:
        added: {id(variable): array}.
        biases: {id(layer): array}, of layers that have no bias and get one.
    """

    added: dict = dataclasses.field(default_factory=dict)
    biases: dict = dataclasses.field(default_factory=dict)

    def change(self, layer):
        """Whether the layer is another one with them."""
        return id(layer) in self.biases or any(id(w) in self.added for w in layer.weights)

    def settings(self, layer):
        """Entries of the layer's config that they change."""
        return {"use_bias": True} if id(layer) in self.biases else {}


def mode_of(fold_constants):
    """One of `MODES` from what a caller passed as `fold_constants`.

    Raises:
        ValueError: If it is none.
    """
    mode = {False: "none", True: "exact"}.get(fold_constants, fold_constants)
    if mode not in MODES:
        raise ValueError(
            f"`fold_constants` makes no sense. Expected: False, True or one of {', '.join(MODES)}."
            f" Received: {fold_constants!r}"
        )
    return mode


def offsets(model, records, kept, mode):
    """The `Offsets` that the dropped channels of a model leave.

    Args:
        model: Functional `keras.Model`.
        records: {id(operation): OpRecord} of its `ChannelGraph`.
        kept: `Kept`.
        mode: One of `MODES`.

    Returns:
        `Offsets`. Nothing is added for a channel that isn't constant, nor for one that a shared
        layer meets with different constants.
    """
    if mode == "none":
        return Offsets()
    constancy = Constancy(records, (lambda ids: ~kept.mask(ids)) if mode == "beta" else None)
    constancy.run(model)
    _warn_of_lost(records.values(), constancy, kept)
    found = Offsets()
    neighbours = _Neighbours(model)
    for record in records.values():
        layer = record.operation
        constants = constancy.read.get(id(layer))
        reads = [ids for slot in record.slots for ids in slot.reads.values()]
        if constants is None or len(reads) != 1:
            continue
        (ids,) = reads
        values = np.where(kept.mask(ids), 0.0, np.nan_to_num(constants))
        if not values.any():
            continue
        offset = products(values, *kernels_of(layer)[-1])
        normalization = neighbours.normalization_after(layer)
        if layer.bias is not None:
            found.added[id(layer.bias)] = offset
        elif normalization is not None:
            found.added[id(normalization.moving_mean)] = -offset
        else:
            found.biases[id(layer)] = offset
    return found


def _warn_of_lost(records, constancy, kept):
    """Names the operations that read constants of dropped channels that can't be put into them."""
    lost = []
    for record in records:
        layer = record.operation
        reads = [ids for slot in record.slots for ids in slot.reads.values()]
        ids = np.concatenate([np.zeros(0, int), *constancy.summed.get(id(layer), [])])
        if not record.contracts:
            ids = np.intersect1d(ids, np.concatenate([np.zeros(0, int), *reads]))
        if id(layer) in constancy.read and len(reads) == 1:
            ids = reads[0][constancy.met[id(layer)] & np.isnan(constancy.read[id(layer)])]
        if not kept.mask(ids).all():
            lost.append(f"'{record.name}'")
    if lost:
        more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
        warnings.warn(
            f"Constants of dropped channels are lost in {', '.join(lost[:_NAMED])}{more}. Expected"
            " as their readers: convolutions, separable and transposed ones (without strides)"
            " included, and dense layers, no subclasses, that meet the same constant in every call"
            " and have windows within the image. The smaller model is sound, but answers something"
            " else than the whole one there.",
            stacklevel=5,
        )


class _Neighbours:
    """Who reads what, in a model and the models inside it."""

    def __init__(self, model):
        self._calls = {}
        self._readers = {}
        self._visit(model)

    def _visit(self, model):
        for node in walk(model):
            operation = node.operation
            if is_nested(operation) and id(operation) not in self._calls:
                self._visit(operation)
            self._calls.setdefault(id(operation), []).append(node)
            for tensor in node.arguments.keras_tensors:
                self._readers.setdefault(id(tensor), []).append(operation)
        for tensor in functional(model).outputs:
            self._readers.setdefault(id(tensor), []).append(model)

    def normalization_after(self, layer):
        """The batch normalisation that reads all that a layer answers and nothing else, or `None`.

        Its mean then takes a constant off the layer's answers as a bias would add it.
        """
        answers = {id(t): t for node in self._calls[id(layer)] for t in node.outputs}
        readers = [reader for key in answers for reader in self._readers.get(key, [])]
        if not readers or any(reader is not readers[0] for reader in readers):
            return None
        (reader,) = readers[:1]
        if type(reader) is not layers.BatchNormalization:
            return None
        read = {id(t) for node in self._calls[id(reader)] for t in node.arguments.keras_tensors}
        linear = getattr(layer.activation, "__name__", "linear") == "linear"
        rank = len(next(iter(answers.values())).shape)
        same_axis = reader.axis % rank == rules.channel_axis(layer) % rank
        return reader if linear and same_axis and read <= set(answers) else None
