"""Carrying out a plan: the smaller model, its masked twin, and the proof that both agree."""

import keras
import numpy as np
from keras import ops

from tfseg_prune.graph import proof
from tfseg_prune.graph.channels import ChannelGraph
from tfseg_prune.graph.cost import CostModel
from tfseg_prune.graph.ids import Kept
from tfseg_prune.graph.nodes import functional, is_nested, walk

# Above this many MACs the check runs at a smaller input, where the network allows one.
_CHECK_MACS = 2e10
_CHECK_SCALES = (2, 4, 8)
_CHECK_TAPS = 24
def shrink(model, plan, *, check=True):
    """The smaller model that a plan describes, with the weights that stay.

    It is a plain `keras.Model` of the layers that the model had: it saves, loads and trains
    without this package. Before it is returned it is compared, on random input and layer by layer,
    with the model itself, whose own layers are run with the dropped channels zeroed wherever they
    are read.

    ```python
    small = tsp.shrink(model, plan)
    small.save("small.keras")
    ```

    Args:
        model: Functional `keras.Model`. It isn't changed.
        plan: `PruningPlan` made for this architecture.
        check: Whether to compare. Two forward passes at batch 2; of a network above 20 GMACs at a
            reduced input size, where its layers allow one.

    Returns:
        An uncompiled `keras.Model` with the names and the order of the original's layers.

    Raises:
        ValueError: If the model isn't functional or the plan doesn't fit it.
        SurgeryError: If the smaller model and the masked twin differ by more than float noise.
    """
    surgery = _Surgery(model, plan)
    small, tensors = surgery.rebuild(cut=True)
    if check:
        _check(surgery, small, tensors)
    return small


def masked_twin(model, plan):
    """The network at full width with the dropped channels zeroed wherever they are read.

    Args and errors as of `shrink`.

    Returns:
        A `keras.Model` that answers what `shrink(model, plan)` must answer.
    """
    return _Surgery(model, plan).rebuild(cut=False)[0]


class _Surgery:
    """One plan for one model, ready to rebuild the model smaller or masked."""

    def __init__(self, model, plan):
        self.model = model
        self.graph = ChannelGraph(model)
        self.keep_units = plan.keep_units(self.graph)
        self.kept = Kept(self.graph.keep_ids(self.keep_units))
        self.groups = plan.groups_in(model)
        self.records = {id(record.operation): record for record in self.graph.records.values()}
        for name, groups in self.groups.items():
            self._check_groups(name, groups)

    def _check_groups(self, name, groups):
        record = self.graph.records.get(name)
        convolutions = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
        problem = None
        if record is None or not isinstance(record.operation, convolutions):
            problem = "no convolution of that name"
        elif record.operation.groups > 1:
            problem = f"a convolution with {record.operation.groups} groups already"
        else:
            slot = record.slots[0]
            ins, outs = (self.kept.count(ids) for ids in slot.axes.values())
            if ins % groups or outs % groups:
                problem = f"one with {ins} inputs and {outs} outputs after pruning"
        if problem:
            raise ValueError(
                f"The plan makes '{name}' a convolution with {groups} groups. Expected: a dense"
                f" convolution whose inputs and outputs {groups} divides. Received: {problem}"
            )

    def rebuild(self, *, cut, shrink_input=1):
        """The smaller model (`cut`) or the masked twin, and {id(old tensor): new tensor}."""
        done, tensors = {}, {}
        built = self._rebuild(self.model, cut, done, shrink_input, tensors)
        for record, new in done.values():
            self._transplant(record, new, cut)
        return built, tensors

    def _rebuild(self, model, cut, done, shrink_input, tensors, inputs=None):
        graph = functional(model)
        if inputs is None:
            inputs = [_new_input(t, t.shape, shrink_input) for t in graph.inputs]
        else:
            inputs = [
                _new_input(t, self._cut_shape(t.shape, x) if cut else t.shape, shrink_input)
                for t, x in zip(graph.inputs, inputs)
            ]
        tensors.update({id(t): new for t, new in zip(graph.inputs, inputs)})
        for node in walk(model):
            args, kwargs = node.arguments.fill_in(tensors)
            record = self.records[id(node.operation)]
            answers = self._call(record, args, kwargs, cut, done, shrink_input)
            for old, new in zip(node.outputs, keras.tree.flatten(answers)):
                tensors[id(old)] = new
        structure = [
            keras.tree.map_structure(lambda t: tensors[id(t)], struct)
            for struct in (graph._inputs_struct, graph._outputs_struct)
        ]
        return keras.Model(*structure, name=model.name)

    def _call(self, record, args, kwargs, cut, done, shrink_input):
        operation = record.operation
        if is_nested(operation):
            if id(operation) not in done:
                inner = self._rebuild(operation, cut, done, shrink_input, {}, record.inputs)
                done[id(operation)] = None, inner
            # Keras also takes a list where the model's inputs are a dict; the new one gets its own.
            structure = functional(operation)._inputs_struct
            given = keras.tree.pack_sequence_as(structure, _tensors((args, kwargs)))
            options = {name: x for name, x in kwargs.items() if not _tensors(x)}
            return done[id(operation)][1](given, **options)
        if not isinstance(operation, keras.layers.Layer):
            operation = _again(operation)
        elif id(operation) in done:
            operation = done[id(operation)][1]
        else:
            operation = _again(operation, self._config(record, cut, shrink_input))
            done[id(record.operation)] = record, operation
        if record.contracts and not cut:
            args, kwargs = self._masked(record, args, kwargs)
        if record.call is not None and cut:
            return record.call(self.kept, operation, *args, **kwargs)
        return operation(*args, **kwargs)

    def _config(self, record, cut, shrink_input):
        changes = {}
        if cut:
            changes = {key: value(self.kept) for key, value in record.config.items()}
            if record.name in self.groups:
                changes["groups"] = self.groups[record.name]
        if shrink_input > 1:
            changes |= _smaller_settings(record, shrink_input)
        return changes

    def _cut_shape(self, shape, channels):
        shape = list(shape)
        for axis in channels.varying:
            shape[axis] = self.kept.count(channels.ids)
        return shape

    def _masked(self, record, args, kwargs):
        """The call's tensors with zeros in place of dropped channels."""
        masks = iter([self.kept.mask(channels.ids) for channels in record.inputs])

        def mask(x):
            if not _is_tensor(x):
                return x
            kept = next(masks)
            return x if kept.all() else x * ops.cast(kept, x.dtype)

        return keras.tree.map_structure(mask, (args, kwargs))

    def reference(self, batch, shrink_input=1):
        """{id(tensor): value} of what the model's own layers answer on masked inputs.

        Nothing is rebuilt here (but what `_stand_in` must), so that nothing that a rebuild could
        lose is lost on both sides of the comparison.
        """
        graph = functional(self.model)
        values = {id(t): ops.convert_to_tensor(x) for t, x in zip(graph.inputs, batch)}
        self._interpret(self.model, values, shrink_input)
        return values

    def _interpret(self, model, values, shrink_input):
        for node in walk(model):
            args, kwargs = node.arguments.fill_in(values)
            record = self.records[id(node.operation)]
            if is_nested(node.operation):
                inner = functional(node.operation)
                inside = {id(t): x for t, x in zip(inner.inputs, _tensors((args, kwargs)))}
                self._interpret(node.operation, inside, shrink_input)
                answers = [inside[id(t)] for t in inner.outputs]
            else:
                if record.contracts or any(slot.reads for slot in record.slots):
                    args, kwargs = self._masked(record, args, kwargs)
                answers = self._stand_in(record, shrink_input)(*args, **kwargs)
            for tensor, value in zip(node.outputs, keras.tree.flatten(answers)):
                values[id(tensor)] = value

    def _stand_in(self, record, shrink_input):
        """The operation itself; a masked copy where masking its inputs isn't all there is to it."""
        operation = record.operation
        changes = _smaller_settings(record, shrink_input) if shrink_input > 1 else {}
        reads_inside = any(
            not any(np.isin(ids, x.ids).all() for x in record.inputs)
            for slot in record.slots
            for ids in slot.reads.values()
        )
        if not (changes or reads_inside or record.name in self.groups):
            return operation
        copy = _again(operation, changes)
        if operation.weights:
            copy.build_from_config(operation.get_build_config())
            self._transplant(record, copy, cut=False)
        return copy

    def _transplant(self, record, new, cut):
        """Copies the weights of one layer, smaller or masked."""
        if record is None:
            return
        slots = {slot.index: slot for slot in record.slots}
        for index, (old, variable) in enumerate(zip(record.operation.weights, new.weights)):
            value = np.asarray(ops.convert_to_numpy(old))
            slot = slots.get(index)
            if slot is not None:
                value = (self._cut if cut else self._mask)(value, slot, record.name)
            if tuple(value.shape) != tuple(variable.shape):
                raise proof.SurgeryError(
                    f"The weight '{variable.path}' of the rebuilt layer '{record.name}' has another"
                    f" shape than its channels. Expected: {tuple(value.shape)}. Received:"
                    f" {tuple(variable.shape)}. The rule of {type(new).__name__} is wrong."
                )
            variable.assign(value)
        if hasattr(new, "finalize_state"):
            new.finalize_state()  # Normalization computes with copies of its statistics

    def _cut(self, value, slot, name):
        if slot.scale is not None:
            value = value * np.asarray(slot.scale(self.kept), value.dtype)
        if slot.groups > 1:
            return _cut_groups(value, slot, self.kept)
        for axis, ids in slot.axes.items():
            value = np.compress(self.kept.mask(ids), value, axis=axis)
        groups = self.groups.get(name, 1)
        if groups > 1 and slot.reads and slot.writes:
            value = _diagonal_blocks(value, groups)
        return value

    def _mask(self, value, slot, name):
        value = np.array(value)
        if slot.groups > 1:
            # The kernel's input axis runs within a group, so each group has its own rows.
            (axis, ids), (out_axis, _) = *slot.reads.items(), *slot.writes.items()
            rows = self.kept.mask(ids).reshape(slot.groups, -1)
            rows = np.repeat(rows, value.shape[out_axis] // slot.groups, axis=0).T
            return value * rows.reshape(rows.shape)
        for axis, ids in slot.reads.items():
            value[(slice(None),) * axis + (~self.kept.mask(ids),)] = 0
        groups = self.groups.get(name, 1)
        if groups > 1 and slot.reads and slot.writes:
            stays = [np.flatnonzero(self.kept.mask(ids)) for ids in slot.axes.values()]
            connected = np.zeros([value.shape[axis] for axis in slot.axes], bool)
            for ins, outs in zip(*(np.split(s, groups) for s in stays)):
                connected[np.ix_(ins, outs)] = True
            value = value * connected
        return value


def _cut_groups(value, slot, kept):
    """Kernel of a grouped convolution with the channels that stay, group by group."""
    (in_axis, ins), (out_axis, outs) = *slot.reads.items(), *slot.writes.items()
    columns = np.split(value, slot.groups, axis=out_axis)
    in_masks = np.split(kept.mask(ins), slot.groups)
    out_masks = np.split(kept.mask(outs), slot.groups)
    blocks = [
        np.compress(o, np.compress(i, block, axis=in_axis), axis=out_axis)
        for block, i, o in zip(columns, in_masks, out_masks)
    ]
    return np.concatenate(blocks, axis=out_axis)


def _diagonal_blocks(kernel, groups):
    """Grouped kernel `[..., in / groups, out]` of the diagonal blocks of `[..., in, out]`."""
    columns = np.split(kernel, groups, axis=-1)
    blocks = [np.split(column, groups, axis=-2)[g] for g, column in enumerate(columns)]
    return np.concatenate(blocks, axis=-1)


def _new_input(tensor, shape, shrink_input):
    shape = list(shape)
    if shrink_input > 1 and len(shape) == 4:
        shape[1:3] = [size // shrink_input if size else size for size in shape[1:3]]
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=tensor.name)


def _is_tensor(x):
    return isinstance(x, keras.KerasTensor) or ops.is_tensor(x)


def _tensors(structure):
    return [x for x in keras.tree.flatten(structure) if _is_tensor(x)]


def _again(operation, changes=None):
    """A new operation of the same config, but for the changes."""
    if isinstance(operation, keras.layers.Lambda):
        # Its function needn't be serialisable to be used again.
        return keras.layers.Lambda(
            operation.function,
            output_shape=operation._output_shape,
            arguments=operation.arguments,
            name=operation.name,
        )
    config = operation.get_config()
    for key in config:
        # Functions of the user's own need not be registered to be used again.
        if key.endswith(("activation", "initializer", "regularizer", "constraint")):
            config[key] = getattr(operation, key, config[key])
    try:
        return type(operation).from_config({**config, **(changes or {})})
    except Exception as error:
        first = str(error).strip().split("\n")[0][:200]
        raise ValueError(
            f"The layer '{operation.name}' ({type(operation).__name__}) can't be built anew from"
            " its config. Expected: a `get_config` that holds every argument of `__init__`."
            f" Received: {type(error).__name__}: {first}"
        ) from error


def _smaller_settings(record, factor):
    """Settings that hold a spatial size, for an input that is smaller by `factor`."""
    operation = record.operation
    given, answered = record.inputs[0].shape, record.outputs[0].shape
    if isinstance(operation, keras.layers.Resizing):
        return {"height": answered[1] // factor, "width": answered[2] // factor}
    if isinstance(operation, keras.layers.UpSampling2D) and tuple(given[1:3]) == (1, 1):
        return {"size": tuple(size // factor for size in answered[1:3])}
    return {}


def _check(surgery, small, tensors):
    """Compares, layer by layer, at a cost that stays bounded for large inputs."""
    try:
        macs = CostModel(surgery.graph).macs()
    except ValueError:
        macs = 0.0  # an open input size, for which a small one is chosen
    taps = _taps(surgery)

    def compare(model, tensors, factor):
        tapped = keras.Model(model.inputs, [tensors[id(tensor)] for _, tensor, _ in taps])
        batch = proof.random_batch(tapped, seed=0)

        def reference(batch):
            values = surgery.reference(batch, factor)
            return [
                _kept_channels(values[id(tensor)], channels, surgery.kept)
                for _, tensor, channels in taps
            ]

        names = [name for name, _, _ in taps]
        tolerance = proof.scaled_tolerance(surgery.model, proof.TOLERANCE)
        proof.compare(names, reference, proof.answers_of(tapped, batch), batch, tolerance)

    if macs > _CHECK_MACS:
        factor = next((f for f in _CHECK_SCALES if macs / f**2 <= _CHECK_MACS), _CHECK_SCALES[-1])
        try:
            return compare(*surgery.rebuild(cut=True, shrink_input=factor), factor)
        except (ValueError, TypeError):
            pass  # some layer holds the input size, so that only the full size works
    return compare(small, tensors, 1)


def _kept_channels(value, channels, kept):
    value = np.asarray(ops.convert_to_numpy(value))
    for axis in channels.varying:
        value = np.compress(kept.mask(channels.ids.reshape(-1)), value, axis=axis)
    return value


def _taps(surgery):
    """(name, tensor, channels) of the model's outputs and some layers, in topological order.

    Outputs alone can hide a difference: a softmax of tiny logits is the same for any logits.
    """
    graph = functional(surgery.model)
    last = {id(tensor) for tensor in graph.outputs}
    outputs, inner = [], []
    for node in walk(surgery.model):
        record = surgery.records[id(node.operation)]
        for tensor, channels in zip(node.outputs, record.outputs):
            row = (len(outputs) + len(inner), (record.name, tensor, channels))
            if id(tensor) in last:
                outputs.append(row)
            elif record.contracts or any(slot.reads for slot in record.slots):
                inner.append(row)
    inner = inner[:: max(1, -(-len(inner) // _CHECK_TAPS))]
    return [row for _, row in sorted(outputs + inner, key=lambda row: row[0])]
