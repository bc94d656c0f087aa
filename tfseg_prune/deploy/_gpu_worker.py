"""What the process of `check_gpu` does: runs files on the GPU and on the CPU, and compares.

Neither Keras nor TensorFlow is imported here. The process may die of any file, hence the notes: of
job k, `k.stage` says what it was at, `k.log` what the libraries print, and `k.json` what came out.
"""

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import sys
import time

import numpy as np

from tfseg_prune.bench import inputs, runtime

_LEAST_RUNS = 4
_PR_SET_PDEATHSIG = 1  # of Linux's prctl.h
# What fails sooner than this does not fail for the time that it takes.
_PATIENCE_SECONDS = 60


def main(folder):
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(AttributeError, TypeError):  # where this is no Linux
        # Who kills the parent, as `timeout` does, ends this process too.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    jobs = json.loads((folder / "jobs.json").read_text())
    for number, job in enumerate(jobs):
        note = folder / f"{number}.stage"
        if note.exists():
            continue  # an earlier process got there and died of it, or went on
        log = os.open(folder / f"{number}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.close(log)
        found = _check(job, np.load(job["images"]), note.write_text)
        unfinished = folder / f"{number}.unfinished"
        unfinished.write_text(json.dumps(found))
        unfinished.replace(folder / f"{number}.json")


def _check(job, images, at):
    """Runs one job; returns what came out, ready for JSON."""
    # What the CPU can't run says nothing about GPUs, hence first.
    try:
        answers, pairs = _on_cpu(job["path"], images, at)
    except ImportError as error:
        return {"missing": str(error)}
    except (RuntimeError, ValueError) as error:
        return {"error": str(error)}
    try:
        gpu = _Gpu(job["path"], job["float32"], at)
    except ImportError as error:
        return {"missing": str(error)}
    except (RuntimeError, ValueError) as error:
        return {"refused": str(error)}
    try:
        return _compare(gpu, answers, pairs, job, at)
    except RuntimeError as error:
        return {"failed": str(error)}


def _on_cpu(path, images, at):
    """`(description of the answer, [(what the file is given, what it answers)])`."""
    at("opening the file on the CPU")
    cpu = runtime.interpreter(path, runtime="ai_edge_litert", check=False)
    answers, pairs = cpu.get_output_details()[0], []
    at("running the file on the CPU")
    for image in images:
        given = inputs.image(cpu, image)
        inputs.fill(cpu, given)
        cpu.invoke()
        pairs.append((given[0], cpu.get_tensor(answers["index"])))
    return answers, pairs


def _compare(gpu, answers, pairs, job, at):
    at("running the file on the GPU")
    tally = _Tally(answers)
    seconds, kept = [], []
    for given, expected in pairs:
        answer, took = gpu.run(given)
        seconds.append(took)
        tally.add(answer.reshape(expected.shape), expected)
        if job.get("answers"):
            kept.append(inputs.dequantised(answer.reshape(expected.shape), answers))
    # The first run is timed apart, and one image alone gives no warm time.
    while len(seconds) < _LEAST_RUNS:
        seconds.append(gpu.run(pairs[0][0])[1])
    if job.get("answers"):
        with open(job["answers"], "wb") as file:
            np.save(file, np.concatenate(kept))
    return {
        "fully_accelerated": gpu.fully_accelerated,
        "first_run_seconds": gpu.compile_seconds + seconds[0],
        "warm_seconds": float(np.median(seconds[1:])),
        **tally.figures(),
    }


class _Gpu:
    """A file on the GPU accelerator alone: with the CPU beside it, what it refuses goes there."""

    def __init__(self, path, float32, at):
        from ai_edge_litert import compiled_model, gpu_options, hardware_accelerator, options

        at("compiling the file for the GPU")
        started = time.perf_counter()
        self._model = compiled_model.CompiledModel.from_file(
            path,
            options=options.Options(
                hardware_accelerators=hardware_accelerator.HardwareAccelerator.GPU,
                gpu_options=gpu_options.GpuOptions(enforce_f32=float32),
            ),
        )
        self._inputs = self._model.create_input_buffers(0)
        self._outputs = self._model.create_output_buffers(0)
        self.compile_seconds = time.perf_counter() - started
        self.fully_accelerated = self._model.is_fully_accelerated()
        details = self._outputs[0].get_tensor_details()
        self._count, self._type = int(np.prod(details["shape"])), np.dtype(details["dtype"])

    def run(self, image):
        """Returns the first answer, flat, and the seconds that it took."""
        started = time.perf_counter()
        self._inputs[0].write(image)
        while True:
            began = time.perf_counter()
            self._model.run_by_index(0, self._inputs, self._outputs)
            try:
                answer = self._outputs[0].read(self._count, self._type)  # waits for the GPU
                return answer, time.perf_counter() - started
            except RuntimeError:
                # LiteRT waits for two minutes, but a slow machine's shaders take longer; what they
                # did so far is not lost. The buffer stays locked.
                if time.perf_counter() - began < _PATIENCE_SECONDS:
                    raise
                self._outputs = self._model.create_output_buffers(0)


class _Tally:
    """Running figures of what the GPU answers beside what the CPU does."""

    def __init__(self, answers):
        self._answers = answers
        self._finite, self._pixels, self._agreeing = True, 0, 0
        self._largest = self._magnitude = 0.0
        self._squares = self._sum = self._squared = self._count = 0.0

    def add(self, answer, expected):
        is_map = np.issubdtype(expected.dtype, np.integer) and expected.ndim < 4
        if is_map:
            same = answer == expected
        else:
            answer, expected = (
                inputs.dequantised(values, self._answers).astype("float64")
                for values in (answer, expected)
            )
            finite = np.isfinite(answer) & np.isfinite(expected)
            self._finite &= bool(finite.all())
            gap = np.where(finite, answer - expected, 0.0)
            expected = np.where(finite, expected, 0.0)
            self._largest = max(self._largest, float(np.abs(gap).max()))
            self._magnitude = max(self._magnitude, float(np.abs(expected).max()))
            self._squares += float(np.square(gap).sum())
            self._sum += float(expected.sum())
            self._squared += float(np.square(expected).sum())
            self._count += expected.size
            same = (answer.argmax(-1) == expected.argmax(-1)) & finite.all(-1)
        self._pixels += same.size
        self._agreeing += int(same.sum())

    def figures(self):
        found = {
            "finite": self._finite,
            "argmax_agreement": self._agreeing / self._pixels,
        }
        if self._count:
            mean = self._sum / self._count
            deviation = max(self._squared / self._count - mean**2, 0.0) ** 0.5
            found |= {
                "max_abs_diff": self._largest,
                "relative_diff": self._largest / (self._magnitude or 1.0),
                # A constant has no deviation: its magnitude serves.
                "rms_diff": (self._squares / self._count) ** 0.5
                / (deviation or self._magnitude or 1.0),
            }
        return found


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
