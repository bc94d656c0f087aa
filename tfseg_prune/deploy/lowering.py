"""Models of equal values that phones run: what delegates get wrong stands there in another form."""

import collections
import contextlib
import dataclasses
import itertools

import keras
import numpy as np
from keras import layers, ops

from tfseg_prune.deploy.convert import ExportError
from tfseg_prune.graph.nodes import again, functional, is_nested, rewire, tensors_in, walk
from tfseg_prune.graph.rules import channel_axis, is_elementwise
from tfseg_prune.layers.gradual_conv import GradualConv2D

GROUPED = ("auto", "grouped", "split")
# GPU delegates pack channels in slices of so many and answer wrongly where a group ends inside one.
_SLICE = 4


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What becomes of an operation.

    Args:
        says: what the log says of it, behind its name.
        build: function `(operation, fresh) -> call` that makes what takes its place; `fresh(name)`
            is a layer name that nobody has, and `call` maps the operation's tensor to its answer
            or to `Parts`. `None`, it stays.
    """

    says: str
    build: object = None


@dataclasses.dataclass(frozen=True)
class Parts:
    """Tensors that stand for one that they would be along an axis."""

    tensors: tuple
    axis: int


@keras.saving.register_keras_serializable(package="tfseg_prune")
class Split(layers.Layer):
    """Equal parts of a tensor along an axis.

    A layer, since the raw operation gets its name from Keras, which a loaded model may have, too.

    Example:

    >>> [tuple(part.shape) for part in Split(2, -1)(keras.ops.ones((1, 4, 6, 8)))]
    [(1, 4, 6, 4), (1, 4, 6, 4)]
    """

    def __init__(self, parts, axis, **kwargs):
        super().__init__(**kwargs)
        self.parts, self.axis = parts, axis

    def call(self, inputs):
        return ops.split(inputs, self.parts, axis=self.axis)

    def get_config(self):
        return {**super().get_config(), "parts": self.parts, "axis": self.axis}


def lower(model, *, grouped="auto"):
    """A model that answers the same, of layers that phones compute rightly.

    Grouped convolutions: GPU delegates compute one grouped CONV_2D rightly only where the channels
    of a group, those that it reads and those that it writes, are multiples of 4. Others become one
    convolution per group of split channels, joined again, or a depthwise convolution where a group
    reads one channel. Batch normalisation and activations behind move to the parts, since the
    converter folds them into a convolution but not through a concatenation.

    Gradual convolutions stay: dense ones, whose connections between groups are zeros or fading.

    The last layer of what takes a layer's place has that layer's name, the others begin with it.

    Args:
        model: functional `keras.Model`. It isn't changed; what stays is shared with the answer.
        grouped: `"auto"`, as above; `"grouped"`, all stay one convolution; `"split"`, none does.
            Defaults to `"auto"`.

    Returns:
        `(model, log)`: the model, `model` itself where nothing has to change, and a tuple of
        sentences that say what became of each grouped convolution, and of each gradual one.

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
    # {what decides on an operation: the user's choice}
    table = {_grouped_convolution: grouped, _gradual_convolution: None}
    found = {id(operation): (path, operation) for path, operation in _calls(model)}
    lowerings, log = {}, []
    for path, operation in found.values():
        for decide, choice in table.items():
            lowering = decide(operation, choice)
            if lowering is not None:
                log.append(f"{path}: {lowering.says}")
                if lowering.build is not None:
                    lowerings[id(operation)] = lowering
    if lowerings:
        model = rewire(model, _Lowered(model, lowerings).call)
    return model, tuple(log)


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
    operations = {id(operation): operation for _, operation in _calls(model)}.values()
    notes = [own for op in operations for own in (op._inbound_nodes, op._outbound_nodes)]
    lengths = [len(own) for own in notes]
    try:
        yield
    finally:
        for own, length in zip(notes, lengths):
            del own[length:]


def _calls(model, path=(), seen=None):
    """Yields `(path, operation)` of every call in the graph, of each model in it once."""
    seen = set() if seen is None else seen
    seen.add(id(model))
    for node in walk(model):
        operation = node.operation
        here = (*path, operation.name)
        if not is_nested(operation):
            yield "/".join(here), operation
        elif id(operation) not in seen:
            yield from _calls(operation, here, seen)


def _names(model):
    """Yields the names that layers and operations have, those of inputs and in models too."""
    for operation in functional(model).operations:
        yield operation.name
        if is_nested(operation):
            yield from _names(operation)


class _Lowered:
    """Calls the operations of a model, others in place of those that have a lowering."""

    def __init__(self, model, lowerings):
        self._lowerings = lowerings
        self._count = collections.Counter(id(operation) for _, operation in _calls(model))
        self._names = set(_names(model))
        self._made, self._joins = {}, {}
        self._parts = {}  # {id of a joined tensor: (that tensor, its parts)}

    def call(self, operation, args, kwargs):
        lowering = self._lowerings.get(id(operation))
        if lowering is not None:
            if id(operation) not in self._made:
                self._made[id(operation)] = lowering.build(operation, self._fresh)
            (x,) = tensors_in((args, kwargs))
            answer = self._made[id(operation)](x)
            return self._joined(operation, answer) if isinstance(answer, Parts) else answer
        if len(args) == 1 and id(args[0]) in self._parts and self._count[id(operation)] == 1:
            _, parts = self._parts[id(args[0])]
            each = _for_parts(operation, parts, self._fresh)
            if each is not None:
                done = tuple(layer(x, **kwargs) for layer, x in zip(each, parts.tensors))
                return self._joined(operation, Parts(done, parts.axis))
        return operation(*args, **kwargs)

    def _joined(self, operation, parts):
        # Where all that reads the answer goes on with the parts, this one drops out of the model.
        if id(operation) not in self._joins:
            self._joins[id(operation)] = layers.Concatenate(
                parts.axis, name=operation.name, dtype=operation.dtype_policy
            )
        answer = self._joins[id(operation)](list(parts.tensors))
        self._parts[id(answer)] = answer, parts
        return answer

    def _fresh(self, name):
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name


def _for_parts(operation, parts, fresh):
    """Layers, one per part, that together do what `operation` does to all; `None`: there are none.

    Args:
        operation: what reads the joined tensor.
        parts: `Parts`, equally large.
        fresh: see `Lowering`.
    """
    if type(operation) is layers.BatchNormalization:
        rank = len(parts.tensors[0].shape)
        if operation.axis % rank != parts.axis % rank:
            return None
        count = len(parts.tensors)
        each = [
            again(operation, {"name": fresh(f"{operation.name}_group_{i}")}, blank=True)
            for i in range(count)
        ]
        values = [np.split(np.asarray(value), count) for value in operation.get_weights()]
        for i, layer in enumerate(each):
            layer.build(parts.tensors[i].shape)
            layer.set_weights([value[i] for value in values])
        return each
    alone = isinstance(operation, layers.Layer) and is_elementwise(
        operation.activation if type(operation) is layers.Activation else operation
    )
    if not alone or operation.weights:
        return None
    return itertools.repeat(again(operation, {"name": fresh(f"{operation.name}_groups")}))


def _grouped_convolution(conv, choice):
    """The `Lowering` of a grouped `Conv2D`, `None` for any other operation; see `lower`."""
    if not isinstance(conv, layers.Conv2D) or conv.groups == 1:
        return None
    ins, outs = conv.kernel.shape[-2], conv.filters // conv.groups
    width = f"{ins} channels in and {outs} out" if ins != outs else f"{ins} channels"
    width = f"{width.replace('1 channels', '1 channel') if ins == 1 else width} per group"
    right = ins % _SLICE == 0 and outs % _SLICE == 0
    if choice == "grouped" or choice == "auto" and right:
        warned = "" if right else ", which GPU delegates get wrong"
        return Lowering(f"{width}: one grouped convolution{warned}")
    plain = layers.Conv2D
    if type(conv).call is not plain.call or type(conv).convolution_op is not plain.convolution_op:
        if choice == "split":
            raise ExportError(
                f"Can't split the layer '{conv.name}'. Expected: a keras.layers.Conv2D. Received:"
                f" a {type(conv).__name__}, which computes in a way of its own. Remedy:"
                " grouped='auto', or a Conv2D in its place."
            )
        return Lowering(
            f"{width}: a {type(conv).__name__}, which can't be split; GPU delegates get it wrong"
        )
    # TensorFlow has no depthwise convolution whose strides differ.
    if ins == 1 and len(set(conv.strides)) == 1:
        return Lowering(f"{width}: one depthwise convolution", _depthwise)
    return Lowering(f"{width}: split into {conv.groups} convolutions", _split)


def _gradual_convolution(conv, choice):
    """The `Lowering` of a `GradualConv2D`, which says that nothing is saved yet."""
    if not isinstance(conv, GradualConv2D):
        return None
    alpha = float(ops.convert_to_numpy(conv.alpha))
    if alpha:
        return Lowering(
            f"a dense convolution, on its way to {conv.target_groups} groups at alpha = {alpha:.3g}"
        )
    return Lowering(
        f"a dense convolution, though its {conv.target_groups} groups have faded apart: shrink the"
        " model by a plan with groups to save them"
    )


def _depthwise(conv, fresh):
    kernel, *bias = _weights(conv)
    multiplier = conv.filters // conv.groups
    layer = layers.DepthwiseConv2D(
        conv.kernel_size,
        depth_multiplier=multiplier,
        activation=conv.activation,
        name=conv.name,
        **_settings(conv),
    )
    layer.build(_shape(conv, conv.groups))
    layer.set_weights([kernel.reshape(*conv.kernel_size, conv.groups, multiplier), *bias])
    return layer


def _split(conv, fresh):
    axis, settings = channel_axis(conv), _settings(conv)
    # A softmax, say, needs all channels.
    alone = is_elementwise(conv.activation)
    split = Split(conv.groups, axis, name=fresh(f"{conv.name}_split"), dtype=conv.dtype_policy)
    each = []
    for i, values in enumerate(zip(*(np.split(w, conv.groups, -1) for w in _weights(conv)))):
        layer = layers.Conv2D(
            conv.filters // conv.groups,
            conv.kernel_size,
            activation=conv.activation if alone else None,
            kernel_initializer="zeros",
            name=fresh(f"{conv.name}_group_{i}"),
            **settings,
        )
        layer.build(_shape(conv, values[0].shape[-2]))
        layer.set_weights(values)
        each.append(layer)
    join = layers.Concatenate(axis, name=fresh(f"{conv.name}_join"), dtype=conv.dtype_policy)
    activation = layers.Activation(conv.activation, name=conv.name, dtype=conv.dtype_policy)

    def call(x):
        parts = tuple(layer(part) for layer, part in zip(each, split(x)))
        return Parts(parts, axis) if alone else activation(join(list(parts)))

    return call


def _weights(conv):
    """The kernel, with what was learnt beside it (LoRA) in it, and the bias if there is one."""
    return [np.asarray(ops.convert_to_numpy(w)) for w in (conv.kernel, conv.bias) if w is not None]


def _settings(conv):
    names = ("strides", "padding", "data_format", "dilation_rate", "use_bias")
    return {"dtype": conv.dtype_policy, **{name: getattr(conv, name) for name in names}}


def _shape(conv, channels):
    shape = [None] * 4
    shape[channel_axis(conv)] = channels
    return tuple(shape)
