"""Runs a LiteRT file on the GPU delegate itself, in a process that may die, and compares."""

import dataclasses
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import keras
import numpy as np

from tfseg_prune.deploy import contents
from tfseg_prune.deploy import images as image_sources
from tfseg_prune.deploy.convert import ExportError, convert
from tfseg_prune.deploy.gpu_rules import Finding, check_rules
from tfseg_prune.deploy.parity import THRESHOLDS as _PARITY

# Environment variable with the folder of a software GPU.
SOFTWARE_GPU = "TFSEG_PRUNE_SOFTWARE_GPU"
# Least share of pixels whose class must agree with the CPU's. Delegates compute in float16 and
# unpack int8, which rounds otherwise than the CPU does.
THRESHOLDS = {**_PARITY, "float32": 0.995, "float16": 0.995}
# Most root mean square difference to the CPU's answer over its deviation. What delegates get wrong
# differs by 0.2 to 1.4, and less where much that is right goes beside it. In int8 roundings add up,
# though each op is within one quantum: XNNPACK and TFLite's own kernels differ by up to 0.13 in a
# DeepLabV3+, a delegate in float32 from them by 0.04 to 0.1, in float16 by up to 0.17.
TOLERANCES = {
    **{"float32": 0.05, "float16": 0.05, "dynamic": 0.1, "int8x16": 0.1},
    **{"int8": 0.2, "mixed": 0.2},
}
# Where more than that may still be float16's rounding on top of int8's: float32 decides.
_ROUNDED_TWICE = ("int8", "mixed")
_DOUBTED = "doubted"
# No GPU was seen, and nothing says that there is none.
_UNSEEN = "unseen"
_POLL_SECONDS = 0.02


class DelegateError(RuntimeError):
    """The process that runs the GPU delegate can't start."""


@dataclasses.dataclass(frozen=True)
class GpuCheck:
    """What the GPU delegate made of a file. True where it took all of it and answered rightly, and
    no rule speaks against it.

    Args:
        path: the file.
        status: `"passed"`; `"refused"`, ops are left to the CPU; `"wrong"`, it answers otherwise
            than the CPU; `"failed"`, it takes the file and gives no answer; `"crashed"` or
            `"timeout"`, the process that ran it died or was ended; `"unavailable"`, there is no GPU
            to try it on and **nothing was checked**.
        says: what happened, in a sentence or two.
        findings: of the static rules, see `check_rules`.
        left: ops that the delegate leaves to the CPU, each with its reason.
        signal: name of the signal that ended the process, such as `"SIGILL"`.
        driver: name of the GPU; llvmpipe is Mesa's software one.
        fully_accelerated: whether the delegate took every op; `None`, unknown.
        images: how many were compared.
        argmax_agreement: share of their pixels at which GPU and CPU answer the same class.
        max_abs_diff: largest difference of any logit; `None` for a class map.
        relative_diff: `max_abs_diff` over the largest absolute logit of the CPU.
        rms_diff: root mean square difference over the standard deviation of the CPU's logits.
        first_run_seconds: from opening the file to the first answer: shaders are compiled, unless
            the driver has them in its cache.
        warm_seconds: median of the runs behind. On a software GPU neither says anything about
            phones.
    """

    path: pathlib.Path
    status: str
    says: str
    findings: tuple[Finding, ...] = ()
    left: tuple[str, ...] = ()
    signal: str | None = None
    driver: str | None = None
    fully_accelerated: bool | None = None
    images: int = 0
    argmax_agreement: float | None = None
    max_abs_diff: float | None = None
    relative_diff: float | None = None
    rms_diff: float | None = None
    first_run_seconds: float | None = None
    warm_seconds: float | None = None

    @property
    def passed(self):
        """Whether the delegate ran all of the file and answered as the CPU does, and no rule says
        that on other images it would not."""
        return self.status == "passed" and not self._against

    @property
    def _against(self):
        return [finding for finding in self.findings if finding.verdict != "unknown"]

    def __bool__(self):
        return self.passed

    def __str__(self):
        but = self.status == "passed" and self._against
        says = f"{self.says}, but by the rules it is not fit for GPUs" if but else self.says
        return "\n".join([f"{self.status}: {says}", *map(str, self.findings)])


def check_gpu(
    tflite, images, *, model=None, threshold=None, float32=False, timeout=900, answers=None
):
    """Runs a LiteRT file on the GPU delegate alone and compares its answers with the CPU's.

    The delegate is that of the ai-edge-litert wheel, ML Drift through WebGPU: the code base of the
    phones' delegates, so that its refusals and its numbers are theirs. Its speed is not: on a
    software GPU seconds say nothing about phones. It runs in a process of its own, since some files
    end it. The GPU is that of the machine, or where the environment variable
    `TFSEG_PRUNE_SOFTWARE_GPU` names a folder that `tools/software_gpu.sh` made, the software one.

    Logits must come within 0.05 of the CPU's deviation (root mean square), 0.1 in files of dynamic
    range and int8x16, 0.2 in int8 and mixed ones. Roundings of float16 on top of int8's add up in
    deep networks: an int8 or mixed file that exceeds it is run once more in float32, which lessens
    roundings and no errors, and that run decides. The figures stay the first run's.

    Args:
        tflite: path of the `.tflite` file, of one input `[1, height, width, channels]`, one output
            and one signature.
        images: real images as the network takes them: an array or an iterable of batches, alone or
            in `(images, labels)` tuples. A few suffice.
        model: the `keras.Model` that became the file, for its layers' names. Defaults to `None`.
        threshold: least argmax agreement, in [0, 1]. Defaults to `None`: 0.995 for float files,
            0.98 for dynamic range and int8x16, 0.9 for int8 and mixed.
        float32: compute in float32, in place of the delegate's own choice, float16 where the GPU
            has it: what differs then is no rounding. Defaults to `False`.
        timeout: seconds after which the process is ended. Defaults to `900`.
        answers: path of an `.npy` file to write what the GPU answers into, `[images, ...]`; it is
            there only where the file ran. Defaults to `None`.

    Returns:
        `GpuCheck`, true only where the delegate took every op and answered as the CPU does, and the
        static rules, which are asked first, find nothing that would go wrong elsewhere. Without
        a GPU its status is `"unavailable"`, which is no pass.

    Raises:
        ValueError: if the file is missing, damaged or no LiteRT file, or does not run on the CPU;
            if the images are none or do not fit; if `TFSEG_PRUNE_SOFTWARE_GPU` names no such
            folder.

    Example:

    >>> check = check_gpu("segmenter.tflite", images)  # doctest: +SKIP
    >>> check.passed, check.argmax_agreement, check.driver  # doctest: +SKIP
    (True, 0.9994, 'llvmpipe (LLVM 15.0.6, 256 bits)')
    """
    options = {"threshold": threshold, "float32": float32, "timeout": timeout}
    (check,) = check_gpu_files([(tflite, images, model)], answers=[answers], **options)
    return check


def check_gpu_files(files, *, threshold=None, float32=False, timeout=900, answers=None):
    """As `check_gpu`, for several files in few processes: a new one only where one dies.

    Args:
        files: `(path, images, model or None)` tuples.
        threshold, float32, timeout: see `check_gpu`; the time is each file's.
        answers: a path or `None` for each file, see `check_gpu`. Defaults to `None`.

    Returns:
        List of `GpuCheck`.

    Raises:
        ValueError: see `check_gpu`.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"Invalid threshold. Expected: in [0, 1]. Received: {threshold!r}.")
    if not isinstance(timeout, (int, float)) or not timeout >= 0:
        raise ValueError(f"Invalid timeout. Expected: seconds, 0 or more. Received: {timeout!r}.")
    for kept in filter(None, answers or ()):
        _make_way(pathlib.Path(kept))
    checks, known = _checks(files, threshold, float32, timeout, answers)
    unseen = [number for number, check in enumerate(checks) if check.status == _UNSEEN]
    there = bool(unseen) and _gpu_is_there(timeout)
    for number in unseen:
        checks[number] = _seen(checks[number], there)
    doubted = [number for number, check in enumerate(checks) if check.status == _DOUBTED]
    if doubted:
        again = [(files[k][0], known[k], files[k][2]) for k in doubted]
        again = check_gpu_files(again, threshold=threshold, float32=True, timeout=timeout)
        for number, single in zip(doubted, again):
            says = f"{checks[number].says}. In float32: {single.says}"
            checks[number] = dataclasses.replace(
                checks[number], status=single.status, signal=single.signal, says=says
            )
    return checks


def _make_way(path):
    """Removes what an earlier check answered, which would look like this one's."""
    if path.suffix != ".npy" or not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            "The answers can't be written. Expected: a file that ends in .npy, in an existing "
            f"folder. Received: '{path}'."
        )
    path.unlink(missing_ok=True)


def _checks(files, threshold, float32, timeout, answers):
    """What one run of each file tells: `([GpuCheck], [images])`, some of them to be decided."""
    opened = []
    for path, _, model in files:
        inside = contents.load_contents(path)
        opened.append((path, inside, check_rules(inside, model)))
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        jobs, known = [], []
        for number, ((path, source, _), (_, inside, _)) in enumerate(zip(files, opened)):
            taken = _images(source, inside, path)
            np.save(folder / f"{number}.npy", taken)
            known.append(taken)
            images = str(folder / f"{number}.npy")
            kept = answers[number] if answers else None
            jobs.append(
                {
                    "path": str(path),
                    "images": images,
                    "float32": float32,
                    "answers": str(kept) if kept else None,
                }
            )
        (folder / "jobs.json").write_text(json.dumps(jobs))
        ends = _run(folder, len(jobs), timeout)
        checks = [
            _verdict(
                _Traces(folder, number),
                ends.get(number),
                timeout=timeout,
                threshold=THRESHOLDS[inside.precision] if threshold is None else threshold,
                tolerance=TOLERANCES[inside.precision],
                decides=float32 or inside.precision not in _ROUNDED_TWICE,
                path=pathlib.Path(path),
                images=len(known[number]),
                findings=findings,
            )
            for number, (path, inside, findings) in enumerate(opened)
        ]
    return checks, known


def _gpu_is_there(timeout):
    """Whether the delegate finds a GPU for a file that nothing is wrong with."""
    images = keras.Input((4, 4, 4))
    plain = keras.Model(images, keras.layers.ReLU()(images))
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "plain.tflite"
        options = {"tail": "logits", "image_size": None}
        try:
            data = convert(plain, precision="float32", io="float32", images=None, **options)
        except ExportError:  # there is no TensorFlow to make a file with
            return False
        path.write_bytes(data)
        files = [(path, np.ones((1, 4, 4, 4), "float32"), plain)]
        (check,), _ = _checks(files, None, False, timeout, None)
    return check.driver is not None


def _seen(check, there):
    """The check of a file at which no GPU was seen, by whether there is one."""
    if not there:
        return dataclasses.replace(
            check, status="unavailable", signal=None, says=_unavailable(check.says)
        )
    status = "crashed" if check.signal or "the process died" in check.says else "failed"
    return dataclasses.replace(check, status=status)


def _images(source, inside, path):
    shape = inside.tensors[inside.inputs[0]].shape
    if len(inside.inputs) != 1 or len(shape) != 4 or shape[0] != 1:
        raise ValueError(
            "The file takes no images. Expected: one input [1, height, width, channels]. Received: "
            f"{[inside.tensors[i].shape for i in inside.inputs]} in {path}."
        )
    if len(inside.outputs) != 1 or inside.graphs != 1:
        raise ValueError(
            "The file can't be compared as a whole. Expected: one output and one graph. Received: "
            f"{len(inside.outputs)} outputs and {inside.graphs} graphs in {path}. Remedy: a file "
            "for each."
        )
    taken = []
    for batch, _ in image_sources.batches(source):
        image_sources.check_shape(batch, shape[1:])
        taken.append(batch)
    if not sum(map(len, taken)):
        raise ValueError("No images to compare. Expected: at least one. Received: an empty source.")
    return np.concatenate(taken)


def environment():
    """The environment of the process that runs the delegate: of the software GPU if there is one.

    Raises:
        ValueError: if `TFSEG_PRUNE_SOFTWARE_GPU` names no folder that `tools/software_gpu.sh` made.
    """
    root = str(pathlib.Path(__file__).resolve().parents[2])
    paths = os.pathsep.join(p for p in (root, os.environ.get("PYTHONPATH")) if p)
    found = {**os.environ, "PYTHONPATH": paths}
    folder = os.environ.get(SOFTWARE_GPU)
    if folder:
        settings = pathlib.Path(folder) / "env.sh"
        if not settings.is_file():
            raise ValueError(
                f"{SOFTWARE_GPU} names no software GPU. Expected: the folder that "
                f"tools/software_gpu.sh made. Received: {folder}, which holds no env.sh. Remedy: "
                "run tools/software_gpu.sh with that folder."
            )
        given = dict(re.findall(r"^export (\w+)='(.*)'$", settings.read_text(), re.MULTILINE))
        # Python itself may need the libraries that it was started with.
        libraries = given.get("LD_LIBRARY_PATH"), found.get("LD_LIBRARY_PATH")
        given["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
        found |= given
        found.pop("VK_DRIVER_FILES", None)  # it would come before VK_ICD_FILENAMES
    return found


def _run(folder, count, timeout):
    """Runs all jobs in `folder`; returns {number of a job that ended its process: exit code}."""
    variables, ends = environment(), {}
    # The worker is no module: importing this package's rooms would import Keras.
    worker = str(pathlib.Path(__file__).with_name("_gpu_worker.py"))
    while True:
        with open(folder / "process.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", worker, str(folder)],
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            late = _wait(process, folder, timeout)
        finally:
            process.kill()
            process.wait()
        # Jobs run in order; those that ended a process are passed over.
        waiting = [k for k in range(count) if k not in ends]
        fatal = next((k for k in waiting if not (folder / f"{k}.json").exists()), None)
        if fatal is None:
            return ends
        started = folder / f"{fatal}.stage"
        if not started.exists() and not late:
            last = (folder / "process.log").read_text(errors="replace").strip().splitlines()
            raise DelegateError(
                "The process that runs the GPU delegate can't start. Expected: it does. Received: "
                f"status {process.returncode}: {(last or ['no message'])[-1]}. Remedy: see whether "
                f"'{sys.executable} -c \"import ai_edge_litert\"' works."
            )
        started.touch()
        ends[fatal] = "timeout" if late else process.returncode


def _wait(process, folder, timeout):
    """Waits for the process' end; true if one job took longer than `timeout` seconds."""
    done, since = -1, 0.0
    while process.poll() is None:
        finished = len(list(folder.glob("*.json")))
        if finished != done:
            done, since = finished, time.monotonic()
        if time.monotonic() - since > timeout:
            return True
        time.sleep(_POLL_SECONDS)
    return False


class _Traces:
    """What the process left of one job."""

    def __init__(self, folder, number):
        def read(kind):
            path = folder / f"{number}.{kind}"
            return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

        self.stage, self.log = read("stage"), read("log")
        self.found = json.loads(read("json") or "{}")
        adapter = re.search(r"Selected adapter: (.*?), arch=", self.log)
        self.driver = adapter and adapter[1]
        list_of_ops = re.search(
            r"not supported by GPU delegate:\n(.*?)\n(?:\d+|No) operations? will run",
            self.log,
            re.DOTALL,
        )
        # DEQUANTIZE of weights is listed without a reason where another op is refused.
        lines = list_of_ops[1].splitlines() if list_of_ops else []
        self.left = tuple(dict.fromkeys(line.strip() for line in lines if line[-2:] != ": "))
        # The worst that the libraries have to say: a failed check before an error.
        for level in "FE":
            complaint = re.search(rf"^{level}\d{{4}} .*?\] (.*)$", self.log, re.MULTILINE)
            if complaint:
                break
        self.complaint = f" It complains: {complaint[1]}" if complaint else ""

    def why_not(self):
        """Why there is no GPU; `None`: nothing says so."""
        missing = re.search(r"Couldn't load Vulkan: (.*)|(No adapters found)", self.log)
        return self.found.get("missing") or (missing and (missing[1] or missing[2]))


def _verdict(traces, end, *, timeout, threshold, tolerance, decides, **known):
    """The `GpuCheck` of one job.

    Args:
        traces: its `_Traces`.
        end: how the process ended at it: an exit code, `"timeout"`, or `None`, it went on.
        timeout, threshold, tolerance: limits.
        decides: whether a difference above the tolerance is wrong, or only in doubt.
        known: fields of the `GpuCheck`.
    """
    found = traces.found
    known |= {"left": traces.left, "driver": traces.driver}
    if end == "timeout":
        says = f"the process was still {traces.stage or 'starting'} after {timeout} s"
        return GpuCheck(status="timeout", says=says, **known)
    on_cpu = end is not None and traces.stage.endswith("CPU")
    if on_cpu or "error" in found:
        why = f"the process died {traces.stage}, of {_how(end)}" if on_cpu else found["error"]
        raise ValueError(
            "The file can't be checked. Expected: one that runs on the CPU. Received: "
            f"{known['path']}: {why}"
        )
    if end is not None:
        says = f"the process died {traces.stage}, of {_how(end)}.{traces.complaint}"
        name = _how(end) if end < 0 else None
        status = "crashed" if traces.driver else _UNSEEN
        return GpuCheck(status=status, says=says, signal=name, **known)
    if traces.driver is None:
        why = traces.why_not()
        if why:
            return GpuCheck(status="unavailable", says=_unavailable(why), **known)
        refused = " ".join(found["refused"].split())
        says = f"the delegate can't open it: {refused}.{traces.complaint}"
        return GpuCheck(status=_UNSEEN, says=says, **known)
    if "failed" in found:
        says = f"the GPU gives no answer: {' '.join(found['failed'].split())}.{traces.complaint}"
        return GpuCheck(status="failed", says=says, **known)
    if "refused" in found:
        reasons = "; ".join(traces.left) or found["refused"].split("└ ")[-1].strip()
        says = f"the delegate leaves ops to the CPU: {reasons}"
        return GpuCheck(status="refused", says=says, fully_accelerated=False, **known)
    finite = found.pop("finite")
    known |= found
    agreement, rms = found["argmax_agreement"], found.get("rms_diff", 0.0)
    told = f"{agreement:.3%} of the pixels get the CPU's class on {known['images']} images"
    if "rms_diff" in found:
        told += f", logits differ by {rms:.2g} of their deviation"
    if not found["fully_accelerated"]:
        return GpuCheck(status="refused", says=f"not every op is accelerated; {told}", **known)
    if finite and agreement >= threshold and rms > tolerance and not decides:
        return GpuCheck(status=_DOUBTED, says=told, **known)
    if not finite or agreement < threshold or rms > tolerance:
        told += "" if finite else ", and some are no finite numbers"
        says = f"{told}. Expected: {threshold:.1%} and at most {tolerance:g}.{traces.complaint}"
        return GpuCheck(status="wrong", says=says, **known)
    return GpuCheck(status="passed", says=f"fully accelerated; {told} ({traces.driver})", **known)


def _unavailable(why):
    return (
        f"there is no Vulkan GPU that LiteRT can use ({' '.join(str(why).split())}). NOT checked: "
        "whether the delegate takes every op, whether its answers are right, whether it crashes. "
        "Remedy: a Vulkan driver, or without a GPU `tools/software_gpu.sh FOLDER` (Mesa's, 25.0.7 "
        f"or later) and {SOFTWARE_GPU}=FOLDER in the environment."
    )


def _how(end):
    return signal.Signals(-end).name if end < 0 else f"exit status {end}"
