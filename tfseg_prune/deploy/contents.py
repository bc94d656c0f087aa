"""What stands in a LiteRT file: its ops and tensors, read without running it."""

import collections
import dataclasses
import functools
import inspect
import math
import struct

from tfseg_prune.bench import runtime

# Bits of an element; a string has no size of its own.
_BITS = {
    **{"FLOAT64": 64, "INT64": 64, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128},
    **{"FLOAT32": 32, "INT32": 32, "UINT32": 32, "FLOAT16": 16, "BFLOAT16": 16},
    **{"INT16": 16, "UINT16": 16, "INT8": 8, "UINT8": 8, "BOOL": 8, "INT4": 4, "INT2": 2},
}
# The struct module's letters of those that a short constant may have, and how many bytes are short.
_FORMS = {"FLOAT32": "f", "FLOAT16": "e", "INT64": "q", "INT32": "i", "INT8": "b", "BOOL": "?"}
_SHORT = 256
_MOST_AXES = 32  # LiteRT's own ops take at most 8
# What the flatbuffers library and what is built on it raise on bytes that make no sense.
_SENSELESS = (
    *(struct.error, IndexError, KeyError, TypeError, ValueError),
    *(AttributeError, OverflowError, MemoryError, RecursionError),
)


@dataclasses.dataclass(frozen=True)
class Op:
    """One op of the file.

    Args:
        name: such as `"CONV_2D"`; of a custom op, its own name after `"CUSTOM "`; of one that is
            newer than this machine's schema, its number after `"UNKNOWN "`.
        inputs, outputs: indices of its tensors; -1 is an optional input that is left out.
        version: of the op, as the converter wrote it.
        options: its plain options, named as in the schema: `{"StrideW": 2, ...}`.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    version: int = 1
    options: dict = dataclasses.field(default_factory=dict, compare=False)


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of the file.

    Args:
        name: the converter's, often of several layers, joined by semicolons.
        shape: its sizes, as the file fixes them.
        type: such as `"FLOAT32"`.
        buffer: number of the buffer that holds its values.
        bytes: size of these values in the file; 0 of a tensor that is computed.
        dynamic: whether a size varies from run to run.
        values: those of a short constant, such as the axes of a sum, flat; `None` of a longer one
            and of a tensor that is computed.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    buffer: int
    bytes: int
    dynamic: bool
    values: tuple | None = dataclasses.field(default=None, compare=False)

    @property
    def elements(self):
        """Number of its values."""
        return math.prod(self.shape)

    @property
    def size(self):
        """Bytes that its values take in memory; 0 of strings."""
        return math.ceil(self.elements * _BITS.get(self.type, 0) / 8)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The ops and tensors of a LiteRT file.

    Args:
        ops: every `Op` of the main graph, in the order in which they run.
        tensors: every `Tensor` of the main graph, by index.
        inputs, outputs: indices of the graph's tensors.
        precision: `"float32"`, `"float16"` (float16 weights), `"dynamic"` (int8 weights, float
            activations), `"int8"` (int8 activations), `"int8x16"` (int8 weights, int16 activations)
            or `"mixed"` (of the ops with weights some compute in integers and some in float).
        graphs: number of graphs; more than the main one where an op calls another.
    """

    ops: tuple[Op, ...]
    tensors: tuple[Tensor, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    precision: str
    graphs: int = 1

    @property
    def output(self):
        """Index of the first output tensor."""
        return self.outputs[0]

    @property
    def names(self):
        """The tensors' names, by index."""
        return tuple(tensor.name for tensor in self.tensors)

    @property
    def types(self):
        """The tensors' types, such as `"INT8"`, by index."""
        return tuple(tensor.type for tensor in self.tensors)

    @property
    def dynamic(self):
        """Names of the tensors whose shape is not fixed."""
        return tuple(tensor.name for tensor in self.tensors if tensor.dynamic)

    def counts(self):
        """Number of ops by name, as a dictionary sorted by name."""
        return dict(sorted(collections.Counter(op.name for op in self.ops).items()))


_WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "FULLY_CONNECTED")


def load_contents(path):
    """Reads the ops and tensors of a LiteRT file, see `read_contents`.

    Args:
        path: path of the `.tflite` file.

    Returns:
        `Contents`.

    Raises:
        ValueError: if the file is missing, no LiteRT file, cut short or senseless.
    """
    return read_contents(runtime.check_file(path).read_bytes(), name=str(path))


def read_contents(data, *, name="the file"):
    """Reads the ops and tensors of a LiteRT file.

    Any bytes may be given: every offset, length and index is checked before it is followed, and
    the work is bounded by the number of bytes.

    Args:
        data: the file's bytes.
        name: what the file is called in errors. Defaults to `"the file"`.

    Returns:
        `Contents`.

    Raises:
        ValueError: if the bytes are no LiteRT file, cut short or senseless.

    Example:

    >>> import pathlib
    >>> data = pathlib.Path("segmenter.tflite").read_bytes()  # doctest: +SKIP
    >>> read_contents(data).counts()  # doctest: +SKIP
    {'CONV_2D': 36, 'RESIZE_BILINEAR': 2}
    """
    runtime.check_bytes(data, name=name)
    try:
        return _read(data)
    except _SENSELESS as error:
        raise runtime.broken(name, len(data), error) from None


def _read(data):
    # Imported here: it is slow, and only those who export need it.
    from ai_edge_litert import schema_py_generated as schema

    model = schema.Model.GetRootAs(data)
    if not model.SubgraphsLength():
        raise ValueError("it holds no graph")
    graph = model.Subgraphs(0)
    tensors = tuple(_tensor(schema, model, graph.Tensors(i)) for i in range(graph.TensorsLength()))
    names = _names_of(schema.BuiltinOperator)
    ops = tuple(
        _op(schema, model, graph.Operators(i), names) for i in range(graph.OperatorsLength())
    )
    inputs = tuple(graph.Inputs(i) for i in range(graph.InputsLength()))
    outputs = tuple(graph.Outputs(i) for i in range(graph.OutputsLength()))
    if not inputs or not outputs:
        raise ValueError(f"its graph has {len(inputs)} inputs and {len(outputs)} outputs")
    _check_indices(ops, tensors, inputs, outputs)
    return Contents(
        ops=ops,
        tensors=tensors,
        inputs=inputs,
        outputs=outputs,
        precision=_precision(ops, tensors),
        graphs=model.SubgraphsLength(),
    )


def _tensor(schema, model, tensor):
    index, size, values = tensor.Buffer(), 0, None
    if index >= model.BuffersLength():
        raise ValueError(f"a tensor's values lie in buffer {index} of {model.BuffersLength()}")
    if index:  # buffer 0 is empty by convention
        buffer = model.Buffers(index)
        size = buffer.DataLength() or buffer.Size()
        if 0 < buffer.DataLength() <= _SHORT:
            data = bytes(buffer.DataAsNumpy())
            values = _values(data, _names_of(schema.TensorType).get(tensor.Type()))
    kind = tensor.Type()
    signature = range(tensor.ShapeSignatureLength())
    shape = tuple(tensor.Shape(k) for k in range(tensor.ShapeLength()))
    if len(shape) > _MOST_AXES or any(length < 0 for length in shape):
        raise ValueError(f"a tensor has the shape {list(shape[:_MOST_AXES])}")
    return Tensor(
        name=(tensor.Name() or b"").decode(errors="replace"),
        shape=shape,
        type=_names_of(schema.TensorType).get(kind, f"UNKNOWN {kind}"),
        buffer=index,
        bytes=size,
        dynamic=any(tensor.ShapeSignature(k) < 0 for k in signature),
        values=values,
    )


def _values(data, kind):
    """The numbers in `data`, `None` if these are no whole numbers of the type `kind`."""
    if kind not in _FORMS or len(data) % struct.calcsize(_FORMS[kind]):
        return None
    return tuple(value for (value,) in struct.iter_unpack(f"<{_FORMS[kind]}", data))


def _op(schema, model, op, names):
    if op.OpcodeIndex() >= model.OperatorCodesLength():
        raise ValueError(f"an op is number {op.OpcodeIndex()} of {model.OperatorCodesLength()}")
    code = model.OperatorCodes(op.OpcodeIndex())
    # Old files hold the op in a field of one byte, newer ones in a wider one.
    number = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
    name = names.get(number, f"UNKNOWN {number}")
    if name == "CUSTOM":
        name = f"CUSTOM {(code.CustomCode() or b'').decode(errors='replace')}"
    return Op(
        name=name,
        inputs=tuple(op.Inputs(k) for k in range(op.InputsLength())),
        outputs=tuple(op.Outputs(k) for k in range(op.OutputsLength())),
        version=code.Version(),
        options=_options(schema, op),
    )


def _options(schema, op):
    """The numbers and booleans among an op's options."""
    kind = _names_of(schema.BuiltinOptions).get(op.BuiltinOptionsType(), "NONE")
    table = op.BuiltinOptions()
    if kind == "NONE" or table is None:
        return {}
    options = getattr(schema, kind)()
    options.Init(table.Bytes, table.Pos)
    found = {name: getattr(options, name)() for name in _plain(type(options))}
    return {name: value for name, value in found.items() if isinstance(value, (bool, int, float))}


@functools.cache
def _plain(options):
    """Names of an options class' methods that answer a number: those without arguments.

    Vectors and strings are left out: many ops may share a long one.
    """
    return tuple(
        name
        for name, method in vars(options).items()
        if inspect.isfunction(method)
        and list(inspect.signature(method).parameters) == ["self"]
        and not name.endswith(("AsNumpy", "IsNone", "Length"))
        and "String" not in method.__code__.co_names
    )


@functools.cache
def _names_of(enumeration):
    return {code: name for name, code in vars(enumeration).items() if name[0] != "_"}


def _check_indices(ops, tensors, inputs, outputs):
    optional = {index for op in ops for index in op.inputs}
    certain = {*inputs, *outputs, *(index for op in ops for index in op.outputs)}
    wrong = {i for i in optional if not -1 <= i < len(tensors)}
    wrong |= {i for i in certain if not 0 <= i < len(tensors)}
    if wrong:
        raise ValueError(f"an op names tensor {min(wrong)} of {len(tensors)}")
    written = {index for op in ops for index in op.outputs}
    for place, op in enumerate(ops):
        if written.intersection(op.inputs):
            raise ValueError(f"op {place} ({op.name}) reads what is written by it or a later one")
        written.difference_update(op.outputs)


def _precision(ops, tensors):
    computed = {tensors[i].type for op in ops if op.name != "QUANTIZE" for i in op.outputs}
    weighted = {tensors[op.outputs[0]].type for op in ops if op.name in _WEIGHTED and op.outputs}
    if computed & {"INT8", "INT16"}:
        if "FLOAT32" in weighted:
            return "mixed"
        return "int8" if "INT8" in computed else "int8x16"
    kinds = {tensor.type for tensor in tensors}
    if "INT8" in kinds:
        return "dynamic"
    return "float16" if "FLOAT16" in kinds else "float32"
