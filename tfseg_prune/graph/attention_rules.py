"""How channel ids pass through attention: layers with projections, and bare attention."""

import math

import numpy as np
from keras import layers

from tfseg_prune.graph.ids import Channels, size_of
from tfseg_prune.graph.rules import no_channels, register_rule


def _attends(trace, layer, query, value, key, others):
    """The ids that query, key and value have along their last axis."""
    for x in others:
        if isinstance(x, Channels) and x.varying:
            trace.freeze(x.ids, f"used as a mask by '{layer.name}'")
    why = f"'{layer.name}' attends over them"
    parts = {"query": query, "key": key, "value": value}
    return {part: trace.along(x, -1, why=why) for part, x in parts.items()}


def _with_scores(trace, answer):
    """The answer, and the scores that some layers give on request."""
    return [answer, *(no_channels(shape) for shape in trace.shapes[1:])]


def _project(trace, layer, ins, inner, tokens, heads, scale):
    """The projections of query, key, value and gate.

    Nothing but matrix products reads these channels: the twin zeroes them where they arise.
    """
    for part in ("query", "key", "value", "gate"):
        projection = getattr(layer, f"_{part}_dense", None)
        if projection is None:
            continue
        source = "query" if part == "gate" else part
        own = scale if part == "query" else None
        trace.weight(projection.kernel, reads={0: ins[source], 2: inner[part]}, scale=own)
        trace.weight(projection.bias, reads={1: inner[part]}, scale=own)
        trace.macs(tokens[source] * heads[part], ins[source], inner[part])


@register_rule(layers.MultiHeadAttention)
def multi_head_attention(trace, layer, query, value, key=None, *others, **named):
    """Heads stay; query and key share their channels within a head, value and projection theirs."""
    key = value if key is None else key
    ins = _attends(trace, layer, query, value, key, [*others, *named.values()])
    sources = {"query": query, "key": key, "value": value}
    tokens = {part: size_of(x.shape[:-1]) for part, x in sources.items()}
    heads, width = layer.num_heads, layer.key_dim
    key_ids = trace.produce(width, "key_dim")
    value_ids = trace.produce(layer.value_dim, "value_dim")
    inner = {"query": key_ids, "key": key_ids, "value": value_ids, "gate": value_ids}
    if len(key_ids) == len(value_ids):
        # The fused attention of some backends (JAX) wants them equally wide.
        trace.balance(np.concatenate([key_ids, value_ids]), 2)

    def rescale(kept):
        # The layer divides by the root of its own key_dim, which the surgery changes.
        return math.sqrt(kept.count(key_ids) / width)

    _project(trace, layer, ins, inner, tokens, dict.fromkeys(inner, heads), rescale)
    outs = trace.produce(trace.shape[-1])
    trace.weight(layer.output_dense.kernel, reads={1: value_ids}, writes={-1: outs})
    trace.weight(layer.output_dense.bias, follows={-1: outs})
    attended = math.prod(key.shape[axis] or math.nan for axis in layer._attention_axes)
    asked = layer._output_shape or (trace.shape[-1],)
    trace.macs(tokens["query"] * attended * heads, key_ids)
    trace.macs(tokens["query"] * attended * heads, value_ids)
    trace.macs(tokens["query"] * heads * math.prod(asked[:-1]), value_ids, outs)
    trace.config("key_dim", key_ids)
    trace.config("value_dim", value_ids)
    # The default is "as wide as the query", which the query need not stay.
    trace.config("output_shape", lambda kept: (*asked[:-1], kept.count(outs)))
    return _with_scores(trace, trace.channels(outs, trace.shape))


@register_rule(layers.GroupQueryAttention)
def group_query_attention(trace, layer, query, value, key=None, *others, **named):
    """One `head_dim` for keys and values, and an answer that is as wide as the query."""
    key = value if key is None else key
    ins = _attends(trace, layer, query, value, key, [*others, *named.values()])
    tokens = {"query": query.shape[1], "key": key.shape[1], "value": value.shape[1]}
    tokens = {part: length or math.nan for part, length in tokens.items()}
    query_heads, key_heads = layer.num_query_heads, layer.num_key_value_heads
    heads = {"query": query_heads, "gate": query_heads, "key": key_heads, "value": key_heads}
    head = trace.produce(layer.head_dim, "head_dim")

    def rescale(kept):
        return math.sqrt(kept.count(head) / layer.head_dim)

    _project(trace, layer, ins, dict.fromkeys(heads, head), tokens, heads, rescale)
    outs = trace.produce(trace.shape[-1])
    for width in (ins["value"], outs):
        trace.meet(ins["query"], width)
    trace.weight(layer._output_dense.kernel, reads={1: head}, writes={2: outs})
    trace.weight(layer._output_dense.bias, follows={0: outs})
    trace.macs(2 * tokens["query"] * tokens["key"] * query_heads, head)
    trace.macs(tokens["query"] * query_heads, head, outs)
    trace.config("head_dim", head)
    return _with_scores(trace, trace.channels(outs, trace.shape))


@register_rule(layers.Attention)
def attention(trace, layer, xs, *others, **named):
    """Query and key share their channels; those of the value pass through."""
    query, value, key = [*xs, xs[1]][:3]
    masks = _flat([*others, *named.values()])
    ins = _attends(trace, layer, query, value, key, masks)
    shared = trace.meet(ins["query"], ins["key"])
    pairs = (query.shape[1] or math.nan) * (key.shape[1] or math.nan)
    if getattr(layer, "scale", None) is not None and layer.scale.ndim:
        trace.weight(layer.scale, reads={0: shared})  # of an AdditiveAttention
    else:
        trace.record.contracts = True  # tanh(0) is 0, too, where the scores are a sum of them
    trace.macs(pairs, shared)
    trace.macs(pairs, ins["value"])
    return _with_scores(trace, trace.channels(ins["value"], trace.shape))


def _flat(given):
    """Everything in lists and tuples."""
    flat = []
    for x in given:
        flat += _flat(x) if isinstance(x, (list, tuple)) else [x]
    return flat


@register_rule("DotProductAttention")
def dot_product_attention(trace, op, query, key, value, *others, bias=None, mask=None, scale=None):
    """Heads and channels within a head are the same for query, key, value and answer."""
    parts = [query, key, value]
    axes = {axis for x in parts if isinstance(x, Channels) for axis in x.varying}
    given = _flat([*others, bias, mask, scale])
    wide = any(axis == 2 for axis in axes) and any(_heads(x) > 1 for x in given)
    alike = all(isinstance(x, Channels) and x.shape[2:] == query.shape[2:] for x in parts)
    _, queries, heads, width = query.shape
    pairs = (queries or math.nan) * (key.shape[1] or math.nan)
    if others or wide or not alike or len(axes) > 1 or not axes <= {2, 3}:
        trace.macs(pairs * heads * (width + value.shape[-1]))
        return trace.keep_whole("whose heads or channels don't correspond")
    scale = 1 / math.sqrt(width) if scale is None else scale
    ids = trace.elementwise(*[Channels(x.ids, query.shape) for x in parts]).ids
    trace.record.contracts = axes == {3}
    trace.macs(2 * pairs * heads * width / ids.size, ids)

    def scaled(kept, op, *args, **named):
        return op(*args, **{**named, "scale": scale})

    trace.call(scaled)
    return Channels(ids, trace.shape)


def _heads(x):
    """Length of the axis of the heads of a mask `[batch, heads, queries, keys]`."""
    shape = getattr(x, "shape", ())
    return shape[1] or 2 if len(shape) == 4 else 1
