"""Finds the LiteRT interpreter that this machine has, and opens files with it safely."""

import functools
import importlib
import os
import pathlib
import signal
import struct
import subprocess
import sys

import numpy as np

_MODULES = {
    "ai_edge_litert": "ai_edge_litert.interpreter",
    "tflite_runtime": "tflite_runtime.interpreter",
    "tensorflow": "tensorflow",
}
# The other two run TFLite's flatbuffer verifier; tflite-runtime 2.14 reads out of bounds instead.
_UNVERIFIED = "tflite_runtime"
_PROBE_SECONDS = 120
# How often the parts of a file may be looked at, on average; a converter's share next to none.
_SHARED = 8
_MOST_TABLES = 1_000_000  # as many as the verifier of the flatbuffers library takes


@functools.cache
def _load(name):
    """Returns `(name, version, module)` of the runtime `name`, or of the first that imports."""
    tried = []
    for candidate in (name,) if name else _MODULES:
        if candidate not in _MODULES:
            raise ValueError(
                f"Unknown LiteRT runtime. Expected: one of {', '.join(_MODULES)}. "
                f"Received: {name!r}."
            )
        if candidate == "tflite_runtime" and int(np.__version__.split(".")[0]) >= 2:
            tried.append(f"{candidate}: works with numpy<2 only, here is numpy {np.__version__}")
            continue
        try:
            module = importlib.import_module(_MODULES[candidate])
            module = getattr(module, "lite", module)
            version = importlib.import_module(candidate).__version__
        except (ImportError, AttributeError) as error:
            tried.append(f"{candidate}: {error}")
            continue
        return candidate, version, module
    raise ValueError(
        f"No LiteRT runtime can be imported. Expected: one of {', '.join(_MODULES)}. "
        f"Received: {'; '.join(tried)}. Remedy: `pip install ai-edge-litert`, or on a small Linux "
        "board `pip install 'numpy<2' tflite-runtime`."
    )


def describe(runtime=None):
    """Says which LiteRT runtime is used.

    Args:
        runtime: `"ai_edge_litert"`, `"tflite_runtime"` or `"tensorflow"`. Defaults to `None`, the
            first of them that imports.

    Returns:
        `{"name": ..., "version": ...}`.

    Raises:
        ValueError: if no runtime is installed; the message names what to install.

    Example:

    >>> sorted(describe())
    ['name', 'version']
    """
    name, version, _ = _load(runtime)
    return {"name": name, "version": version}


class _Flatbuffer:
    """Bounds-checked reads of the flatbuffer's tables, enough to see that no part is missing.

    Tables may share parts, so that a short file can stand for a very long one: the bytes that are
    looked at are bounded, too.
    """

    def __init__(self, data):
        self.data = data
        self.left = _SHARED * len(data)
        self.tables_left = _MOST_TABLES

    def read(self, form, at):
        if not 0 <= at <= len(self.data) - struct.calcsize(form):
            raise ValueError(f"an offset points to byte {at} of {len(self.data)}")
        return struct.unpack_from(form, self.data, at)[0]

    def follow(self, at):
        return at + self.read("<I", at)

    def field(self, table, index):
        """Where field `index` of `table` lies, or `None` where the file leaves it out."""
        vtable = table - self.read("<i", table)
        if 4 + 2 * index >= self.read("<H", vtable):
            return None
        offset = self.read("<H", vtable + 4 + 2 * index)
        return table + offset if offset else None

    def vector(self, table, index, size):
        """Places of the elements, of `size` bytes each, of a vector field or a string field."""
        at = self.field(table, index)
        if at is None:
            return range(0)
        start = self.follow(at)
        stop = start + 4 + size * self.read("<I", start)
        if stop > len(self.data):
            raise ValueError(f"a part ends at byte {stop} of {len(self.data)}")
        self.left -= stop - start
        if self.left < 0:
            raise ValueError("its parts overlap so often that they are more than the file")
        return range(start + 4, stop, size)

    def table(self, at):
        table = self.follow(at)
        size = self.read("<H", table - self.read("<i", table) + 2)
        self.read("B", table + size - 1)
        return table

    def tables(self, table, index):
        places = self.vector(table, index, 4)
        self.tables_left -= len(places)
        if self.tables_left < 0:
            raise ValueError(f"it has more than {_MOST_TABLES:,} tables")
        return [self.table(at) for at in places]

    def check(self):
        model = self.table(0)
        for code in self.tables(model, 1):
            self.vector(code, 1, 1)
        for subgraph in self.tables(model, 2):
            for tensor in self.tables(subgraph, 0):
                self.vector(tensor, 0, 4)
                self.vector(tensor, 3, 1)
                self.vector(tensor, 7, 4)
            for ports in (1, 2):
                self.vector(subgraph, ports, 4)
            for operator in self.tables(subgraph, 3):
                self.vector(operator, 1, 4)
                self.vector(operator, 2, 4)
            self.vector(subgraph, 4, 1)
        self.vector(model, 3, 1)
        for buffer in self.tables(model, 4):
            self.vector(buffer, 0, 1)
            # A file beyond 2 GB keeps values behind the tables, at an offset of their own.
            offset, size = (self.field(buffer, index) for index in (1, 2))
            if offset is not None and size is not None:
                stop = self.read("<Q", offset) + self.read("<Q", size)
                if stop > len(self.data):
                    raise ValueError(f"a part ends at byte {stop} of {len(self.data)}")


def check_file(path):
    """Checks that `path` is a whole LiteRT file, without any runtime.

    The file identifier `TFL3` stands at byte 4, and every table, tensor and weight buffer must lie
    inside the file, which finds a copy or a download that stopped half-way.

    Args:
        path: path of the `.tflite` file.

    Returns:
        The path, as `pathlib.Path`.

    Raises:
        ValueError: if the file is missing, no LiteRT file, or cut short.

    Example:

    >>> check_file("segmenter.tflite")  # doctest: +SKIP
    """
    path = pathlib.Path(path)
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise ValueError(
            f"Cannot open the model. Expected: a .tflite file. Received: {path} ({what})."
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"Cannot read the model. Expected: a .tflite file. Received: {path} ({error.strerror})."
        ) from None
    check_bytes(data, name=path)
    return path


def check_bytes(data, *, name="the file"):
    """Checks that `data` are the bytes of a whole LiteRT file, see `check_file`.

    Args:
        data: bytes.
        name: what the file is called in errors. Defaults to `"the file"`.

    Raises:
        ValueError: if they are not.
    """
    if data[4:8] != b"TFL3":
        raise ValueError(
            "Not a LiteRT model. Expected: the file identifier b'TFL3' at byte 4. "
            f"Received: {name} ({len(data)} bytes, {bytes(data[4:8])!r} there)."
        )
    try:
        _Flatbuffer(data).check()
    except ValueError as error:
        raise broken(name, len(data), error) from None


def broken(name, size, reason):
    """The error that says that a LiteRT file of `size` bytes is no whole one, and why."""
    reason = str(reason) or type(reason).__name__
    return ValueError(
        "The LiteRT model is damaged or cut short. Expected: a whole .tflite file. "
        f"Received: {name} ({size} bytes; {reason}). Remedy: export or copy it again."
    )


@functools.lru_cache(maxsize=256)
def _probe(path, size, modified):
    """Opens the file once in a process of its own, which may die in our stead."""
    del size, modified  # they only make a changed file a new cache entry
    code = (
        "import sys; from tflite_runtime.interpreter import Interpreter; "
        "Interpreter(sys.argv[1]).allocate_tensors()"
    )
    command = [sys.executable, "-c", code, path]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_PROBE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL
    return done.returncode


def interpreter(
    path, *, threads=1, preserve_all_tensors=False, xnnpack=True, runtime=None, check=True
):
    """Opens a LiteRT file and allocates its tensors: ready for `set_tensor` and `invoke`.

    Args:
        path: path of the `.tflite` file.
        threads: CPU threads of the interpreter. Defaults to `1`.
        preserve_all_tensors: keep the intermediate tensors readable by `get_tensor` after `invoke`.
            Takes `xnnpack=False` too, as what XNNPACK computes inside stays hidden. Defaults to
            `False`.
        xnnpack: run on XNNPACK, the default CPU delegate; `False` is TFLite's own kernels.
            Defaults to `True`.
        runtime: which runtime, see `describe`. Defaults to `None`, the first that imports.
        check: look at the file before it is opened (`check_file`, and with tflite-runtime, which
            crashes on a damaged file, a trial in another process). Defaults to `True`.

    Returns:
        The runtime's `Interpreter`.

    Raises:
        ValueError: if no runtime is installed, the file is missing, damaged or no LiteRT file, or
            holds an op that the runtime does not have.

    Example:

    >>> model = interpreter("segmenter.tflite", threads=2)  # doctest: +SKIP
    >>> model.get_input_details()[0]["shape"]  # doctest: +SKIP
    array([  1, 224, 224,   3], dtype=int32)
    """
    name, version, module = _load(runtime)
    path = pathlib.Path(path)
    if not isinstance(threads, (int, np.integer)) or isinstance(threads, bool) or threads < 1:
        raise ValueError(f"Invalid threads. Expected: a whole number >= 1. Received: {threads!r}.")
    if check:
        check_file(path)
        if name == _UNVERIFIED:
            stat = os.stat(path)
            code = _probe(str(path.resolve()), stat.st_size, stat.st_mtime_ns)
            if code < 0:
                raise broken(path, stat.st_size, f"{name} dies of signal {-code} opening it")
    options = {"num_threads": int(threads)}
    if preserve_all_tensors:
        options["experimental_preserve_all_tensors"] = True
    if not xnnpack:
        kinds = getattr(module, "OpResolverType", None) or module.experimental.OpResolverType
        options["experimental_op_resolver_type"] = kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    try:
        opened = module.Interpreter(model_path=str(path), **options)
        opened.allocate_tensors()
        # Names that are no UTF-8 are errors as soon as anyone asks for them.
        opened.get_input_details()
        opened.get_output_details()
    except (ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(
            f"The runtime refuses the model. Expected: a file that {name} {version} can run. "
            f"Received: {path}: {str(error).strip() or type(error).__name__}"
        ) from None
    return opened
