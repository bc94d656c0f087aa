"""Each rule about GPU delegates beside the delegate itself: neither says what the other doesn't."""

import collections
import itertools
import re

import flatbuffers
import keras
import pytest
from ai_edge_litert import schema_py_generated as schema

from tests.deploy import gpu_nets, mutations, nets
from tfseg_prune.deploy import check_rules, export, lower
from tfseg_prune.deploy.contents import Contents, Op, Tensor, load_contents, read_contents
from tfseg_prune.deploy.delegate import check_gpu_files

layers = keras.layers
STATUS = {"ok": "passed", "refused": "refused", "wrong": "wrong", "dies": "crashed"}
# Root mean square difference over the deviation that float32 alone may make; what is quantised to
# int8 also rounds otherwise than the CPU does.
ROUNDING = {"float32": 1e-5, "float16": 1e-5, "dynamic": 0.02, "int8": 0.1}


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory, gpu):
    """`{name: (findings, GpuCheck)}` of all cases."""
    folder = tmp_path_factory.mktemp("cases")
    files = []
    for name, case in gpu_nets.CASES.items():
        path = folder / f"{name}.tflite"
        files.append((path, gpu_nets.images(), gpu_nets.write(case, path)))
    checks = check_gpu_files(files, float32=True, timeout=120)
    return {check.path.stem: (check.findings, check) for check in checks}


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.parametrize("name", gpu_nets.CASES)
def test_rule_and_delegate_agree(verdicts, name):
    case, (findings, check) = gpu_nets.CASES[name], verdicts[name]
    assert {finding.verdict for finding in findings} == {case.rule or case.verdict} - {"ok"}
    assert check.status == STATUS[case.verdict], check
    if case.verdict == "ok":
        assert check.fully_accelerated and not check.left
        if case.tail == "argmax":
            assert check.argmax_agreement == 1
        else:
            assert check.rms_diff < ROUNDING[case.precision]
    elif case.verdict == "wrong":
        # Nothing but the numbers tells: the delegate takes every op.
        assert check.fully_accelerated
        assert "no finite numbers" in check.says or (
            check.argmax_agreement < 0.99 if case.tail == "argmax" else check.rms_diff > 0.2
        )
    elif case.verdict == "refused":
        assert check.fully_accelerated is False


@pytest.mark.slow
@pytest.mark.gpu
def test_every_op_that_is_refused_for_its_name_or_version_is_refused(verdicts):
    """And the delegate gives the same reason."""
    reasons = {
        "space-to-batch": "SPACE_TO_BATCH_ND: Operation is not supported",
        "arg-min": "ARG_MIN: Operation is not supported",
        "broadcast-to": "BROADCAST_TO: Operation is not supported",
        "l2-normalize": "L2_NORMALIZATION: Operation is not supported",
        "response-norm": "LOCAL_RESPONSE_NORMALIZATION: Operation is not supported",
        "log-softmax": "LOG_SOFTMAX: Operation is not supported",
        "conv-3d": "CONV_3D: Operation is not supported",
        "transposed-bias-relu": "TRANSPOSE_CONV: Max version supported: 3",
        "shuffle-rank-5": "RESHAPE: Tensor dimensions must be less than 5",
        "argmax-int64": "ARG_MAX: Tensor type(INT64) is not supported",
        "add-three": "ADD_N: ADD_N only supports 2 inputs",
        "largest-of-itself": "MAXIMUM: No support of few identical inputs",
        "pairs-of-itself": "No support of few identical inputs",
        "int8x16": "Tensor type(INT16) is not supported",
        "slice-drops-axis": "STRIDED_SLICE: Slice does not support shrink_axis_mask",
        "slice-backwards": "STRIDED_SLICE: Reverse slices are not supported",
        "pad-symmetric": "MIRROR_PAD: Only Reflective padding is supported",
        "gather-by-table": "GATHER: Only support 1D indices",
        "number-without-dimensions": "has bad input dims size: 0",
        "select-broadcasts": "SELECT_V2: Cond must be",
    }
    for name, reason in reasons.items():
        assert any(reason in line for line in verdicts[name][1].left), (name, verdicts[name][1])
        ops = {line.split(":")[0] for line in verdicts[name][1].left}
        assert {finding.op for finding in verdicts[name][0]} <= ops, name


def recoded(data, op, name, version):
    """A file whose ops of one kind are of another, or of another version."""

    def number(name):
        return getattr(schema.BuiltinOperator, name)

    file = schema.ModelT.InitFromPackedBuf(data, 0)
    for code in file.operatorCodes:
        if max(code.builtinCode, code.deprecatedBuiltinCode) == number(op):
            code.builtinCode, code.version = number(name), version
            code.deprecatedBuiltinCode = min(number(name), 127)
    builder = flatbuffers.Builder(1024)
    builder.Finish(file.Pack(builder), b"TFL3")
    return bytes(builder.Output())


@pytest.fixture(scope="module")
def holders(verdicts):
    """`{op: a file with it that the delegate takes}`."""
    holders = {}
    for name, (_, check) in verdicts.items():
        if gpu_nets.CASES[name].verdict == "ok":
            ops = load_contents(check.path).counts()
            for op in ops:
                if op not in holders or len(ops) < len(holders[op][1]):
                    holders[op] = check.path, ops
    return {op: path for op, (path, _) in holders.items()}


@pytest.mark.slow
@pytest.mark.gpu
def test_the_delegate_takes_just_the_versions_that_the_rules_let_pass(holders, tmp_path):
    files, taken = [], []
    for op, path in holders.items():
        versions = [recoded(path.read_bytes(), op, op, version) for version in range(1, 9)]
        forbidden = [bool(check_rules(read_contents(data))) for data in versions]
        if any(forbidden):
            highest = forbidden.index(True)
            for version in (highest, highest + 1):
                other = tmp_path / f"{op}-{version}.tflite"
                other.write_bytes(versions[version - 1])
                files.append((other, gpu_nets.images(), None))
                taken.append(version == highest)
    said = 0
    for check, right in zip(check_gpu_files(files, float32=True), taken):
        assert check.passed == right, check
        said += any("Max version supported" in line for line in check.left)
    # LiteRT itself can't read some versions that are yet to come.
    assert len(files) > 30 and said > len(files) / 3


@pytest.mark.slow
@pytest.mark.gpu
def test_ops_that_converters_seldom_write_are_refused_too(holders, tmp_path):
    files = []
    for name in ("FAKE_QUANT", "RELU_0_TO_1", "ZEROS_LIKE", "RELU_N1_TO_1"):
        path = tmp_path / f"{name}.tflite"
        path.write_bytes(recoded(holders["ABS"].read_bytes(), "ABS", name, 1))
        files.append((path, gpu_nets.images(), None))
    *refused, taken = check_gpu_files(files, float32=True)
    for check in refused:
        assert check.status == "refused" and check.path.stem in " ".join(check.left), check
        assert [finding.op for finding in check.findings] == [check.path.stem]
    assert taken.passed and not taken.findings


@pytest.mark.slow
@pytest.mark.gpu
def test_kernels_of_integers_that_another_op_unpacks_know_no_groups(gpu, tmp_path):
    """Files of other tools: export writes none."""
    pytest.importorskip("ai_edge_quantizer")
    from ai_edge_quantizer import quantizer, recipe

    cases = {
        "dense": gpu_nets.Case(gpu_nets.conv(64), channels=64),
        "grouped": gpu_nets.Case(gpu_nets.grouped(16, 16, 4), "wrong", 64),
        "depthwise": gpu_nets.Case(layers.DepthwiseConv2D(3), channels=120),
        "strided": gpu_nets.Case(layers.Conv2D(64, 1, strides=2), channels=64),
        "several": gpu_nets.Case(layers.DepthwiseConv2D(3, depth_multiplier=2), "dies", 120),
    }
    files = []
    for name, case in cases.items():
        path = tmp_path / f"{name}.tflite"
        gpu_nets.write(case, path)
        integers = quantizer.Quantizer(str(path), recipe.weight_only_wi8_afp32()).quantize()
        path.write_bytes(integers.quantized_model)
        files.append((path, gpu_nets.images(), None))
    for check, case in zip(check_gpu_files(files, float32=True), cases.values()):
        assert check.status == STATUS[case.verdict], check
        assert {finding.verdict for finding in check.findings} == {case.verdict} - {"ok"}


def convolution(ins, outs, groups, size=3, kind="FLOAT32"):
    """The contents of a file of one grouped convolution."""

    def tensor(name, shape, size=0):
        return Tensor(name, shape, kind, 0, size, False)

    return Contents(
        ops=(Op("CONV_2D", (0, 1), (2,)),),
        tensors=(
            tensor("images", (1, 9, 9, ins * groups)),
            tensor("kernel", (outs * groups, size, size, ins), size=1),
            tensor("net_1/mix_1/convolution", (1, 9, 9, outs * groups)),
        ),
        inputs=(0,),
        outputs=(2,),
        precision="float32",
    )


def test_what_lowering_leaves_grouped_is_what_the_rule_lets_pass():
    cases = list(itertools.product((1, 2, 4, 6, 8), (1, 4, 6), (3,), ("float32",)))
    for widths in ((1, 1), (4, 4), (4, 6)):
        cases += [(*widths, 1, "float32"), (*widths, 1, "int8"), (*widths, 3, "int8")]
    for ins, outs, size, kind in cases:
        images = keras.Input((9, 9, 2 * ins))
        mix = layers.Conv2D(2 * outs, size, groups=2, padding="same", name="mix")
        _, (said,) = lower(keras.Model(images, mix(images)), precision=kind)
        findings = check_rules(convolution(ins, outs, 2, size, kind.upper()))
        # A group of one channel each way is a depthwise convolution, whatever it is called.
        alike = ins == outs == 1 and (size, kind) != (1, "int8")
        assert (not findings) == ("one grouped" in said or alike), (ins, outs, size, kind, said)


def test_findings_name_the_keras_layer_the_reason_and_the_remedy(tmp_path):
    images = keras.Input((*nets.SIZE, 8), name="pixels")
    x = layers.Conv2D(8, 3, groups=4, use_bias=False, padding="same", name="mix")(images)
    x = layers.ReLU(name="mix_relu")(layers.BatchNormalization(name="mix_norm")(x))
    inner = keras.Model(images, layers.UpSampling2D(2, name="enlarge")(x), name="inner")
    x = layers.Conv2D(4, 1, groups=2, name="bare")(inner(images))
    x = layers.ReLU(name="last_relu")(x)[:, ::-1]
    model = keras.Model(images, layers.Conv2D(5, 1, name="logits")(x))
    written = export(model, tmp_path / "x.tflite", grouped="grouped")
    mix, *enlarge, bare, backwards = written.findings
    assert (mix.layer, mix.op, mix.verdict) == ("mix", "CONV_2D", "wrong")
    assert str(mix).startswith("mix: GPU delegates get wrong CONV_2D of 2 channels per group; ")
    assert "grouped='auto'" in mix.remedy
    assert {(f.layer, f.verdict) for f in enlarge} <= {("enlarge", "refused")}
    assert (bare.layer, bare.op) == ("bare", "CONV_2D")
    assert backwards.op == "STRIDED_SLICE" and backwards.layer == "behind bare"
    # Without the model the file's own names serve.
    first = check_rules(load_contents(written.path))[0]
    assert "mix" in first.layer and (first.op, first.index) == (mix.op, mix.index)


def test_senseless_files_are_one_clear_error(files):
    names = (("float32", "upsampled"), ("int8", "argmax"), ("float16", "logits"))
    sources = [mutations.Source("_".join(n), files(*n).path.read_bytes()) for n in names]
    outcomes = collections.Counter()
    for seed in range(150):
        *_, data = mutations.draw(seed, sources)
        try:
            inside = read_contents(data)
        except ValueError:
            continue
        try:
            check_rules(inside)
            outcomes["read"] += 1
        except ValueError as error:
            assert re.search("makes no sense. Expected: .*Received: ", str(error))
            outcomes["refused"] += 1
    assert outcomes["read"] > 5 and outcomes["refused"]


def test_ops_that_nobody_tried_are_no_pass():
    inside = convolution(4, 4, 2)
    strange = Contents(
        ops=(Op("CUSTOM Sparkle", (0, 1), (2,)),),
        tensors=inside.tensors,
        inputs=(0,),
        outputs=(2,),
        precision="float32",
    )
    assert not check_rules(inside)
    (finding,) = check_rules(strange)
    assert finding.verdict == "unknown" and "check_gpu" in finding.remedy
