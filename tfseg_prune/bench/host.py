"""Times LiteRT files on this machine, in turns, so that their ratio holds on a noisy one.

As a command: `python -m tfseg_prune.bench.host dense.tflite pruned.tflite --json bench.json`.
"""

import argparse
import datetime
import gc
import hashlib
import os
import pathlib
import platform
import re
import sys
import time
import uuid

import numpy as np

from tfseg_prune.bench import fresh, schema, stats
from tfseg_prune.bench import inputs as feeds
from tfseg_prune.bench import runtime as runtimes


def cpu_name():
    """Model name of this machine's CPU, as the system tells it.

    Example:

    >>> isinstance(cpu_name(), str)
    True
    """
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    # Arm boards leave "model name" out; the board's own name comes last there.
    for key in ("model name", "Hardware", "Model"):
        found = re.search(rf"^{key}\s*:\s*(.+)$", text, re.MULTILINE)
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine() or "unknown"


def device():
    """This machine, as a `schema.Device`.

    Example:

    >>> device().kind
    'host'
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return schema.Device(
        kind="host",
        name=platform.machine(),
        os=f"{platform.system()} {platform.release()}",
        cpu=cpu_name(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
    )


def _invoke_ms(model, arrays):
    # Only the inference: an app writes its camera image into the input tensor by its own means.
    feeds.fill(model, arrays)
    start = time.perf_counter_ns()
    model.invoke()
    return (time.perf_counter_ns() - start) / 1e6


def _prepare(models, opened, images, value_range, seed):
    """Per model the list of inputs that it cycles through."""
    prepared = {}
    for name, model in opened.items():
        if images is None:
            prepared[name] = [feeds.random(model, seed=seed, value_range=value_range)]
            continue
        try:
            prepared[name] = [feeds.image(model, array) for array in images]
        except ValueError as error:
            raise ValueError(f"{error} Model: {models[name]}.") from None
    return prepared


def _check(models, images, counts):
    wrong = {k: v for k, v in counts.items() if not v > 0}
    if wrong:
        raise ValueError(f"Invalid options. Expected: values above 0. Received: {wrong}.")
    if not models:
        raise ValueError("No model to time. Expected: at least one {name: path}. Received: none.")
    if images is not None and (np.ndim(images) != 4 or not len(images)):
        raise ValueError(
            "Invalid images. Expected: an array [number, height, width, channels], not empty. "
            f"Received: shape {np.shape(images)}."
        )


def time_models(
    models,
    *,
    threads=1,
    min_runs=30,
    max_seconds=30.0,
    max_warmup_runs=50,
    ratio_tolerance=0.02,
    images=None,
    value_range=(0.0, 255.0),
    precisions=None,
    xnnpack=True,
    runtime=None,
    seed=0,
    progress=None,
):
    """Times LiteRT files in turns: A B B A A B ..., each round in a random order.

    First each file is opened in a fresh process, which gives init, first inference and peak
    memory. Then all are opened here and take turns: warm-up rounds until every model is steady
    (`stats.is_steady`), then timed rounds, at least `min_runs`, and more until the ratio of every
    model to the first is known to `ratio_tolerance` or `max_seconds` are over. Only `invoke` is
    timed. Latencies are this machine's, under its load; compare two models by `stats.compare`.

    Args:
        models: dictionary of the models' names to their paths; the first is the reference.
        threads: CPU threads. Defaults to `1`.
        min_runs: timed rounds at least, whatever they take. Defaults to `30`.
        max_seconds: timed rounds beyond `min_runs` end after so many seconds. Defaults to `30.0`.
        max_warmup_runs: warm-up rounds at most; a result that is not steady by then says so.
            Defaults to `50`.
        ratio_tolerance: half the width of the ratio's 95 % interval, relative, at which timing
            ends. Defaults to `0.02`.
        images: real images `[number, height, width, channels]`, cycled through, in the units of
            the floating-point models (quantised for integer ones). Defaults to `None`: random.
        value_range: least and greatest random value. Defaults to `(0., 255.)`.
        precisions: dictionary of names to precisions, to be noted in the results. Defaults to
            `None`.
        xnnpack: see `runtime.interpreter`. Defaults to `True`.
        runtime: see `runtime.interpreter`. Defaults to `None`.
        seed: seed of the random input and of the order. Defaults to `0`.
        progress: called as `progress(phase, done, total)` with phase `"open"`, `"warm-up"` or
            `"time"`; `total` is the least number of steps. Defaults to `None`.

    Returns:
        Dictionary of the models' names to `schema.Result`.

    Raises:
        ValueError: if a file is missing, damaged or cannot run, or an option is out of range.

    Example:

    >>> results = time_models(
    ...     {"dense": "dense.tflite", "pruned": "pruned.tflite"})  # doctest: +SKIP
    >>> stats.compare(results["pruned"], results["dense"]).value  # doctest: +SKIP
    0.61
    """
    _check(
        models,
        images,
        dict(
            min_runs=min_runs,
            max_seconds=max_seconds,
            max_warmup_runs=max_warmup_runs,
            ratio_tolerance=ratio_tolerance,
        ),
    )
    progress = progress or (lambda phase, done, total: None)
    options = dict(threads=threads, xnnpack=xnnpack, runtime=runtime)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    conditions = schema.Conditions(
        date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"), load_average=load
    )
    models = {name: pathlib.Path(path) for name, path in models.items()}
    for path in models.values():
        runtimes.check_file(path)
    # Before they are opened here: a file that ends the process that runs it ends another one.
    first = {}
    for done, (name, path) in enumerate(models.items()):
        progress("open", done, len(models))
        first[name] = fresh.measure(path, **options)
    opened = {name: runtimes.interpreter(path, **options) for name, path in models.items()}
    prepared = _prepare(models, opened, images, value_range, seed)

    rng = np.random.default_rng(seed)
    warmup, samples = ({name: [] for name in models} for _ in range(2))
    names, reference = list(models), next(iter(models))

    def turn(into):
        done = len(into[reference])
        for at in rng.permutation(len(names)):
            name = names[at]
            arrays = prepared[name][done % len(prepared[name])]
            into[name].append(_invoke_ms(opened[name], arrays))

    def steady():
        return all(stats.is_steady(times) for times in warmup.values())

    def known():
        for name in names[1:]:
            ratio = stats.interleaved_ratio(samples[name], samples[reference])
            if ratio.high - ratio.low > 2 * ratio_tolerance * ratio.value:
                return False
        return True

    collecting = gc.isenabled()
    gc.disable()
    try:
        while len(warmup[reference]) < max_warmup_runs and not steady():
            turn(warmup)
            progress("warm-up", len(warmup[reference]), 10)
        end = time.monotonic() + max_seconds
        while len(samples[reference]) < min_runs or (time.monotonic() < end and not known()):
            turn(samples)
            progress("time", len(samples[reference]), min_runs)
    finally:
        if collecting:
            gc.enable()

    session, about = uuid.uuid4().hex, runtimes.describe(runtime)
    backend = schema.Backend(
        runtime=about["name"],
        version=about["version"],
        delegate="xnnpack" if xnnpack else "none",
        threads=int(threads),
    )
    results = {}
    for name, path in models.items():
        content = path.read_bytes()
        results[name] = schema.Result(
            model=schema.Model(
                name=name,
                sha256=hashlib.sha256(content).hexdigest(),
                bytes=len(content),
                precision=(precisions or {}).get(name),
            ),
            device=device(),
            backend=backend,
            conditions=conditions,
            latency_ms=schema.Latency(
                init=first[name]["init_ms"],
                first=first[name]["first_ms"],
                **stats.summarise(samples[name]),
            ),
            samples_ms=tuple(samples[name]),
            warmup_runs=len(warmup[name]),
            steady=stats.is_steady(warmup[name]),
            session=session,
            peak_memory_bytes=first[name]["peak_memory_bytes"],
        )
    return results


def _names(paths):
    """Short and unique names: the files' names, told apart by a number where they are equal."""
    names = {}
    for path in paths:
        stem, name, count = pathlib.Path(path).stem, pathlib.Path(path).stem, 1
        while name in names:
            count += 1
            name = f"{stem}#{count}"
        names[name] = path
    return names


def table(results):
    """The results as lines of plain text, each model's ratio to the first beside it.

    Args:
        results: dictionary of names to `schema.Result`, from `time_models`.

    Returns:
        A string of several lines.

    Example:

    >>> print(table(results))  # doctest: +SKIP
    """
    rows = [("model", "KiB", "init", "first", "p50", "p90", "p99", "stdev", "peak MiB", "ratio")]
    reference = next(iter(results.values()))
    for name, result in results.items():
        ms, peak = result.latency_ms, result.peak_memory_bytes
        ratio = stats.compare(result, reference)
        rows.append(
            (
                name,
                f"{result.model.bytes / 1024:.0f}",
                *(f"{t:.2f}" for t in (ms.init, ms.first, ms.p50, ms.p90, ms.p99, ms.stdev)),
                "?" if peak is None else f"{peak / 2**20:.1f}",
                "1"
                if result is reference
                else f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
    about = reference
    load = about.conditions.load_average
    lines.append(
        f"ms, {len(about.samples_ms)} rounds in turns after {about.warmup_runs} of warm-up, "
        f"{about.backend.threads} thread(s), {about.backend.runtime} {about.backend.version} "
        f"({about.backend.delegate}), {about.device.cpu}, {about.device.cores} cores"
        + ("" if load is None else f", load {load:.2f}")
    )
    if len(results) > 1:
        lines.append("ratio: median of the rounds' ratios to the first model, [95 % interval]")
    unsteady = [name for name, result in results.items() if not result.steady]
    if unsteady:
        lines.append(f"not steady after warm-up: {', '.join(unsteady)}; trust the ratio only")
    return "\n".join(lines)


def _parser():
    parser = argparse.ArgumentParser(
        prog="python -m tfseg_prune.bench.host",
        description="Times LiteRT files in turns on this machine.",
    )
    parser.add_argument(
        "models", nargs="+", metavar="FILE.tflite", help="the first is the reference"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--runs", type=int, default=30, help="timed rounds at least (default 30)")
    parser.add_argument(
        "--seconds", type=float, default=30.0, help="no further rounds after this (default 30)"
    )
    parser.add_argument("--images", metavar="FILE.npy", help="images [n, height, width, channels]")
    parser.add_argument("--no-xnnpack", action="store_true", help="TFLite's own kernels")
    parser.add_argument("--runtime", help="ai_edge_litert, tflite_runtime or tensorflow")
    parser.add_argument("--json", metavar="OUT.json", help="write the results there")
    return parser


def _load_images(path):
    try:
        return np.load(path)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"Cannot read the images. Expected: a .npy file. Received: {path}: {error}"
        ) from None


def main(argv=None):
    """The command line of this module.

    Args:
        argv: arguments. Defaults to `None`, those of the process.

    Returns:
        The exit status: 0, or 2 after an error, which is one line on stderr.
    """
    args = _parser().parse_args(argv)
    try:
        if args.json and not pathlib.Path(args.json).parent.is_dir():
            raise ValueError(
                f"Invalid --json. Expected: a file in an existing folder. Received: {args.json}."
            )
        results = time_models(
            _names(args.models),
            threads=args.threads,
            min_runs=args.runs,
            max_seconds=args.seconds,
            images=_load_images(args.images) if args.images else None,
            xnnpack=not args.no_xnnpack,
            runtime=args.runtime,
        )
        print(table(results))
        if args.json:
            schema.save(args.json, results.values())
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
