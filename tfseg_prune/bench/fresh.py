"""What only a fresh process can tell of a model: its init, its first inference, its peak memory."""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

from tfseg_prune.bench import inputs, runtime

_TIMEOUT_SECONDS = 600


def _memory(field):
    """Bytes of `VmRSS` or `VmHWM` of this process; where there is no /proc, its peak for both.

    On Linux `ru_maxrss` will not do: a child starts with its parent's peak.
    """
    try:
        status = pathlib.Path("/proc/self/status").read_text(encoding="ascii", errors="ignore")
        return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", status).group(1))
    except (OSError, AttributeError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _reset_peak():
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        pass  # the peak then counts from the process' start, a little too low for the model


def _measure(path, options):
    runtime.describe(options["runtime"])  # imports the runtime, which is not the model's cost
    before = _memory("VmRSS")
    _reset_peak()
    start = time.perf_counter()
    model = runtime.interpreter(path, check=False, **options)
    ready = time.perf_counter()
    inputs.fill(model, inputs.random(model, seed=0))
    invoke = time.perf_counter()
    model.invoke()
    done = time.perf_counter()
    model.invoke()
    peak = None if before is None else max(0, _memory("VmHWM") - before)
    return {
        "init_ms": 1e3 * (ready - start),
        "first_ms": 1e3 * (done - invoke),
        "peak_memory_bytes": peak,
    }


def measure(path, *, threads=1, xnnpack=True, runtime=None):
    """Opens and runs a model in a process of its own.

    Args:
        path: path of the `.tflite` file.
        threads, xnnpack, runtime: see `tfseg_prune.bench.runtime.interpreter`.

    Returns:
        Dictionary of `init_ms`, `first_ms`, and `peak_memory_bytes`: what the resident memory grew
        by at its peak over opening and two inferences (`None` where it can't be read).

    Raises:
        ValueError: if the process fails or dies.

    Example:

    >>> measure("segmenter.tflite")["peak_memory_bytes"]  # doctest: +SKIP
    24117248
    """
    options = json.dumps({"threads": threads, "xnnpack": xnnpack, "runtime": runtime})
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    command = [sys.executable, "-P", "-m", __name__, str(path), options]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        reason = f"no answer in {_TIMEOUT_SECONDS} s"
    else:
        if not done.returncode:
            found = json.loads(done.stdout.splitlines()[-1])
            if "error" in found:
                raise ValueError(found["error"])
            return found
        reason = (
            f"killed by signal {-done.returncode}"
            if done.returncode < 0
            else (done.stderr.strip().splitlines() or ["no message"])[-1]
        )
    raise ValueError(
        "The model does not run. Expected: it opens and answers in a process of its own. "
        f"Received: {path}: {reason}."
    )


if __name__ == "__main__":
    try:  # where memory runs out, this process is the one to go
        pathlib.Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    except OSError:
        pass
    try:
        result = _measure(sys.argv[1], json.loads(sys.argv[2]))
    except ValueError as error:
        result = {"error": str(error)}
    print(json.dumps(result))
