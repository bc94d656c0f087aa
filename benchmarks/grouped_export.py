"""ERFNet and its grouped family as files: both lowerings of grouped convolutions, and their time.

python benchmarks/grouped_export.py                    # some 5 minutes
python benchmarks/show.py benchmarks/results/grouped_export.json

Each network is exported as it is and, where its convolutions are grouped, in two ways: with one
grouped CONV_2D each ("grouped") and with one convolution per group of split channels ("split").
Weights are random, since the time doesn't depend on training, with batch normalisations that do
something. Every file is compared with its Keras network on the CPU interpreter. Then all files take
turns in one run, one thread each; ratios are to ERFNet's latency, with the 95 % interval of the
median, and the realised speed-up fraction is that of every report: (ERFNet's ms / its ms) /
(ERFNet's MACs / its MACs). This machine's CPU says nothing of phones' GPUs.
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import sys
import tempfile

import keras
import networks
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

import tfseg_prune as tsp
from tfseg_prune import atomic, models
from tfseg_prune.bench import host, stats
from tfseg_prune.deploy import summarised
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
CLASSES = 11
SIZE = (176, 240)  # height, width: 240x176 pixels
SEED = 0
IMAGES = 4  # that files and networks are compared on
# Largest difference of any logit over the largest logit.
LIMIT = 1e-5
# Name in the paper: (options of `models.erfnet`, ways to export it).
BOTH = ("grouped", "split")
NETWORKS = {
    "ERFNet": ({}, ("auto",)),
    "D*": ({"block": "D"}, ("auto",)),
    **{f"DG{groups}*": ({"block": f"DG{groups}"}, BOTH) for groups in (2, 4, 8)},
}


def disturb(model):
    """Draws the batch normalisations of a model, so that folding them shows.

    Not the statistics of images, as in `networks.randomise`: a random network so normalised
    enlarges the noise of float arithmetic a hundredfold.
    """
    rng = np.random.default_rng(SEED)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            layer.gamma.assign(rng.uniform(0.5, 1.5, size))
            layer.beta.assign(rng.normal(0, 0.2, size))
            layer.moving_mean.assign(rng.normal(0, 0.2, size))
            layer.moving_variance.assign(rng.uniform(0.3, 1.5, size))


def exported(name, size, folder):
    """Rows of one network's files, which are written to the folder."""
    options, ways = NETWORKS[name]
    keras.utils.set_random_seed(SEED)
    model = models.erfnet(CLASSES, (*size, 3), **options)
    disturb(model)
    images = networks.random_images(model, count=IMAGES, seed=SEED)
    cost = tsp.cost(model)
    rows = []
    for way in ways:
        path = folder / f"{name.rstrip('*')}_{way}.tflite"
        # The difference is judged here: what random logits say of classes may hang on a rounding.
        written = tsp.export(model, path, grouped=way, images=images, threshold=0.0)
        rows.append(
            {
                "name": name,
                "lowering": way if written.lowered else None,
                "options": options,
                "params": cost.params,
                "macs": cost.macs,
                "bytes": written.bytes,
                "ops": written.ops,
                "lowered": summarised(written.lowered),
                "relative_diff": written.parity.relative_diff,
                "argmax_agreement": written.parity.argmax_agreement,
                "equal": written.parity.relative_diff <= LIMIT,
                "path": str(path),
            }
        )
    keras.backend.clear_session()
    return rows


def timed(rows, results):
    """The rows with their latencies, the ratios to the first, and of split to grouped files.

    Args:
        rows: of `exported`.
        results: {path of the file: `Result`}, all of one session.
    """
    first = rows[0]
    finished, grouped = [], {}
    for row in rows:
        result = results[row["path"]]
        row = {key: value for key, value in row.items() if key != "path"}
        row |= {"latency_ms": dataclasses.asdict(result.latency_ms), "steady": result.steady}
        if result is not results[first["path"]]:
            ratio = stats.compare(result, results[first["path"]])
            row["ratio"] = dataclasses.asdict(ratio)
            row["realised"] = stats.realised_speedup(1.0, ratio.value, first["macs"], row["macs"])
        if row["lowering"] == "grouped":
            grouped[row["name"]] = result
        if row["lowering"] == "split":
            row["to_grouped"] = dataclasses.asdict(stats.compare(result, grouped[row["name"]]))
        finished.append(row)
    return finished


def measure(options):
    """`(rows, conditions)` of the whole benchmark."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        tempfile.TemporaryDirectory() as folder,
        Progress(*columns, TimeRemainingColumn(elapsed_when_finished=True)) as progress,
    ):
        task = progress.add_task("export", total=len(NETWORKS))
        rows = []
        for name in NETWORKS:
            progress.update(task, description=f"export {name}")
            rows += exported(name, options.size, pathlib.Path(folder))
            progress.advance(task)
        phases = {}

        def tick(phase, done, total):
            if phase not in phases:
                phases[phase] = progress.add_task(phase, total=total)
            progress.update(phases[phase], completed=done, total=max(done, total))

        results = host.time_models(
            {row["path"]: row["path"] for row in rows},
            threads=1,
            min_runs=options.runs,
            max_seconds=options.seconds,
            ratio_tolerance=0.005,
            seed=SEED,
            progress=tick,
        )
    one = results[rows[0]["path"]]
    conditions = {
        "threads": one.backend.threads,
        "runtime": f"{one.backend.runtime} {one.backend.version}, {one.backend.delegate}",
        "rounds": len(one.samples_ms),
        "warmup_rounds": one.warmup_runs,
        "load_average": one.conditions.load_average,
    }
    return timed(rows, results), conditions


def _size(text):
    height, _, width = text.partition("x")
    return int(height), int(width)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    size = "x".join(map(str, SIZE))
    parser.add_argument("--size", type=_size, default=SIZE, help=f"HEIGHTxWIDTH, default {size}")
    parser.add_argument("--runs", type=int, default=200, help="timed rounds at least, default 200")
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="no further rounds after this, default 300"
    )
    parser.add_argument(
        "--out", type=pathlib.Path, default=HERE / "results" / "grouped_export.json"
    )
    options = parser.parse_args()
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder '{options.out.parent}'")
    given = [word for word in sys.argv[1:] if not word.startswith("--out")]
    command = shlex.join(["python", "benchmarks/grouped_export.py", *given])
    origin = summary.provenance(command=command, seed=SEED)
    try:
        rows, conditions = measure(options)
    except KeyboardInterrupt:
        sys.exit("Interrupted; nothing was written. Ratios need all files in one run.")
    height, width = options.size
    result = {
        "kind": "grouped_export",
        "name": f"Files of ERFNet and its grouped family, {CLASSES} classes, {width}x{height}",
        **origin,
        "limits": {"relative_diff": LIMIT},
        "conditions": conditions,
        "rows": rows,
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    import tables_files

    tables_files.grouped_export(result, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
