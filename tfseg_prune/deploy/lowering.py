"""Models of equal values that phones run: what delegates get wrong stands there in another form."""

import collections
import contextlib

from keras import layers

from tfseg_prune.deploy.forms import Graph, Lowering, Parts
from tfseg_prune.deploy.lowered_attention import attention_over_images
from tfseg_prune.deploy.lowered_classes import (
    last_scores,
    spare_classes,
    told,
    with_spare_classes,
)
from tfseg_prune.deploy.lowered_groups import (
    GROUPED,
    Split,
    for_parts,
    gradual_convolution,
    grouped_convolution,
)
from tfseg_prune.deploy.lowered_shapes import enlarged_by_repetition, moved_in_many_dimensions
from tfseg_prune.deploy.lowered_strides import strided_pointwise
from tfseg_prune.deploy.lowered_transposed import (
    normalised_transposed,
    rectified_transposed,
    transposed_convolution,
)
from tfseg_prune.graph.nodes import functional, is_nested, rewire, tensors_in

__all__ = ["GROUPED", "Lowering", "Parts", "Split", "left_as_it_was", "lower", "summarised"]


def lower(model, *, grouped="auto", precision="float32", tail=None, image_size=None):
    """A model that answers the same, of layers that phones compute rightly.

    Grouped convolutions: GPU delegates compute one grouped CONV_2D rightly only where the channels
    of a group, those that it reads and those that it writes, are multiples of 4, and none with a
    1x1 kernel of integers. Others become one convolution per group of split channels, joined again,
    or a depthwise convolution where a group reads one channel. Batch normalisation and activations
    behind move to the parts, since the converter folds them into a convolution but not through a
    concatenation. Gradual convolutions stay: dense ones, whose connections between groups are zeros
    or fading.

    GPU delegates refuse tensors of more than four dimensions. Upsampling by the nearest pixel
    becomes a resize of images; reshapes and transpositions between, such as a channel shuffle, a
    partition into windows or a joint query, key and value, are done in four dimensions; attention
    over images is attention over the list of pixels.

    A transposed convolution keeps its ReLU out of the op, as they refuse the two as one, and where
    they pad it wrongly it is computed without padding and cropped.

    In files whose kernels are integers, a 1x1 convolution with a stride takes its pixels first, as
    they leave the stride out of account.

    The classes before an argmax become a multiple of 4: delegates fill them up with zeros, which
    win where all scores are negative.

    The last layer of what takes a layer's place has that layer's name, the others begin with it.

    Args:
        model: functional `keras.Model`. It isn't changed; what stays is shared with the answer.
        grouped: `"auto"`, as above; `"grouped"`, all stay one convolution; `"split"`, none does.
            Defaults to `"auto"`.
        precision: of the file, see `export`. Defaults to `"float32"`.
        tail: the end that the file is to have, see `with_tail`: for `"argmax"` the answer has
            more classes, which are never the largest. Defaults to `None`, none of its own.
        image_size: `(height, width)` for a model that takes any size: what depends on it is then
            known. Defaults to `None`, the model's own.

    Returns:
        `(model, log)`: the model, `model` itself where nothing has to change, and a tuple of
        sentences that say what was changed, and what became of each grouped convolution, and of
        each gradual one.

    Raises:
        ValueError: if `grouped` is unknown.
        ExportError: if a convolution can't be split as asked.

    Example:

    >>> images = keras.Input((16, 16, 12))
    >>> model = keras.Model(images, keras.layers.Conv2D(24, 3, groups=4, name="mix")(images))
    >>> lower(model)[1]
    ('mix: 3 channels in and 6 out per group: split into 4 convolutions',)
    """
    if grouped not in GROUPED:
        raise ValueError(
            f"Invalid grouped. Expected: one of {', '.join(GROUPED)}. Received: {grouped!r}."
        )
    (images,) = functional(model).inputs[:1]
    if image_size is not None and None in images.shape[1:3]:
        sized = [(images.shape[0], *image_size, images.shape[-1])]
        model = rewire(model, lambda operation, args, kwargs: operation(*args, **kwargs), sized)
    scores = last_scores(model) if tail == "argmax" else None
    # {what decides on a call: the user's choice}
    table = {
        grouped_convolution: (grouped, precision),
        gradual_convolution: None,
        enlarged_by_repetition: None,
        moved_in_many_dimensions: None,
        transposed_convolution: None,
        normalised_transposed: None,
        rectified_transposed: None,
        attention_over_images: None,
        spare_classes: scores,
    }
    log, own = {}, {path for path, *_ in _calls(model)}
    # What a grouped convolution is split into may have a stride, too.
    for decisions in (table, {strided_pointwise: precision}):
        model = _lowered(model, decisions, own, log)
    if tail == "argmax":
        wide = with_spare_classes(model, _Names(model).fresh)
        if wide is not model:
            log[f"{model.name}: {told(model.outputs[0].shape[-1])}"] = None
        model = wide
    return model, tuple(log)


def _lowered(model, table, own, log):
    """The model after one table of decisions; notes in `log` what becomes of those of `own`."""
    lowerings = collections.defaultdict(list)
    for path, node, graph in _calls(model):
        found = [decide(node, graph, choice) for decide, choice in table.items()]
        found = [lowering for lowering in found if lowering is not None]
        if path in own:
            log.update((f"{path}: {one.says}", None) for one in found if one.says is not None)
        built = [lowering for lowering in found if lowering.build is not None]
        lowerings[id(node.operation)].append(built[0] if built else None)
    if not any(any(each) for each in lowerings.values()):
        return model
    return rewire(model, _Lowered(model, lowerings).call)


def summarised(log):
    """The sentences of `lower` in few lines: layers of which the same is said share one.

    Example:

    >>> summarised(["a: split into 4 convolutions", "b: split into 4 convolutions", "c: stays"])
    ['a and 1 more: split into 4 convolutions', 'c: stays']
    """
    names = collections.defaultdict(list)
    for sentence in log:
        name, _, says = sentence.partition(": ")
        names[says].append(name)
    return [
        f"{first}{f' and {len(others)} more' if others else ''}: {says}"
        for says, (first, *others) in names.items()
    ]


@contextlib.contextmanager
def left_as_it_was(model):
    """Lets the layers of `model` forget by which other layers they are called in the block.

    `lower` calls them anew, and they would keep alive what it made for as long as they live.
    """
    operations = {id(node.operation): node.operation for _, node, _ in _calls(model)}.values()
    notes = [own for op in operations for own in (op._inbound_nodes, op._outbound_nodes)]
    lengths = [len(own) for own in notes]
    try:
        yield
    finally:
        for own, length in zip(notes, lengths):
            del own[length:]


def _calls(model, path=(), seen=None):
    """Yields `(path, node, graph)` of every call in the model, of each model in it once."""
    seen = set() if seen is None else seen
    seen.add(id(model))
    graph = Graph(model)
    for node in graph.nodes:
        operation = node.operation
        here = (*path, operation.name)
        if not is_nested(operation):
            yield "/".join(here), node, graph
        elif id(operation) not in seen:
            yield from _calls(operation, here, seen)


class _Names:
    """The names that layers and operations have, those of inputs and in models too."""

    def __init__(self, model):
        self._taken = set()
        self._add(model)

    def _add(self, model):
        for operation in functional(model).operations:
            self._taken.add(operation.name)
            if is_nested(operation):
                self._add(operation)

    def fresh(self, name):
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


class _Lowered:
    """Calls the operations of a model, others in place of those that have a lowering.

    Args:
        model: functional `keras.Model`.
        lowerings: `{id of an operation: [Lowering or None of each call, in the order of calls]}`.
    """

    def __init__(self, model, lowerings):
        self._lowerings = {key: iter(each) for key, each in lowerings.items()}
        self._count = {key: len(each) for key, each in lowerings.items()}
        # Operations that keep their name to themselves in some of their calls.
        self._stay = {key for key, each in lowerings.items() if None in each}
        self._fresh = _Names(model).fresh
        self._made, self._joins = {}, {}
        self._parts = {}  # {id of a joined tensor: (that tensor, its parts)}

    def call(self, operation, args, kwargs):
        lowering = next(self._lowerings[id(operation)])
        if lowering is not None:
            answer = self._replacement(operation, lowering)(*_read(args, kwargs, lowering.skip))
            return self._joined(operation, answer) if isinstance(answer, Parts) else answer
        if len(args) == 1 and id(args[0]) in self._parts and self._count[id(operation)] == 1:
            _, parts = self._parts[id(args[0])]
            each = for_parts(operation, parts, self._fresh)
            if each is not None:
                done = tuple(layer(x, **kwargs) for layer, x in zip(each, parts.tensors))
                return self._joined(operation, Parts(done, parts.axis))
        return operation(*args, **kwargs)

    def _replacement(self, operation, lowering):
        key = id(operation), lowering
        if key not in self._made:
            first = id(operation) not in self._stay
            name = operation.name if first else self._fresh(operation.name)
            self._stay.add(id(operation))
            self._made[key] = lowering.build(operation, name, self._fresh, *lowering.how)
        return self._made[key]

    def _joined(self, operation, parts):
        # Where all that reads the answer goes on with the parts, this one drops out of the model.
        if id(operation) not in self._joins:
            self._joins[id(operation)] = layers.Concatenate(
                parts.axis, name=operation.name, dtype=operation.dtype_policy
            )
        answer = self._joins[id(operation)](list(parts.tensors))
        self._parts[id(answer)] = answer, parts
        return answer


def _read(args, kwargs, skip):
    """The tensors that a call reads, or that the first one of those skipped before it read."""
    tensors = tensors_in((args, kwargs))
    for _ in range(skip):
        operation, node, _ = tensors[0]._keras_history
        tensors = operation._inbound_nodes[node].input_tensors
    return tensors
