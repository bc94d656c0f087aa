"""Carrying out a plan: the smaller model, its masked twin, and the proof that both agree."""

import collections

import keras
import numpy as np
from keras import ops
from keras.src import backend

from tfseg_prune.graph import fold, proof
from tfseg_prune.graph.channels import ChannelGraph
from tfseg_prune.graph.ids import Kept
from tfseg_prune.graph.nodes import (
    again,
    finish,
    functional,
    is_nested,
    is_tensor,
    tensors_in,
    walk,
)
from tfseg_prune.graph.verify import verify
from tfseg_prune.layers.gradual_conv import GradualConv2D


def shrink(model, plan, *, check=True, fold_constants=False):
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
        check: Whether to compare. Two forward passes at batch 2; of a network above 4 GMACs at a
            reduced input size, where its layers allow one.
        fold_constants: Whether dropped channels leave their constants in the layers that read
            them (see `tfseg_prune.graph.fold`). `True` or "exact": those that are constant, as
            behind a batch normalisation with gamma = 0; then the smaller model answers what
            `model` answers, but for pixels near a zero-padded border. "beta": all that a batch
            normalisation writes, as if its gamma were 0; an estimate. The readers are Keras' own
            convolutions, separable, transposed (without strides) and gradual ones included, and
            `Dense`; a warning names others that lose a constant. A reader with neither a bias nor a
            batch normalisation behind it gets a bias, which `cost(model, plan)` doesn't count.

    Returns:
        An uncompiled `keras.Model` with the names and the order of the original's layers.

    Raises:
        ValueError: If the model isn't functional or the plan doesn't fit it.
        SurgeryError: If the smaller model and the masked twin differ by more than float noise.
    """
    surgery = _Surgery(model, plan, fold_constants)
    small, tensors = surgery.rebuild(cut=True)
    if check:
        verify(surgery, small, tensors)
    return small


def masked_twin(model, plan, *, fold_constants=False):
    """The network at full width with the dropped channels zeroed wherever they are read.

    Args and errors as of `shrink`.

    Returns:
        A `keras.Model` that answers what `shrink(model, plan)` must answer.
    """
    return _Surgery(model, plan, fold_constants).rebuild(cut=False)[0]


class _Surgery:
    """One plan for one model, ready to rebuild the model smaller or masked."""

    def __init__(self, model, plan, fold_constants):
        mode = fold.mode_of(fold_constants)
        self.model = model
        self.graph = ChannelGraph(model)
        self.keep_units = plan.keep_units(self.graph)
        self.kept = Kept(self.graph.keep_ids(self.keep_units))
        self.groups = plan.groups_in(model)
        self.records = {id(record.operation): record for record in self.graph.records.values()}
        for name, groups in self.groups.items():
            self._check_groups(name, groups)
        # Gradual convolutions need no mask: at alpha = 0 their own keeps the groups apart.
        self.masked_groups = {
            name: groups
            for name, groups in self.groups.items()
            if not isinstance(self.graph.records[name].operation, GradualConv2D)
        }
        self.offsets = fold.offsets(model, self.records, self.kept, mode)

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
            elif isinstance(record.operation, GradualConv2D):
                problem = record.operation.why_not_grouped()
                if record.operation.target_groups != groups:
                    problem = f"a gradual one with {record.operation.target_groups} groups"
        if problem:
            raise ValueError(
                f"The plan makes '{name}' a convolution with {groups} groups. Expected: a dense"
                f" convolution whose inputs and outputs {groups} divides. Received: {problem}"
            )

    def rebuild(self, *, cut):
        """The smaller model (`cut`) or the masked twin, and {id(old tensor): new tensor}."""
        done, tensors = {}, {}
        self._names = collections.Counter()
        built = self._rebuild(self.model, cut, done, tensors)
        for record, new in done.values():
            self.transplant(record, new, cut)
        return built, tensors

    def _rebuild(self, model, cut, done, tensors, inputs=None):
        graph = functional(model)
        if inputs is None:
            inputs = [_new_input(t, t.shape) for t in graph.inputs]
        else:
            inputs = [
                _new_input(t, self._cut_shape(t.shape, x) if cut else t.shape)
                for t, x in zip(graph.inputs, inputs)
            ]
        tensors.update({id(t): new for t, new in zip(graph.inputs, inputs)})
        for node in walk(model):
            args, kwargs = node.arguments.fill_in(tensors)
            record = self.records[id(node.operation)]
            answers = self._call(record, node, args, kwargs, cut, done)
            for old, new in zip(node.outputs, keras.tree.flatten(answers)):
                tensors[id(old)] = new
        structure = [
            keras.tree.map_structure(lambda t: tensors[id(t)], struct)
            for struct in (graph._inputs_struct, graph._outputs_struct)
        ]
        return keras.Model(*structure, name=model.name)

    def _call(self, record, node, args, kwargs, cut, done):
        operation = record.operation
        if is_nested(operation):
            if id(operation) not in done:
                inner = self._rebuild(operation, cut, done, {}, record.inputs)
                done[id(operation)] = None, inner
            # Keras also takes a list where the model's inputs are a dict; the new one gets its own.
            structure = functional(operation)._inputs_struct
            given = keras.tree.pack_sequence_as(structure, tensors_in((args, kwargs)))
            options = {name: x for name, x in kwargs.items() if not tensors_in(x)}
            return done[id(operation)][1](given, **options)
        if not isinstance(operation, keras.layers.Layer):
            operation = again(operation)
        elif id(operation) in done:
            operation = done[id(operation)][1]
        else:
            if cut and record.name in self.groups and isinstance(operation, GradualConv2D):
                operation = operation.to_grouped()
            operation = again(operation, self._config(record, cut), blank=True)
            done[id(record.operation)] = record, operation
        given = tensors_in((args, kwargs))
        if record.contracts and not cut:
            args, kwargs = self.masked(node, args, kwargs)
        if record.call is not None and cut:
            answers = record.call(self.kept, operation, *args, **kwargs)
        else:
            answers = operation(*args, **kwargs)
        _name_after(record.operation, answers, given, self._names)
        return answers

    def _config(self, record, cut):
        changes = self.offsets.settings(record.operation)
        if cut:
            changes |= {key: value(self.kept) for key, value in record.config.items()}
            if record.name in self.groups:
                changes["groups"] = self.groups[record.name]
        return changes

    def _cut_shape(self, shape, channels):
        shape = list(shape)
        for axis in channels.varying:
            shape[axis] = self.kept.count(channels.ids)
        return shape

    def masked(self, node, args, kwargs):
        """The call's tensors with zeros in place of dropped channels."""
        given = [self.graph.channels_of[id(t)] for t in node.arguments.keras_tensors]
        masks = iter([self.kept.mask(channels.ids) for channels in given])

        def mask(x):
            if not is_tensor(x):
                return x
            kept = next(masks)
            return x if kept.all() else _zeroed(x, kept)

        return keras.tree.map_structure(mask, (args, kwargs))

    def transplant(self, record, new, cut):
        """Copies the weights of one layer, smaller or masked."""
        if record is None:
            return
        slots = record.slots_by_position()
        bias = self.offsets.biases.get(id(record.operation))
        weights = [w for w in new.weights if bias is None or w is not new.bias]
        for index, (old, variable) in enumerate(zip(record.operation.weights, weights)):
            value = np.asarray(ops.convert_to_numpy(old))
            if id(old) in self.offsets.added:
                value = (value + self.offsets.added[id(old)]).astype(value.dtype)
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
            variable.trainable = old.trainable  # one weight alone may be frozen
        if bias is not None:
            (outs,) = next(slot.writes.values() for slot in record.slots if slot.writes)
            new.bias.assign(bias[self.kept.mask(outs)] if cut else bias)
        finish(record.operation, new)

    def _cut(self, value, slot, name):
        if slot.scale is not None:
            value = value * np.asarray(slot.scale(self.kept), value.dtype)
        if slot.groups > 1:
            return _cut_groups(value, slot, self.kept)
        for axis, ids in slot.axes.items():
            mask = self.kept.mask(ids)
            if not mask.all():  # a copy of a large weight takes its time
                value = np.compress(mask, value, axis=axis)
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
        groups = self.masked_groups.get(name, 1)
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


def _name_after(operation, answers, given, names):
    """Names what stands for `operation`, all that was called between two sets of tensors.

    Keras' own names count up from the start of the process, so they would meet names that a
    loaded model brings.
    """
    seen = {id(x) for x in given}
    pending, found = tensors_in(answers), {}
    while pending:
        tensor = pending.pop()
        if id(tensor) in seen or not isinstance(tensor, keras.KerasTensor):
            continue
        seen.add(id(tensor))
        creator, node_index, _ = tensor._keras_history
        found[id(creator)] = creator
        pending += creator._inbound_nodes[node_index].arguments.keras_tensors
    for position, creator in enumerate(found.values()):
        if position or not isinstance(creator, keras.layers.Layer):
            name = operation.name + (f"_before_{position}" if position else "")
            creator.name = name + (f"_{names[name]}" if names[name] else "")
            names[name] += 1  # a layer that is called twice may need two of each


def _zeroed(x, kept):
    """`x` times a boolean array, with the mask of steps that Keras hangs on tensors."""
    if isinstance(x, keras.KerasTensor) and "float" in x.dtype:
        # Among symbolic tensors it is layers that pass that mask on.
        return keras.layers.Rescaling(kept.astype("float32"), dtype=x.dtype)(x)
    truth = keras.backend.standardize_dtype(x.dtype) == "bool"
    answer = ops.logical_and(x, kept) if truth else x * ops.cast(kept, x.dtype)
    steps = backend.get_keras_mask(x)
    if steps is not None:
        backend.set_keras_mask(answer, steps)
    return answer


def _new_input(tensor, shape):
    name = tensor._keras_history.operation.name
    return keras.Input(batch_shape=shape, dtype=tensor.dtype, name=name)
