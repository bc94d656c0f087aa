"""What it costs and gains to prune to widths of 4 or 8 channels: MACs, and latency on XNNPACK.

python benchmarks/alignment.py --workdir=runs/alignment
python benchmarks/show.py benchmarks/results/alignment.json

Each network is pruned to half of its MACs (one-shot, L1) with widths of any size, of multiples of
4, 8 and 16. Its float32 files take turns in one run, one thread; ratios are to the dense one, with
the 95 % interval of the median. The realised speed-up fraction is that of every report,
(dense ms / small ms) / (dense MACs / small MACs); the goal is 0.85. Padded MACs are those of GPU
delegates, which round widths up to 4: what alignment gains there, this machine's CPU doesn't show.
XNNPACK's kernels on a CPU compute as many output channels at once as its vectors hold, 16 or more
with AVX-512, hence the 16.

Then the ops of all of them are timed in turns by LiteRT's own profiler (`op_profile`), and what is
missing to a fraction of 1 is divided, exactly, among kernels (ops that take longer per MAC when
they get narrow), mix (MACs that went where they took less time than elsewhere) and what doesn't
multiply. Weights are random: the time doesn't depend on them, the widths do.

A network that is measured isn't measured again when the command is given again.
"""

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile

import grouped_export
import keras
import op_profile
import segmenters
import study
from rich.console import Console

import tfseg_prune as tsp
from tfseg_prune import atomic
from tfseg_prune.bench import host, stats
from tfseg_prune.pipeline import summary

HERE = pathlib.Path(__file__).parent
SEED = 0
BUDGET = 0.5
GOAL = 0.85
# Sizes at which a run takes minutes.
SIZES = {
    "DeepLabV3+": (224, 224),
    "DeepLabV3": (160, 160),
    "UNet": (96, 128),
    "ERFNet": (176, 240),
    "DG4": (176, 240),
    "MobileNetV3Large": (224, 224),
    "EfficientNetB0": (224, 224),
}


def variants(name, size, aligned):
    """{"dense" | "aligned to 4": (model, align or None)} of a network."""
    keras.utils.set_random_seed(SEED)
    dense = segmenters.NETWORKS[name].build(size)
    grouped_export.disturb(dense)
    found = {"dense": (dense, None)}
    for align in aligned:
        plan = tsp.plan(dense, budget=tsp.Budget(macs=BUDGET), align=align)
        found[f"aligned to {align}"] = tsp.shrink(dense, plan), align
    return found


def measure(name, options):
    """The row of one network: its files, timed in one run."""
    size = options.size or SIZES[name]
    files, paths = [], {}
    with tempfile.TemporaryDirectory() as folder:
        for variant, (model, align) in variants(name, size, options.align).items():
            path = pathlib.Path(folder) / f"{study.plain(variant)}.tflite"
            written = tsp.export(model, path)
            cost = tsp.cost(model)
            paths[variant] = str(path)
            files.append(
                {
                    "name": variant,
                    "align": align,
                    "macs": cost.macs,
                    "padded_macs": cost.padded_macs,
                    "params": cost.params,
                    "bytes": written.bytes,
                    "ops": sum(written.ops.values()),
                }
            )
        keras.backend.clear_session()
        results = host.time_models(
            paths,
            threads=1,
            min_runs=options.runs,
            max_seconds=options.seconds,
            ratio_tolerance=0.005,
            seed=SEED,
        )
        profiles, unprofiled = profiled(paths, options.rounds)
    first = results["dense"]
    return {
        "name": name,
        "size": list(size),
        "files": judged(files, results, profiles),
        "unprofiled": unprofiled,
        "rounds": len(first.samples_ms),
        "runtime": f"{first.backend.runtime} {first.backend.version}, {first.backend.delegate}",
        "load_average": first.conditions.load_average,
    }


def profiled(paths, rounds):
    """`({name: list of OpTime}, why there are none)`."""
    try:
        return op_profile.profiles(paths, rounds=rounds), None
    except RuntimeError as error:
        return {}, str(error)


def judged(files, results, profiles):
    """The files with their latencies, and against the dense one and the one of any widths.

    Args:
        files: list of dictionaries, the dense one first.
        results: {name: `Result`}, all of one session.
        profiles: {name: list of `OpTime`}, or empty.
    """
    dense = files[0]
    any_width = next((item for item in files if item["align"] == 1), None)
    found = []
    for item in files:
        result = results[item["name"]]
        item = {
            **item,
            "latency_ms": dataclasses.asdict(result.latency_ms),
            "steady": result.steady,
        }
        if item["align"] is not None:
            ratio = stats.compare(result, results[dense["name"]])
            fraction = stats.realised_speedup(1.0, ratio.value, dense["macs"], item["macs"])
            item["ratio"] = dataclasses.asdict(ratio)
            item["realised"] = fraction
            item["meets_goal"] = fraction >= GOAL
            if profiles:
                item["why"] = op_profile.why(profiles[dense["name"]], profiles[item["name"]])
            if any_width is not None and item["align"] > 1:
                gain = stats.compare(result, results[any_width["name"]])
                item["to_any_width"] = {
                    "latency": dataclasses.asdict(gain),
                    "macs": item["macs"] / any_width["macs"],
                    "padded_macs": item["padded_macs"] / any_width["padded_macs"],
                }
        found.append(item)
    return found


def told(row):
    fractions = [f"{item['align']}: {item['realised']:.3f}" for item in row["files"][1:]]
    return f"realised {', '.join(fractions)} of {row['files'][0]['latency_ms']['p50']:.1f} ms"


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--networks", type=study.numbers(str), default=tuple(SIZES))
    parser.add_argument(
        "--size", type=study.numbers(int), default=None, help="height,width; by default each's own"
    )
    parser.add_argument("--align", type=study.numbers(int), default=(1, 4, 8, 16))
    parser.add_argument("--runs", type=int, default=100, help="timed rounds at least, default 100")
    parser.add_argument(
        "--seconds", type=float, default=180.0, help="no further rounds after this, default 180"
    )
    parser.add_argument("--rounds", type=int, default=15, help="of the profile, default 15")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results" / "alignment.json")
    options = parser.parse_args()
    unknown = sorted(set(options.networks) - set(SIZES))
    if unknown:
        parser.error(f"unknown networks {unknown}. Expected: some of {', '.join(SIZES)}")
    if not options.out.parent.is_dir():
        parser.error(f"--out: there is no folder '{options.out.parent}'")
    return options


def main():
    options = parse()
    options.workdir.mkdir(parents=True, exist_ok=True)
    settings = {k: v for k, v in study.settings_of(options).items() if v is not None}
    command = study.command_of("alignment.py", settings, "--workdir=RUN")
    origin = summary.provenance(command=command, seed=SEED)
    study.hold(options.workdir, {**settings, "networks": None, "commit": origin["commit"]})
    rows = {SEED: study.read_rows(options, SEED)}
    done = {row["name"] for row in rows[SEED]}
    todo = [(SEED, name) for name in options.networks if name not in done]
    study.rows_path(options, SEED).parent.mkdir(exist_ok=True)
    study.make_rows(options, rows, todo, lambda seed, name: measure(name, options), told)
    by_name = {row["name"]: row for row in rows[SEED]}
    result = {
        "kind": "alignment",
        "name": f"Pruned to {BUDGET:.0%} of the MACs in widths of many sizes, one thread",
        **origin,
        "limits": {"realised": GOAL},
        "settings": settings,
        "rows": [by_name[name] for name in options.networks],
    }
    atomic.write_text(options.out, json.dumps(result, indent=1) + "\n")
    import tables_files

    tables_files.alignment(result, Console(width=None if sys.stdout.isatty() else 160))


if __name__ == "__main__":
    main()
