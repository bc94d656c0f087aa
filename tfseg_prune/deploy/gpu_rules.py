"""What GPU delegates make of the ops of a LiteRT file, told without a GPU.

The rules are those of ML Drift, the code in LiteRT's GPU delegates, as seen on ai-edge-litert 2.3:
`tests/deploy/gpu_rules_test.py` holds each of them against the delegate itself.
"""

import dataclasses

from tfseg_prune.deploy.ops_graph import Graph, Names

# GPU delegates pack channels in slices of so many.
_SLICE = 4
# The highest version of each op that delegates take; `None`, all that LiteRT had by then.
_VERSIONS = {
    **dict.fromkeys(
        """ABS ADD ADD_N ARG_MAX BATCH_MATMUL CAST CEIL COS CUMSUM DEPTH_TO_SPACE DEQUANTIZE DIV ELU
        EXP FLOOR FLOOR_DIV FLOOR_MOD FULLY_CONNECTED GATHER GELU GREATER GREATER_EQUAL HARD_SWISH
        LEAKY_RELU LESS_EQUAL LOG LOGICAL_AND LOGICAL_OR MAXIMUM MEAN MINIMUM MIRROR_PAD MUL NEG
        NOT_EQUAL ONE_HOT PACK POW PRELU QUANTIZE REDUCE_ALL REDUCE_ANY REDUCE_MAX REDUCE_MIN
        REDUCE_PROD RELU_N1_TO_1 RESHAPE REVERSE_V2 ROUND SELECT_V2 SIGN SIN SLICE SOFTMAX
        SPACE_TO_DEPTH SPLIT SPLIT_V SQRT SQUARE SQUARED_DIFFERENCE SUM TILE TRANSPOSE
        UNPACK""".split()
    ),
    **{"AVERAGE_POOL_2D": 2, "CONCATENATION": 6, "CONV_2D": 6, "DEPTHWISE_CONV_2D": 6, "EQUAL": 2},
    **{"LESS": 2, "LOGISTIC": 2, "MAX_POOL_2D": 2, "PAD": 5, "PADV2": 5, "RELU": 2, "RELU6": 2},
    **{"RESIZE_BILINEAR": 3, "RESIZE_NEAREST_NEIGHBOR": 3, "RSQRT": 2, "SELECT": 1, "SUB": 2},
    **{"STRIDED_SLICE": 2, "TANH": 2, "TOPK_V2": 1, "TRANSPOSE_CONV": 3},
}
_AT_BATCH_1 = "export at batch 1 and a fixed size"
# Ops that delegates refuse, with what to do instead.
_REFUSED = {
    "ARG_MIN": "take the argmax of the negative",
    "BATCH_TO_SPACE_ND": f"{_AT_BATCH_1}: the dilated convolution then is one op",
    "BROADCAST_TO": "let an addition or multiplication broadcast, or tile",
    "CONV_3D": "use Conv2D",
    "FAKE_QUANT": "quantise the file itself, with precision='int8'",
    "GATHER_ND": "gather along one axis at a time",
    "L2_NORMALIZATION": "multiply by rsqrt(sum(square(x)) + epsilon)",
    "LOCAL_RESPONSE_NORMALIZATION": "use BatchNormalization",
    "LOG_SOFTMAX": "end at the logits: the largest one is the same class",
    "RELU_0_TO_1": "use ReLU(6) and scale",
    "SHAPE": f"{_AT_BATCH_1}: shapes that are read as the network runs are then constants",
    "SPACE_TO_BATCH_ND": f"{_AT_BATCH_1}: the dilated convolution then is one op",
    "ZEROS_LIKE": "use a constant",
}
_TYPES = ("FLOAT32", "FLOAT16", "INT32", "INT8", "UINT8", "UINT32", "BOOL")
# Refused where both operands are the same tensor.
_PAIRS = ("DIV", "EQUAL", "GREATER", "MAXIMUM", "MINIMUM", "POW", "SQUARED_DIFFERENCE", "SUB")
_CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_SAME = 0  # number of that padding in the schema
# Ops behind which the zeros that fill up channels are something else.
_NEVER_ZERO = ("ADD", "EXP", "LOGISTIC", "SUB")
_LOWEST = -1e4


@dataclasses.dataclass(frozen=True)
class Finding:
    """Why an op won't do on a GPU.

    Args:
        index: place of the op in the file.
        op: such as `"CONV_2D"`.
        layer: name of the Keras layer that it computes; `"behind x"` where it is no layer's but
            follows the layer `x`; without a model the file's name for what it writes.
        verdict: what the delegate does with it: `"refused"`, it leaves it to the CPU; `"wrong"`, it
            computes something else and says nothing; `"dies"`, it ends the process; `"unknown"`,
            nobody has tried.
        reason, remedy: in words.
    """

    index: int
    op: str
    layer: str
    verdict: str
    reason: str
    remedy: str

    def __str__(self):
        does = {"refused": "refuse", "wrong": "get wrong", "dies": "die of"}
        what = f"GPU delegates {does[self.verdict]}" if self.verdict in does else "untried on GPUs:"
        return f"{self.layer}: {what} {self.op} {self.reason}; {self.remedy}"


def check_rules(inside, model=None):
    """Looks for ops that GPU delegates refuse, get wrong or die of.

    Args:
        inside: `Contents` of the file.
        model: the `keras.Model` that became the file, whose layers are named then. Defaults to
            `None`: findings carry the file's own names.

    Returns:
        Tuple of `Finding`, in the order in which the ops run; empty, no rule has anything against
        the file. That is no proof: `check_gpu` runs the delegate itself.

    Raises:
        ValueError: if an op's tensors are none that it could have.

    Example:

    >>> [str(f) for f in check_rules(load_contents("grouped.tflite"), model)]  # doctest: +SKIP
    ['mix: GPU delegates get wrong CONV_2D of 2 channels per group; ...']
    """
    graph = Graph(inside)
    try:
        names = Names(inside, graph, model)
        answers = [_first(op, graph) for op in inside.ops]
        return tuple(
            Finding(index, op.name, names.of(op), *answer)
            for index, (op, answer) in enumerate(zip(inside.ops, answers))
            if answer is not None
        )
    except (IndexError, TypeError, ZeroDivisionError, RecursionError) as error:
        raise ValueError(
            "The LiteRT model makes no sense. Expected: ops with tensors that they could have. "
            f"Received: {error or type(error).__name__}. Remedy: export it again."
        ) from None


def _first(op, graph):
    """`(verdict, reason, remedy)` of the first rule that an op breaks, `None` if it breaks none."""
    rules = (_known, *_RULES.get(op.name, ()), _twice, _ranks, _types)
    return next((found for found in (rule(op, graph) for rule in rules) if found), None)


def _known(op, graph):
    if op.name in _REFUSED:
        return "refused", "(they have no such op)", _REFUSED[op.name]
    if op.name not in _VERSIONS:
        return "unknown", "", "run check_gpu to see, or use another op"
    most = _VERSIONS[op.name]
    if most is None or op.version <= most:
        return None
    if op.name == "TRANSPOSE_CONV":
        why = "with an activation in it"
        remedy = (
            "export it by tsp.export with the activation behind it as a keras.layers.ReLU of the "
            "same model, which is then kept out of it"
        )
    else:
        why, remedy = "of this kind", "use tensors of at most 4 dimensions and plain arithmetic"
    return "refused", f"{why} (version {op.version}, they know up to {most})", remedy


def _of_integers(op, graph):
    """In words, the kernel if it is of integers and 1x1 or unpacked by another op; else `None`."""
    sides, writer = graph.shape(op.inputs[1])[1:3], graph.writer(op.inputs[1])
    unpacked = writer is not None and writer.name == "DEQUANTIZE"
    kind = graph.tensors[writer.inputs[0] if unpacked else op.inputs[1]].type
    if kind.startswith("FLOAT") or not unpacked and sides != (1, 1):
        return None
    return f"{sides[0]}x{sides[1]} kernel of {kind.lower()}{', unpacked before' * unpacked}"


def _depthwise(op, graph):
    ins = graph.shape(op.inputs[0])[-1]
    multiplier = graph.shape(op.inputs[1])[-1] // ins
    if ins == 1 or multiplier == 1:
        return None
    remedy = "use a 1x1 Conv2D, or a larger kernel"
    if graph.shape(op.inputs[1])[1:3] == (1, 1):
        return "wrong", f"of {multiplier} answers to each channel by a 1x1 kernel", remedy
    found = _of_integers(op, graph)
    if found:
        return "dies", f"of {multiplier} answers to each channel by a {found}", "export it anew"
    return None


def _grouped(op, graph):
    groups = graph.groups(op)
    if groups == 1:
        return None
    found = _of_integers(op, graph)
    if found:
        # They take it for a matrix product, or unpack the kernel as if there were no groups.
        return (
            "wrong",
            f"of {groups} groups by a {found}",
            "export with grouped='auto', which splits it, or in float",
        )
    ins, outs = graph.shape(op.inputs[1])[-1], graph.shape(op.inputs[1])[0] // groups
    whole = ins % _SLICE == 0 and outs % _SLICE == 0 and not graph.computed(op.inputs[1])
    if whole or ins == outs == 1:
        return None
    width = f"{ins} channels" if ins == outs else f"{ins} channels in and {outs} out"
    return (
        "wrong" if ins <= _SLICE else "dies",
        f"of {width} per group",
        "export with grouped='auto', which splits it, or prune to multiples of 4 per group",
    )


def _strided(op, graph):
    strides = op.options.get("StrideH", 1), op.options.get("StrideW", 1)
    found = _of_integers(op, graph)
    # What another op unpacks is a convolution; else they take it for a matrix product, too.
    if strides == (1, 1) or not found or graph.writer(op.inputs[1]) is not None:
        return None
    return "wrong", f"with a stride by a {found}", "export it by tsp.export, or in float"


def _transposed(op, graph):
    """Delegates pad as a convolution of the same stride would, seen from the input's size."""
    channels = graph.shape(op.inputs[1])[0]
    if len(op.inputs) > 3 and op.inputs[3] >= 0 and graph.shape(op.inputs[3]) != (channels,):
        # What converters make of a number that is added to all channels.
        remedy = "add it to the layer's own bias"
        return "refused", f"of one number as the bias of {channels} channels", remedy
    if op.options.get("Padding") != _SAME:
        return None
    sizes, kernel = graph.shape(op.inputs[2])[1:3], graph.shape(op.inputs[1])[1:3]
    strides = op.options.get("StrideH", 1), op.options.get("StrideW", 1)
    for size, side, stride in zip(sizes, kernel, strides):
        before = max(side - stride, 0) // 2
        if before != max(side - (size - 1) % stride - 1, 0) // 2:
            return (
                "wrong",
                f"of {sizes[0]}x{sizes[1]} pixels by a kernel of {kernel[0]}x{kernel[1]}",
                "export at a fixed size, which crops an unpadded one, or resize and convolve",
            )
    return None


def _argmax(op, graph):
    """Channels are filled up to a slice with zeros, and these take part."""
    shape, axis = graph.shape(op.inputs[0]), graph.values(op, 1)
    last = axis is None or (axis[0] + 1) % len(shape) == 0
    if not last or shape[-1] % _SLICE == 0 or graph.not_negative(op.inputs[0]):
        return None
    return (
        "wrong",
        f"of {shape[-1]} channels where all of them are negative",
        "export it by tsp.export with tail='argmax', which adds classes that never win, or export "
        "the logits",
    )


def _filled_up(op, graph):
    shape, axis = graph.shape(op.inputs[0]), graph.values(op, 1)
    last = op.name == "TOPK_V2" or axis is None or (axis[0] + 1) % len(shape) == 0
    if not last or shape[-1] % _SLICE == 0:
        return None
    return (
        "wrong",
        f"of {shape[-1]} channels",
        "give it a multiple of 4 channels, or gather them by a list",
    )


def _infinite(op, graph):
    """Zeros fill channels up to a slice: what is infinite there poisons the sums behind it."""
    index = op.inputs[-1]
    if not graph.computed(index) or not graph.shape(index):
        return None
    width, writer = graph.shape(index)[-1], graph.writer(index)
    shifted = writer is not None and writer.name in _NEVER_ZERO
    if width == 1 or width % _SLICE == 0 or shifted:
        return None
    reason = f"of {width} channels, filled up with zeros that become infinite"
    return "unknown", reason, "add a small number first, or give it a multiple of 4 channels"


def _slice(op, graph):
    if op.options.get("ShrinkAxisMask"):
        return "refused", "that drops an axis", "slice a range, and reshape"
    if min(graph.values(op, 3) or (1,)) < 0:
        return "refused", "that runs backwards", "use keras.ops.flip"
    return None


def _gather(op, graph):
    if len(graph.shape(op.inputs[1])) != 1:
        return "refused", "of indices that are no list", "gather by a list along one axis"
    return None


def _mirror_pad(op, graph):
    if op.options.get("Mode"):
        return "refused", "that repeats the border", "pad with mode='reflect' or zeros"
    return None


def _sum_of_many(op, graph):
    if len(op.inputs) > 2:
        return "refused", f"of {len(op.inputs)} tensors", "add two at a time"
    return None


def _select(op, graph):
    if op.inputs[1] == op.inputs[2]:
        return "dies", "between a tensor and itself", "drop the choice"
    shape = graph.shape(op.outputs[0])
    for index in op.inputs[1:]:
        single = not graph.computed(index) and graph.tensors[index].elements == 1
        if graph.shape(index) != shape and not single:
            return "refused", "that broadcasts", "give both choices the answer's shape, or a number"
    return None


def _matrix_product(op, graph):
    if op.inputs[0] == op.inputs[1]:
        return "dies", "of a tensor with itself", "give one factor a layer of its own"
    if graph.shape(op.inputs[0])[:-2] != graph.shape(op.inputs[1])[:-2]:
        return "wrong", "that broadcasts", "give both factors the same batch, or use a Dense layer"
    return None


def _running_sum(op, graph):
    rank = len(graph.shape(op.inputs[0]))
    if op.options.get("Exclusive") or op.options.get("Reverse"):
        return "wrong", "that is exclusive or backwards", "use a plain one"
    if rank == 4 and (graph.values(op, 1) or (-1,))[0] % rank == 3:
        return "dies", "along the channels", "multiply by a triangular matrix: a 1x1 convolution"
    return None


def _one_hot(op, graph):
    return "wrong", "", "compare with the range of classes"


def _split(op, graph):
    """Delegates take a split whose parts are only joined again for no op at all."""
    joins = [reader for index in op.outputs for reader in graph.readers(index)]
    if not joins or any(join is not joins[0] for join in joins):
        return None
    join, parts = joins[0], [index for index in op.outputs if graph.readers(index)]
    alone = sorted(join.inputs) == sorted(parts) and not any(map(graph.is_answer, op.outputs))
    if join.name != "CONCATENATION" or not alone:
        return None
    rank = len(graph.shape(join.outputs[0]))
    if op.name == "UNPACK":
        if op.options.get("Axis") != 1 or join.inputs == op.outputs:
            return None
    else:
        axis = graph.values(op, 0 if op.name == "SPLIT" else 2)
        same = axis is not None and (axis[0] - join.options.get("Axis", 0)) % rank == 0
        if same and join.inputs == op.outputs:
            return None
    return (
        "wrong",
        "of parts that are joined again at once, in another way",
        "gather the channels in their new order",
    )


def _pad(op, graph):
    amounts = graph.values(op, 1)
    if amounts is None:
        return "unknown", "by amounts that are no short constants", "run check_gpu to see"
    pairs = [amounts[k : k + 2] for k in range(0, len(amounts), 2)]
    if any(pairs[0]):
        return "wrong", "along the batch", "concatenate"
    if graph.tensors[op.outputs[0]].type == "INT8":
        return None  # which they unpack, so that the two never become one op
    readers = graph.readers(op.outputs[0])
    # Delegates make one op of padding along height and width and what alone reads it.
    if len(readers) != 1 or len(pairs) != 4 or any(pairs[3]) or graph.is_answer(op.outputs[0]):
        return None
    value = (graph.values(op, 2) or (0.0,))[0] if op.name == "PADV2" else 0.0
    reader = readers[0].name
    if reader == "AVERAGE_POOL_2D":
        return "wrong", "before an average pooling", "let the pooling pad, or convolve"
    if reader == "MAX_POOL_2D":
        if value > (0.0 if graph.not_negative(op.inputs[0]) else _LOWEST):
            return "wrong", "before a max pooling", "let the pooling pad, or put a ReLU before it"
    if reader in _CONVOLUTIONS and value:
        return "wrong", f"by {value:g} before a convolution", "pad with zeros"
    return None


def _eight_bits(op, graph):
    answer = graph.tensors[op.outputs[0]]
    ranks = {len(graph.shape(i)) for i in op.inputs if graph.computed(i)} | {len(answer.shape)}
    if answer.type == "INT8" and len(ranks) > 1:
        return (
            "wrong",
            f"of tensors of {' and '.join(map(str, sorted(ranks)))} dimensions in int8",
            "enlarge the smaller one first, by Resizing, or multiply by a 1x1 Conv2D of "
            "GlobalAveragePooling2D(keepdims=True)",
        )
    return None


def _twice(op, graph):
    if op.name in _PAIRS and op.inputs[0] == op.inputs[1]:
        return "refused", "of a tensor with itself", "use a constant, or another op"
    return None


def _ranks(op, graph):
    most = max((len(tensor.shape) for tensor in graph.tensors_of(op)), default=1)
    if most > 4:
        remedy = (
            "export it by tsp.export, which brings nearest upsampling, shuffles, windows and "
            "attention to 4 by itself where it knows their form, or reshape: (batch, height * "
            "width, groups, channels)"
        )
        return "refused", f"of {most} dimensions", remedy
    if any(graph.computed(i) and not graph.shape(i) for i in op.inputs if i >= 0):
        return "refused", "of a number without dimensions", "keep dimensions: keepdims=True"
    return None


def _types(op, graph):
    kinds = {tensor.type for tensor in graph.tensors_of(op)} - set(_TYPES)
    if op.name == "CAST":
        kinds -= {"INT16"}
    if not kinds:
        return None
    verdict = "refused" if kinds & {"INT16", "INT64"} else "unknown"
    remedy = "use int32 for indices and float32, float16 or int8 for values"
    return verdict, f"of {' and '.join(sorted(kinds)).lower()}", remedy


_RULES = {
    "ADD": (_eight_bits,),
    "ADD_N": (_sum_of_many,),
    "ARG_MAX": (_argmax,),
    "BATCH_MATMUL": (_matrix_product,),
    "CONV_2D": (_grouped, _strided),
    "CUMSUM": (_running_sum,),
    "DEPTHWISE_CONV_2D": (_depthwise,),
    "DIV": (_infinite,),
    "GATHER": (_gather,),
    "LOG": (_infinite,),
    "MAXIMUM": (_eight_bits,),
    "MIRROR_PAD": (_mirror_pad,),
    "MUL": (_eight_bits,),
    "ONE_HOT": (_one_hot,),
    "PAD": (_pad,),
    "PADV2": (_pad,),
    "REVERSE_V2": (_filled_up,),
    "RSQRT": (_infinite,),
    "SELECT": (_select,),
    "SELECT_V2": (_select,),
    "SPLIT": (_split,),
    "SPLIT_V": (_split,),
    "STRIDED_SLICE": (_slice,),
    "SUB": (_eight_bits,),
    "TOPK_V2": (_filled_up,),
    "TRANSPOSE_CONV": (_transposed,),
    "UNPACK": (_split,),
}
