"""Runs a LiteRT file in a process of its own, which may die or hang in our stead.

LiteRT checks the tables of a file before it follows them, but not all that its numbers imply: a
file with a wrong stride, shape or quantisation can end the process that runs it. Here that is one
clear error.
"""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np

from tfseg_prune.bench import runtime as runtimes

SECONDS = 120


class Sandbox:
    """An opened LiteRT file behind a process boundary.

    Args:
        path: path of the `.tflite` file.
        threads, preserve_all_tensors, xnnpack, runtime: see `runtime.interpreter`.
        seconds: after so long without an answer the process is ended. Defaults to `None`, 120.

    Attributes:
        inputs, outputs: a dictionary per tensor, with `name`, `index`, `shape`, `shape_signature`
            (-1 is an open size), `dtype` and `quantization` (scale and zero point) as the
            interpreter describes it.
        tensors: {index: dictionary} of all tensors that the interpreter knows.

    Raises:
        ValueError: if the file is missing, damaged or no LiteRT file, cannot run, or ends the
            process.

    Example:

    >>> with Sandbox("segmenter.tflite") as model:  # doctest: +SKIP
    ...     (logits,) = model.run([image])
    """

    def __init__(
        self,
        path,
        *,
        threads=1,
        preserve_all_tensors=False,
        xnnpack=True,
        runtime=None,
        seconds=None,
    ):
        self.path = runtimes.check_file(path)
        self._seconds = SECONDS if seconds is None else seconds
        self._lock = threading.Lock()
        root = str(pathlib.Path(__file__).resolve().parents[2])
        paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            env={**os.environ, "PYTHONPATH": paths},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        try:
            found, _ = self._ask(
                {
                    "do": "open",
                    "path": str(self.path),
                    "threads": threads.item() if isinstance(threads, np.integer) else threads,
                    "preserve_all_tensors": preserve_all_tensors,
                    "xnnpack": xnnpack,
                    "runtime": runtime,
                }
            )
        except BaseException:
            self.close()
            raise
        self.tensors = {entry["index"]: _plain(entry) for entry in found["tensors"]}
        self.inputs, self.outputs = (
            tuple(_plain(entry) for entry in found[side]) for side in ("inputs", "outputs")
        )
        if not self.inputs or not self.outputs:
            self.close()
            reason = f"its graph has {len(self.inputs)} inputs and {len(self.outputs)} outputs"
            raise runtimes.broken(self.path, self.path.stat().st_size, reason)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def __del__(self):
        if hasattr(self, "_process"):
            self.close()

    def close(self):
        """Ends the process. The object is of no use afterwards."""
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()
        self._process.wait()

    def run(self, arrays):
        """One inference.

        Args:
            arrays: an array per input, of its shape and type.

        Returns:
            List of arrays, one per output.

        Raises:
            ValueError: if an array does not fit, or the file cannot run or ends the process.
        """
        if len(arrays) != len(self.inputs):
            raise ValueError(
                f"{self.path} takes other inputs. Expected: {len(self.inputs)}. Received: "
                f"{len(arrays)}."
            )
        for entry, array in zip(self.inputs, arrays):
            if array.shape != tuple(entry["shape"]) or array.dtype != entry["dtype"]:
                raise ValueError(
                    f"An array does not fit the input {entry['name']!r} of {self.path}. Expected: "
                    f"{np.dtype(entry['dtype'])} {tuple(entry['shape'])}. Received: {array.dtype} "
                    f"{array.shape}."
                )
        return self._ask({"do": "run"}, arrays)[1]

    def read(self, indices):
        """Values of tensors after `run`, where `preserve_all_tensors` keeps them.

        Args:
            indices: of the tensors.

        Returns:
            {index: array} of those that have memory of their own.
        """
        found, arrays = self._ask({"do": "read", "indices": [int(index) for index in indices]})
        return dict(zip(found["indices"], arrays, strict=True))

    def _ask(self, message, arrays=()):
        """Sends a message and arrays; answers what came back."""
        if self._process.stdin.closed:
            raise ValueError(
                f"{self.path} was closed. Expected: `run` before `close`, inside the `with` block. "
                "Received: `run` behind it."
            )
        late, process = threading.Event(), self._process

        def end():  # without `self`, which the timer's thread would keep alive
            late.set()
            process.kill()

        with self._lock:
            timer = threading.Timer(self._seconds, end)
            timer.start()
            try:
                _send(self._process.stdin, message, arrays)
                found, answer = _receive(self._process.stdout)
            # A process that memory errors have hurt may also send what makes no sense.
            except (OSError, EOFError, ValueError, KeyError, TypeError, MemoryError):
                self._process.kill()
                code = self._process.wait()
                how = f"ended by signal {-code}" if code < 0 else f"ended with status {code}"
                how = f"no answer in {self._seconds} s" if late.is_set() else how
                raise ValueError(
                    "The model does not run. Expected: a file that opens and answers. Received: "
                    f"{self.path}: the process that ran it {how}. Remedy: export it again, or try "
                    "another runtime."
                ) from None
            finally:
                timer.cancel()
        if "error" in found:
            raise ValueError(found["error"])
        return found, answer


def _plain(entry):
    """A tensor's description as the interpreter would give it."""
    return {
        **entry,
        "shape": np.array(entry["shape"], np.int32),
        "dtype": np.dtype(entry["dtype"]).type,
        "quantization": tuple(entry["quantization"]),
    }


def _send(stream, message, arrays=()):
    arrays = [np.ascontiguousarray(array) for array in arrays]
    told = [{"dtype": array.dtype.str, "shape": array.shape} for array in arrays]
    stream.write(json.dumps({**message, "arrays": told}).encode() + b"\n")
    for array in arrays:
        stream.write(memoryview(array).cast("B") if array.size else b"")
    stream.flush()


def _receive(stream):
    line = stream.readline()
    if not line.endswith(b"\n"):
        raise EOFError
    message, arrays = json.loads(line), []
    for told in message.pop("arrays"):
        array = np.empty(told["shape"], np.dtype(told["dtype"]))
        wanted = memoryview(array).cast("B") if array.size else b""
        if wanted and stream.readinto(wanted) != array.nbytes:
            raise EOFError
        arrays.append(array)
    return message, arrays


class _Server:
    """What the process does: it holds one interpreter and answers messages."""

    def __init__(self):
        self.model = None

    def open(self, message):
        path = message.pop("path")
        self.model = runtimes.interpreter(path, check=False, **message)
        sides = {
            "inputs": self.model.get_input_details(),
            "outputs": self.model.get_output_details(),
            "tensors": self.model.get_tensor_details(),
        }
        return {side: [_told(entry) for entry in found] for side, found in sides.items()}, []

    def run(self, message, arrays):
        for entry, array in zip(self.model.get_input_details(), arrays):
            self.model.set_tensor(entry["index"], array)
        self.model.invoke()
        return {}, [self.model.get_tensor(e["index"]) for e in self.model.get_output_details()]

    def read(self, message):
        found = {}
        for index in message["indices"]:
            # Optimised away, or a temporary without memory of its own.
            with contextlib.suppress(KeyError, ValueError):
                found[index] = self.model.get_tensor(index)
        return {"indices": list(found)}, list(found.values())


def _told(entry):
    scale, zero = entry["quantization"]
    return {
        "name": entry["name"],
        "index": int(entry["index"]),
        "shape": [int(size) for size in entry["shape"]],
        "shape_signature": [int(size) for size in entry.get("shape_signature", entry["shape"])],
        "dtype": np.dtype(entry["dtype"]).str,
        "quantization": [float(scale), int(zero)],
    }


def _serve():
    # What C++ prints must not mix with the answers; a dead process must not leave its memory.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # where memory runs out, this process is the one to go
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    server = _Server()
    while True:
        try:
            message, arrays = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            act = getattr(server, message.pop("do"))
            found, arrays = act(message, arrays) if arrays else act(message)
        except (ValueError, RuntimeError, MemoryError) as error:
            found, arrays = {"error": _explained(error)}, []
        _send(answers, found, arrays)


def _explained(error):
    """One sentence of an interpreter's error; those in the house's form stay."""
    text = str(error).strip() or type(error).__name__
    if "Expected:" in text:
        return text
    return (
        "The model cannot run. Expected: a file whose ops fit its tensors. Received: "
        f"{' '.join(text.split())[:300]} Remedy: export it again."
    )


if __name__ == "__main__":
    _serve()
