"""The time of each op of a LiteRT file on XNNPACK, by LiteRT's own profiler.

LiteRT's Python package has no profiler, but the library in it has, and a C API that is declared in
`litert/c` of its sources: `libLiteRt.so` is loaded by ctypes here. XNNPACK then says what each of
its operators took, in the order in which they run, but not which layer it is. Those that multiply
are as many as the file has such ops, in the same order, which names them.
"""

import collections
import ctypes
import dataclasses
import importlib.util
import pathlib
import re
from importlib import metadata

import numpy as np

from tfseg_prune.deploy import explain
from tfseg_prune.deploy.quiet import quiet

_CPU = 1  # kLiteRtHwAcceleratorCpu
_TYPE_BYTES = 256  # more than a LiteRtRankedTensorType has
_OPERATOR, _DELEGATED = 1 << 1, 1 << 3  # kinds of events
_VERSION = "2.3."  # whose structures are known
# Of XNNPACK's operators and of ops of the file, those that multiply.
_MULTIPLY = re.compile(
    r"^(Delegate/)?(Convolution|Deconvolution|Fully Connected|Batch Matrix Multiply)|"
    r"^(CONV_2D|DEPTHWISE_CONV_2D|TRANSPOSE_CONV|FULLY_CONNECTED|BATCH_MATMUL)$"
)
# How the lowering of grouped convolutions calls their parts.
_PART = re.compile(r"_group_\d+$")


class _Event(ctypes.Structure):
    """`ProfiledEventData` of `litert_profiler_event.h`."""

    _fields_ = (
        ("tag", ctypes.c_char_p),
        ("kind", ctypes.c_int),
        ("start_us", ctypes.c_uint64),
        ("us", ctypes.c_uint64),
        ("memory", ctypes.c_int64 * 6),
        ("about", ctypes.c_uint64 * 2),
        ("source", ctypes.c_int),
    )


@dataclasses.dataclass(frozen=True)
class OpTime:
    """An operator as it ran.

    Args:
        kind: as XNNPACK calls it, such as `"Convolution (NHWC, F32) IGEMM"`.
        ms: median over the runs.
        layer: name of its layer; `""` for what doesn't multiply.
        macs: of the op in the file; 0 for what doesn't multiply.
    """

    kind: str
    ms: float
    layer: str = ""
    macs: int = 0


class Profiler:
    """A file, opened so that each run tells the time of each operator.

    Args:
        path: of the `.tflite` file, of one input and one output.
        threads: of XNNPACK. Defaults to `1`.

    Raises:
        RuntimeError: if the library has no such API, or refuses the file.
    """

    def __init__(self, path, threads=1):
        self.path = pathlib.Path(path)
        self._library = _library()
        self._kept = []  # what the library reads for as long as the file is open
        environment, model, options = (ctypes.c_void_p() for _ in range(3))
        self._compiled, self._profiler = ctypes.c_void_p(), ctypes.c_void_p()
        with quiet():
            self._call("LiteRtCreateEnvironment", 0, None, _out(environment))
            name = str(path).encode()
            self._call("LiteRtCreateModelFromFile", environment, name, _out(model))
            self._call("LiteRtCreateOptions", _out(options))
            self._call("LiteRtSetOptionsHardwareAccelerators", options, _CPU)
            self._option(options, "runtime_options_string", "enable_profiling = true\n")
            self._option(options, "xnnpack", f"num_threads = {threads}\n")
            self._call(
                "LiteRtCreateCompiledModel", environment, model, options, _out(self._compiled)
            )
            self._buffers = [self._buffer(environment, model, kind) for kind in ("Input", "Output")]
            self._call("LiteRtCompiledModelGetProfiler", self._compiled, _out(self._profiler))

    def run(self):
        """`[(kind, ms)]` of one run, in order."""
        one, first = ctypes.c_size_t(1), ctypes.c_size_t(0)
        given, answer = map(_out, self._buffers)
        count = ctypes.c_int()
        self._call("LiteRtResetProfiler", self._profiler)
        self._call("LiteRtStartProfiler", self._profiler)
        self._call("LiteRtRunCompiledModel", self._compiled, first, one, given, one, answer)
        self._call("LiteRtStopProfiler", self._profiler)
        self._call("LiteRtGetNumProfilerEvents", self._profiler, _out(count))
        events = (_Event * count.value)()
        self._call("LiteRtGetProfilerEvents", self._profiler, count, events)
        found = [(event.tag.decode(), event.us / 1e3, event.kind) for event in events]
        # The delegate as a whole would count its operators twice.
        return [
            (tag.removeprefix("Delegate/"), ms)
            for tag, ms, kind in found
            if kind == _DELEGATED or kind == _OPERATOR and not tag.endswith("Delegate")
        ]

    def _call(self, name, *arguments):
        try:
            status = getattr(self._library, name)(*arguments)
        except AttributeError as error:
            raise RuntimeError(f"LiteRT's library has no {name}: another version") from error
        if status:
            raise RuntimeError(f"LiteRT's {name} answers {status} for {self.path}")

    def _option(self, options, name, text):
        payload, made = ctypes.create_string_buffer(text.encode()), ctypes.c_void_p()
        self._kept.append(payload)
        self._call("LiteRtCreateOpaqueOptions", name.encode(), payload, _KEEP, _out(made))
        self._call("LiteRtAddOpaqueOptions", options, made)

    def _buffer(self, environment, model, kind):
        signature, tensor, needs, buffer = (ctypes.c_void_p() for _ in range(4))
        form, first = ctypes.create_string_buffer(_TYPE_BYTES), ctypes.c_size_t(0)
        self._call("LiteRtGetModelSignature", model, first, _out(signature))
        self._call(f"LiteRtGetSignature{kind}TensorByIndex", signature, first, _out(tensor))
        self._call("LiteRtGetRankedTensorType", tensor, form)
        self._call(
            f"LiteRtGetCompiledModel{kind}BufferRequirements",
            *(self._compiled, first, first, _out(needs)),
        )
        self._call(
            "LiteRtCreateManagedTensorBufferFromRequirements",
            *(environment, form, needs, _out(buffer)),
        )
        return buffer


_KEEP = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda payload: None)
_out = ctypes.byref


def _library():
    found = importlib.util.find_spec("ai_edge_litert")
    folder = pathlib.Path(found.origin).parent if found else None
    if folder is None or not (folder / "libLiteRt.so").is_file():
        raise RuntimeError("there is no libLiteRt.so: the profiler needs ai-edge-litert on Linux")
    version = metadata.version("ai-edge-litert")
    if not version.startswith(_VERSION):
        raise RuntimeError(f"the profiler is that of ai-edge-litert {_VERSION}x, here is {version}")
    return ctypes.CDLL(str(folder / "libLiteRt.so"))


def profiles(paths, *, rounds=15, warmup=3, threads=1):
    """Times the ops of several files in turns.

    Args:
        paths: {name: path of the file}.
        rounds: runs of each. Defaults to `15`.
        warmup: runs before these. Defaults to `3`.
        threads: of XNNPACK. Defaults to `1`.

    Returns:
        {name: list of `OpTime` in the order of the runs}.

    Raises:
        RuntimeError: see `Profiler`; if two runs of a file have other operators.
    """
    opened = {name: Profiler(path, threads) for name, path in paths.items()}
    runs = collections.defaultdict(list)
    for turn in range(warmup + rounds):
        for name, profiler in opened.items():
            ran = profiler.run()
            if turn >= warmup:
                runs[name].append(ran)
    return {name: named(own, explain(paths[name]).ops) for name, own in runs.items()}


def named(runs, ops):
    """Medians of several runs, with the layers and MACs of the file's ops.

    Args:
        runs: list of what `Profiler.run` answers.
        ops: `OpCost`s of the file, in order.

    Returns:
        List of `OpTime`.
    """
    kinds = [kind for kind, _ in runs[0]]
    if any([kind for kind, _ in run] != kinds for run in runs):
        raise RuntimeError("the operators of a file changed from run to run")
    times = np.median([[ms for _, ms in run] for run in runs], axis=0)
    places = [place for place, kind in enumerate(kinds) if _MULTIPLY.match(kind)]
    multiply = [op for op in ops if _MULTIPLY.match(op.op)]
    if len(places) != len(multiply):
        raise RuntimeError(
            f"{len(places)} operators of XNNPACK multiply, and {len(multiply)} ops of the file"
        )
    found = [OpTime(kind, float(ms)) for kind, ms in zip(kinds, times)]
    for place, op in zip(places, multiply):
        found[place] = dataclasses.replace(found[place], layer=op.layer, macs=op.macs)
    return found


def why(dense, small, *, most=5):
    """Where the time went that a smaller network should have saved.

    With `r` the ratio of all MACs, `r_i` that of op `i`, and times `d_i` and `s_i`, what is missing
    to `sum(s) = r sum(d)` is, exactly,

    - kernels: `sum(s_i - r_i d_i)`, ops that got slower per MAC;
    - mix: `sum((r_i - r) d_i)`, MACs that went where they took less time than elsewhere;
    - without MACs: what doesn't multiply (resizing, adding, copying), which shrinks by less than r.

    Args:
        dense, small: lists of `OpTime`, of which those that multiply are the same layers, whole or
            split.
        most: how many ops are told. Defaults to `5`.

    Returns:
        Dictionary of `ms` of both, `kernels`, `mix` and `without_macs` as shares of the smaller
        network's time (their sum is 1 less the realised speed-up fraction), `ops`, those that lost
        most, and `kinds` of operators.
    """
    pairs = list(zip(_joined(dense), _joined(small), strict=True))
    ratio = sum(b.macs for _, b in pairs) / sum(a.macs for a, _ in pairs)
    whole = sum(op.ms for op in small)
    lost = [(b.ms - a.ms * b.macs / a.macs, a, b) for a, b in pairs]
    other = [sum(op.ms for op in ops if not op.macs) for ops in (dense, small)]
    return {
        "ms": [sum(op.ms for op in dense), whole],
        "kernels": sum(ms for ms, _, _ in lost) / whole,
        "mix": sum((b.macs / a.macs - ratio) * a.ms for a, b in pairs) / whole,
        "without_macs": (other[1] - ratio * other[0]) / whole,
        "ops": [
            {
                "layer": b.layer,
                "kind": b.kind,
                "macs": [a.macs, b.macs],
                "ms": [a.ms, b.ms],
                "lost": ms / whole,
            }
            for ms, a, b in sorted(lost, key=lambda item: -item[0])[:most]
        ],
        "kinds": _kinds(dense, small),
    }


def _joined(ops):
    """Those that multiply, one for all parts of a grouped convolution that export split."""
    found = []
    for op in ops:
        layer = _PART.sub("", op.layer)
        if op.macs and layer != op.layer and found and found[-1].layer == layer:
            first = found.pop()
            op = dataclasses.replace(op, ms=first.ms + op.ms, macs=first.macs + op.macs)
        if op.macs:
            found.append(dataclasses.replace(op, layer=layer))
    return found


def _kinds(dense, small):
    """What each kind of operator took in both networks, and its MACs; the longest first."""
    sums = collections.defaultdict(lambda: {"ms": [0.0, 0.0], "macs": [0, 0]})
    for place, ops in enumerate((dense, small)):
        for op in ops:
            sums[op.kind]["ms"][place] += op.ms
            sums[op.kind]["macs"][place] += op.macs
    return dict(sorted(sums.items(), key=lambda item: -item[1]["ms"][1]))
