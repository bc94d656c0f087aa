"""How channel ids pass through products of tensors, all of them written as an einsum.

A letter along which ids change is shared by every operand that holds it. Where it is summed over,
the operation contracts: the masked twin zeroes the dropped channels of its inputs.
"""

import math

import numpy as np
from keras import layers

from tfseg_prune.graph.ids import Channels
from tfseg_prune.graph.rules import activate, cut_constants, no_channels, register_rule

_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def contraction(trace, operands, terms, out):
    """Channels of an einsum; constants are cut where their letters lose channels.

    Args:
        trace: `Trace`.
        operands: `Channels` or constants.
        terms: One string of letters per operand, one letter per axis.
        out: Letters of the answer.
    """
    given = [(x, term) for x, term in zip(operands, terms) if isinstance(x, Channels)]
    along = _letters_with_channels(trace, given)
    for letter, ids in along.items():
        for x, term in given:
            axis = term.find(letter)
            if axis >= 0 and axis not in x.varying and x.shape[axis] != 1:
                trace.freeze(ids, f"multiplied with a fixed width by '{trace.record.name}'")
        if letter not in out:
            trace.record.contracts = True
    cuts = {}
    for position, (x, term) in enumerate(zip(operands, terms)):
        if not isinstance(x, Channels):
            long = {axis: n for axis, (n, size) in enumerate(zip(term, np.shape(x))) if size > 1}
            cuts[position] = {axis: along[n] for axis, n in long.items() if n in along}
    cut_constants(trace, cuts)
    _count(trace, operands, terms, out, along)
    kept = [axis for axis, letter in enumerate(out) if letter in along]
    if not kept:
        return no_channels(trace.shape)
    # Rows and columns can't be dropped apart: the longest axis stays free (the last of equals).
    free = max(kept, key=lambda axis: (len(along[out[axis]]), axis))
    for axis in kept:
        if axis != free:
            why = "multiplied with channels along another axis"
            trace.freeze(along[out[axis]], f"{why} by '{trace.record.name}'")
    return trace.channels(along[out[free]], trace.shape, free)


def _letters_with_channels(trace, given):
    """{letter: ids along it}, united over all operands."""
    along = {}
    for x, term in given:
        for axis in x.varying:
            letter, ids = term[axis], x.ids.reshape(-1)
            if term.count(letter) > 1:
                trace.freeze(ids, f"taken along a diagonal by '{trace.record.name}'")
            elif letter in along:
                along[letter] = trace.meet(along[letter], ids)
            else:
                along[letter] = ids
    return along


def _count(trace, operands, terms, out, along):
    """Multiplications per sample: the product of all sizes but the batch."""
    if len(operands) < 2:
        return
    sizes, first, batch = {}, set(), set()
    for x, term in zip(operands, terms):
        for letter, size in zip(term, _shape(x)):
            sizes[letter] = max(sizes.get(letter) or 0, size or 0) or None
        if isinstance(x, Channels) and x.shape:
            (batch if x.shape[0] is None else first).add(term[0])
    if not batch:
        # Another axis than the first may hold the samples, or their number is fixed.
        batch = set(out[:1]) if out and sizes[out[0]] is None else first
    fixed = [n or math.nan for a, n in sizes.items() if a not in batch and a not in along]
    trace.macs(math.prod(fixed), *along.values())


def _shape(x):
    return x.shape if isinstance(x, Channels) else np.shape(x)


@register_rule("Einsum")
def einsum(trace, op, *operands, **_):
    ranks = [len(_shape(x)) for x in operands]
    terms, out = _expanded(op.subscripts.replace(" ", ""), ranks)
    return contraction(trace, operands, terms, out)


def _expanded(subscripts, ranks):
    """The terms and the answer of an einsum equation, with letters for every `...`."""
    left, arrow, out = subscripts.partition("->")
    terms = left.split(",")
    if not arrow:
        letters = left.replace(",", "").replace(".", "")
        out = "..." * ("..." in left) + "".join(
            sorted(n for n in set(letters) if letters.count(n) == 1)
        )
    free = [n for n in _LETTERS if n not in subscripts]
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks)]
    longest = "".join(free[: max(hidden)])
    terms = [term.replace("...", longest[len(longest) - n :]) for term, n in zip(terms, hidden)]
    return terms, out.replace("...", longest)


@register_rule("Matmul")
def matmul(trace, op, x1, x2):
    ranks = [len(_shape(x)) for x in (x1, x2)]
    batch = _LETTERS[: max(*ranks, 2) - 2]
    terms = [
        "y" if rank == 1 else batch[len(batch) - rank + 2 :] + pair
        for rank, pair in zip(ranks, ("xy", "yz"))
    ]
    out = batch + "x" * (ranks[0] > 1) + "z" * (ranks[1] > 1)
    return contraction(trace, [x1, x2], terms, out)


@register_rule("Dot")
def dot(trace, op, x1, x2):
    ranks = [len(_shape(x)) for x in (x1, x2)]
    if min(ranks) == 0:
        return trace.elementwise(x1, x2)
    first, second = _apart(ranks)
    second = first[-1] if ranks[1] == 1 else second[:-2] + first[-1] + second[-1]
    return _product(trace, x1, x2, first, second)


@register_rule("Tensordot")
def tensordot(trace, op, x1, x2):
    ranks = [len(_shape(x)) for x in (x1, x2)]
    first, second = _apart(ranks)
    if isinstance(op.axes, int):
        axes = range(ranks[0] - op.axes, ranks[0]), range(op.axes)
    else:
        axes = [np.atleast_1d(own).tolist() for own in op.axes]
    second = list(second)
    for a, b in zip(*axes):
        second[b] = first[a]
    return _product(trace, x1, x2, first, "".join(second))


@register_rule("Inner")
def inner(trace, op, x1, x2):
    first, second = _apart([len(_shape(x)) for x in (x1, x2)])
    return _product(trace, x1, x2, first, second[:-1] + first[-1])


def _apart(ranks):
    """Letters of two operands, none of them shared."""
    return _LETTERS[: ranks[0]], _LETTERS[ranks[0] : sum(ranks)]


def _product(trace, x1, x2, first, second):
    """A contraction over the shared letters that keeps all others, in order."""
    out = "".join(n for n in first + second if (n in first) != (n in second))
    return contraction(trace, [x1, x2], [first, second], out)


@register_rule(layers.Dot)
def dot_layer(trace, layer, xs):
    """Products within each sample; with `normalize` of unit vectors, to which zeros add nothing."""
    ranks = [len(x.shape) for x in xs]
    axes = layer.axes if isinstance(layer.axes, (list, tuple)) else [layer.axes] * 2
    first, second = _apart(ranks)
    second = list(first[0] + second[1:])
    second[axes[1] % ranks[1]] = first[axes[0] % ranks[0]]
    shared = first[axes[0] % ranks[0]]
    out = first.replace(shared, "") + "".join(second[1:]).replace(shared, "")
    out += "Z" * (len(trace.shape) - len(out))  # an axis of length 1
    return contraction(trace, xs, [first, "".join(second)], out)


# A learned kernel.


@register_rule(layers.EinsumDense)
def einsum_dense(trace, layer, x):
    """Letters of the kernel that the input lacks are channels that the layer creates."""
    equation = layer.equation.replace(" ", "")
    (term, kernel), out = _expanded(equation, [len(x.shape), layer.kernel.ndim])
    along = {term[axis]: x.ids.reshape(-1) for axis in x.varying}
    if any(term.count(n) > 1 or (n not in kernel and n not in out) for n in along):
        trace.freeze(x.ids, f"summed over without weights by '{layer.name}'")
        along = {}
    created = [n for n in kernel if n in out and n not in term]
    if created and not any(n in out for n in along):
        # Of several new axes the longest follows the channels (the last of equals).
        sizes = dict(zip(kernel, layer.kernel.shape))
        free = max(created, key=lambda n: (sizes[n], out.index(n)))
        along[free] = trace.produce(sizes[free])
    axes = {axis: n for axis, n in enumerate(kernel) if n in along}
    trace.weight(
        layer.kernel,
        reads={axis: along[n] for axis, n in axes.items() if n not in out},
        writes={axis: along[n] for axis, n in axes.items() if n not in term},
        follows={axis: along[n] for axis, n in axes.items() if n in term and n in out},
    )
    _follow_answer(trace, layer, equation, out, along)
    # Keras takes `None` in the setting `output_shape` for an answer, whatever the input's size.
    sizes = dict(zip(kernel + term, (*layer.kernel.shape, *x.shape)))
    fixed = [size or math.nan for n, size in sizes.items() if n != term[0] and n not in along]
    trace.macs(math.prod(fixed), *along.values())
    for axis, n in enumerate(out):
        if n in along:
            activate(trace, layer.activation, along[n], layer.name)
            return trace.channels(along[n], trace.shape, axis)
    return no_channels(trace.shape)


def _follow_answer(trace, layer, equation, out, along):
    """The bias and the setting `output_shape` of an `EinsumDense` follow the answer's axes."""
    if layer.bias is not None:
        last = out[len(out) - layer.bias.ndim :]
        long = [axis for axis, size in enumerate(layer.bias.shape) if size > 1]
        follows = {axis: along[last[axis]] for axis in long if last[axis] in along}
        trace.weight(layer.bias, follows=follows)
    asked = layer.partial_output_shape
    first = 1 if equation.endswith("...") else len(out) - len(asked)
    asked = dict(enumerate(asked, first))

    def output_shape(kept):
        changed = {axis: along[n] for axis, n in enumerate(out) if n in along}
        return tuple(
            kept.count(changed[axis]) if size is not None and axis in changed else size
            for axis, size in asked.items()
        )

    trace.config("output_shape", output_shape)
