"""Whatever bytes are read, the answer is what stands in them or one clear error, and soon."""

import re
import struct
import time

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.deploy import mutations
from tfseg_prune.bench import host, runtime
from tfseg_prune.bench.segmenter import Segmenter
from tfseg_prune.deploy import ParityError, check_parity
from tfseg_prune.deploy.contents import load_contents, read_contents
from tfseg_prune.deploy.explain import explain


@pytest.fixture(scope="module")
def sources(files):
    names = (("float32", "upsampled"), ("int8", "argmax"), ("float16", "logits"))
    return [mutations.Source("_".join(name), files(*name).path.read_bytes()) for name in names]


def test_contents_say_what_the_interpreter_says(files):
    path = files("int8").path
    inside, opened = load_contents(path), runtime.interpreter(path, xnnpack=False)
    for entry in opened.get_tensor_details():
        if entry["index"] < len(inside.tensors):
            tensor = inside.tensors[entry["index"]]
            assert tensor.name == entry["name"] and tensor.shape == tuple(entry["shape"])
            assert tensor.type.lower() == np.dtype(entry["dtype"]).name
            assert not tensor.bytes or tensor.bytes == tensor.size
    assert [e["index"] for e in opened.get_input_details()] == list(inside.inputs)
    assert [e["index"] for e in opened.get_output_details()] == list(inside.outputs)
    ops = [entry["op_name"] for entry in opened._get_ops_details()]
    assert [op.name for op in inside.ops] == ops


def test_options_and_versions_are_those_of_the_layers(files):
    ops = load_contents(files().path).ops
    dilated = [op for op in ops if op.options.get("DilationHFactor", 1) > 1]
    assert [(op.name, op.options["DilationHFactor"], op.version > 1) for op in dilated] == [
        ("CONV_2D", 2, True)
    ]
    assert {op.options["StrideH"] for op in ops if "StrideH" in op.options} == {1, 2}


@pytest.mark.parametrize("first", range(0, 160, 40))
def test_broken_files_are_read_or_refused_and_never_run_here(sources, tmp_path, first):
    path, outcomes = tmp_path / "broken.tflite", set()
    for seed in range(first, first + 40):
        *_, data = mutations.draw(seed, sources)
        path.write_bytes(data)
        started = time.monotonic()
        for read in (load_contents, explain):
            try:
                read(path)
                outcomes.add("read")
            except ValueError as error:
                assert re.search("Expected: .*Received: .*broken.tflite", str(error)), error
                outcomes.add("refused")
        assert time.monotonic() - started < 5
    assert outcomes == {"read", "refused"}


def test_what_can_be_read_but_not_run_is_one_error_of_whoever_runs_it(
    files, model, images, tmp_path
):
    data = bytearray(files().path.read_bytes())
    graph = schema.Model.GetRootAs(data).Subgraphs(0)
    ops = [graph.Operators(i) for i in range(graph.OperatorsLength())]
    options = [op.BuiltinOptions() for op in ops]
    kind = schema.BuiltinOptions.Conv2DOptions
    conv = next(o for o, op in zip(options, ops) if op.BuiltinOptionsType() == kind)
    struct.pack_into("<i", data, conv.Pos + conv.Offset(8), 0)  # the stride, which is 2 by default
    path = tmp_path / "broken.tflite"
    path.write_bytes(data)
    assert 0 in [op.options.get("StrideH") for op in load_contents(path).ops]
    for run in (
        lambda: check_parity(model, path, images[:1]),
        lambda: Segmenter(path),
        lambda: host.time_models({"broken": path}),
        lambda: runtime.interpreter(path),
    ):
        with pytest.raises(ValueError, match="Expected: .*broken.tflite.*stride"):
            run()


@pytest.mark.parametrize("side", ["inputs", "outputs"])
def test_a_name_that_no_runtime_can_tell_is_one_error(files, tmp_path, side):
    data = bytearray(files().path.read_bytes())
    graph = schema.Model.GetRootAs(data).Subgraphs(0)
    tensor = graph.Tensors(graph.Inputs(0) if side == "inputs" else graph.Outputs(0))
    data[tensor._tab.Vector(tensor._tab.Offset(10))] = 0x85
    path = tmp_path / "broken.tflite"
    path.write_bytes(data)
    assert load_contents(path) and explain(path)
    for run in (Segmenter, lambda path: host.time_models({"broken": path})):
        with pytest.raises(ValueError, match="Expected: .*broken.tflite.*codec"):
            run(path)


@pytest.mark.parametrize("side", [schema.SubGraph.InputsLength, schema.SubGraph.OutputsLength])
def test_a_graph_that_takes_or_answers_nothing_is_one_error(files, tmp_path, side):
    data = bytearray(files("int8", "argmax").path.read_bytes())
    graph = schema.Model.GetRootAs(data).Subgraphs(0)
    place = {schema.SubGraph.InputsLength: 6, schema.SubGraph.OutputsLength: 8}[side]
    struct.pack_into("<I", data, graph._tab.Vector(graph._tab.Offset(place)) - 4, 0)
    assert not side(graph)
    path = tmp_path / "broken.tflite"
    path.write_bytes(data)
    for read in (load_contents, explain, Segmenter):
        with pytest.raises(ValueError, match="Expected: .*broken.tflite.* inputs and . outputs"):
            read(path)


def test_a_file_with_a_damaged_name_is_compared_all_the_same(files, model, images, tmp_path):
    data = files().path.read_bytes()
    wrong = data.replace(b"dilated_relu", b"dilated_\xff\xfelu")
    assert wrong != data
    path = tmp_path / "named.tflite"
    path.write_bytes(wrong)
    other = keras.models.clone_model(model)  # other weights, so that the layers are compared
    with pytest.raises(ParityError, match="named.tflite.*layer"):
        check_parity(other, path, images[:1])


def test_a_short_file_that_stands_for_a_long_one_is_refused_at_once():
    """10,000 ops that all share one list of 100,000 inputs: 10**9 numbers in 440 kB."""
    ops, numbers = 10_000, 100_000
    parts = bytearray(b"\x10\0\0\0TFL3" + bytes(8))

    def add(data):
        while len(parts) % 4:
            parts.append(0)
        parts.extend(data)
        return len(parts) - len(data)

    def table(fields):
        """A table of offsets to what follows it; answers `(its place, places of the offsets)`."""
        slots = [4 + 4 * i if present else 0 for i, present in enumerate(fields)]
        size = 4 + 4 * len(fields)
        description = struct.pack(f"<{2 + len(slots)}H", 4 + 2 * len(slots), size, *slots)
        start = add(description)
        at = add(bytes(size))
        struct.pack_into("<i", parts, at, at - start)
        return at, [at + slot for slot in slots]

    def point(at, target):
        struct.pack_into("<I", parts, at, target - at)

    model, fields = table([False, False, True, False, False])
    struct.pack_into("<I", parts, 0, model)
    graphs = add(struct.pack("<II", 1, 0))
    point(fields[2], graphs)
    graph, fields = table([False, False, False, True, False])
    point(graphs + 4, graph)
    operators = add(struct.pack("<I", ops) + bytes(4 * ops))
    point(fields[3], operators)
    operator, fields = table([False, True])
    point(fields[1], add(struct.pack("<I", numbers) + bytes(4 * numbers)))
    for i in range(ops):
        point(operators + 4 + 4 * i, operator)
    started = time.monotonic()
    with pytest.raises(ValueError, match="overlap"):
        read_contents(bytes(parts))
    assert time.monotonic() - started < 2
