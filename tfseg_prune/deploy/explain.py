"""What each op of a LiteRT file costs, read without running it: MACs, padded MACs, bytes."""

import dataclasses
import json
import math
import pathlib
import re

from tfseg_prune.bench import metadata, runtime
from tfseg_prune.deploy import contents, gpu_rules
from tfseg_prune.graph.cost import SLICE

# Ops that multiply what nothing here counts.
_UNCOUNTED = re.compile("CUSTOM|UNKNOWN|STABLEHLO|LSTM|RNN|SVDF|^(CALL|WHILE|IF)$")
# The last part of a TensorFlow name that stands for the layer with the kernel.
_KERNEL = re.compile(r"(convolution|depthwise|conv\w*transpose|MatMul|BatchMatMul|Tensordot|Conv)")
_RED = "#d93025"
# What arithmetic on the shapes of an op raises that has other tensors than it must have.
_SENSELESS = (ValueError, IndexError, TypeError, KeyError, AttributeError, ArithmeticError)
# Scopes that TensorFlow's own functions open inside a layer's.
_INSIDE = {"batchnorm", "conv_transpose", "moments", "resize", "separable_conv2d"}


@dataclasses.dataclass(frozen=True)
class OpCost:
    """One op of a file.

    Args:
        index: its place in the file.
        op: such as `"CONV_2D"`.
        layer: name of the Keras layer that it computes, as far as the file's names tell: of several
            that are one op the one with the kernel; `""`, the file doesn't say.
        fused: the other layers that it computes.
        inputs: shapes of the tensors that it reads, constants aside.
        output: shape of the first tensor that it writes.
        type: of that tensor.
        macs: multiply-accumulates, as `tsp.cost` counts them; `None`, not counted.
        padded_macs: MACs with all widths rounded up to 4, as GPU delegates compute them.
        weight_bytes: of the constants that it reads.
        activation_bytes: of what it writes.
        constant: whether it only unpacks weights (float16 files), which delegates do once.
        gpu: what GPU delegates do with it, `"refused"`, `"wrong"`, `"dies"` or `"unknown"` (see
            `gpu_rules.Finding`); `""`, no rule has anything against it, which is no proof.
        why: the reason and the remedy, as a sentence that begins with the layer, or `"op 3"`.
    """

    index: int
    op: str
    layer: str
    fused: tuple[str, ...]
    inputs: tuple[tuple[int, ...], ...]
    output: tuple[int, ...]
    type: str
    macs: int | None
    padded_macs: int | None
    weight_bytes: int
    activation_bytes: int
    constant: bool = False
    gpu: str = ""
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What `explain` found.

    Args:
        path: the file.
        bytes: its size.
        precision: see `Contents`.
        ops: an `OpCost` per op.
        macs, padded_macs: sums of those that are counted.
        weight_bytes: of all constants, shared ones once.
        activation_bytes: of all that is written.
        peak_bytes: of the tensors that are needed at once, at most.
        uncounted: names of the ops whose MACs nobody counts.
        graphs: how many graphs the file has; all that is said is of the first one.
        unnamed: why the JSON beside the file does not help to name the layers; `""`, it does, or
            there is none.
    """

    path: pathlib.Path
    bytes: int
    precision: str
    ops: tuple[OpCost, ...]
    macs: int
    padded_macs: int
    weight_bytes: int
    activation_bytes: int
    peak_bytes: int
    uncounted: tuple[str, ...] = ()
    graphs: int = 1
    unnamed: str = ""

    def to_json(self):
        """All of it as JSON."""
        return json.dumps({**dataclasses.asdict(self), "path": str(self.path)}, indent=1) + "\n"

    def overlay(self):
        """Node data for Model Explorer, as JSON: padded MACs as colours, what GPUs refuse in red.

        The form is that of Model Explorer's custom node data; a node's key is its op's index.
        """
        results = {}
        for op in self.ops:
            if op.padded_macs is not None:
                results[str(op.index)] = {"value": op.padded_macs}
            if op.gpu:
                # What has no number is shown by the verdict.
                found = results.setdefault(str(op.index), {"value": op.gpu})
                found.update(bgColor=_RED, textColor="#ffffff")
        gradient = [{"stop": 0, "bgColor": "#ffffff"}, {"stop": 1, "bgColor": "#f9ab00"}]
        return json.dumps({"results": results, "gradient": gradient}, indent=1) + "\n"


def explain(path):
    """Says what each op of a LiteRT file costs.

    Args:
        path: path of the `.tflite` file, of this package or any other.

    Returns:
        `Explanation`.

    Raises:
        ValueError: if the file is missing, no LiteRT file, cut short or senseless.

    Example:

    >>> found = explain("segmenter.tflite")  # doctest: +SKIP
    >>> max(found.ops, key=lambda op: op.macs or 0).layer  # doctest: +SKIP
    'decoder_refine1_pointwise'
    """
    path = runtime.check_file(path)
    data = path.read_bytes()
    inside = contents.read_contents(data, name=str(path))
    layers, unnamed = frozenset(), ""
    try:
        layers = _layer_names(path)
    except ValueError as error:  # a JSON of another tool, or of another file
        unnamed = str(error)
    unpacked = {
        op.outputs[0]: op.inputs[0]
        for op in inside.ops
        if op.name == "DEQUANTIZE"
        and len(op.inputs) == len(op.outputs) == 1
        and op.inputs[0] >= 0
        and inside.tensors[op.inputs[0]].bytes
    }
    try:
        findings = {found.index: found for found in gpu_rules.check_rules(inside)}
        costs = tuple(
            _judged(_cost(index, inside, unpacked, layers), findings.get(index))
            for index in range(len(inside.ops))
        )
    except _SENSELESS as error:
        reason = f"the tensors of an op are not those of its kind: {type(error).__name__}: {error}"
        raise runtime.broken(path, len(data), reason) from None
    constants = {t.buffer: t.bytes for t in inside.tensors if t.bytes}
    counted = [op for op in costs if op.macs is not None]
    return Explanation(
        path=path,
        bytes=len(data),
        precision=inside.precision,
        ops=costs,
        macs=sum(op.macs for op in counted),
        padded_macs=sum(op.padded_macs for op in counted),
        weight_bytes=sum(constants.values()),
        activation_bytes=sum(op.activation_bytes for op in costs),
        peak_bytes=_peak(inside, {op.index for op in costs if op.constant}),
        uncounted=tuple(sorted({op.op for op in costs if op.macs is None})),
        graphs=inside.graphs,
        unnamed=unnamed,
    )


def _layer_names(path):
    """Names of the Keras model's layers, if the JSON beside the file is there and right."""
    beside = metadata.beside(path)
    if not beside.is_file():
        return frozenset()
    found = metadata.load(beside)
    found.check(path)
    return frozenset(found.layers)


def _cost(index, inside, unpacked, layers):
    """The `OpCost` of an op.

    Args:
        index: its place.
        inside: `Contents`.
        unpacked: {index of a tensor that is nothing but unpacked weights: index of these}.
        layers: names of the Keras layers, if known.
    """
    op, tensors = inside.ops[index], inside.tensors
    sources = [unpacked.get(i, i) for i in op.inputs]
    read = [tensors[i] for i in sources if i >= 0]
    written = [tensors[i] for i in op.outputs]
    constant = bool(op.outputs) and op.outputs[0] in unpacked
    macs = _macs(op, [tensors[i] if i >= 0 else None for i in sources], written)
    layer, fused = _named(written, read, layers)
    return OpCost(
        index=index,
        op=op.name,
        layer=layer,
        fused=fused,
        inputs=tuple(tensor.shape for tensor in read if not tensor.bytes),
        output=written[0].shape if written else (),
        type=written[0].type.lower() if written else "",
        macs=None if macs is None else macs[0],
        padded_macs=None if macs is None else macs[1],
        weight_bytes=0 if constant else sum({t.buffer: t.bytes for t in read}.values()),
        activation_bytes=0 if constant else sum(tensor.size for tensor in written),
        constant=constant,
    )


def _judged(cost, finding):
    """The cost with what a rule of GPU delegates finds, `None` if nothing."""
    if finding is None:
        return cost
    # What is no layer's has a name like "PartitionedCall:0" in the file.
    finding = dataclasses.replace(finding, layer=cost.layer or f"op {cost.index}")
    return dataclasses.replace(cost, gpu=finding.verdict, why=str(finding))


def _macs(op, read, written):
    """`(MACs, padded MACs)` of an op, `None` where nobody counts them."""
    if op.name not in _COUNTS:
        return None if _UNCOUNTED.search(op.name) else (0, 0)
    return _COUNTS[op.name](op, [t and t.shape for t in read], written[0].shape)


def _up(width):
    return SLICE * math.ceil(width / SLICE)


def _convolution(op, read, output):
    """The kernel is `[outputs, height, width, inputs of a group]`."""
    images, kernel = read[0], read[1]
    outs, ins = kernel[0], kernel[3]
    groups = images[3] // ins
    work = math.prod(output[:3]) * kernel[1] * kernel[2]
    if ins == 1 < groups:  # a depthwise convolution by another name
        return work * outs, work * _up(outs)
    return work * outs * ins, work * groups * _up(ins) * _up(outs / groups)


def _depthwise(op, read, output):
    kernel = read[1]
    work = math.prod(output[:3]) * kernel[1] * kernel[2]
    return work * output[3], work * _up(output[3])


def _transposed(op, read, output):
    """Counted at the input's resolution; the kernel is `[outputs, height, width, inputs]`."""
    kernel, images = read[1], read[2]
    work = math.prod(images[:3]) * kernel[1] * kernel[2]
    return work * kernel[0] * kernel[3], work * _up(kernel[0]) * _up(kernel[3])


def _volume(op, read, output):
    """The kernel is `[depth, height, width, inputs, outputs]`."""
    kernel = read[1]
    work = math.prod(output[:4]) * math.prod(kernel[:3])
    return work * kernel[3] * kernel[4], work * _up(kernel[3]) * _up(kernel[4])


def _dense(op, read, output):
    """The kernel is `[outputs, inputs]`."""
    outs, ins = read[1]
    rows = math.prod(read[0]) // ins
    return rows * ins * outs, rows * _up(ins) * _up(outs)


def _product(op, read, output):
    """`[..., m, k]` times `[..., k, n]`, each perhaps transposed."""
    k = read[0][-2] if op.options.get("AdjX") else read[0][-1]
    rows = math.prod(output[:-1])
    return rows * k * output[-1], rows * _up(k) * _up(output[-1])


_COUNTS = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "TRANSPOSE_CONV": _transposed,
    "CONV_3D": _volume,
    "FULLY_CONNECTED": _dense,
    "BATCH_MATMUL": _product,
}


def _named(written, read, layers):
    """`(layer, fused layers)` of an op, from the names of its tensors."""
    for tensor in (*written, *(tensor for tensor in read if tensor.bytes)):
        found = {}
        for part in tensor.name.split(";"):
            scopes = part.split("/")
            name = _layer(scopes, layers)
            if name:
                kernel = _KERNEL.match(scopes[-1]) is not None
                found[name] = found.get(name, False) or kernel
        if found:
            first = max(found, key=lambda name: found[name])
            return first, tuple(name for name in found if name != first)
    return "", ()


def _layer(scopes, layers):
    """The layer that a TensorFlow name such as `["net_1", "conv_1", "Relu"]` speaks of."""
    # The model's name once or more, the layer's, inside it what TensorFlow calls its ops.
    inner = [scope for scope in scopes if scope != scopes[0]]
    # TensorFlow tells names that it has seen apart by a number, here all by the same.
    number = re.search(r"_\d+$", scopes[0])
    plain = [scope.removesuffix(number[0]) if number else scope for scope in inner]
    if not layers:
        return "/".join(scope for scope in plain[:-1] if scope not in _INSIDE)
    for name, scope in zip(plain, inner):
        for candidate in (name, scope, re.sub(r"_\d+$", "", scope)):
            if candidate in layers:
                return candidate
    return ""


def _peak(inside, constant):
    """Bytes of the computed tensors that are alive at once, at most."""
    last, born = {}, dict.fromkeys(inside.inputs, 0)
    for place, op in enumerate(inside.ops):
        if place in constant:
            continue
        for index in op.outputs:
            born.setdefault(index, place)
        for index in (*op.inputs, *op.outputs):
            last[index] = place
    last.update(dict.fromkeys(inside.outputs, len(inside.ops)))
    change = [0] * (len(inside.ops) + 2)
    for index, start in born.items():
        size = inside.tensors[index].size
        change[start] += size
        change[last.get(index, start) + 1] -= size
    alive = peak = 0
    for step in change:
        alive += step
        peak = max(peak, alive)
    return peak
