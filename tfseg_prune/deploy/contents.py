"""What stands in a LiteRT file: its ops and tensors, read without running it."""

import collections
import dataclasses


@dataclasses.dataclass(frozen=True)
class Op:
    """One op of the file.

    Args:
        name: such as `"CONV_2D"`; of a custom op, its own name after `"CUSTOM "`.
        inputs, outputs: indices of its tensors.
    """

    name: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Contents:
    """The ops and tensors of a LiteRT file.

    Args:
        ops: every `Op` of the main graph, in the order in which they run.
        tensors: their tensors' names, by index.
        output: index of the first output tensor.
        precision: `"float32"`, `"float16"` (float16 weights), `"dynamic"` (int8 weights, float
            activations) or `"int8"` (int8 activations).
        dynamic: names of tensors whose shape is not fixed.
    """

    ops: tuple[Op, ...]
    tensors: tuple[str, ...]
    output: int
    precision: str
    dynamic: tuple[str, ...]

    def counts(self):
        """Number of ops by name, as a dictionary sorted by name."""
        return dict(sorted(collections.Counter(op.name for op in self.ops).items()))


def read_contents(data):
    """Reads the ops and tensors of a LiteRT file.

    Args:
        data: the file's bytes; a whole file, see `bench.runtime.check_file`.

    Returns:
        `Contents`.

    Example:

    >>> import pathlib
    >>> data = pathlib.Path("segmenter.tflite").read_bytes()  # doctest: +SKIP
    >>> read_contents(data).counts()  # doctest: +SKIP
    {'CONV_2D': 36, 'RESIZE_BILINEAR': 2}
    """
    # Imported here: it is slow, and only those who export need it.
    from ai_edge_litert import schema_py_generated as schema

    names = {code: name for name, code in vars(schema.BuiltinOperator).items() if name[0] != "_"}
    model = schema.Model.GetRootAs(data)
    graph = model.Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    ops = []
    for i in range(graph.OperatorsLength()):
        op = graph.Operators(i)
        code = model.OperatorCodes(op.OpcodeIndex())
        # Old files hold the op in a field of one byte, newer ones in a wider one.
        name = names[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]
        if name == "CUSTOM":
            name = f"CUSTOM {code.CustomCode().decode()}"
        inputs = tuple(op.Inputs(k) for k in range(op.InputsLength()))
        ops.append(Op(name, inputs, tuple(op.Outputs(k) for k in range(op.OutputsLength()))))
    computed = {index for op in ops if op.name not in ("QUANTIZE",) for index in op.outputs}
    kinds = [tensor.Type() for tensor in tensors]
    kind = schema.TensorType
    if any(kinds[index] == kind.INT8 for index in computed):
        precision = "int8"
    elif kind.INT8 in kinds:
        precision = "dynamic"
    else:
        precision = "float16" if kind.FLOAT16 in kinds else "float32"
    labels = [tensor.Name().decode() for tensor in tensors]
    return Contents(
        ops=tuple(ops),
        tensors=tuple(labels),
        output=graph.Outputs(0),
        precision=precision,
        dynamic=tuple(
            label
            for label, tensor in zip(labels, tensors)
            if any(tensor.ShapeSignature(k) < 0 for k in range(tensor.ShapeSignatureLength()))
        ),
    )
